"""How far CMA-ES has narrowed, from the record: its step size and the shape of its distribution.

A strategy's state is a function of what it was told (D4), so it is told again.
"""

from dataclasses import dataclass

from optimizer.archive.archive import Archive
from optimizer.archive.recorded_space import recorded_space
from optimizer.strategies.cma import ORIGIN as CMA
from optimizer.strategies.cma import CmaStrategy
from optimizer.strategies.scalar_cma import ScalarCmaStrategy
from optimizer.strategies.surrogate import ORIGIN as SURROGATE

_ORIGINS = {"cma": CMA, "surrogate_cma": SURROGATE}


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution after an update.

    Attributes:
        candidate: Whose outcome completed the population.
        sigma: Overall step size, in units of the genotype; ``scalar_cma`` has units of its own.
        axis_ratio: Longest axis of the distribution over its shortest, >= 1.
    """

    candidate: int
    sigma: float
    axis_ratio: float


def convergence_of(archive: Archive) -> list[Spread]:
    """Return the distribution after each of its updates; empty for strategies without CMA-ES."""
    if not archive.candidates():
        return []
    strategy = _strategy_of(archive)
    if strategy is None:
        return []
    found: list[Spread] = []
    updates = 0
    for seen in [*archive.seeds(), *archive.observations()]:
        strategy.tell(seen)
        if strategy.num_updates > updates:
            updates = strategy.num_updates
            found.append(Spread(seen.candidate.index, strategy.sigma, strategy.axis_ratio))
    return found


def _strategy_of(archive: Archive) -> CmaStrategy | ScalarCmaStrategy | None:
    """Return the CMA-ES of a search as it began; None where it has none."""
    job, space = archive.job, recorded_space(archive)
    if job.search.strategy == "scalar_cma":
        return ScalarCmaStrategy(job, space)
    origin = _ORIGINS.get(job.search.strategy)
    return None if origin is None else CmaStrategy(job, space, origin=origin)
