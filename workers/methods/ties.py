"""Electing a sign per element, and averaging the task vectors that agree with it."""

from typing import TYPE_CHECKING

from workers.methods.contract import Chunk, MergeMethod, Option
from workers.methods.task_vectors import EPSILON

if TYPE_CHECKING:
    from torch import Tensor


def _normalize(default: bool) -> Option:
    return Option(
        name="normalize",
        default=float(default),
        low=0.0,
        high=1.0,
        meaning="divide by the sum of the agreeing weights: a mean instead of a sum",
        is_flag=True,
    )


SCALE = Option(
    name="scale",
    default=1.0,
    low=-10.0,
    high=10.0,
    meaning="factor of the merged task vector (lambda in the papers)",
)


def elect_and_merge(chunk: Chunk) -> "Tensor":
    """Return base + scale * (disjoint mean, or sum, of the task vectors that agree in sign).

    arXiv:2306.01708, section 4: the elected sign of an element is that of
    sum_i scale_i * delta_i, positive where that is zero; only checkpoints with that sign
    count. With ``normalize`` their sum is divided by the sum of their weights (the paper's
    mean, for equal weights), so that weights are relative to each other. NaN stays NaN.
    """
    assert chunk.base is not None  # noqa: S101 - tells the type checker
    parts = [chunk.delta(index) * chunk.scales[index] for index in range(len(chunk.tuned))]
    elected = parts[0]
    for part in parts[1:]:
        elected = elected + part
    is_positive = elected >= 0.0
    total = agreeing = elected.new_zeros(())
    for index, part in enumerate(parts):
        agrees = (part > 0.0).where(is_positive, part < 0.0)
        total = total + part.where(agrees, 0.0)
        agreeing = agreeing + chunk.weights[index].where(agrees, 0.0)
    if chunk.options["normalize"]:
        total = total / agreeing.where(agreeing != 0.0, 1.0)
    # NaN agrees with no sign; hiding it would hide a broken checkpoint. Only it differs from
    # itself.
    total = total.where(elected == elected, elected)  # noqa: PLR0124 - isnan() is not vectorized
    if chunk.options["scale"] != 1.0:
        total = total * chunk.options["scale"]
    return chunk.base + total


TIES = MergeMethod(
    name="ties",
    paper="TIES-Merging, arXiv:2306.01708, section 4",
    needs_base=True,
    combine=elect_and_merge,
    drop="trim",
    options=(_normalize(default=True), SCALE),
)
"""Trim the p smallest magnitudes of each task vector, elect signs, disjoint mean. Trimming is per
tensor; equal magnitudes are kept in the order of their index."""

DARE_TIES = MergeMethod(
    name="dare_ties",
    paper="DARE, arXiv:2311.03099, with the sign election of TIES, arXiv:2306.01708",
    needs_base=True,
    combine=elect_and_merge,
    drop="random",
    options=(_normalize(default=False), SCALE),
)
"""Drop at random and rescale by 1/(1-p), elect signs, sum what agrees."""

DELLA = MergeMethod(
    name="della",
    paper="DELLA, arXiv:2406.11617, section 3",
    needs_base=True,
    combine=elect_and_merge,
    drop="ranked",
    options=(_normalize(default=True), SCALE, EPSILON),
)
"""Drop by rank of magnitude (MAGPRUNE) and rescale, elect signs, mean of what agrees."""
