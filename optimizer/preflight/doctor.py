"""What works on this machine, what does not, and what to do about it; start at :func:`examine`."""

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from configs.errors import MergefrontError
from optimizer.archive.schema import mergefront_version
from optimizer.hub_errors import unreachable_error
from optimizer.preflight.estimate import format_bytes
from optimizer.preflight.machine_check import why_not_writable
from workers.hardware import find_hardware

logger = logging.getLogger(__name__)

Status = Literal["ok", "note", "fault"]

# Bytes that are written and read to measure a disk: more than its own cache hides in a moment.
_PROBE_BYTES = 256 * 2**20
_LITTLE_SPACE = 20 * 10**9
_HUB_S = 5.0
_SHM_BYTES = 200 * 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: ``ok``; ``note`` where something that some searches need is missing; ``fault``
            where no search can run.
        found: What is there.
        advice: What to do; empty where nothing has to be done.
    """

    name: str
    status: Status
    found: str
    advice: str = ""

    def record(self) -> dict[str, str]:
        """Return it as JSON."""
        return asdict(self)


def examine(directory: Path, *, quick: bool = False) -> Iterator[Finding]:
    """Look at everything, one thing after another.

    Args:
        directory: Where archives and exports will be; its disk is measured.
        quick: Leave out what takes seconds: the disk's speed, the sandbox, Ray and the hub.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("machine", _machine),
        ("GPUs", _gpus),
        ("compiler", _compiler),
        ("disk", lambda: _disk(directory, measure=not quick)),
        ("cache", _cache),
        ("shared memory", _shared_memory),
        ("IFEval data", _ifeval_data),
    ]
    if not quick:
        checks += [("sandbox", _sandbox), ("Ray", _ray), ("hub", _hub)]
    for name, check in checks:
        try:
            yield check()
        # Whatever a check meets on a broken machine is its finding, and the others go on.
        except Exception as error:
            logger.debug("%s cannot be looked at", name, exc_info=True)
            reason = error.message if isinstance(error, MergefrontError) else str(error)
            yield Finding(name, "fault", f"{type(error).__name__}: {reason}")


def _python() -> Finding:
    found = f"{platform.python_version()}, mergefront {mergefront_version()}, {platform.platform()}"
    return Finding("Python", "ok", found)


def _packages() -> Finding:
    """Compare what is installed with what this mergefront asks for."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in requires("mergefront") or ()]
    except PackageNotFoundError:
        text = "mergefront is not installed, it runs from its source tree"
        return Finding("packages", "note", text, "pip install -e . in its directory")
    shown, wrong = [], []
    for requirement in asked:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement} is missing")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            wrong.append(f"{requirement.name} {there}, needed {requirement.specifier}")
        if requirement.name in ("torch", "transformers", "lm-eval", "ray", "huggingface-hub"):
            shown.append(f"{requirement.name} {there}")
    if wrong:
        return Finding("packages", "fault", "; ".join(wrong), "pip install --upgrade mergefront")
    return Finding("packages", "ok", ", ".join(shown))


def _machine() -> Finding:
    here = find_hardware()
    found = (
        f"{here.cores} cores, {format_bytes(here.memory_bytes)} of memory, "
        f"{format_bytes(here.free_bytes)} free"
    )
    return Finding("machine", "ok", found)


def _gpus() -> Finding:
    import torch

    here = find_hardware()
    if here.gpus:
        parts = [f"{gpu.name} ({format_bytes(gpu.memory_bytes)})" for gpu in here.gpus]
        return Finding("GPUs", "ok", ", ".join(parts))
    if shutil.which("nvidia-smi"):
        advice = f"install a build of torch with CUDA; this one is {torch.__version__}"
        return Finding("GPUs", "fault", "there is a driver, but torch finds no CUDA device", advice)
    return Finding("GPUs", "note", "none", "searches run on the CPU (`workers.device: cpu`)")


def _compiler() -> Finding:
    from workers.cpp_compiler import find_cpp_compiler

    name = find_cpp_compiler()
    if name is None:
        advice = "apt-get install g++ clang libomp-dev, so that merges are compiled"
        return Finding("compiler", "note", "none: merging on the CPU is slower", advice)
    if "clang" in name:
        return Finding("compiler", "ok", name)
    return Finding("compiler", "ok", f"{name} (DARE merges on the CPU are faster by clang++)")


def _disk(directory: Path, *, measure: bool) -> Finding:
    if reason := why_not_writable(directory):
        return Finding("disk", "fault", reason, "name another directory with --directory")
    directory = directory.absolute()
    here = next(place for place in (directory, *directory.parents) if place.exists())
    free = shutil.disk_usage(here).free
    found = f"{here}: {format_bytes(free)} free"
    if measure and free > 2 * _PROBE_BYTES:
        written, read = _disk_rates(here)
        found += f", writes {written:.2g} GB/s, reads {read:.2g} GB/s"
    if free < _LITTLE_SPACE:
        return Finding("disk", "note", found, "an export is as large as the model: make room")
    return Finding("disk", "ok", found)


def _disk_rates(directory: Path) -> tuple[float, float]:
    """Return GB/s of writing a file to the disk, and of reading it back from there."""
    chunk = os.urandom(2**24)
    with tempfile.TemporaryFile(dir=directory) as file:
        start = time.perf_counter()
        for _ in range(_PROBE_BYTES // len(chunk)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        # Not from memory, where it still is.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(len(chunk)):
            pass
        read = time.perf_counter() - start
    size_gb = _PROBE_BYTES / 1e9
    return size_gb / max(written, 1e-9), size_gb / max(read, 1e-9)


def _cache() -> Finding:
    from workers.user_cache import user_cache

    place = user_cache()
    if reason := why_not_writable(place):
        return Finding("cache", "note", reason, "set XDG_CACHE_HOME to a directory of yours")
    return Finding("cache", "ok", str(place))


def _shared_memory() -> Finding:
    # Where Ray keeps its objects.
    place = Path("/dev", "shm")
    if not place.is_dir():
        return Finding("shared memory", "note", f"there is no {place}", "Ray will use the disk")
    free = shutil.disk_usage(place).free
    found = f"{format_bytes(free)} free in {place}"
    if free < _SHM_BYTES:
        return Finding("shared memory", "note", found, "in Docker: --shm-size=1g")
    return Finding("shared memory", "ok", found)


def _ifeval_data() -> Finding:
    import nltk

    try:
        place = nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        advice = "python -m nltk.downloader punkt_tab, or NLTK_DATA; only IFEval needs it"
        return Finding("IFEval data", "note", "nltk's punkt_tab is missing", advice)
    return Finding("IFEval data", "ok", str(place))


def _sandbox() -> Finding:
    """Run a program in the sandbox that is the default, else in the weaker one."""
    from configs.evaluation import SandboxKind
    from evaluators.sandbox import Sandbox

    def runs(kind: SandboxKind) -> str:
        try:
            with Sandbox(kind, servers=1) as sandbox:
                (result,) = sandbox.run(["assert 1 + 1 == 2"])
        except MergefrontError as error:
            return error.message
        return "" if result.status == "passed" else f"{result.status}: {result.detail}"

    strict = runs("strict")
    if not strict:
        return Finding("sandbox", "ok", "strict (bubblewrap) runs programs")
    advice = "apt-get install bubblewrap; only tasks that run generated code need it"
    if not runs("weak"):
        advice += "; evaluation.sandbox: weak works here"
    return Finding("sandbox", "note", strict, advice)


def _ray() -> Finding:
    from configs.worker_settings import WorkerSettings
    from workers.ray_session import ray_session

    start = time.perf_counter()
    with ray_session(WorkerSettings(count=1, cpus=0.1)):
        took = time.perf_counter() - start
    return Finding("Ray", "ok", f"{version('ray')}, started on this machine in {took:.1f} s")


def _hub() -> Finding:
    from huggingface_hub import constants, get_session, get_token

    advice = "name models by directory, and items by evaluation.data_dir"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "offline mode is on (HF_HUB_OFFLINE)", advice)
    try:
        answer = get_session().get(f"{constants.ENDPOINT}/api/models?limit=1", timeout=_HUB_S)
        status = answer.status_code
    except unreachable_error() as error:
        found = f"{constants.ENDPOINT} is out of reach ({type(error).__name__})"
        return Finding("hub", "note", found, f"check the network; else {advice}")
    if status >= 400:
        return Finding("hub", "note", f"{constants.ENDPOINT} answers with status {status}", advice)
    if get_token() is None:
        advice = "`hf auth login`, for gated models and `mergefront push`"
        return Finding("hub", "note", f"{constants.ENDPOINT} answers; no token", advice)
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers; there is a token")
