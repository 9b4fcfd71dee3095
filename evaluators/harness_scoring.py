"""Item scores by lm-eval's own filters and ``process_results``, here or in other processes.

Start at :class:`ItemScorer`, which scores one item, and :class:`ScoringPool`, which does so in
processes of its own while the model goes on. Processes and not threads: scorers draw from the
global generators of ``random`` and numpy, which are seeded for every item; and a thread that
scores takes the interpreter from the one that feeds the accelerator.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from configs.errors import EvaluationError
from configs.evaluation import EvaluationSettings, Objective
from evaluators.harness_tasks import LoadedTask, load_tasks
from evaluators.manifest import item_id
from evaluators.rng_guard import seed_scorer

log = logging.getLogger(__name__)

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
def seeded_stock_scorers() -> Iterator[None]:
    """Let lm-eval's own loop score with the seeds that :class:`ItemScorer` sets before an item.

    Stock IFEval is not repeatable without (D8); tasks whose scorers draw nothing are unchanged.
    The global generators are left as the last item seeded them.
    """
    original = ConfigurableTask.process_results

    @wraps(original)
    def seeded(task: ConfigurableTask, doc: Mapping[str, object], results: object) -> object:
        seed_scorer(item_id(doc))
        return original(task, doc, results)

    ConfigurableTask.process_results = seeded
    try:
        yield
    finally:
        ConfigurableTask.process_results = original


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
        self._ready: list[Future[str]] = []
        self._has_warned = False

    def start(self) -> None:
        """Let the processes load their tasks now; returns at once."""
        self._started()

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is not None:
            return self._executor
        executor = self._executor = ProcessPoolExecutor(
            self._processes,
            # A fork of a process with torch's threads may wait for a lock forever.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=self._arguments,
        )
        self._ready = [executor.submit(_is_ready) for _ in range(self._processes)]
        return executor

    def check(self) -> None:
        """Wait until the processes have loaded their tasks.

        Raises:
            EvaluationError: They cannot load them, and why.
        """
        self.start()
        try:
            problems = [future.result() for future in self._ready]
        except BrokenProcessPool as error:
            self.close()
            raise EvaluationError(
                "a scoring process died while it loaded the tasks, perhaps for lack of memory; "
                "set `workers.scoring_processes: 0` to load them once"
            ) from error
        if any(problems):
            self.close()
            raise EvaluationError(next(filter(None, problems)))

    def submit(self, task: str, item: str, responses: Responses) -> Future[Weighted] | None:
        """Have an item scored.

        Returns:
            What :meth:`result` takes; None if a process died: score it yourself. The next call
            starts new processes.
        """
        executor = self._started()
        try:
            return executor.submit(_score, task, item, responses)
        except BrokenProcessPool:
            self._lose()
            return None

    def result(self, future: Future[Weighted]) -> Weighted | None:
        """Wait for a score; None if a process died before it was known.

        Raises:
            EvaluationError: The item cannot be scored.
        """
        try:
            return future.result()
        except BrokenProcessPool:
            self._lose()
            return None

    def close(self) -> None:
        """End the processes; a later :meth:`submit` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _lose(self) -> None:
        """Give up the processes, of which one died: the others have ended with it."""
        self.close()
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "a scoring process died, perhaps for lack of memory; what it had not scored is "
                "scored beside the model. Set `workers.scoring_processes: 0` if that goes on"
            )


@dataclass(slots=True)
class _Process:
    """What a scoring process has: its scorer, or why there is none."""

    scorer: ItemScorer | None = None
    refusal: str = "the tasks were not loaded"


_here = _Process()


def _start_worker(
    objectives: Mapping[str, Objective],
    settings: EvaluationSettings,
    definitions: Mapping[str, str],
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _here.scorer = _load_scorer(objectives, settings, definitions)
    except Exception as error:
        # What an initializer raises ends all processes and reaches nobody. So whatever it is (tasks
        # run code of their authors) is kept, and told to who asks whether this process is ready.
        log.debug("a scoring process cannot load the tasks", exc_info=True)
        said = "" if isinstance(error, EvaluationError) else f"{type(error).__name__}: "
        _here.refusal = f"a scoring process cannot load the tasks: {said}{error}"


def _load_scorer(
    objectives: Mapping[str, Objective],
    settings: EvaluationSettings,
    definitions: Mapping[str, str],
) -> ItemScorer:
    loaded, problems = load_tasks(objectives, settings)
    found = {task.name: task.definition for task in loaded}
    if problems or found != dict(definitions):
        said = "; ".join(map(str, problems)) or "the tasks' definitions are others there"
        raise EvaluationError(said)
    return ItemScorer({task.name: task for task in loaded})


def _end_with_parent() -> None:
    # A parent that is killed closes nothing: its children would wait for work forever.
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _is_ready() -> str:
    """Return why this process cannot score; nothing if it can."""
    return _here.refusal if _here.scorer is None else ""


def _score(task: str, item: str, responses: Responses) -> Weighted:
    if _here.scorer is None:
        raise EvaluationError(_here.refusal)
    return _here.scorer.score(task, item, responses)
