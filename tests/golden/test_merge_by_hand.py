"""One merge worked out by hand on four elements.

Source: the arithmetic in the comments, with fractions of two so that nothing rounds. The keys
and hashes were printed once by ``tensor_key``, ``checkpoint_factor`` and ``mix``; where they
change, merges of old recipes change, and the mask needs a new version
(``configs.recipe.MASK_VERSION``).
"""

import math

import torch

from workers.kernels import merge_flat
from workers.mask import checkpoint_factor, keep_mask, mix, tensor_key, weyl
from workers.methods import get_method
from workers.plan import MergeTerm, TensorMerge

BASE = torch.tensor([1.0, 2.0, -4.0, 0.5])
MATH = torch.tensor([1.5, 2.25, -3.0, 0.0])  # task vector 0.5, 0.25, 1, -0.5
CODE = torch.tensor([0.0, 3.0, -4.5, 1.5])  # task vector -1, 1, -0.5, 1

KEY = (2112760871, 1342764735)
FACTORS = {"math": -554401363, "code": 1096100343}
HASHES = {
    "math": [-352607485, -2122049046, 762189288, -1345196361],
    "code": [1058118937, -635602274, -1363656392, 485524469],
}
# Kept at 0.5 iff hash, signed, >= 0.
KEPT_AT_HALF = {"math": [False, False, True, False], "code": [True, False, False, True]}


def silent() -> MergeTerm:
    return MergeTerm(0.0, 0.0, "code")


def merged(name: str, terms: list[MergeTerm], **options: float) -> list[float]:
    out = torch.empty(4)
    method = get_method(name)
    plan = TensorMerge(method, "w", tuple(terms), method.complete_options(options), mask_seed=7)
    merge_flat(plan, out, BASE, [MATH, CODE])
    return out.tolist()


def test_mask_is_that_of_version_one() -> None:
    key = tensor_key(7, "w", 0)
    assert key == KEY
    numbers = weyl(torch.arange(4, dtype=torch.int32), key.offset)
    words = mix(numbers, torch.tensor(key.word, dtype=torch.int32))
    for digest, factor in FACTORS.items():
        assert checkpoint_factor(7, digest, "w", 0) == factor
        assert (words * factor).tolist() == HASHES[digest]
        kept = keep_mask(4, mask_seed=7, digest=digest, tensor_name="w", drop_ratio=0.5)
        assert kept.tolist() == KEPT_AT_HALF[digest]


def test_dare_merge_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.5, "math"), MergeTerm(0.25, 0.5, "code")]
    # Scales 0.5 / 0.5 = 1 and 0.25 / 0.5 = 0.5:
    # 1 + 0.5 * -1;  2;  -4 + 1 * 1;  0.5 + 0.5 * 1
    assert merged("dare_linear", terms) == [0.5, 2.0, -3.0, 1.0]


def test_task_arithmetic_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.0, "math"), MergeTerm(0.25, 0.0, "code")]
    # 1 + 0.25 - 0.25;  2 + 0.125 + 0.25;  -4 + 0.5 - 0.125;  0.5 - 0.25 + 0.25
    assert merged("task_arithmetic", terms) == [1.0, 2.375, -3.625, 0.5]


def test_ties_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.5, "math"), MergeTerm(0.25, 0.5, "code")]
    # Kept are the two largest magnitudes, of equal ones the first: math 0.5, 0, 1, 0 and
    # code -1, 1, 0, 0. Weighted: 0.25, 0, 0.5, 0 and -0.25, 0.25, 0, 0. The first element's sum
    # is 0, which elects the positive sign. Means: 0.5, 1, 1, none.
    assert merged("ties", terms) == [1.5, 3.0, -3.0, 0.5]
    # Sums instead of means: 0.25, 0.25, 0.5, none.
    assert merged("ties", terms, normalize=0.0) == [1.25, 2.25, -3.5, 0.5]


def test_dare_ties_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.5, "math"), MergeTerm(0.25, 0.5, "code")]
    # Where only one is kept, electing changes nothing.
    assert merged("dare_ties", terms) == merged("dare_linear", terms)


def test_della_keeps_every_element_that_its_probability_keeps() -> None:
    # With an interval of width 0 it is DARE, to the rounding of its own division.
    terms = [MergeTerm(0.5, 0.5, "math"), MergeTerm(0.25, 0.5, "code")]
    assert merged("della_linear", terms, epsilon=0.0) == merged("dare_linear", terms)
    # In MATH the ranks are 1, 3, 0, 2 (of the equal 0.5 the first is larger), so with width 1
    # p = 1/3, 1, 0, 2/3. The hashes as shares of one are 0.42, 0.006, 0.68, 0.19: kept are the
    # first and the third, scaled by 3/2 and 1. CODE is not merged.
    first, second, third, fourth = merged("della_linear", [terms[0], silent()], epsilon=1.0)
    assert (second, fourth) == (2.0, 0.5)
    # Probabilities are not exact: the smallest is 2^-20 off, since none may be 1.
    assert abs(first - (1.0 + 0.5 * 0.5 * 1.5)) < 1e-5
    assert abs(third + 3.5) < 1e-5


def test_slerp_by_hand() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    plan = TensorMerge(
        get_method("slerp"), "w", (MergeTerm(0.5, 0.0, "a"), MergeTerm(0.5, 0.0, "b"))
    )
    out = torch.empty(2)
    merge_flat(plan, out, None, [first, second])
    # At right angles, half-way: sin 45 degrees of each.
    half = math.sin(math.pi / 4)
    assert torch.allclose(out, torch.tensor([half, 2 * half]), rtol=1e-7)


def test_linear_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.0, "math"), MergeTerm(0.5, 0.0, "code")]
    assert merged("linear", terms) == [0.75, 2.625, -3.75, 0.75]
