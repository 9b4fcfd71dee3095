"""Workers that die, hang or freeze in the middle of an evaluation: nothing is lost or doubled."""

import os
import signal
import socket
import time

import pytest

from tests.contract.light_runners import LightRunner, light_spec, request
from tests.contract.pool_contract import drain, warm_up
from tests.fault.memory_limit import memory_limit
from tests.fault.processes import wait_until_gone
from workers import ray_fleet
from workers.outcome import Completed, Failed, Stage
from workers.ray_pool import RayPool
from workers.toll import Past

pytestmark = pytest.mark.slow


@pytest.fixture
def make_pool(local_ray):
    pools = []

    def make(past=None, **workers):
        pools.append(RayPool(light_spec(**workers), LightRunner, past=past))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_request_is_tried_again_when_its_worker_is_killed_from_outside(make_pool):
    pool = make_pool(count=2)
    warm_up(pool)
    pool.submit(request(0, "sleep 3"))
    pool.submit(request(1, "sleep 3"))
    assert pool.next_outcome(timeout_s=0.3) is None
    os.kill(pool.worker_pids()["worker-1"], signal.SIGKILL)
    outcomes = drain(pool)
    assert sorted(outcome.key.candidate for outcome in outcomes) == [0, 1]
    assert all(isinstance(outcome, Completed) for outcome in outcomes)
    assert sorted(outcome.attempt for outcome in outcomes) == [1, 2]


def test_request_completes_in_its_second_attempt_when_it_killed_its_worker_once(
    make_pool, tmp_path
):
    pool = make_pool(count=1)
    pool.submit(request(0, f"kill_once {tmp_path / 'marker'}"))
    (outcome,) = drain(pool)
    assert isinstance(outcome, Completed)
    assert outcome.attempt == 2


def test_request_fails_when_it_kills_its_worker_in_every_attempt(make_pool, caplog):
    pool = make_pool(count=2, max_attempts=2)
    pool.submit(request(0, "kill"))
    (outcome,) = drain(pool)
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.error_class) == (Stage.WORKER, "WorkerLostError")
    assert outcome.attempt == 2
    assert (
        "given up after attempt 2, which took 2 workers (workers.max_attempts)" in outcome.message
    )
    lost = [record for record in caplog.records if "is lost" in record.getMessage()]
    assert [(record.candidate, record.attempt) for record in lost] == [(0, 1), (0, 2)]
    pool.submit(request(1))
    assert isinstance(drain(pool)[0], Completed), "the pool has workers again"


def test_request_is_tried_again_when_the_kernel_kills_its_worker_for_lack_of_memory(
    make_pool, tmp_path
):
    pool = make_pool(count=1)
    warm_up(pool)
    with memory_limit(tmp_path, 300 * 2**20) as processes:
        processes.write_text(str(pool.worker_pids()["worker-1"]))
        pool.submit(request(0, "allocate 1000"))
        (outcome,) = drain(pool)
    assert isinstance(outcome, Completed)
    # The limit was that of the process which is gone.
    assert outcome.attempt == 2


def test_workers_that_die_while_they_are_idle_are_not_held_against_the_next_recipe(make_pool):
    pool = make_pool(count=1, max_attempts=1)
    warm_up(pool)
    # Who has just answered is not asked for a sign of life.
    time.sleep(2 * ray_fleet._FRESH_S)
    killed = pool.worker_pids().values()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    pool.submit(request(0))
    (outcome,) = drain(pool)
    assert isinstance(outcome, Completed)
    assert outcome.attempt == 1
    # Nor is it remembered as one that kills.
    pool.submit(request(1))
    assert isinstance(drain(pool)[0], Completed)


def test_worker_that_froze_while_it_was_idle_is_not_held_against_the_next_recipe(
    make_pool, monkeypatch
):
    monkeypatch.setattr("workers.ray_fleet._ANSWER_S", 2.0)
    pool = make_pool(count=1, max_attempts=1, timeout_s=5.0)
    warm_up(pool)
    time.sleep(2 * ray_fleet._FRESH_S)
    os.kill(pool.worker_pids()["worker-1"], signal.SIGSTOP)
    pool.submit(request(9))
    (outcome,) = drain(pool)
    assert isinstance(outcome, Completed)
    assert outcome.attempt == 1


def test_workers_that_froze_while_they_were_idle_are_waited_for_together(make_pool, monkeypatch):
    monkeypatch.setattr("workers.ray_fleet._ANSWER_S", 4.0)
    pool = make_pool(count=3, timeout_s=60.0)
    warm_up(pool)
    time.sleep(2 * ray_fleet._FRESH_S)
    for name in ("worker-1", "worker-2"):
        os.kill(pool.worker_pids()[name], signal.SIGSTOP)
    began = time.monotonic()
    pool.submit(request(9))
    assert time.monotonic() - began < 2 * 4.0
    (outcome,) = drain(pool)
    assert isinstance(outcome, Completed)
    assert outcome.worker.startswith("worker-3@")


def test_recipe_that_kills_at_once_is_charged_every_time(make_pool):
    pool = make_pool(count=2, max_attempts=1)
    for candidate in range(6):
        pool.submit(request(candidate, f"kill {candidate}"))
        (outcome,) = drain(pool)
        assert (outcome.error_class, outcome.attempt) == ("WorkerLostError", 1)


def test_recipe_that_killed_two_workers_is_not_tried_again(make_pool, tmp_path):
    pool = make_pool(count=1)
    killer = f"kill_twice {tmp_path / 'marker'}"
    pool.submit(request(0, killer))
    assert isinstance(drain(pool)[0], Failed)
    warm_up(pool)
    before = pool.worker_pids()
    # It would complete now, but nobody can know that.
    pool.submit(request(1, killer))
    (outcome,) = drain(pool)
    assert isinstance(outcome, Failed)
    assert outcome.key.candidate == 1
    assert "given up after attempt 2" in outcome.message
    assert pool.worker_pids() == before


def test_recipe_that_killed_two_workers_is_not_tried_again_by_the_next_pool(make_pool, tmp_path):
    killer = request(1, f"kill_twice {tmp_path / 'marker'}")
    pool = make_pool(count=1, past=Past({killer.recipe.recipe_id: "took two"}))
    pool.submit(killer)
    outcome = pool.next_outcome(timeout_s=0)
    assert (outcome.error_class, outcome.message) == ("WorkerLostError", "took two")
    assert not (tmp_path / "marker").exists()


def test_worker_that_was_lost_before_its_driver_counts_for_the_next_driver(make_pool, tmp_path):
    killer = request(0, f"kill_twice {tmp_path / 'marker'}")
    kept = []

    class DriverEndedError(Exception):
        pass

    def keep_and_end(loss):
        kept.append(loss)
        raise DriverEndedError

    first = make_pool(count=1, past=Past(keep=keep_and_end))
    first.submit(killer)
    with pytest.raises(DriverEndedError):
        drain(first)
    first.close()
    assert [(loss.key, loss.attempt) for loss in kept] == [(killer.key, 1)]

    second = make_pool(count=1, past=Past(losses=tuple(kept), keep=kept.append))
    second.submit(killer)
    (outcome,) = drain(second)
    assert isinstance(outcome, Failed)
    assert outcome.attempt == 1
    assert "given up after attempt 2, which took 2 workers" in outcome.message
    assert len(kept) == 2


def test_evaluation_that_hangs_is_tried_on_another_worker(make_pool, tmp_path):
    pool = make_pool(count=2, hang_factor=3, hang_floor_s=5.0)
    warm_up(pool)
    for candidate in range(8):
        pool.submit(request(candidate, "sleep 0.05"))
        drain(pool)
    pool.submit(request(9, f"sleep_once {tmp_path / 'marker'} 90"))
    start = time.monotonic()
    (outcome,) = drain(pool)
    assert time.monotonic() - start < 60, "it was waited for"
    assert isinstance(outcome, Completed)
    assert outcome.attempt == 2


def test_worker_that_freezes_before_anything_is_known_does_not_hold_the_search(make_pool, tmp_path):
    pool = make_pool(count=2, hang_factor=3, hang_floor_s=5.0)
    warm_up(pool)
    pool.submit(request(0, f"stop_once {tmp_path / 'marker'}"))
    # What the others take says only later that this one hangs.
    outcomes = []
    for candidate in range(1, 9):
        pool.submit(request(candidate, "sleep 0.05"))
        outcomes.append(pool.next_outcome(timeout_s=30))
    outcomes.append(pool.next_outcome(timeout_s=60))
    assert None not in outcomes
    assert sorted(outcome.key.candidate for outcome in outcomes) == list(range(9))
    assert all(isinstance(outcome, Completed) for outcome in outcomes)
    assert {outcome.key.candidate: outcome.attempt for outcome in outcomes}[0] == 2


def test_evaluation_that_always_hangs_fails(make_pool):
    pool = make_pool(count=1, hang_factor=2, hang_floor_s=2.0)
    for candidate in range(8):
        pool.submit(request(candidate, "sleep 0.05"))
        drain(pool)
    pool.submit(request(9, "sleep 60"))
    (outcome,) = drain(pool)
    assert isinstance(outcome, Failed)
    assert outcome.error_class == "WorkerTimeoutError"
    assert "2 times the median of such evaluations (workers.hang_factor)" in outcome.message


def test_worker_is_replaced_when_three_recipes_fail_on_it(make_pool, caplog):
    pool = make_pool(count=1)
    warm_up(pool)
    before = pool.worker_pids()["worker-1"]
    for candidate, method in enumerate(("fail", "fail", "score", "fail", "fail")):
        pool.submit(request(candidate, method))
        drain(pool)
    assert pool.worker_pids()["worker-1"] == before, "never three one after another"
    pool.submit(request(5, "fail"))
    drain(pool)
    assert "is replaced: 3 recipes failed on it one after another" in caplog.text
    assert f"on node {socket.gethostname()}" in caplog.text
    pool.submit(request(6))
    assert isinstance(drain(pool)[0], Completed)
    assert pool.worker_pids()["worker-1"] != before


def test_error_of_the_machine_is_tried_once_more(make_pool, tmp_path):
    pool = make_pool(count=1)
    pool.submit(request(0, f"fail_once {tmp_path / 'marker'} OSError"))
    (outcome,) = drain(pool)
    assert isinstance(outcome, Completed)
    assert outcome.attempt == 2


def test_outcome_of_another_attempt_is_dropped(make_pool, caplog):
    pool = make_pool(count=1)
    pool.submit(request(0, "stale"))
    (outcome,) = drain(pool)
    assert outcome.attempt == 2
    assert "dropped an outcome of attempt 0" in caplog.text


def test_draining_pool_finishes_what_it_has_and_takes_no_more(make_pool):
    pool = make_pool(count=2)
    warm_up(pool)
    pool.submit(request(0, "sleep 0.5"))
    pool.drain()
    assert pool.num_free == 0
    with pytest.raises(ValueError, match="no worker is free"):
        pool.submit(request(1))
    assert [outcome.key.candidate for outcome in drain(pool)] == [0]


@pytest.mark.parametrize("hang", ["sleep 60", "stop"])
def test_request_fails_and_its_worker_is_replaced_when_it_hangs(make_pool, hang):
    pool = make_pool(count=1, timeout_s=4.0)
    warm_up(pool)
    before = pool.worker_pids()["worker-1"]
    pool.submit(request(0, hang))
    start = time.monotonic()
    (outcome,) = drain(pool)
    assert 3.9 < time.monotonic() - start < 50, "not by its limit"
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.error_class) == (Stage.WORKER, "WorkerTimeoutError")
    assert outcome.attempt == 1
    pool.submit(request(1))
    assert isinstance(drain(pool)[0], Completed)
    assert pool.worker_pids()["worker-1"] != before
    assert not wait_until_gone([before], within_s=120)


def test_worker_that_times_out_after_failures_is_replaced_once(make_pool, monkeypatch):
    pool = make_pool(count=1, timeout_s=3.0)
    warm_up(pool)
    starts = []
    start = ray_fleet.Fleet.start
    monkeypatch.setattr(ray_fleet.Fleet, "start", lambda *of: starts.append(of) or start(*of))
    for candidate, verb in enumerate(("fail", "fail", "sleep 60")):
        pool.submit(request(candidate, verb))
        assert isinstance(drain(pool)[0], Failed)
    assert len(starts) == 1


def test_late_outcome_of_a_given_up_evaluation_never_surfaces(make_pool):
    # The abandoned call ends by itself soon after its limit, while others are awaited.
    pool = make_pool(count=2, timeout_s=3.0)
    warm_up(pool)
    pool.submit(request(0, "sleep 3.8"))
    outcomes = drain(pool)
    for candidate in range(1, 16):
        pool.submit(request(candidate, "sleep 0.1"))
        outcomes += drain(pool)
    assert [outcome.key.candidate for outcome in outcomes] == list(range(16))
    assert [type(outcome) for outcome in outcomes] == [Failed] + 15 * [Completed]


def test_worker_is_replaced_when_its_accelerator_context_is_broken(make_pool):
    pool = make_pool(count=1)
    warm_up(pool)
    before = pool.worker_pids()["worker-1"]
    pool.submit(request(0, "fail AcceleratorError"))
    assert drain(pool)[0].error_class == "AcceleratorError"
    pool.submit(request(1))
    assert isinstance(drain(pool)[0], Completed)
    assert pool.worker_pids()["worker-1"] != before


def test_lost_worker_writes_nothing_to_standard_output(make_pool, capfd):
    pool = make_pool(count=1, max_attempts=1)
    pool.submit(request(0, "kill"))
    drain(pool)
    time.sleep(1.0)  # Ray's own note about it comes from another thread
    assert capfd.readouterr().out == ""
