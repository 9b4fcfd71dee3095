"""Fusing by how far each checkpoint moved each parameter from where all of them began."""

from typing import TYPE_CHECKING

from workers.methods.contract import Chunk, MergeMethod, Option
from workers.methods.ties import SCALE

if TYPE_CHECKING:
    from torch import Tensor

POWER = Option(
    name="power",
    default=1.0,
    low=0.0,
    high=8.0,
    meaning="how much the checkpoint that moved a parameter most decides it; 0 is the mean",
    is_count=True,
)


def fuse_by_deltas(chunk: Chunk) -> "Tensor":
    """Return base + scale * sum_i w_i a_i d_i, with a_i = |d_i|^k / sum_j |d_j|^k per element.

    d_i = tuned_i - base, and k is the option ``power``; j runs over the checkpoints that
    contribute (weight other than 0). The idea, weights of each parameter from the deviations from
    the initialization, is CoDiEmb's (arXiv:2508.11442); the formula is ours. Where no checkpoint
    moved, 0/0, the result is the base. Magnitudes are divided by the largest, so that no power
    over- or underflows. NaN stays NaN, and infinities become NaN or stay.

    Powers are products: ``pow`` rounds differently in vectors, in remainders and on GPUs.
    """
    assert chunk.base is not None  # noqa: S101 - tells the type checker
    deltas = [chunk.delta(index) for index in range(len(chunk.tuned))]
    magnitudes = [delta.abs() for delta in deltas]
    largest = magnitudes[0]
    for magnitude in magnitudes[1:]:
        largest = largest.maximum(magnitude)
    divisor = largest.where(largest != 0.0, 1.0)
    shares = [_power(magnitude / divisor, int(chunk.options["power"])) for magnitude in magnitudes]
    total_share = shares[0]
    for share in shares[1:]:
        total_share = total_share + share
    total_share = total_share.where(total_share != 0.0, 1.0)
    total = deltas[0] * (shares[0] / total_share) * chunk.scales[0]
    for index in range(1, len(deltas)):
        total = total + deltas[index] * (shares[index] / total_share) * chunk.scales[index]
    return chunk.base + total * chunk.options["scale"]


def _power(values: "Tensor", exponent: int) -> "Tensor":
    """Return values^exponent by multiplication, from the left; 0^0 is 1."""
    result = values.new_ones(())
    for _ in range(exponent):
        result = result * values
    return result


DELTA_GUIDED = MergeMethod(
    name="delta_guided",
    paper="after CoDiEmb, arXiv:2508.11442; the formula is ours",
    needs_base=True,
    combine=fuse_by_deltas,
    options=(SCALE, POWER),
)
"""base + scale * sum_i w_i a_i (tuned_i - base), a_i the share of checkpoint i in the movement of an
element."""
