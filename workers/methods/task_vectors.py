"""Sums of task vectors on a base, whole or with a part dropped."""

from typing import TYPE_CHECKING

from workers.methods.contract import Chunk, MergeMethod, Option

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = Option(
    name="epsilon",
    default=0.2,
    low=0.0,
    high=1.0,
    meaning="width of the interval of drop probabilities around p",
)


def add_task_vectors(chunk: Chunk) -> "Tensor":
    """Return base + sum_i scale_i * drop_i(tuned_i - base)."""
    assert chunk.base is not None  # noqa: S101 - tells the type checker
    total = chunk.base
    for index in range(len(chunk.tuned)):
        total = total + chunk.delta(index) * chunk.scales[index]
    return total


TASK_ARITHMETIC = MergeMethod(
    name="task_arithmetic",
    paper="Editing models with task arithmetic, arXiv:2212.04089, section 2",
    needs_base=True,
    combine=add_task_vectors,
)
"""base + sum_i w_i * (tuned_i - base)."""

DARE_LINEAR = MergeMethod(
    name="dare_linear",
    paper="DARE, arXiv:2311.03099, section 3.2, equations 1 and 2",
    needs_base=True,
    combine=add_task_vectors,
    drop="random",
)
"""Drops elements of the task vectors at random, and rescales the others. Of element j:

    merged_j = base_j + sum_i w_i m_ij / (1 - p_i) (tuned_ij - base_j)
    m_ij ~ Bernoulli(1 - p_i): 1 with probability 1 - p_i, where the element is kept, else 0

Here m_ij = 1 iff u_ij >= p_i, with u_ij in [0, 1) a hash of seed, checkpoint, tensor and element
(``workers.mask``). The scale is the paper's 1/(1-p), not the match of L1 norms that mergekit calls
rescale."""

DELLA_LINEAR = MergeMethod(
    name="della_linear",
    paper="DELLA, arXiv:2406.11617, section 3: drop and fuse, without electing signs",
    needs_base=True,
    combine=add_task_vectors,
    drop="ranked",
    options=(EPSILON,),
)
"""Drops small magnitudes of a task vector more often (MAGPRUNE). Of element j:

    merged_j = base_j + sum_i w_i m_ij / (1 - p_ij) (tuned_ij - base_j)
    p_ij = p_i - epsilon/2 + epsilon r_ij / (n - 1)
    m_ij ~ Bernoulli(1 - p_ij), here 1 iff u_ij >= p_ij, with the hash of DARE, else 0

r_ij is the rank of abs(tuned_ij - base_j) among the n elements of its row, 0 for the largest.
Epsilon is smaller where p_ij would leave [0, 1): ``workers.statistics.ranked_drop_ratios``."""
