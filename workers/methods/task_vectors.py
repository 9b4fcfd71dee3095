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
"""base + sum_i w_i / (1 - p_i) * kept_i * (tuned_i - base). The scale is the paper's 1/(1-p), not
the match of L1 norms that mergekit calls rescale."""

DELLA_LINEAR = MergeMethod(
    name="della_linear",
    paper="DELLA, arXiv:2406.11617, section 3: drop and fuse, without electing signs",
    needs_base=True,
    combine=add_task_vectors,
    drop="ranked",
    options=(EPSILON,),
)
"""base + sum_i w_i * kept_i / (1 - p_ij) * (tuned_i - base), with p_ij by rank of magnitude."""
