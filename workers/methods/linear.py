"""Weighted averages of the tensors themselves, without a base."""

from typing import TYPE_CHECKING

from workers.methods.contract import Chunk, MergeMethod

if TYPE_CHECKING:
    from torch import Tensor


def add_tuned(chunk: Chunk) -> "Tensor":
    """Return sum_i scale_i * tuned_i."""
    total = chunk.tuned[0].float() * chunk.scales[0]
    for index in range(1, len(chunk.tuned)):
        total = total + chunk.tuned[index].float() * chunk.scales[index]
    return total


LINEAR = MergeMethod(
    name="linear",
    paper="Model soups, arXiv:2203.05482, section 2",
    needs_base=False,
    combine=add_tuned,
)
"""sum_i w_i * tuned_i. Weights are taken as they are: a soup's sum to one, and w_i = 1/N makes the
uniform soup of N checkpoints."""
