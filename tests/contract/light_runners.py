"""A runner without a model, which does what a request's recipe says: for tests of pools.

Ray workers import it by name, so it must stay importable from the repository root.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs.recipe import Group, MergeRecipe, Source
from configs.schema import JobConfig
from evaluators.blocks import WHOLE, block_name
from evaluators.manifest import Manifest
from evaluators.scores import Items, TaskScores
from workers.job import WorkerSpec
from workers.outcome import (
    Completed,
    EvaluationKey,
    EvaluationRequest,
    Failed,
    Outcome,
    Stage,
)
from workers.sources import ResolvedSource, Sources


class LightRunner:
    """Scores every request 0.5, after doing what ``recipe.method`` names."""

    def __init__(self, spec: WorkerSpec, worker: str) -> None:
        self.worker = worker
        self.num_threads = spec.job.workers.threads
        self._farewell: Path | None = None

    def run(self, request: EvaluationRequest, attempt: int = 1) -> Outcome:
        verb, _, argument = request.recipe.method.partition(" ")
        if verb == "fail":
            return self._failed(request, attempt, Stage.EVALUATE, argument or "EvaluationError")
        if verb == "fail_once" and _is_new(argument.split()[0]):
            return self._failed(request, attempt, Stage.MATERIALIZE, argument.split()[1])
        if verb == "farewell":
            self._farewell = Path(argument)
        texts = _VERBS[verb](argument)
        ids = ("a", "b") if request.items is None else tuple(request.items["task"])
        scores = TaskScores("task", ids, np.array([float(item == "b") for item in ids]))
        return Completed(
            key=request.key,
            # As if it came from a worker that was given up.
            attempt=attempt - 1 if verb == "stale" and attempt == 1 else attempt,
            worker=self.worker,
            weights_digest="digest",
            task_scores={"task": scores},
            texts={"task": (texts,)},
        )

    def close(self) -> None:
        if self._farewell is not None:
            self._farewell.touch()

    def _failed(
        self, request: EvaluationRequest, attempt: int, stage: Stage, error_class: str
    ) -> Failed:
        return Failed(
            key=request.key,
            attempt=attempt,
            worker=self.worker,
            stage=stage,
            error_class=error_class,
            message="logits are nan",
        )


class RefusingRunner(LightRunner):
    """Cannot be built."""

    def __init__(self, spec: WorkerSpec, worker: str) -> None:
        super().__init__(spec, worker)
        raise RuntimeError("the model is not readable")


class DyingRunner(LightRunner):
    """Takes its process down while it is built."""

    def __init__(self, spec: WorkerSpec, worker: str) -> None:
        super().__init__(spec, worker)
        os._exit(3)


def _score(_: str) -> str:
    return ""


def _sleep(seconds: str) -> str:
    time.sleep(float(seconds))
    return ""


def _raise(message: str) -> str:
    raise RuntimeError(message)


def _kill(_: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def _stop(_: str) -> str:
    # Hangs harder than a sleep: no thread of the process answers any more.
    os.kill(os.getpid(), signal.SIGSTOP)
    return ""


def _is_new(marker: str) -> bool:
    """Whether nobody has asked for this marker before."""
    path = Path(marker)
    is_new = not path.exists()
    path.touch()
    return is_new


def _kill_once(marker: str) -> str:
    return _kill("") if _is_new(marker) else ""


def _kill_twice(marker: str) -> str:
    return _kill("") if _is_new(marker) or _is_new(f"{marker}-again") else ""


def _stop_once(marker: str) -> str:
    return _stop("") if _is_new(marker) else ""


def _sleep_once(argument: str) -> str:
    marker, seconds = argument.split()
    return _sleep(seconds) if _is_new(marker) else ""


def _environment(name: str) -> str:
    return os.environ.get(name, "")


def _allocate(megabytes: str) -> str:
    return str(len(np.ones(int(megabytes) * 2**20, np.uint8)))


_VERBS: dict[str, Callable[[str], str]] = {
    "score": _score,
    "farewell": _score,
    "sleep": _sleep,
    "raise": _raise,
    "kill": _kill,
    "kill_once": _kill_once,
    "kill_twice": _kill_twice,
    "sleep_once": _sleep_once,
    "fail_once": _score,
    "stale": _score,
    "stop": _stop,
    "stop_once": _stop_once,
    "environment": _environment,
    "allocate": _allocate,
}


def light_spec(**workers: object) -> WorkerSpec:
    """A job of one task, for runners that load nothing; ``workers`` are its worker settings."""
    job = JobConfig.model_validate(
        {
            "models": {"checkpoints": {"one": "one"}},
            "merge": {"method": "linear"},
            "objectives": {"skill": "task"},
            "archive": "archive.sqlite",
            "workers": {"count": 2, "cpus": 0.5, **workers},
        }
    )
    source = ResolvedSource("one", Path("one"), "0" * 64)
    return WorkerSpec(
        job=job,
        sources=Sources(base=None, checkpoints=(source,)),
        manifest=Manifest(splits={"search": {"task": ("a", "b")}}, task_hashes={"task": "hash"}),
    )


def request(candidate: int, method: str = "score", items: Items | None = None) -> EvaluationRequest:
    """Ask for what ``method`` names, of the split or of a block of it."""
    recipe = MergeRecipe(
        method=method,
        base=None,
        checkpoints=(Source(name="one", digest="0" * 64),),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=((1.0,),),
        drop_ratios=((0.0,),),
        dtype="float32",
    )
    block = WHOLE if items is None else block_name(items)
    return EvaluationRequest(EvaluationKey(candidate, "search", block), recipe, items)
