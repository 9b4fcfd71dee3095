"""One merge worked out by hand on four elements.

Source: the arithmetic in the comments, with fractions of two so that nothing rounds. The keys
and hashes were printed once by ``mask_key`` and ``hash_counters``; where they change, merges of
old recipes change, and the mask needs a new version (``configs.recipe.MASK_VERSION``).
"""

import torch

from workers.kernels import MergeTerm, TensorMerge, merge_flat
from workers.mask import hash_counters, keep_mask, mask_key
from workers.methods import get_method

BASE = torch.tensor([1.0, 2.0, -4.0, 0.5])
MATH = torch.tensor([1.5, 2.25, -3.0, 0.0])  # task vector 0.5, 0.25, 1, -0.5
CODE = torch.tensor([0.0, 3.0, -4.5, 1.5])  # task vector -1, 1, -0.5, 1

KEYS = {
    "math": (1316572529, 1002564032, -1228359217),
    "code": (490645001, 271696339, 1638967736),
}
HASHES = {
    "math": [310460527, 507989461, 4146601722, 2455339943],
    "code": [896624147, 2377784975, 1754512959, 4035742168],
}
# Kept iff hash >= 2^31 = 2147483648.
KEPT_AT_HALF = {"math": [False, False, True, True], "code": [False, True, False, True]}


def merged(method: str, terms: list[MergeTerm]) -> list[float]:
    out = torch.empty(4)
    plan = TensorMerge(get_method(method), "w", tuple(terms), mask_seed=7)
    merge_flat(plan, out, BASE, [MATH, CODE])
    return out.tolist()


def test_mask_is_that_of_version_one() -> None:
    for digest, key in KEYS.items():
        assert mask_key(7, digest, "w", 0) == key
        counters = torch.arange(4, dtype=torch.int32)
        hashed = hash_counters(counters, torch.tensor(key, dtype=torch.int32))
        assert [value & 0xFFFFFFFF for value in hashed.tolist()] == HASHES[digest]
        kept = keep_mask(4, mask_seed=7, digest=digest, tensor_name="w", drop_ratio=0.5)
        assert kept.tolist() == KEPT_AT_HALF[digest]


def test_dare_merge_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.5, "math"), MergeTerm(0.25, 0.5, "code")]
    # Scales 0.5 / 0.5 = 1 and 0.25 / 0.5 = 0.5:
    # 1;  2 + 0.5 * 1;  -4 + 1 * 1;  0.5 + 1 * -0.5 + 0.5 * 1
    assert merged("dare_linear", terms) == [1.0, 2.5, -3.0, 0.5]


def test_task_arithmetic_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.0, "math"), MergeTerm(0.25, 0.0, "code")]
    # 1 + 0.25 - 0.25;  2 + 0.125 + 0.25;  -4 + 0.5 - 0.125;  0.5 - 0.25 + 0.25
    assert merged("task_arithmetic", terms) == [1.0, 2.375, -3.625, 0.5]


def test_linear_by_hand() -> None:
    terms = [MergeTerm(0.5, 0.0, "math"), MergeTerm(0.5, 0.0, "code")]
    assert merged("linear", terms) == [0.75, 2.625, -3.75, 0.75]
