"""What a candidate is asked for next, and what its outcome means for it.

The way of a candidate through the search split: companions first where they decide something (a
gate, ``optimizer.gates``; a screening, ``optimizer.screening``), then its scores, at once or stage
by stage (``optimizer.racing``). After each outcome it is finished, stopped (recorded here), or goes
on. That depends on what was recorded up to that outcome only, and is decided before anything else
is recorded: after a crash the last outcome is the only one that may still lack its decision.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from evaluators.blocks import WHOLE, remaining
from evaluators.scores import Items
from optimizer.archive.archive import Archive
from optimizer.archive.stops import Stop
from optimizer.candidate import SAMPLED, Candidate, Observation
from optimizer.dispatch_plan import dispatch_plan, may_be_sampled, stages_of
from optimizer.gates import likelihood_gate, repetition_gate
from optimizer.partial import block_request
from optimizer.racing import FIRST_CHOICE, Race
from optimizer.screening import Groups, Screens
from optimizer.space import SearchSpace
from optimizer.stages import sample_of
from optimizer.stopped import is_whole
from optimizer.strategies.strategy import Strategy, learns_from_samples
from workers.outcome import EvaluationKey, EvaluationRequest


class Dispatch:
    """The way of every candidate through the search split.

    Args:
        archive: Open for writing. Its job decides, as it was when the search began: what may
            change since, like the device of its workers, must not change what was laid out.
        strategy: Asked which candidate of a group goes on, where it can say so.
        space: Of the job.
        sources: Recipe ids of the base and the checkpoints alone, which gates hold others against.
        samples_baselines: Whether baselines are scored on samples where proposals are.
    """

    def __init__(
        self,
        archive: Archive,
        strategy: Strategy,
        space: SearchSpace,
        sources: Sequence[str],
        *,
        samples_baselines: bool = True,
    ) -> None:
        job = archive.job
        self._archive = archive
        self._space = space
        self._settings = job.search
        self._strategy = strategy if isinstance(strategy, Screens) else None
        items = archive.manifest.items("search")
        plan = dispatch_plan(
            job,
            items,
            can_choose=self._strategy is not None,
            can_sample=learns_from_samples(strategy),
        )
        self._job, self._items, self._preview = job, items, plan.preview
        self._samples = plan.samples
        self._samples_baselines = plan.samples_baselines and samples_baselines
        self.group_size, self.per_score = plan.group_size, plan.per_score
        # Means over other items could not be compared with those of whom was screened, or with
        # those of other samples.
        self._has_own_references = plan.screens or plan.samples
        # (observations told, the stages of whoever is proposed from then on), in that order.
        self._stages = [(0, plan.stages)]
        self._next_choice = FIRST_CHOICE
        self._num_told = 0
        self._num_seeds = len(archive.seeds())
        self.groups = Groups(plan.group_size) if plan.screens else None
        self._race = Race(job.objectives, job.preference, job.search.racing, self._num_looks)
        # Recipe ids of sources that are not finished, and the candidates that are sources.
        self._missing = set(sources)
        self._sources: list[int] = []

    @property
    def _num_looks(self) -> int:
        return len(self._stages[0][1]) - 1

    def note(self, observation: Observation) -> None:
        """Take in what was told: others are compared with whoever was scored on everything."""
        self._num_told += 1
        candidate = observation.candidate
        if candidate.recipe.recipe_id in self._missing:
            self._missing.discard(candidate.recipe.recipe_id)
            if observation.is_scored:
                self._sources.append(candidate.index)
        if self._num_looks and observation.is_complete and observation.scores is not None:
            items = self._archive.task_scores(candidate.index, "search")
            self._race.add(candidate.index, observation.scores, items)
            if self._race.num_complete >= self._next_choice and not self._samples:
                chosen = stages_of(self._job, self._items, self._race.worth())
                self._stages.append((self._num_told, chosen))
                self._next_choice *= 2
        if self._samples and observation.is_scored:
            self._race.learn(self._archive.scored_items(candidate.index, "search"))

    def is_part(self, candidate: Candidate) -> bool:
        """Whether a candidate is a part of an evaluation: one of a group, or scored on a sample.

        Baselines are no part of a group. Where there are samples, most are scored on one, too:
        half of what a search needs would else be spent before its first proposal.
        """
        if not candidate.is_baseline:
            return True
        if not (self._samples_baselines and not is_whole(self._archive, candidate)):
            return False
        return may_be_sampled(candidate.index, candidate.recipe, self._space)

    def _stages_of(self, candidate: Candidate) -> Sequence[Items]:
        """Return the stages of a candidate: those that were known when it was proposed.

        So they are the same after a crash, whenever it is submitted.
        """
        if self._samples:
            first = self._stages[0][1][0]
            return (sample_of(self._items, first, self._job.seed, candidate.index),)
        told = candidate.seen - self._num_seeds
        return next(found for known, found in reversed(self._stages) if known <= max(0, told))

    def proposed(self, candidate: Candidate) -> None:
        """Take in a proposal, in the order of their index."""
        if self.groups is not None:
            self.groups.add(candidate)

    def waiting(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return which unfinished candidates are to be submitted, in that order, after a restart.

        Those go first of which something was scored, as they went on when that was known.
        """
        begun = {outcome.key.candidate for outcome in self._archive.evaluations("search")}
        found = [
            candidate
            for candidate in candidates
            if not (candidate.index in begun and self._waits(candidate.index))
        ]
        return sorted(found, key=lambda candidate: candidate.index not in begun)

    def request(self, candidate: Candidate) -> EvaluationRequest:
        """Return what a candidate is asked for next on the search split."""
        index = candidate.index
        if not self.is_part(candidate) or not (self._preview or self._num_looks):
            key = EvaluationKey(index, "search")
            beside = self._preview if self._has_own_references else None
            return EvaluationRequest(key, candidate.recipe, companions=beside)
        if self._preview and not self._is_previewed(index):
            name = self._archive.record_block("search", self._preview)
            items = None if name == WHOLE else self._archive.block("search", name)
            key = EvaluationKey(index, "search", name, "companions")
            return EvaluationRequest(key, candidate.recipe, items)
        known = {
            task: part.item_ids for task, part in self._archive.companions(index, "search").items()
        }
        for stage in self._stages_of(candidate):
            request = block_request(self._archive, index, "search", stage, known)
            if request is not None and self._has_own_references:
                return replace(request, companions=remaining(self._preview, known))
            if request is not None:
                return request
        raise ValueError(f"candidate {index} has nothing left to be asked for")

    def settle(self, index: int) -> list[int]:
        """Decide on a candidate whose outcome is the last that was recorded.

        Returns:
            Which candidates have to go on now, it or another of its group. Where some were
            stopped, that is recorded.
        """
        if not self._archive.is_finished(index):
            if stop := self._stop(self._archive.candidate(index)):
                self._archive.record_stops({index: stop})
            elif self._archive.scored_items(index, "search") or not self._is_screened(index):
                return [index]
        return self._promoted(index)

    def settle_last(self) -> None:
        """Make the decision that a crash may have prevented."""
        recorded = self._archive.evaluations()
        if recorded and recorded[-1].key.split == "search":
            self.settle(recorded[-1].key.candidate)

    def _stop(self, candidate: Candidate) -> Stop | None:
        """Return why a candidate is not worth more; None where it may be."""
        index, items = candidate.index, self._archive.scored_items(candidate.index, "search")
        if not candidate.is_baseline:
            stop = self._broken_by_repetition(index) if items else self._broken_by_likelihood(index)
            if stop is not None:
                return stop
        if not items:
            return None
        if self._samples:
            scored = sum(len(part.item_ids) for part in items.values())
            whole = sum(map(len, self._items.values()))
            numbers = {"items": scored, "of": whole}
            return Stop(reason=SAMPLED, scores=self._race.estimate(items), numbers=numbers)
        if (loss := self._race.loss(items)) is None:
            return None
        return Stop(reason="racing", scores=self._race.estimate(items), numbers=asdict(loss))

    def _broken_by_likelihood(self, index: int) -> Stop | None:
        factor = self._settings.gates.likelihood
        if factor is None or self._missing:
            return None
        sources = [self._archive.companions(source, "search") for source in self._sources]
        return likelihood_gate(self._archive.companions(index, "search"), sources, factor)

    def _broken_by_repetition(self, index: int) -> Stop | None:
        limit = self._settings.gates.repetition
        if limit is None or self._missing:
            return None
        sources = [self._archive.texts_so_far(source, "search") for source in self._sources]
        return repetition_gate(self._archive.texts_so_far(index, "search"), sources, limit)

    def _is_previewed(self, index: int) -> bool:
        known = {
            task: part.item_ids for task, part in self._archive.companions(index, "search").items()
        }
        return not remaining(self._preview, known)

    def _waits(self, index: int) -> bool:
        """Whether a candidate that was screened waits for the others of its group."""
        if not self._is_screened(index) or self._archive.scored_items(index, "search"):
            return False
        if not self._is_previewed(index):
            return False
        others = [other for other in self._group(index) if other != index]
        return not others or not all(map(self._archive.is_finished, others))

    def _is_screened(self, index: int) -> bool:
        """Whether a candidate goes on only if it is chosen from a group."""
        return self.groups is not None and not self._archive.candidate(index).is_baseline

    def _group(self, index: int) -> list[int]:
        return [] if self.groups is None else self.groups.of(index)

    def _promoted(self, index: int) -> list[int]:
        """Choose one of a candidate's group when all are known, and stop the others."""
        group = self._group(index)
        left = [member for member in group if not self._archive.is_finished(member)]
        if not left or not all(map(self._is_previewed, left)) or self._strategy is None:
            return []
        if any(self._archive.scored_items(member, "search") for member in left):
            return []
        seen = [self._archive.preview(member) for member in left]
        chosen = 0
        if len(left) > 1:
            chosen = self._strategy.promote([found.candidate for found in seen], seen)
        numbers = {"promoted": left[chosen], "group": group}
        stop = Stop(reason="screened", scores={}, numbers=numbers)
        self._archive.record_stops({member: stop for member in left if member != left[chosen]})
        return [left[chosen]]
