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
    """Elect a sign per element, and merge the task vectors that have it.

    arXiv:2306.01708, section 4. With delta_ij = tuned_ij - base_j after drops, of element j:

        gamma_j = sign(sum_i w_i delta_ij), positive where that is zero
        A_j = {i: sign(w_i delta_ij) = gamma_j}
        merged_j = base_j + lambda sum_{i in A_j} w_i delta_ij / sum_{i in A_j} w_i

    The paper has all w_i = 1, so the quotient is its disjoint mean. Without ``normalize`` there is
    no division: merged_j = base_j + lambda sum_{i in A_j} w_i delta_ij. Lambda is ``scale``. Of an
    empty A_j, merged_j = base_j. NaN stays NaN.

    Where drops rescale by a constant (DARE), w_i / (1 - p_i) stands for w_i but in the divisor.
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
"""Trim the share p of smallest magnitudes of each task vector, elect signs, disjoint mean:

    delta_ij = tuned_ij - base_j where that is among the floor((1 - p_i) n) largest magnitudes of
        a tensor of n elements, else 0
    gamma_j = sign(sum_i w_i delta_ij)
    A_j = {i: sign(w_i delta_ij) = gamma_j}
    merged_j = base_j + lambda sum_{i in A_j} w_i delta_ij / sum_{i in A_j} w_i

Where we differ from the authors' published code (``src/utils/merge_utils.py``): it trims the whole
task vector at once, all tensors joined, and keeps every magnitude that equals the threshold; here
trimming is per tensor, and of equal magnitudes the first by index are kept. Where the sum is 0 it
elects the sign that most elements elect; here it is positive."""

DARE_TIES = MergeMethod(
    name="dare_ties",
    paper="DARE, arXiv:2311.03099, with the sign election of TIES, arXiv:2306.01708",
    needs_base=True,
    combine=elect_and_merge,
    drop="random",
    options=(_normalize(default=False), SCALE),
)
"""Drop at random and rescale by 1/(1-p) as DARE does, elect signs, sum what agrees:

    delta_ij = m_ij / (1 - p_i) (tuned_ij - base_j), m_ij ~ Bernoulli(1 - p_i)
    gamma_j = sign(sum_i w_i delta_ij)
    A_j = {i: sign(w_i delta_ij) = gamma_j}
    merged_j = base_j + lambda sum_{i in A_j} w_i delta_ij

With ``normalize`` the sum is divided by sum_{i in A_j} w_i."""

DELLA = MergeMethod(
    name="della",
    paper="DELLA, arXiv:2406.11617, section 3",
    needs_base=True,
    combine=elect_and_merge,
    drop="ranked",
    options=(_normalize(default=True), SCALE, EPSILON),
)
"""Drop by rank of magnitude (MAGPRUNE) and rescale, elect signs, mean of what agrees:

    p_ij = p_i - epsilon/2 + epsilon r_ij / (n - 1)
    delta_ij = m_ij / (1 - p_ij) (tuned_ij - base_j), m_ij ~ Bernoulli(1 - p_ij)
    gamma_j = sign(sum_i w_i delta_ij)
    A_j = {i: sign(w_i delta_ij) = gamma_j}
    merged_j = base_j + lambda sum_{i in A_j} w_i delta_ij / sum_{i in A_j} w_i

r_ij is the rank of abs(tuned_ij - base_j) among the n elements of its row, 0 for the largest; see
``della_linear``."""
