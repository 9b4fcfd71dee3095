"""The DARE mask: a function of seed, checkpoint, tensor and element."""

import itertools
import math

import pytest
import torch

from tests.unit.workers.merge_cases import hash_by_hand
from workers.mask import (
    checkpoint_factor,
    keep_mask,
    mask_threshold,
    mix,
    signed_threshold,
    tensor_key,
    weyl,
)

COUNT = 2**18


def mask(drop_ratio: float, count: int = COUNT, **changes: object) -> torch.Tensor:
    arguments = {"mask_seed": 0, "digest": "a" * 64, "tensor_name": "layer.weight", **changes}
    return keep_mask(count, drop_ratio=drop_ratio, **arguments)


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.double(), right.double()]))[0, 1])


def test_hash_equals_the_unbounded_integer_arithmetic_it_stands_for() -> None:
    key, factor = tensor_key(7, "name", 3), checkpoint_factor(7, "digest", "name", 3)
    counters = [0, 1, 2, 1000, 2**16, 2**30, 2**31 - 1]
    numbers = weyl(torch.tensor(counters, dtype=torch.int32), key.offset)
    hashed = mix(numbers, torch.tensor(key.word, dtype=torch.int32)) * factor
    assert [value + 2**31 for value in hashed.tolist()] == [
        hash_by_hand(counter, key, factor) for counter in counters
    ]


def test_keys_are_sha256_of_the_length_prefixed_parts() -> None:
    import hashlib

    def words(*parts: bytes) -> bytes:
        text = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
        return hashlib.sha256(text).digest()

    key = tensor_key(7, "name", 3)
    expected = words(b"mergefront mask 1", b"tensor", b"7", b"name", b"3")
    assert b"".join(w.to_bytes(4, "little", signed=True) for w in key) == expected[:8]
    expected = words(b"mergefront mask 1", b"checkpoint", b"7", b"digest", b"name", b"3")
    factor = checkpoint_factor(7, "digest", "name", 3)
    assert factor == int.from_bytes(expected[:4], "little", signed=True) | 1


def test_keys_tell_apart_parts_that_join_to_the_same_text() -> None:
    assert checkpoint_factor(0, "ab", "c", 0) != checkpoint_factor(0, "a", "bc", 0)
    assert tensor_key(1, "1", 0) != tensor_key(11, "", 0)


def test_threshold_is_the_exact_product() -> None:
    assert mask_threshold(0.0) == 0
    assert mask_threshold(0.5) == 2**31
    assert mask_threshold(2.0**-33) == 1
    assert mask_threshold(1.0 - 2.0**-32) == 2**32 - 1


def test_element_is_kept_when_its_hash_is_exactly_the_drop_ratio() -> None:
    key = tensor_key(0, "layer.weight", 0)
    factor = checkpoint_factor(0, "a" * 64, "layer.weight", 0)
    hashes = [hash_by_hand(counter, key, factor) for counter in range(50)]
    for index, value in enumerate(hashes):
        assert mask(value / 2**32, 50)[index]
        assert not mask((value + 1) / 2**32, 50)[index]


@pytest.mark.parametrize("drop_ratio", [0.1, 0.5, 0.9, 0.99, 0.9945])
def test_kept_share_is_within_four_standard_errors(drop_ratio: float) -> None:
    kept = mask(drop_ratio).double().mean().item()
    error = math.sqrt(drop_ratio * (1 - drop_ratio) / COUNT)
    assert abs(kept - (1 - drop_ratio)) < 4 * error


def test_mask_keeps_everything_when_nothing_is_dropped() -> None:
    assert mask(0.0).all()


def test_masks_are_nested_in_the_drop_ratio() -> None:
    masks = [mask(p) for p in (0.0, 0.1, 0.3, 0.300001, 0.5, 0.9, 0.999)]
    for larger, smaller in itertools.pairwise(masks):
        assert (larger | ~smaller).all()


def test_row_and_column_numbers_add_up_to_those_of_the_elements() -> None:
    key = tensor_key(0, "t", 0)
    last = 2**31 - 4096 * 3
    rows = torch.arange(3, dtype=torch.int32) * 4096 + last
    lanes = torch.arange(4096, dtype=torch.int32)
    whole = weyl(torch.arange(last, 2**31, dtype=torch.int64).to(torch.int32), key.offset)
    parts = weyl(rows, key.offset)[:, None] + weyl(lanes, 0)
    assert torch.equal(parts.view(-1), whole)


@pytest.mark.parametrize(
    "changes",
    [{"digest": "b" * 64}, {"tensor_name": "other.weight"}, {"mask_seed": 1}],
    ids=["checkpoint", "tensor", "seed"],
)
@pytest.mark.parametrize("drop_ratio", [0.5, 0.9, 0.99])
def test_masks_are_uncorrelated_when_anything_in_the_key_differs(
    changes: dict[str, object], drop_ratio: float
) -> None:
    assert abs(correlation(mask(drop_ratio), mask(drop_ratio, **changes))) < 4 / math.sqrt(COUNT)


@pytest.mark.parametrize("drop_ratio", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("lag", [1, 2, 3, 31, 32, 128, 4096, 2**16])
def test_mask_is_uncorrelated_with_itself_shifted(lag: int, drop_ratio: float) -> None:
    kept = mask(drop_ratio)
    assert abs(correlation(kept[lag:], kept[:-lag])) < 4 / math.sqrt(COUNT - lag)


def test_masks_of_two_checkpoints_are_no_permutations_of_each_other_by_xor_or_shift() -> None:
    # The shared words are multiplied: a factor that only moved elements about would show here.
    count = 2**11
    first, second = (2.0 * mask(0.5, count, digest=d).float() - 1.0 for d in ("a", "b"))
    index = torch.arange(count)
    for moved in (index[:, None] ^ index, (index[:, None] + index) % count):
        correlations = first[moved] @ second / count
        # 2048 tries of independent masks reach 5.5 standard errors once in ten thousand keys.
        assert correlations.abs().max() < 5.5 / math.sqrt(count)


@pytest.mark.parametrize("drop_ratio", [0.5, 0.9, 0.99])
def test_what_three_checkpoints_keep_is_independent(drop_ratio: float) -> None:
    masks = torch.stack([mask(drop_ratio, digest=digest) for digest in ("a", "b", "c")])
    cells = torch.bincount((masks.T.long() * torch.tensor([4, 2, 1])).sum(dim=1), minlength=8)
    kept = 1 - drop_ratio
    shares = [
        kept ** bin(cell).count("1") * drop_ratio ** (3 - bin(cell).count("1")) for cell in range(8)
    ]
    expected = COUNT * torch.tensor(shares)
    # The rarest cell, all three kept at 0.99, is expected 0.26 times: too few for chi-square.
    usable = expected >= 5
    chi_square = float(((cells - expected) ** 2 / expected)[usable].sum())
    assert chi_square < 7 + 4 * math.sqrt(2 * 7)
    assert cells[~usable].sum() <= 5


@pytest.mark.parametrize("drop_ratio", [0.5, 0.9, 0.99])
def test_kept_counts_of_blocks_pass_a_chi_square_test(drop_ratio: float) -> None:
    cells, size = 1024, COUNT // 1024
    counts = mask(drop_ratio).view(cells, size).sum(dim=1).double()
    expected = size * (1 - drop_ratio)
    chi_square = float(((counts - expected) ** 2 / (expected * drop_ratio)).sum())
    # Mean `cells`, standard deviation sqrt(2 * cells) with that many degrees of freedom.
    assert abs(chi_square - cells) < 4 * math.sqrt(2 * cells)


def test_hashed_bytes_pass_a_chi_square_test() -> None:
    key, factor = tensor_key(0, "t", 0), checkpoint_factor(0, "d", "t", 0)
    numbers = weyl(torch.arange(COUNT, dtype=torch.int32), key.offset)
    hashed = mix(numbers, torch.tensor(key.word, dtype=torch.int32)) * factor
    for byte in hashed.view(torch.uint8).view(-1, 4).T:
        counts = torch.bincount(byte.to(torch.int64), minlength=256).double()
        expected = COUNT / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


@pytest.mark.parametrize("drop_ratio", [1.0, 1.5, -0.1, math.nan])
def test_threshold_refuses_drop_ratios_outside_the_range(drop_ratio: float) -> None:
    with pytest.raises(ValueError, match=r"drop_ratio|NaN"):
        signed_threshold(drop_ratio)
