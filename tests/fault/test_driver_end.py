"""However a driver ends, the Ray that it started ends with it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.fault.test_worker_loss import wait_until_gone

pytestmark = pytest.mark.slow


@pytest.fixture
def start_driver():
    drivers = []

    def start(seconds):
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.pool_driver", str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        drivers.append(driver)
        line = driver.stdout.readline()
        assert line, driver.stderr.read()
        return driver, json.loads(line)["below"]

    yield start
    for driver in drivers:
        driver.kill()
        driver.communicate()


def test_driver_leaves_no_process_when_it_ends(start_driver):
    driver, below = start_driver(0.2)
    _, errors = driver.communicate(timeout=30)
    assert driver.returncode == 0
    assert errors == ""
    assert len(below) >= 4, "a Ray and two workers"
    assert not wait_until_gone(below, within_s=5)


def test_driver_leaves_no_process_when_interrupted_from_the_keyboard(start_driver):
    driver, below = start_driver(600)
    start = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to every process of the job
    _, errors = driver.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert "KeyboardInterrupt" in errors
    assert driver.returncode in {1, 130, -signal.SIGINT}
    assert not wait_until_gone(below, within_s=5)


def test_driver_leaves_no_process_when_terminated(start_driver):
    driver, below = start_driver(600)
    driver.terminate()
    driver.communicate(timeout=30)
    assert not wait_until_gone(below, within_s=5)


def test_driver_leaves_no_process_when_killed(start_driver):
    driver, below = start_driver(600)
    driver.kill()
    driver.communicate(timeout=30)
    assert not wait_until_gone(below, within_s=10)
