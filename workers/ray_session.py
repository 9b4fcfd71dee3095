"""Starting a Ray on this machine, or joining a cluster, for as long as a pool needs it."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray

from configs.errors import WorkerError
from configs.worker_settings import WorkerSettings
from workers.local_session import LocalSession
from workers.pool_size import local_count, workers_that_fit
from workers.ray_autoscaler import Autoscaler, find_autoscaler
from workers.ray_door import knock, other_version

logger = logging.getLogger(__name__)

# Outcomes are small; nothing of a model goes through the object store (D7).
_OBJECT_STORE_BYTES = 100 * 2**20


@contextmanager
def ray_session(settings: WorkerSettings) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at ``settings.address``, for a while.

    What was started here ends with the context; a cluster that was joined lives on. Does
    nothing in a process that has a Ray already.

    Raises:
        WorkerError: Ray cannot be started or joined; a ClusterError says why it lets nobody in.
    """
    if ray.is_initialized():
        yield
        return
    _quieten_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray will do by default, and announces with a warning until then: a worker without GPUs
    # keeps CUDA_VISIBLE_DEVICES as it is.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with ExitStack() as stack:
        if settings.address is None:
            _start(settings, stack)
        else:
            _join(settings.address, stack)
        yield


def _start(settings: WorkerSettings, stack: ExitStack) -> None:
    """Start Ray; on a machine so busy that a part of it came up too late, once more."""
    try:
        stack.enter_context(_local_ray(settings))
    except Exception as first:  # noqa: BLE001 - Ray raises bare ones
        logger.warning("Ray did not start, trying again: %s", first)
        try:
            stack.enter_context(_local_ray(settings))
        except Exception as error:
            raise WorkerError(f"cannot start Ray on this machine: {error}") from error


@contextmanager
def _local_ray(settings: WorkerSettings) -> Iterator[None]:
    with LocalSession() as session:
        try:
            _init(
                # Not None, which joins whatever RAY_ADDRESS names.
                address="local",
                num_cpus=max(os.cpu_count() or 1, math.ceil(local_count(settings) * settings.cpus)),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                # Ray opens its own directory to everybody; the one around it stays private.
                _temp_dir=str(session.directory / "ray"),
            )
        except BaseException:
            ray.shutdown()
            # A start that failed half-way leaves processes that Ray does not know of.
            session.end_processes()
            raise
        try:
            yield
        finally:
            ray.shutdown()


def _join(address: str, stack: ExitStack) -> None:
    knock(address)
    try:
        stack.callback(ray.shutdown)
        try:
            _init(address=address, **_code_for(address))
        except ConnectionAbortedError as first:
            # Over `ray://` the cluster forks a server for us, which now and then dies at once.
            logger.warning("Ray at `%s` did not take us in, trying again: %s", address, first)
            _init(address=address, **_code_for(address))
    except Exception as error:
        if differing := other_version(address, error):
            raise differing from error
        raise WorkerError(
            f"cannot join Ray at `{address}`: {error}. Check `workers.address`, and that Ray runs "
            "there (`ray status`)"
        ) from error


def _code_for(address: str) -> dict[str, Any]:
    """Return what brings this code to a cluster that is joined from outside, over ``ray://``.

    Elsewhere it is installed, or comes with the job that this process is part of.
    """
    if not address.startswith("ray://"):
        return {}
    home = Path(__file__).parents[1]
    packages = [str(home / name) for name in ("configs", "evaluators", "workers")]
    return {"runtime_env": {"py_modules": packages}}


def _init(**options: Any) -> None:
    ray.init(**options, namespace="mergefront", configure_logging=False, log_to_driver=False)


def require_resources(settings: WorkerSettings) -> Autoscaler | None:
    """Check that workers can be placed, which Ray would wait for without a word.

    Returns:
        What starts nodes of the cluster that was joined, if something does.

    Raises:
        WorkerError: No node is large enough for one worker, nor any that could be started, or the
            GPUs of a Ray of our own are too few for all of them.
    """
    known = ray.nodes()
    nodes = [node for node in known if node["Alive"]]
    autoscaler = None if settings.address is None else find_autoscaler()
    count = local_count(settings) if settings.address is None else 1
    room = workers_that_fit(settings, [node["Resources"] for node in nodes])
    if room >= count or (autoscaler and autoscaler.num_more(settings, nodes)):
        return autoscaler
    rooms = (
        f"{node['Resources'].get('CPU', 0):g} CPUs, {node['Resources'].get('GPU', 0):g} GPUs"
        for node in nodes
    )
    found = "; ".join(sorted(rooms))
    growth = f", and an autoscaler for {autoscaler}" if autoscaler else ""
    raise WorkerError(
        f"workers: {settings.count} x ({settings.cpus:g} CPUs, {settings.gpus:g} GPUs) do not "
        f"fit here, found {found}{growth}. Lower workers.count, cpus or gpus, or name another "
        "workers.address"
    )


def _quieten_ray() -> None:
    """Send what Ray would print in this process to our log: stdout belongs to results.

    ``log_to_driver=False`` covers the output of workers, but a raylet's note about each lost
    worker is still printed, by a function that has no switch.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)

    def log_note(data: dict[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001 - Ray's signature
        logger.debug("%s: %s", data.get("pid"), " ".join(map(str, data.get("lines", ()))))

    ray._private.worker.print_to_stdstream = log_note
