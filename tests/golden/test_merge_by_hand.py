"""One merge worked out by hand on four elements.

Source: the arithmetic in the comments, with fractions of two so that nothing rounds. The keys
and hashes were printed once by ``tensor_key``, ``checkpoint_factor`` and ``mix``, and found again
by SHA-256 and the hash in unbounded integers, without this project's code; where they change,
merges of old recipes change, and the mask needs a new version (``configs.recipe.MASK_VERSION``).
"""

import math
from collections.abc import Sequence

import pytest
import torch

from workers.kernels import merge_flat
from workers.mask import checkpoint_factor, keep_mask, mix, tensor_key, weyl
from workers.methods import get_method
from workers.plan import MergeTerm, TensorMerge
from workers.statistics import ranked_drop_ratios

BASE = torch.tensor([1.0, 2.0, -4.0, 0.5])
MATH = torch.tensor([1.5, 2.25, -3.0, 0.0])  # task vector 0.5, 0.25, 1, -0.5
CODE = torch.tensor([0.0, 3.0, -4.5, 1.5])  # task vector -1, 1, -0.5, 1

KEY = (2112760871, 1342764735)
FACTORS = {"math": -554401363, "code": 1096100343}
HASHES = {
    "math": [-352607485, -2122049046, 762189288, -1345196361],
    "code": [1058118937, -635602274, -1363656392, 485524469],
}
# The same as shares of one, (hash + 2^31) / 2^32.
SHARES = {"math": [0.4179, 0.0059, 0.6775, 0.1868], "code": [0.7464, 0.3520, 0.1825, 0.6130]}
# Kept at 0.5 iff hash, signed, >= 0.
KEPT_AT_HALF = {"math": [False, False, True, False], "code": [True, False, False, True]}


def silent() -> MergeTerm:
    return MergeTerm(0.0, 0.0, "code")


def merged(
    name: str,
    terms: list[MergeTerm],
    tuned: Sequence[torch.Tensor] = (MATH, CODE),
    **options: float,
) -> list[float]:
    out = torch.empty(4)
    method = get_method(name)
    plan = TensorMerge(method, "w", tuple(terms), method.complete_options(options), mask_seed=7)
    merge_flat(plan, out, BASE, tuned)
    return out.tolist()


def test_mask_is_that_of_version_one() -> None:
    key = tensor_key(7, "w", 0)
    assert key == KEY
    numbers = weyl(torch.arange(4, dtype=torch.int32), key.offset)
    words = mix(numbers, torch.tensor(key.word, dtype=torch.int32))
    for digest, factor in FACTORS.items():
        assert checkpoint_factor(7, digest, "w", 0) == factor
        assert (words * factor).tolist() == HASHES[digest]
        shares = [(one + 2**31) / 2**32 for one in HASHES[digest]]
        assert shares == pytest.approx(SHARES[digest], abs=1e-4)
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
    assert merged("dare_ties", terms) == [0.5, 2.0, -3.0, 1.0]


def test_dare_ties_elects_among_what_is_kept() -> None:
    # Kept is what has a share of at least 1/4: of MATH 0.5, -, 1, - and of CODE -1, 1, -, 1.
    # Scales are 0.75 / 0.75 = 1.
    terms = [MergeTerm(0.75, 0.25, "math"), MergeTerm(0.75, 0.25, "code")]
    # 1 + 0.5 - 1;  2 + 1;  -4 + 1;  0.5 + 1
    assert merged("dare_linear", terms) == [0.5, 3.0, -3.0, 1.5]
    # The first sum, -0.5, is negative: only CODE has a say.
    assert merged("dare_ties", terms) == [0.0, 3.0, -3.0, 1.5]
    # Divided by the agreeing weight, 0.75, each time: -4/3, 4/3, 4/3, 4/3.
    assert merged("dare_ties", terms, normalize=1.0) == pytest.approx(
        [-0.3333333, 3.3333333, -2.6666667, 1.8333333], abs=1e-6
    )


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


def test_della_by_hand() -> None:
    # Ranks by magnitude: 1, 3, 2, 0 and 2, 0, 3, 1. With p = 1/2 and a width of 3/4 these are
    # dropped with probability 1/8, 3/8, 5/8, 7/8.
    ratios = {"math": [0.375, 0.875, 0.625, 0.125], "code": [0.625, 0.125, 0.875, 0.375]}
    kept = {"math": [True, False, True, True], "code": [True, True, False, True]}
    deltas = {"math": [-2.5, 0.25, 1.5, 3.5], "code": [3.0, 7.0, -1.0, 5.0]}
    tuned = [BASE + torch.tensor(deltas[digest]) for digest in ("math", "code")]
    for digest, own in zip(("math", "code"), tuned, strict=True):
        assert ranked_drop_ratios(BASE, own, 4, 0.5, 0.75).tolist() == ratios[digest]
        shares = zip(SHARES[digest], ratios[digest], strict=True)
        assert [share >= ratio for share, ratio in shares] == kept[digest]
    terms = [MergeTerm(1.5, 0.5, "math"), MergeTerm(0.5, 0.5, "code")]
    # What is kept over 1 - p: -4, -, 4, 4 and 8, 8, -, 8. Weighted: -6, -, 6, 6 and 4, 4, -, 4.
    # Added to the base: 1 - 2;  2 + 4;  -4 + 6;  0.5 + 10
    found = merged("della_linear", terms, tuned, epsilon=0.75)
    assert found == [-1.0, 6.0, 2.0, 10.5]
    # The first sum, -2, elects MATH. Means: -6/1.5, 4/0.5, 6/1.5, 10/2.
    assert merged("della", terms, tuned, epsilon=0.75) == [-3.0, 10.0, 0.0, 5.5]
    # Sums of those that agree, -6, 4, 6, 10, and a half of them.
    found = merged("della", terms, tuned, epsilon=0.75, normalize=0.0, scale=0.5)
    assert found == [-2.0, 4.0, -1.0, 5.5]


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
