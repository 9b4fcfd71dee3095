"""Quasi-random search: what even cover of the box of genes is worth, which is little."""

from collections.abc import Sequence

from scipy.stats import qmc

from configs.schema import JobConfig
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace

ORIGIN = "strategy:sobol"


class SobolStrategy:
    """Takes the points of a scrambled Sobol sequence one by one (Owen 1998); index by index."""

    def __init__(self, job: JobConfig, space: SearchSpace) -> None:
        self._space = space
        self._seed = job.seed
        self._num_told = 0

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Return the point of that index in the sequence."""
        sequence = qmc.Sobol(self._space.size, scramble=True, rng=self._seed)
        if index:  # scipy overflows for 0
            sequence.fast_forward(index)
        genotype = sequence.random(1)[0]
        recipe = self._space.decode(genotype)
        return Candidate(index, genotype, recipe, ORIGIN, seen=self._num_told)

    def tell(self, observation: Observation) -> None:
        """Count it."""
        self._num_told += 1

    def stop(self) -> dict[str, str]:
        """Only the budget ends it."""
        return {}
