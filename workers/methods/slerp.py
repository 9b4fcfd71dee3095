"""Spherical linear interpolation of two checkpoints, tensor by tensor."""

import math
from collections.abc import Sequence

from workers.methods.contract import Gram, MergeMethod
from workers.methods.linear import add_tuned

# Nearer to parallel than this, the sine of the angle is too small to divide by.
_PARALLEL = 0.9995


def slerp_coefficients(weights: Sequence[float], gram: Gram) -> tuple[float, float]:
    """Return the factors of the two tensors: sin((1-t) a) / sin(a) and sin(t a) / sin(a).

    t = w_1 / (w_0 + w_1), the share of the second; a is the angle between the tensors as vectors.
    Nearly parallel or zero tensors are interpolated linearly. Shoemake, "Animating rotation with
    quaternion curves", SIGGRAPH 1985; lengths are interpolated too, as merge tools do.

    Raises:
        ValueError: The weights sum to zero.
    """
    first, second = weights
    if first + second == 0.0:
        raise ValueError(f"slerp needs weights with a sum other than 0, got {first} and {second}")
    share = second / (first + second)
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    cosine = gram[0][1] / norms if norms else 1.0
    # Written so that NaN, which a broken checkpoint brings, takes the linear way and stays NaN.
    if not abs(cosine) <= _PARALLEL:
        return 1.0 - share, share
    angle = math.acos(cosine)
    first_part, second_part = math.sin((1.0 - share) * angle), math.sin(share * angle)
    return first_part / math.sin(angle), second_part / math.sin(angle)


SLERP = MergeMethod(
    name="slerp",
    paper="Shoemake, SIGGRAPH 1985",
    needs_base=False,
    combine=add_tuned,
    num_checkpoints=2,
    coefficients=slerp_coefficients,
)
"""Along the great circle from the first checkpoint to the second; weights count by their ratio:

    sin((1 - t) a) / sin(a) tuned_0 + sin(t a) / sin(a) tuned_1,  t = w_1 / (w_0 + w_1)

with a the angle between both tensors as vectors."""
