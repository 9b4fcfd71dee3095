"""Random search at the same budget: what a strategy has to beat, besides the baselines.

The rival is a search like any other, by strategy ``dirichlet``, in an archive of its own beside
the first (``run.sqlite``: ``run.random.sqlite``; ``search=run``: ``search=run.random``), so it
resumes exactly and can be read by every command. It is the last to run, when the first search says
what the budget was; what the first archive has scored already, the baselines above all, is not
scored again.
"""

import math
from dataclasses import dataclass

from configs.errors import SearchError
from configs.place import Place
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.remembered import same_scores
from optimizer.results.verdict import ALPHA, Comparison, compare, format_p_value
from optimizer.spending import spending_of

STRATEGY = "dirichlet"


@dataclass(frozen=True, slots=True)
class RivalResult:
    """The chosen merge against that of random search, over the report split.

    ``evaluations`` and ``budget`` are those of the random search; they differ while it has not
    caught up with the search. ``gap`` is chosen minus rival, None where both chose one merge.
    """

    archive: Place
    evaluations: int
    budget: int
    chosen: int
    recipe_id: str
    gap: Comparison | None

    @property
    def won(self) -> bool:
        """Whether the chosen merge is significantly better than that of random search."""
        return self.gap is not None and self.gap.mean.mean > 0 and self.gap.p_value <= ALPHA

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        of = "" if self.evaluations == self.budget else f" of {self.budget}"
        who = f"Random search ({self.evaluations}{of} evaluations)"
        if self.gap is None:
            return f"{who} chose the same merge."
        numbers = f"{self.gap.mean.mean:+.3f} ± {self.gap.mean.stderr:.3f} on the mean"
        test = f"({format_p_value(self.gap.p_value)})"
        if self.won:
            return f"{who} was beaten: chosen merge - its choice is {numbers} {test}."
        if self.gap.mean.mean < 0 and self.gap.p_value <= ALPHA:
            return f"{who} was better: chosen merge - its choice is {numbers} {test}."
        return f"{who} did as well: chosen merge - its choice is {numbers} {test}."


def rival_place(archive: Archive) -> Place:
    """Return where the archive of the random search beside an archive is."""
    return archive.place.beside("random")


def rival_job(archive: Archive) -> JobConfig:
    """Return the job of random search at the budget of a finished search.

    The budget is what the search's scored items amount to in evaluations of the whole search
    split; a failed candidate counts as one.

    Raises:
        SearchError: The search has not chosen yet, or is a random search itself.
    """
    if archive.job.search.strategy == STRATEGY:
        raise SearchError(
            f"archive {archive.place} is a random search itself (strategy `{STRATEGY}`); there is "
            "nothing to compare it with"
        )
    if archive.choice() is None:
        raise SearchError(
            f"archive {archive.place}: the search has not ended, so there is no budget to compare "
            f"with; continue with `mergefront resume {archive.place}`"
        )
    job = archive.job
    # Every candidate in full, so that evaluations are what was spent.
    search = {
        "strategy": STRATEGY,
        "preference": job.search.preference,
        "racing": {"enabled": False, "sampling": False},
        "screening": {"enabled": False},
    }
    budget = job.budget.model_copy(update={"evaluations": spent(archive), "hours": None})
    changed = {
        "name": f"{job.name} (random search)",
        "search": type(job.search).model_validate(search),
        "budget": budget,
        "archive": str(rival_place(archive)),
    }
    return job.model_copy(update=changed)


def spent(archive: Archive) -> int:
    """Return what the search cost, in evaluations of the whole search split."""
    total = sum(map(len, archive.manifest.items("search").values()))
    items = spending_of(archive).total_items
    failed = sum(seen.scores is None for seen in archive.observations())
    return max(1, math.ceil(items / total) + failed)


def rival_of(archive: Archive) -> RivalResult | None:
    """Compare the choice of an archive with that of the random search beside it.

    None where there is no such archive, where either choice has no report scores, or where the
    other archive is of another search.

    Raises:
        ArchiveError: The archive beside it cannot be read.
    """
    place = rival_place(archive)
    chosen = archive.choice()
    if (
        archive.job.search.strategy == STRATEGY
        or chosen is None
        or chosen not in archive.scores("report")
        or not Archive.exists(place)
    ):
        return None
    with Archive.open(place) as rival:
        theirs = rival.choice()
        if theirs is None or theirs not in rival.scores("report"):
            return None
        if not _is_rival(archive, rival):
            return None
        recipe_id = rival.candidate(theirs).recipe.recipe_id
        gap = None
        if recipe_id != archive.candidate(chosen).recipe.recipe_id:
            gap = compare(
                archive.job.objectives,
                archive.job.preference,
                archive.task_scores(chosen, "report"),
                rival.task_scores(theirs, "report"),
            )
        return RivalResult(
            archive=place,
            evaluations=spent(rival),
            budget=spent(archive),
            chosen=theirs,
            recipe_id=recipe_id,
            gap=gap,
        )


def _is_rival(archive: Archive, other: Archive) -> bool:
    digests = [[source.digest for source in each.sources.everything] for each in (archive, other)]
    return (
        other.job.digest == rival_job(archive).digest
        and digests[0] == digests[1]
        and same_scores(archive, other)
    )
