"""What a search with a surrogate still expects to gain.

The expected hypervolume improvement (Emmerich, Giannakoglou & Naujoks, "Single- and multiobjective
evolutionary optimization assisted by Gaussian random field metamodels", IEEE Trans. Evol. Comput.
10, 2006) of the best merge that can be found, by how far its score can move what is believed of
it. So it speaks of the front of posterior medians that is returned, not of lucky scores: where
noise hides what is left to be won, little is expected.
"""

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from evaluators.scores import FloatArray
from optimizer.pareto import gain_bounds, gains
from optimizer.space import SearchSpace
from optimizer.strategies.surrogate_pool import Belief, draw_children, draw_pool

# Draws for the order of a pool, and for the gain of the merges at its top.
_ROUGH_DRAWS, _DRAWS = 8, 64
# So many pools at once: far from what is known little is expected almost everywhere, and what is
# missed there makes the estimate jump.
_POOLS = 2
# Of the merges of a pool so many are bred, and at the end so many looked at closely.
_ELITE, _GENERATIONS, _CLOSE = 40, 2, 4
# Draws further out than this are not: their logits would only be one or zero.
_SMALLEST = 1e-6


def expected_gain(space: SearchSpace, belief: Belief, rng: np.random.Generator) -> float:
    """Estimate the hypervolume that the best next candidate adds to the front that is believed.

    Args:
        space: Of the search.
        belief: What was learnt so far.
        rng: Where the pool and the draws come from.

    Returns:
        Hypervolume in the product of the objectives' units, zero or more.
    """
    surrogate, front, reference = belief.surrogate, belief.front, belief.reference
    dimensions = len(reference)
    rough, fine = (_normal(count, dimensions, rng) for count in (_ROUGH_DRAWS, _DRAWS))

    def drawn(genotypes: FloatArray, normal: FloatArray) -> FloatArray:
        outlook = surrogate.outlook(surrogate.features_of_genotypes(genotypes))
        return outlook(normal).reshape(-1, dimensions)

    def worth(genotypes: FloatArray) -> FloatArray:
        bounds = gain_bounds(drawn(genotypes, rough), front, reference)
        return np.asarray(bounds.reshape(len(rough), -1).mean(axis=0))

    parents = belief.parents
    pool = np.concatenate([draw_pool(space, parents, None, rng) for _ in range(_POOLS)])
    worths = worth(pool)
    for _ in range(_GENERATIONS):
        best = pool[np.argsort(-worths, kind="stable")[:_ELITE]]
        children = draw_children(space, best, rng)
        pool = np.concatenate([pool, children])
        worths = np.concatenate([worths, worth(children)])
    close = pool[np.argsort(-worths, kind="stable")[:_CLOSE]]
    exact = gains(drawn(close, fine), front, reference)
    return float(exact.reshape(len(fine), -1).mean(axis=0).max())


def _normal(count: int, dimensions: int, rng: np.random.Generator) -> FloatArray:
    """Draw ``(count, dimensions)`` standard normal numbers that are spread evenly."""
    uniform = qmc.Sobol(dimensions, rng=rng).random(count)
    return np.asarray(ndtri(np.clip(uniform, _SMALLEST, 1 - _SMALLEST)), dtype=np.float64)
