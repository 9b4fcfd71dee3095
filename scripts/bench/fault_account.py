"""What became of a search that was disturbed: is anything lost, doubled, or resumed wrongly?

The archive is held against what was seen from outside: what the driver had said was recorded, what
workers had begun, and what the archive held after each life of the driver.
"""

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.evaluation import SplitName
from evaluators.blocks import WHOLE
from evaluators.scores import aggregate
from optimizer.archive.archive import Archive
from optimizer.archive.records import RecordedOutcome
from optimizer.archive.verify import verify_archive
from optimizer.candidate import Candidate
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from scripts.bench.fault_runner import Begun, expected_error
from scripts.bench.scripted import scripted_outcome
from workers.outcome import Completed, EvaluationKey, EvaluationRequest

# What may come of an evaluation whose workers died or hung as often as they may.
_GIVEN_UP = frozenset({"WorkerLostError", "WorkerTimeoutError"})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an archive held, in the order in which it was recorded."""

    proposals: tuple[tuple[object, ...], ...] = ()
    evaluations: tuple[tuple[object, ...], ...] = ()
    told: tuple[tuple[object, ...], ...] = ()

    @property
    def keys(self) -> set[EvaluationKey]:
        """What had an outcome."""
        return {key for key, *_ in self.evaluations if isinstance(key, EvaluationKey)}

    def lacks(self, earlier: "Snapshot") -> str:
        """Say what of an earlier snapshot is not in this one as it was; empty where nothing."""
        for name in ("proposals", "evaluations", "told"):
            before, now = getattr(earlier, name), getattr(self, name)
            if now[: len(before)] != before:
                return f"the first {len(before)} {name} are not what they were"
        return ""


@dataclass(slots=True)
class Witness:
    """What was seen of a search from outside.

    Attributes:
        recorded: Keys that the driver said were recorded.
        told: Candidates that it said were told, over all of its lives.
        begun: What workers began.
        before: Life -> what the archive held before it.
    """

    recorded: set[EvaluationKey] = field(default_factory=set)
    told: list[int] = field(default_factory=list)
    begun: Sequence[Begun] = ()
    before: dict[int, Snapshot] = field(default_factory=dict)


@dataclass(slots=True)
class Account:
    """What is wrong with a search, in words; nothing where nothing is."""

    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    wrong_resumes: list[str] = field(default_factory=list)


def snapshot_of(path: Path) -> Snapshot:
    """Read an archive; empty where there is none.

    Raises:
        ArchiveError: It cannot be read.
    """
    if not path.exists():
        return Snapshot()
    with Archive.open(path) as archive:
        return Snapshot(
            tuple(
                (c.index, c.origin, c.seen, c.recipe.recipe_id, c.genotype.tobytes())
                for c in archive.candidates()
            ),
            tuple(
                (o.key, o.attempt, o.worker, o.error_class, repr(o.scores))
                for o in archive.evaluations()
            ),
            tuple(
                (o.candidate.index, repr(o.scores), repr(o.companions), o.stopped)
                for o in archive.observations()
            ),
        )


def account_for(path: Path, seen: Witness) -> Account:
    """Check the archive of a search that has ended by itself.

    Raises:
        ArchiveError: It cannot be read.
    """
    account = Account()
    account.duplicates += doubled_rows(path)
    account.wrong_resumes += [f"{p.path}: {p.message}" for p in verify_archive(path).problems]
    last = snapshot_of(path)
    for life, before in seen.before.items():
        if difference := last.lacks(before):
            account.lost.append(f"after life {life} {difference}")
    account.lost += [f"{key} was recorded, and is not there" for key in seen.recorded - last.keys]
    counts = Counter(seen.told)
    account.duplicates += [f"candidate {c} was told {n} times" for c, n in counts.items() if n > 1]
    account.wrong_resumes += _run_again(seen)
    with Archive.open(path) as archive:
        account.lost += _missing(archive)
        account.duplicates += _scored_twice(archive)
        account.duplicates += _stale(archive.evaluations(), seen.begun)
        account.wrong_resumes += _wrong_outcomes(archive)
        replayed = verify_replay(archive, SearchSpace(archive.job, archive.sources))
        account.wrong_resumes += [f"another ask than recorded: {found}" for found in replayed]
    return account


def doubled_rows(path: Path) -> list[str]:
    """Return the evaluations that have more than one row, asked of the file itself."""
    query = "SELECT candidate, split, block, signal, COUNT(*) FROM outcomes GROUP BY 1, 2, 3, 4"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        rows = file.execute(query).fetchall()
    return [f"{row[:4]} has {row[4]} outcomes" for row in rows if row[4] > 1]


def _missing(archive: Archive) -> Iterator[str]:
    """Candidates without an end, and held-out evaluations that did not take place."""
    told = {seen.candidate.index for seen in archive.observations()}
    candidates = archive.candidates()
    for candidate in candidates:
        if candidate.index not in told:
            yield f"candidate {candidate.index} has no outcome"
    choice = archive.choice()
    if choice is None:
        yield "nothing was chosen"
        return
    reported = {outcome.key.candidate for outcome in archive.outcomes("report")}
    for index in {choice, *(c.index for c in candidates if c.is_baseline)} - reported:
        yield f"candidate {index} has no outcome on report"
    selected = {outcome.key.candidate for outcome in archive.outcomes("select")}
    if choice not in selected:
        yield f"candidate {choice} was chosen without an outcome on select"


def _scored_twice(archive: Archive) -> Iterator[str]:
    """Items that a candidate was scored on more than once."""
    scored: dict[tuple[int, SplitName], Counter[tuple[str, str]]] = {}
    for outcome in archive.evaluations():
        key = outcome.key
        if key.signal == "scores" and outcome.scores is not None:
            items = archive.block(key.split, key.block)
            known = scored.setdefault((key.candidate, key.split), Counter())
            known.update((task, item) for task, ids in items.items() for item in ids)
    for (candidate, split), counts in scored.items():
        if (most := max(counts.values())) > 1:
            yield f"candidate {candidate} was scored {most} times on an item of {split}"


def _stale(recorded: Sequence[RecordedOutcome], begun: Collection[Begun]) -> Iterator[str]:
    """Outcomes of attempts that had been given up: another one had begun."""
    last: dict[tuple[EvaluationKey, int], int] = {}
    for entry in begun:
        place = entry.key, entry.life
        last[place] = max(entry.attempt, last.get(place, 0))
    lives = {(entry.key, entry.attempt, entry.worker): entry.life for entry in begun}
    for outcome in recorded:
        life = lives.get((outcome.key, outcome.attempt, outcome.worker))
        if life is not None and outcome.attempt < last[outcome.key, life]:
            yield f"{outcome.key} has the outcome of attempt {outcome.attempt}, which was given up"


def _run_again(seen: Witness) -> Iterator[str]:
    """Evaluations that a resumed search ran although they were recorded."""
    known = {life: before.keys for life, before in seen.before.items()}
    for entry in seen.begun:
        if entry.key in known.get(entry.life, ()):
            yield f"{entry.key} was run again in life {entry.life}"


def _wrong_outcomes(archive: Archive) -> Iterator[str]:
    """Outcomes that are not what their recipes give."""
    candidates = {candidate.index: candidate for candidate in archive.candidates()}
    for outcome in archive.evaluations():
        candidate = candidates[outcome.key.candidate]
        # Whose workers were struck often enough has failed, and its recipe with it. Not every
        # attempt was noted: a worker that is struck while it is idle dies with its next request.
        struck = outcome.error_class in _GIVEN_UP and (
            outcome.attempt >= archive.job.workers.max_attempts
            or _is_given_up(outcome, candidate, archive.evaluations(), candidates)
        )
        if not struck and (difference := _difference(archive, outcome, candidate)):
            yield f"{outcome.key}, attempt {outcome.attempt}: {difference} ({outcome.message})"


def _is_given_up(
    outcome: RecordedOutcome,
    candidate: Candidate,
    recorded: Sequence[RecordedOutcome],
    candidates: Mapping[int, Candidate],
) -> bool:
    """Say whether the recipe had killed its workers before, as another evaluation."""
    return any(
        other.error_class in _GIVEN_UP
        and candidates[other.key.candidate].recipe.recipe_id == candidate.recipe.recipe_id
        for other in recorded[: outcome.sequence]
    )


def _difference(archive: Archive, outcome: RecordedOutcome, candidate: Candidate) -> str:
    key, job = outcome.key, archive.job
    items = None if key.block == WHOLE else archive.block(key.split, key.block)
    request = EvaluationRequest(key, candidate.recipe, items)
    if (error := expected_error(job.seed, request)) or outcome.scores is None:
        found = scripted_outcome(job, archive.manifest, request)
        expected = error or getattr(found, "error_class", None)
        told = outcome.error_class
        return "" if told == expected else f"ended with {told}, expected {expected}"
    found = scripted_outcome(job, archive.manifest, request)
    if not isinstance(found, Completed):
        return f"has scores, expected {found.error_class}"
    if key.signal == "companions":
        return ""
    expected_scores = aggregate(job.objectives, found.task_scores)
    same = outcome.scores.keys() == expected_scores.keys() and all(
        np.isclose(outcome.scores[name].value, score.value)
        for name, score in expected_scores.items()
    )
    return "" if same else f"scored {outcome.scores}, expected {expected_scores}"
