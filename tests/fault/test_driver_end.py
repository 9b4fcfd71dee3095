"""However a driver ends, the Ray that it started ends with it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.fault.processes import wait_until_gone

pytestmark = pytest.mark.slow


@pytest.fixture
def start_driver():
    drivers = []

    def start(seconds, address=None):
        driver = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.fault.pool_driver",
                str(seconds),
                *filter(None, [address]),
            ],
            # A cluster that somebody else named must not be joined by accident.
            env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        drivers.append(driver)
        line = driver.stdout.readline()
        assert line, driver.stderr.read()
        return driver, json.loads(line)

    yield start
    for driver in drivers:
        driver.kill()
        driver.communicate()


def test_driver_leaves_no_process_when_it_ends(start_driver):
    driver, started = start_driver(0.2)
    _, errors = driver.communicate(timeout=180)
    assert driver.returncode == 0
    assert errors == ""
    assert len(started["below"]) >= 4, "a Ray and two workers"
    assert not wait_until_gone(started["below"], within_s=120)


def test_driver_leaves_no_process_when_interrupted_from_the_keyboard(start_driver):
    driver, started = start_driver(600)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to every process of the job
    _, errors = driver.communicate(timeout=180)
    assert "KeyboardInterrupt" in errors
    assert driver.returncode in {1, 130, -signal.SIGINT}
    assert not wait_until_gone(started["below"], within_s=120)


def test_driver_leaves_no_process_when_terminated(start_driver):
    driver, started = start_driver(600)
    driver.terminate()
    driver.communicate(timeout=180)
    assert not wait_until_gone(started["below"], within_s=120)


def test_driver_leaves_no_process_when_killed(start_driver):
    driver, started = start_driver(600)
    driver.kill()
    driver.communicate(timeout=180)
    assert not wait_until_gone(started["below"], within_s=120)


def test_driver_leaves_the_cluster_that_it_joined_but_not_its_workers(start_driver, local_ray):
    import ray

    address = ray.get_runtime_context().gcs_address
    driver, joined = start_driver(0.2, address)
    _, errors = driver.communicate(timeout=180)
    assert (driver.returncode, errors) == (0, "")
    assert not wait_until_gone(joined["workers"].values(), within_s=120)
    assert [node["Alive"] for node in ray.nodes()] == [True]
