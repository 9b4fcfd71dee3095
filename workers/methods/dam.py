"""Weighted sums with a coefficient of its own for every input column of every checkpoint."""

from typing import TYPE_CHECKING

from workers.methods.contract import Chunk, MergeMethod

if TYPE_CHECKING:
    from torch import Tensor


def add_columns(chunk: Chunk) -> "Tensor":
    """Return sum_i tuned_i * (scale_i * c_i), where c_i has one number per column."""
    total = chunk.tuned[0].float() * (chunk.columns[0] * chunk.scales[0])
    for index in range(1, len(chunk.tuned)):
        total = total + chunk.tuned[index].float() * (chunk.columns[index] * chunk.scales[index])
    return total


DAM = MergeMethod(
    name="dam",
    paper="Differentiable Adaptive Merging, arXiv:2410.08371",
    needs_base=False,
    combine=add_columns,
    takes_columns=True,
)
"""sum_i w_i W_i diag(c_i): the c_i are learned (``mergefront learn``) and come from a file; learned
merges have w_i = 1. Of a vector every element is a column."""
