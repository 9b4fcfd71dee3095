"""The search loop: ask, record, submit, take an outcome, record, tell; then validate.

Two orders hold everything together (D4): a proposal is recorded before it is submitted, and an
outcome is recorded before the strategy learns of it. After a crash the archive therefore knows
all that the strategy knew, and only evaluations in flight are run again.

While workers are busy the strategy is asked ahead, so that a free worker never waits for it: an
outcome is recorded, the next proposal is submitted, and only then is the outcome told.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from configs.errors import SearchError, TooManyFailuresError
from configs.evaluation import SplitName
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.baselines import Baseline, baseline_plan
from optimizer.candidate import Candidate, Observation
from optimizer.dispatch import Dispatch
from optimizer.events import (
    BlockFinished,
    Finished,
    OnEvent,
    PhaseChanged,
    Progressed,
    Proposed,
    SearchStarted,
    WorkersSeen,
    ignore_event,
)
from optimizer.progress import Course
from optimizer.results.attribution import record_variants
from optimizer.space import SearchSpace
from optimizer.spending import Purse, gain_expected_by
from optimizer.stopped import EvaluationCount, is_whole, num_parts
from optimizer.strategies.registry import check_strategy, make_strategy
from optimizer.validation import choose_preferred, validation_candidates
from workers.outcome import EvaluationKey, EvaluationRequest, Failed, Outcome
from workers.pool import WorkerPool

logger = logging.getLogger(__name__)

# Below this many outcomes a share of failures says little.
_MIN_OUTCOMES_TO_JUDGE = 8
# How long to wait for an outcome before workers' states are shown again.
_TICK_S = 1.0
# How often the archive hears that a search goes on without outcomes; that waits for the disk.
_BEAT_S = 5.0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """How a search ended: why, with how many outcomes, and which candidate was chosen."""

    reason: str
    num_outcomes: int
    chosen: int


def run_search(
    archive: Archive,
    pool: WorkerPool,
    space: SearchSpace,
    *,
    job: JobConfig | None = None,
    given: Sequence[Baseline] = (),
    on_event: OnEvent = ignore_event,
) -> SearchResult:
    """Run a search to its end, from its beginning or from wherever its archive stands.

    Args:
        archive: Open for writing; holds the job, and all that was recorded so far.
        pool: Where evaluations run; the caller closes it.
        space: The search space of the archive's job.
        job: The archive's job with another budget, say; None takes it as archived. What it
            searches for must be the same (``JobConfig.digest``).
        given: The baselines that the job names, from ``optimizer.given_baselines``.
        on_event: Called from this thread with everything worth showing.

    Raises:
        ConfigError: The strategy has no use for what the job asks of it.
        TooManyFailuresError: More than the job's share of candidates failed.
        SearchError: Nothing could be scored on a held-out split.
        WorkerError: No worker can be started.
    """
    search = _Search(archive, pool, space, job or archive.job, on_event, given=given)
    archive.begin_run()
    reason = search.explore()
    chosen = search.validate()
    on_event(PhaseChanged("done", 0))
    return SearchResult(reason, len(search.observations), chosen)


def num_singles(job: JobConfig) -> int:
    """Return how many candidates the base and the checkpoints are: the first of every search."""
    return len(job.models.checkpoints) + (job.models.base is not None)


def run_singles(
    archive: Archive,
    pool: WorkerPool,
    space: SearchSpace,
    *,
    job: JobConfig,
    on_event: OnEvent = ignore_event,
) -> None:
    """Score the base and the checkpoints only, on all items; ``run_search`` goes on from there.

    Raises:
        TooManyFailuresError: More than the job's share of candidates failed.
        WorkerError: No worker can be started.
    """
    budget = job.budget.model_copy(update={"evaluations": num_singles(job)})
    job = job.model_copy(update={"budget": budget})
    search = _Search(archive, pool, space, job, on_event, samples_baselines=False)
    archive.begin_run()
    search.explore()


class _Search:
    """The state of a search, rebuilt from its archive."""

    def __init__(
        self,
        archive: Archive,
        pool: WorkerPool,
        space: SearchSpace,
        job: JobConfig,
        on_event: OnEvent,
        *,
        given: Sequence[Baseline] = (),
        samples_baselines: bool = True,
    ) -> None:
        self._archive = archive
        self._pool = pool
        self._space = space
        self._on_event = on_event
        self._job = job
        check_strategy(self._job)
        self._strategy = make_strategy(self._job, space)
        self._plan = baseline_plan(archive, space, given)
        # Recorded, in their order, and not submitted yet.
        self._ready: deque[Candidate] = deque()
        self.candidates: list[Candidate] = []
        self.observations: list[Observation] = []
        self._untold: dict[int, Candidate] = {}
        # Kept up to date: counting thousands of candidates again for every ask takes its time.
        self._num_baselines = self._num_whole = self._num_parts = 0
        sources = [one.recipe.recipe_id for one in self._plan.fixed if one.is_source]
        self._dispatch = Dispatch(
            archive, self._strategy, space, sources, samples_baselines=samples_baselines
        )
        whole = partial(is_whole, archive)
        group_size, per_score = self._dispatch.group_size, self._dispatch.per_score
        self._counted = EvaluationCount(group_size, per_score, whole)
        # A sample is scored as any other candidate is.
        self._scored = EvaluationCount(group_size, 1, whole)
        self._purse = Purse(archive, self._job.budget, self._job.workers.gpus)
        self._course, self._volume = Course(tuple(self._job.objectives)), 0.0
        for candidate in archive.candidates():
            self._note_proposal(candidate)
        self._seeds = archive.seeds()
        for seed in self._seeds:
            self._strategy.tell(seed)
        self._tell_new()

    def explore(self) -> str:
        """Propose and evaluate until the budget is spent; returns the reason for the end."""
        self._on_event(SearchStarted(self._num_evaluated, self._job.budget.evaluations))
        self._dispatch.settle_last()
        self._tell_new()
        self._ready = deque(self._dispatch.waiting(list(self._untold.values())))
        left = max(0, self._job.budget.evaluations - self._num_evaluated)
        self._on_event(PhaseChanged("search", left))
        while True:
            self._submit_ready()
            reason = self._ask_ahead()
            if not self._pool.num_pending:
                return reason or "nothing left to propose"
            self._take_outcome()

    def validate(self) -> int:
        """Score held-out splits, choose, and return the chosen candidate's index."""
        preference = self._job.preference
        size = self._job.validation.candidates
        promising = validation_candidates(
            self.observations, preference, size, space=self._space, seeds=self._seeds
        )
        self._evaluate("select", promising)
        selected = self._archive.scores("select")
        chosen = choose_preferred(selected, preference)
        if chosen is None:
            raise SearchError(
                f"archive {self._archive.place}: no candidate could be scored on the select split, "
                f"of {len(self.observations)} outcomes of the search; see `mergefront status` for "
                "the failures"
            )
        if chosen != self._archive.choice():
            rule = f"best preferred mean on select among {len(selected)} candidates"
            self._archive.record_choice(chosen, rule)
        baselines = [candidate.index for candidate in self.candidates if candidate.is_baseline]
        self._evaluate("report", sorted({chosen, *baselines}))
        if self._job.validation.leave_one_out:
            variants = record_variants(self._archive, self._space, chosen)
            self.candidates = self._archive.candidates()
            self._evaluate("report", variants)
        return chosen

    def _submit_ready(self) -> None:
        """Give free workers what goes on, then what was proposed, in its order."""
        while self._ready and self._pool.num_free:
            request = self._dispatch.request(self._ready[0])
            if self._purse.promise(request):
                return
            self._ready.popleft()
            self._pool.submit(request)

    def _ask_ahead(self) -> str:
        """Ask until no worker is free and enough is ready; returns why nothing more is asked."""
        ahead = self._job.search.num_ahead(self._pool.num_free + self._pool.num_pending)
        while not (reason := self._end_reason()):
            if not self._pool.num_free and len(self._ready) >= ahead:
                break
            self._ready.append(self._propose())
            self._submit_ready()
        return reason

    def _propose(self) -> Candidate:
        index = len(self.candidates)
        begun = self._num_proposed
        baseline = self._plan.next(
            self.candidates,
            self.observations,
            left=self._job.budget.evaluations - begun,
            num_own=self._num_evaluations(self._num_known - self._num_baselines),
        )
        if baseline is not None:
            recipe = baseline.recipe
            genotype = baseline.genotype
            if genotype is None:
                genotype = self._space.genotype_of(recipe)
            seen = len(self._seeds) + len(self.observations)
            candidate = Candidate(index, genotype, recipe, baseline.origin, seen)
        else:
            candidate = self._strategy.ask(index, list(self._untold.values()))
        self._archive.record_proposal(candidate)
        self._note_proposal(candidate)
        self._on_event(Proposed(candidate))
        return candidate

    def _note_proposal(self, candidate: Candidate) -> None:
        self.candidates.append(candidate)
        if not candidate.is_attribution:
            self._untold[candidate.index] = candidate
            self._num_baselines += candidate.is_baseline
            if self._dispatch.is_part(candidate):
                self._num_parts += num_parts(candidate, self._dispatch.group_size)
            else:
                self._num_whole += 1
            self._dispatch.proposed(candidate)

    def _end_reason(self) -> str:
        budget = self._job.budget
        if spent := self._purse.spent():
            return spent
        is_whole = self._num_parts % self._per_evaluation == 0
        if self._num_proposed >= budget.evaluations and is_whole:
            return f"budget of {budget.evaluations} evaluations spent"
        if reason := self._purse.too_little_gain(self._strategy, self._scored.count):
            return reason
        return "; ".join(f"{name}: {why}" for name, why in self._strategy.stop().items())

    @property
    def _num_proposed(self) -> int:
        """Evaluations that were proposed, those included of which only a part was."""
        return self._num_whole + self._num_evaluations(self._num_parts)

    def _num_evaluations(self, parts: int) -> int:
        """Return as how many evaluations so many parts count, one that is begun included."""
        return -(-parts // self._per_evaluation)

    @property
    def _per_evaluation(self) -> int:
        """How many parts are one evaluation."""
        return self._dispatch.group_size * self._dispatch.per_score

    @property
    def _num_known(self) -> int:
        """All candidates but those that only ask what matters in the chosen merge."""
        return len(self._untold) + len(self.observations)

    @property
    def _num_evaluated(self) -> int:
        return self._counted.count

    def _evaluate(self, split: SplitName, indices: Iterable[int]) -> None:
        """Score candidates on a held-out split, except those that have an outcome there."""
        done = {outcome.key.candidate for outcome in self._archive.outcomes(split)}
        waiting = deque(index for index in indices if index not in done)
        self._on_event(PhaseChanged(split, len(waiting)))
        while waiting or self._pool.num_pending:
            while waiting and self._pool.num_free:
                candidate = self.candidates[waiting.popleft()]
                key = EvaluationKey(candidate.index, split)
                self._pool.submit(EvaluationRequest(key, candidate.recipe))
            self._take_outcome()

    def _take_outcome(self) -> None:
        """Wait for one outcome; record it, give the worker its next, then tell the strategy."""
        while (outcome := self._pool.next_outcome(_TICK_S)) is None:
            self._archive.heartbeat(every_s=_BEAT_S)
            self._on_event(WorkersSeen(self._pool.worker_states()))
        if not self._archive.record_outcome(outcome):
            logger.warning("dropped a second outcome of %s", outcome.key)
            return
        split = outcome.key.split
        candidate = self.candidates[outcome.key.candidate]
        if split == "search":
            self._settle(candidate, outcome)
        else:
            recorded = self._archive.outcome(candidate.index, split)
            scores = None if recorded is None else recorded.scores
            self._on_event(Finished(candidate, outcome, scores, len(self._archive.outcomes(split))))
        self._on_event(WorkersSeen(self._pool.worker_states()))

    def _settle(self, candidate: Candidate, outcome: Outcome) -> None:
        """Give the free worker its next request; then tell what the outcome finished."""
        key = outcome.key
        recorded = self._archive.outcome(key.candidate, key.split, key.block, key.signal)
        if recorded is not None:
            self._purse.settle(recorded)
        going_on = self._dispatch.settle(candidate.index)
        self._ready.extendleft(self.candidates[index] for index in reversed(going_on))
        self._submit_ready()
        if not self._archive.is_finished(candidate.index):
            self._on_event(BlockFinished(candidate, outcome))
        told = self._tell_new()
        gain = gain_expected_by(self._strategy) if told else None
        for seen in told:
            count = self._num_evaluated
            self._on_event(Finished(seen.candidate, outcome, seen.scores, count, seen.stopped))
            spending = self._purse.spending
            model_s = sum(spending.model_s.values())
            self._on_event(Progressed(count, spending.total_items, model_s, self._volume, gain))
        if isinstance(outcome, Failed):
            self._check_failures(outcome)

    def _tell_new(self) -> list[Observation]:
        """Tell the strategy what it does not know yet, in the recorded order."""
        new = self._archive.observations()[len(self.observations) :]
        for observation in new:
            self.observations.append(observation)
            del self._untold[observation.candidate.index]
            self._counted.add(observation)
            self._scored.add(observation)
            self._dispatch.note(observation)
            self._volume = self._course.add(observation)
            self._strategy.tell(observation)
        return new

    def _check_failures(self, last: Failed) -> None:
        total = len(self.observations)
        failed = sum(observation.scores is None for observation in self.observations)
        limit = self._job.search.max_failed_share
        if total >= _MIN_OUTCOMES_TO_JUDGE and failed > limit * total:
            raise TooManyFailuresError(
                f"{failed} of {total} candidates failed, more than search.max_failed_share = "
                f"{limit}. The last failure, candidate {last.key.candidate} at stage "
                f"{last.stage}: {last.error_class}: {last.message}. "
                f"Mend the cause, then `mergefront resume {self._archive.place}`.",
                failed=failed,
                total=total,
            )
