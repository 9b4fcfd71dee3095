"""A pool that remembers: what another archive has scored already is not scored again.

A recipe determines the tensors (D1), and an item scores the same in every candidate's company, so
an outcome of the same recipe on the same items is the outcome. The caller makes sure that both
archives mean the same by an item (:func:`same_scores`). What a recipe did to its workers is
remembered, too, from the search's own archive (:func:`past_of`).
"""

from collections import deque
from typing import Self

from evaluators.scores import Items, TaskScores
from optimizer.archive.archive import Archive
from workers.attempts import is_deadly
from workers.outcome import Completed, EvaluationKey, EvaluationRequest, Outcome
from workers.pool import WorkerPool, WorkerState
from workers.toll import Past

WORKER = "remembered"
"""Name of the worker in outcomes that were copied."""


class RememberingPool:
    """Implements ``workers.pool.WorkerPool`` around another pool.

    Args:
        pool: Evaluates what is not remembered; closed with this one.
        archive: Where outcomes are looked up; the caller closes it.
    """

    def __init__(self, pool: WorkerPool, archive: Archive) -> None:
        self._pool = pool
        self._archive = archive
        self._ready: deque[Completed] = deque()
        self._known: dict[str, int] = {}
        for candidate in archive.candidates():
            self._known.setdefault(candidate.recipe.recipe_id, candidate.index)

    @property
    def num_free(self) -> int:
        """How many more requests may be submitted now; what waits to be taken counts as busy."""
        return max(0, self._pool.num_free - len(self._ready))

    @property
    def num_pending(self) -> int:
        """Requests submitted whose outcome was not taken yet."""
        return self._pool.num_pending + len(self._ready)

    def submit(self, request: EvaluationRequest) -> None:
        """Look an evaluation up, or start it.

        Raises:
            ValueError: No worker is free.
        """
        if not self.num_free:
            raise ValueError(f"no worker is free for {request.key}")
        remembered = self._recall(request)
        if remembered is None:
            self._pool.submit(request)
        else:
            self._ready.append(remembered)

    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        """Return what is remembered first, then wait for the other pool."""
        return self._ready.popleft() if self._ready else self._pool.next_outcome(timeout_s)

    def worker_states(self) -> dict[str, WorkerState]:
        """Worker name -> what it does now."""
        return self._pool.worker_states()

    def close(self) -> None:
        """Close the other pool."""
        self._ready.clear()
        self._pool.close()

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _recall(self, request: EvaluationRequest) -> Completed | None:
        key = request.key
        index = self._known.get(request.recipe.recipe_id)
        # A request for anything but scores has more in its key.
        if index is None or key != EvaluationKey(key.candidate, key.split, key.block):
            return None
        items = self._archive.manifest.items(key.split) if request.items is None else request.items
        scores = _of_items(self._archive.scored_items(index, key.split), items)
        companions = self._archive.companions(index, key.split)
        if scores is None:
            return None
        recalled = _of_items(
            companions, {task: items[task] for task in companions if task in items}
        )
        texts = {}
        if request.items is None and self._archive.outcome(index, key.split) is not None:
            texts = self._archive.texts(index, key.split)
        return Completed(
            key=key,
            attempt=1,
            worker=WORKER,
            weights_digest=self._archive.weights_digest(index),
            task_scores=scores,
            companions=recalled or {},
            texts=texts,
        )


def deadly_recipes(archive: Archive) -> dict[str, str]:
    """Return the recipes that have taken as many workers as they may: recipe id -> message.

    A pool that is told gives them to no worker again, neither as another candidate nor on another
    split; a driver that was killed would otherwise forget them.
    """
    candidates = archive.candidates()
    return {
        candidates[outcome.key.candidate].recipe.recipe_id: outcome.message or ""
        for outcome in archive.evaluations()
        if is_deadly(outcome.error_class, outcome.message)
    }


def past_of(archive: Archive, *others: Archive) -> Past:
    """Return what recipes and evaluations did to workers, as a pool takes it; it is kept here.

    Args:
        archive: Of the search, open for writing.
        others: What took its workers there is given to none here either.
    """
    deadly: dict[str, str] = {}
    for known in (*others, archive):
        deadly |= deadly_recipes(known)
    return Past(deadly, archive.losses(), archive.record_loss)


def same_scores(archive: Archive, other: Archive) -> bool:
    """Say whether items of two archives are the same and score the same.

    Tasks, metrics, settings of the evaluation and the items of every split must be equal.
    """
    return (
        archive.job.objectives == other.job.objectives
        and archive.job.evaluation == other.job.evaluation
        and archive.manifest.task_hashes == other.manifest.task_hashes
        and archive.manifest.splits == other.manifest.splits
    )


def _of_items(found: dict[str, TaskScores], items: Items) -> dict[str, TaskScores] | None:
    """Return the scores of just these items, in their order; None where one is missing."""
    chosen = {}
    for task, ids in items.items():
        if task not in found:
            return None
        place = {item: row for row, item in enumerate(found[task].item_ids)}
        if not place.keys() >= set(ids):
            return None
        rows = [place[item] for item in ids]
        weights = found[task].weights
        chosen[task] = TaskScores(
            task, tuple(ids), found[task].values[rows], None if weights is None else weights[rows]
        )
    return chosen
