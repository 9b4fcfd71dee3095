"""SIGTERM ends a driver when what is under way has finished, or when the time is up."""

import os
import signal
import threading

import pytest

from optimizer.events import PhaseChanged
from optimizer.termination import Terminated, finishing_on_sigterm

EVENT = PhaseChanged("search", 1)


class Pool:
    """What a driver's pool looks like from here: so many evaluations under way."""

    def __init__(self, num_pending):
        self.num_pending = num_pending
        self.is_draining = False

    def drain(self):
        self.is_draining = True


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_driver_goes_on_until_the_last_evaluation_has_ended():
    pool, seen = Pool(2), []
    with finishing_on_sigterm(pool, seen.append, grace_s=60) as on_event:
        on_event(EVENT)
        assert not pool.is_draining
        terminate()
        assert pool.is_draining
        pool.num_pending = 1
        on_event(EVENT)
        pool.num_pending = 0
        with pytest.raises(Terminated):
            on_event(EVENT)
    assert len(seen) == 3, "the last event is told, too"


def test_driver_ends_when_the_grace_period_is_over():
    with finishing_on_sigterm(Pool(1), lambda _: None, grace_s=0) as on_event:
        on_event(EVENT)
        terminate()
        with pytest.raises(Terminated):
            on_event(EVENT)


def test_second_signal_ends_at_once():
    with finishing_on_sigterm(Pool(1), lambda _: None, grace_s=60):
        terminate()
        with pytest.raises(Terminated):
            terminate()


def test_handler_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with finishing_on_sigterm(Pool(1), lambda _: None, grace_s=60):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_are_left_alone():
    found = []

    def drive():
        with finishing_on_sigterm(Pool(1), found.append, grace_s=60) as on_event:
            on_event(EVENT)

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
    assert found == [EVENT]
