"""Item scores by lm-eval's own filters and ``process_results``, here or in other processes.

Start at :class:`ItemScorer`, which scores one item, and :class:`ScoringPool`, which does so in
processes of its own while the model goes on. Processes and not threads: scorers draw from the
global generators of ``random`` and numpy, which are seeded for every item; and a thread that
scores takes the interpreter from the one that feeds the accelerator.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from lm_eval.api.instance import Instance

from configs.errors import EvaluationError
from configs.evaluation import EvaluationSettings, Objective
from evaluators.harness_tasks import LoadedTask, load_tasks
from evaluators.rng_guard import seed_scorer

Responses = tuple[object, ...]
"""What the model said to each request of an item: a text, or (log-probability, is greedy)."""

Weighted = tuple[float, float]
"""A score, higher is better, and its weight in the mean over items."""


class ItemScorer:
    """Scores items of loaded tasks; a score depends on nothing but the item and its responses.

    Filters see one item at a time, so that an item's score does not depend on which others are
    scored; those of lm-eval look at nothing else.

    Args:
        tasks: Task name -> task.
    """

    def __init__(self, tasks: Mapping[str, LoadedTask]) -> None:
        self._tasks = tasks
        self._documents: dict[tuple[str, str], Mapping[str, object]] = {}
        # IFEval's language checks are random unless this class attribute is set.
        if langdetect := sys.modules.get("langdetect"):
            langdetect.DetectorFactory.seed = 0

    def score(self, task: str, item: str, responses: Responses) -> Weighted:
        """Score one item; the global random states are those of its id afterwards.

        Args:
            task: Name of a loaded task.
            item: Id of one of its items.
            responses: One per request, in the order of the choices.

        Returns:
            A finite number, higher is better, and how much it counts, positive.

        Raises:
            EvaluationError: The scorer fails, or gives no finite number.
        """
        loaded = self._tasks[task]
        key = loaded.key
        # A scorer may change the document it is given; the next candidate must not see that.
        document = copy.deepcopy(self._document(loaded, item))
        where = f"`{task}`: {key} of item `{item}`"
        seed_scorer(item)
        with _blamed(where):
            filtered = _filtered(loaded, document, responses)
            metrics = loaded.task.process_results(document, filtered)
        return key.item_score(metrics, where)

    def _document(self, loaded: LoadedTask, item: str) -> Mapping[str, object]:
        # Reading a row of a data set costs more than scoring it.
        known = self._documents.get((loaded.name, item))
        if known is None:
            known = loaded.documents[loaded.indices[item]]
            self._documents[loaded.name, item] = known
        return known


@contextmanager
def _blamed(where: str) -> Iterator[None]:
    """Name the item in whatever a scorer raises."""
    try:
        yield
    except EvaluationError:  # a sandbox that is missing says so itself
        raise
    except Exception as error:
        raise EvaluationError(
            f"{where}: its scorer raised {type(error).__name__}: {error}"
        ) from error


def _filtered(
    loaded: LoadedTask, document: Mapping[str, object], responses: Responses
) -> list[object]:
    """Apply the filter of the task's metric to the responses of one item."""
    repeats = loaded.task.config.repeats or 1
    instances = [
        # Greedy decoding says the same however often a task wants to hear it.
        Instance(loaded.output_type, document, (), index, resps=[response] * repeats)
        for index, response in enumerate(responses)
    ]
    for ensemble in loaded.task._filters:
        if ensemble.name == loaded.key.filter:
            ensemble.apply(instances)
    return [instance.filtered_resps[loaded.key.filter] for instance in instances]


class ScoringPool:
    """Processes that score items while the model goes on.

    Each loads the tasks of the job itself, once; an item travels as its id and its responses.
    They end with the process that made them, however that ends.

    Args:
        objectives: The job's objectives.
        settings: The job's evaluation settings.
        definitions: Task -> hash of its definition, which must be the same over there.
        processes: How many, >= 1.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        settings: EvaluationSettings,
        definitions: Mapping[str, str],
        *,
        processes: int,
    ) -> None:
        self._arguments = (dict(objectives), settings, dict(definitions))
        self._processes = processes
        self._executor: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Let the processes load their tasks now; returns at once."""
        if self._executor is not None:
            return
        self._executor = ProcessPoolExecutor(
            self._processes,
            # A fork of a process with torch's threads may wait for a lock forever.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=self._arguments,
        )
        for _ in range(self._processes):
            self._executor.submit(_is_ready)

    def submit(self, task: str, item: str, responses: Responses) -> Future[Weighted]:
        """Have an item scored; the future raises what :meth:`ItemScorer.score` raises."""
        self.start()
        assert self._executor is not None  # noqa: S101 - just started
        try:
            return self._executor.submit(_score, task, item, responses)
        except BrokenProcessPool as error:
            raise self._broken() from error

    def results(self, futures: Sequence[Future[Weighted]]) -> list[Weighted]:
        """Wait for scores, in the order given.

        Raises:
            EvaluationError: An item cannot be scored, or a process of the pool died.
        """
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise self._broken() from error

    def close(self) -> None:
        """End the processes; a later :meth:`submit` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _broken(self) -> EvaluationError:
        self.close()
        return EvaluationError(
            "a scoring process died, perhaps for lack of memory; set `workers.scoring_processes: "
            "0` to see what ends it"
        )


_worker: ItemScorer | None = None


def _start_worker(
    objectives: Mapping[str, Objective],
    settings: EvaluationSettings,
    definitions: Mapping[str, str],
) -> None:
    global _worker  # noqa: PLW0603 - a process of the pool has one scorer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loaded, problems = load_tasks(objectives, settings)
    found = {task.name: task.definition for task in loaded}
    if problems or found != dict(definitions):
        said = "; ".join(map(str, problems)) or "the tasks' definitions are others there"
        raise EvaluationError(f"a scoring process cannot load the tasks: {said}")
    _worker = ItemScorer({task.name: task for task in loaded})


def _end_with_parent() -> None:
    # A parent that is killed closes nothing: its children would wait for work forever.
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _is_ready() -> bool:
    return _worker is not None


def _score(task: str, item: str, responses: Responses) -> Weighted:
    assert _worker is not None  # noqa: S101 - the initializer ran
    return _worker.score(task, item, responses)
