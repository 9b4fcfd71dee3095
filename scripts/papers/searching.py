"""One search of a lab's pool by the project's own driver, as the command line would run it."""

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.evaluation import SplitName
from configs.recipe import MergeRecipe
from optimizer.archive.archive import Archive
from optimizer.candidate import Observation
from optimizer.driver import run_search
from scripts.bench.zoo_pool import RememberingPool
from scripts.papers.bench import Lab
from workers.outcome import EvaluationRequest


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search left.

    Attributes:
        told: What the strategy was told, baselines included, in that order.
        choice: Index of the candidate that was chosen on select items; None where the search was
            ended before.
    """

    told: list[Observation]
    choice: int | None

    @property
    def chosen(self) -> MergeRecipe:
        """The merge that was chosen.

        Raises:
            ValueError: The search was ended before.
        """
        for seen in self.told:
            if seen.candidate.index == self.choice:
                return seen.candidate.recipe
        raise ValueError("nothing was chosen; search until `report`")


class _EndedError(Exception):
    """The search has come to items that it was not to score."""


class _Until(RememberingPool):
    """Ends a search when it asks for items of a split."""

    def __init__(self, lab: Lab, split: SplitName) -> None:
        super().__init__(lab)
        self._split = split

    def submit(self, request: EvaluationRequest) -> None:
        if request.key.split == self._split:
            raise _EndedError
        super().submit(request)


def search(lab: Lab, *, until: Literal["select", "report"] = "report") -> Searched:
    """Search a lab's pool by its own job, from the first baseline on.

    Every candidate but those that lose a race is scored on all search items, as rivals do it, which
    choose by them: nothing is sampled.

    Args:
        lab: Its job says strategy, budget and seed; its archive is a temporary one.
        until: The split at which to end: ``select`` is before anything is chosen, ``report``
            before the choice and the baselines are scored on what a study scores itself.
    """
    job = lab.jobs["generate"]
    racing = job.search.racing.model_copy(update={"sampling": False})
    job = job.model_copy(update={"search": job.search.model_copy(update={"racing": racing})})
    with tempfile.TemporaryDirectory(prefix="mergefront-papers-") as scratch:
        path = Path(scratch) / "archive.sqlite"
        archive = Archive.create(
            path,
            job=job.model_copy(update={"archive": str(path)}),
            job_path=None,
            sources=lab.sources,
            manifest=lab.manifest,
        )
        with archive, _Until(lab, until) as pool:
            with suppress(_EndedError):
                run_search(archive, pool, lab.space)
            return Searched(archive.observations(), archive.choice())
