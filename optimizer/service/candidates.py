"""Candidates of an archive as rows, charts and details."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from configs.errors import ArchiveError
from configs.evaluation import SPLITS, SplitName
from configs.recipe import MergeRecipe
from evaluators.scores import Scores
from optimizer.archive.archive import Archive, RecordedOutcome
from optimizer.baselines import label_of
from optimizer.candidate import SAMPLED, Candidate
from optimizer.results.front_view import SHORT_ID, ScoredCandidate, front_of, gene_table
from optimizer.scalarize import preferred_mean
from optimizer.service.beliefs import Believed
from optimizer.service.errors import NotFoundError
from optimizer.service.result_models import (
    Belief,
    CandidateDetail,
    CandidateFailure,
    CandidateKind,
    CandidateRow,
    CandidateState,
    ItemsAnswer,
    Points,
    Score,
    ScoredItem,
    TaskItems,
)
from optimizer.service.searches import OpenArchive


def candidate_table(opened: OpenArchive, believed: Believed) -> list[CandidateRow]:
    """Return every proposal as a row, by index; as long as nothing changes the same ones.

    Args:
        opened: The archive.
        believed: The scored ones, with their posterior where there is one.
    """

    def make(archive: Archive) -> list[CandidateRow]:
        # Before all else: more is recorded meanwhile, and what is read later knows these.
        candidates = archive.candidates()
        facts = _Facts(archive, believed.rows)
        return [facts.row(candidate) for candidate in candidates]

    # By what is counted now, not before the rows were read: each of them must be in the table.
    is_raw = believed.belief.state in {"raw", "pending"}
    return opened.kept("raw table" if is_raw else "table", make, depends_on=believed.counters)


def candidate_at(archive: Archive, index: int) -> Candidate:
    """Return a candidate.

    Raises:
        NotFoundError: There is none of that index.
    """
    try:
        return archive.candidate(index)
    except ArchiveError as error:
        raise NotFoundError(f"there is no candidate {index}") from error


def candidate_detail(archive: Archive, row: CandidateRow) -> CandidateDetail:
    """Return all that is recorded of a candidate, item scores left out."""
    index = row.index
    candidate = archive.candidate(index)
    stop = archive.stops().get(index)
    try:
        digest: str | None = archive.weights_digest(index)
    except ArchiveError:  # it was never scored
        digest = None
    return CandidateDetail(
        **row.model_dump(),
        genes=gene_table(candidate.recipe),
        recipe=candidate.recipe.model_dump(mode="json"),
        splits={
            split: scores_of(found.scores)
            for split in SPLITS
            if (found := archive.outcome(index, split)) is not None and found.scores is not None
        },
        weights_digest=digest,
        stop_numbers=None if stop is None else cast("dict[str, Any]", dict(stop.stop.numbers)),
    )


def items_of(archive: Archive, index: int, split: SplitName) -> ItemsAnswer:
    """Return what the items of a split were scored, of all that were.

    Raises:
        NotFoundError: There is no such candidate.
    """
    candidate_at(archive, index)
    scored, texts = archive.scores_and_texts(index, split)
    tasks = []
    for name, task in _tasks(archive):
        if (found := scored.get(task)) is None:
            continue
        count = len(found.item_ids)
        weights = [None] * count if found.weights is None else found.weights.tolist()
        columns = (found.item_ids, found.values.tolist(), weights, texts.get(task, (None,) * count))
        items = [
            ScoredItem(id=item, score=score, weight=weight, text=shown(text))
            for item, score, weight, text in zip(*columns, strict=True)
        ]
        tasks.append(TaskItems(task=task, objective=name, mean=found.mean, items=items))
    return ItemsAnswer(candidate=index, split=split, tasks=tasks)


def points_of(
    archive: Archive, table: Sequence[CandidateRow], belief: Belief, revision: str
) -> Points:
    """Return all scored candidates of a table as columns."""
    names = list(archive.job.objectives)
    rows = [row for row in table if set(names) <= set(row.scores or ())]
    candidates = archive.candidates()
    recipes = [candidates[row.index].recipe for row in rows]
    report = archive.scores("report")

    def values(scores: Mapping[str, Score] | None) -> list[float]:
        return [scores[name].value for name in names] if scores else []

    def errors(scores: Mapping[str, Score] | None) -> list[float]:
        return [scores[name].stderr for name in names] if scores else []

    return Points(
        objectives=names,
        genes=_gene_names(recipes[0]) if recipes else [],
        belief=belief,
        revision=revision,
        index=[row.index for row in rows],
        kind=[row.kind for row in rows],
        label=[row.label for row in rows],
        state=[row.state for row in rows],
        on_front=[row.on_front for row in rows],
        mean=[0.0 if row.mean is None else row.mean for row in rows],
        scores=[values(row.scores) for row in rows],
        stderr=[errors(row.scores) for row in rows],
        posterior=[values(row.posterior) or None for row in rows],
        posterior_stderr=[errors(row.posterior) or None for row in rows],
        report=[
            [report[row.index][name].value for name in names] if row.index in report else None
            for row in rows
        ],
        weights=[_genes(recipe.weights, recipes[0]) for recipe in recipes],
        drop_ratios=[_genes(recipe.drop_ratios, recipes[0]) for recipe in recipes],
    )


def scores_of(scores: Scores) -> dict[str, Score]:
    """Return scores as JSON has them."""
    return {
        name: Score(value=score.value, stderr=score.stderr, count=score.count)
        for name, score in scores.items()
    }


def shown(text: str | None) -> str | None:
    """Return a generated text as JSON can hold it: unpaired surrogates are escaped."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def label(candidate: Candidate, recipe_id: str) -> str:
    """Return what a person calls a candidate."""
    return label_of(candidate) if candidate.is_baseline else recipe_id[:SHORT_ID]


class _Facts:
    """What is known of the candidates of an archive, looked up once for all of them."""

    def __init__(self, archive: Archive, believed: Sequence[ScoredCandidate]) -> None:
        self._preference = archive.job.preference
        self._chosen = archive.choice()
        self._ids = archive.recipe_ids()
        self._outcomes: dict[int, RecordedOutcome] = {}
        splits: tuple[SplitName, ...] = ("search", "report")
        for split in splits:  # variants for attribution have the latter only
            for outcome in archive.outcomes(split):
                self._outcomes.setdefault(outcome.key.candidate, outcome)
        self._stops = archive.stops()
        for outcome in archive.evaluations("search"):
            stop = self._stops.get(outcome.key.candidate)
            if stop is not None and stop.stop.reason == SAMPLED and outcome.scores is not None:
                self._outcomes[outcome.key.candidate] = outcome
        # Of proposals of one recipe only the first has a row among the believed ones.
        self._believed = {self._ids[row.candidate.index]: row for row in believed}
        self._front = {row.candidate.index for row in front_of(believed)}

    def row(self, candidate: Candidate) -> CandidateRow:
        index = candidate.index
        recipe_id, outcome = self._ids[index], self._outcomes.get(index)
        stop, believed = self._stops.get(index), self._believed.get(self._ids[index])
        scores = None if outcome is None else outcome.scores
        state: CandidateState = "pending"
        reason = None if stop is None else stop.stop.reason
        if stop is not None:
            state, scores = "stopped", stop.stop.scores
        if reason == SAMPLED:
            state, reason = "completed", None
        elif outcome is not None:
            state = "failed" if outcome.scores is None else "completed"
        if candidate.is_attribution:  # scored on the report split alone
            scores = None
        posterior = believed.posterior if believed is not None and state == "completed" else None
        chosen_id = None if self._chosen is None else self._ids[self._chosen]
        return CandidateRow(
            index=index,
            recipe_id=recipe_id,
            label=label(candidate, recipe_id),
            origin=candidate.origin,
            kind=_kind(candidate),
            state=state,
            stopped=reason,
            scores=scores_of(scores) if scores else None,
            posterior=scores_of(posterior) if posterior else None,
            mean=self._mean(posterior or scores),
            effective_checkpoints=candidate.recipe.effective_checkpoints,
            is_chosen=recipe_id == chosen_id,
            on_front=index in self._front,
            failure=None if outcome is None else _failure(outcome),
            worker=None if outcome is None else outcome.worker,
            seconds=None if outcome is None else sum(outcome.seconds.values()),
            finished_at=outcome.finished_at
            if outcome is not None
            else (None if stop is None else stop.stopped_at),
        )

    def _mean(self, scores: Scores | None) -> float | None:
        if not scores or not set(self._preference) <= set(scores):
            return None
        return preferred_mean(scores, self._preference)


def _kind(candidate: Candidate) -> CandidateKind:
    if candidate.is_attribution:
        return "attribution"
    return "baseline" if candidate.is_baseline else "search"


def _failure(outcome: RecordedOutcome) -> CandidateFailure | None:
    if outcome.scores is not None or outcome.stage is None:
        return None
    return CandidateFailure(
        stage=str(outcome.stage),
        error_class=outcome.error_class or "",
        message=outcome.message or "",
    )


def _genes(rows: Sequence[Sequence[float]], like: MergeRecipe) -> list[float]:
    """Return numbers of a recipe one after the other, as many as another recipe has.

    A baseline of the job may have groups of its own; their mean stands for each of the others'.
    """
    count = len(like.groups)
    same = [row if len(row) == count else [sum(row) / len(row)] * count for row in rows]
    return [value for row in same for value in row]


def _gene_names(recipe: MergeRecipe) -> list[str]:
    several = len(recipe.groups) > 1
    return [
        f"{source.name}/{group.name}" if several else source.name
        for source in recipe.checkpoints
        for group in recipe.groups
    ]


def _tasks(archive: Archive) -> list[tuple[str, str]]:
    """Return the objective and the name of every task, in the order of the job."""
    return [
        (name, spec.task)
        for name, objective in archive.job.objectives.items()
        for spec in objective.tasks
    ]
