"""The DARE mask: a function of seed, checkpoint, tensor and element."""

import itertools
import math

import pytest
import torch

from tests.unit.workers.merge_cases import hash_by_hand
from workers.drops import Span
from workers.mask import hash_counters, keep_mask, keeps, key_row, mask_key, mask_threshold

COUNT = 2**18


def mask(drop_ratio: float, count: int = COUNT, **changes: object) -> torch.Tensor:
    arguments = {"mask_seed": 0, "digest": "a" * 64, "tensor_name": "layer.weight", **changes}
    return keep_mask(count, drop_ratio=drop_ratio, **arguments)


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.double(), right.double()]))[0, 1])


def test_hash_equals_the_unbounded_integer_arithmetic_it_stands_for() -> None:
    key = mask_key(7, "digest", "name", 3)
    counters = [0, 1, 2, 1000, 2**16, 2**30, 2**31 - 1]
    hashed = hash_counters(
        torch.tensor(counters, dtype=torch.int32), torch.tensor(key, dtype=torch.int32)
    )
    assert [value & 0xFFFFFFFF for value in hashed.tolist()] == [
        hash_by_hand(counter, key) for counter in counters
    ]


def test_mask_key_is_sha256_of_the_length_prefixed_parts() -> None:
    import hashlib

    parts = [b"mergefront mask 1", b"7", b"digest", b"name", b"3"]
    text = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    expected = hashlib.sha256(text).digest()[:12]
    words = mask_key(7, "digest", "name", 3)
    assert b"".join(word.to_bytes(4, "little", signed=True) for word in words) == expected


def test_mask_key_tells_apart_parts_that_join_to_the_same_text() -> None:
    assert mask_key(0, "ab", "c", 0) != mask_key(0, "a", "bc", 0)


def test_threshold_is_the_exact_product() -> None:
    assert mask_threshold(0.0) == 0
    assert mask_threshold(0.5) == 2**31
    assert mask_threshold(2.0**-33) == 1
    assert mask_threshold(1.0 - 2.0**-32) == 2**32 - 1


def test_element_is_kept_when_its_hash_is_exactly_the_drop_ratio() -> None:
    key = mask_key(0, "a" * 64, "layer.weight", 0)
    hashes = [hash_by_hand(counter, key) for counter in range(50)]
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


def test_mask_continues_across_chunks_and_at_the_end_of_a_block() -> None:
    key = torch.tensor(key_row(0, "d", "t", 0, 0.5), dtype=torch.int32)

    def part(start: int, count: int) -> torch.Tensor:
        span = Span(torch.tensor(start, dtype=torch.int32), torch.tensor(0, dtype=torch.int32))
        return keeps(span.counters((count,)), key)

    last = 2**31 - 100
    for origin in (0, last):
        whole = part(origin, 100)
        assert torch.equal(torch.cat([part(origin, 37), part(origin + 37, 63)]), whole)
    by_hand = [hash_by_hand(last + j, key.tolist()) >= 2**31 for j in range(100)]
    assert part(last, 100).tolist() == by_hand


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


def test_masks_are_no_permutations_of_each_other_by_xor() -> None:
    # With one key word xored to the counter only, mask_b[j] would be mask_a[j ^ c] for some c.
    count = 2**11
    first, second = (2.0 * mask(0.5, count, digest=d).float() - 1.0 for d in ("a", "b"))
    index = torch.arange(count)
    correlations = first[index[:, None] ^ index] @ second / count
    # 2048 tries of independent masks reach 5.5 standard errors once in ten thousand keys.
    assert correlations.abs().max() < 5.5 / math.sqrt(count)


@pytest.mark.parametrize("drop_ratio", [0.5, 0.9, 0.99])
def test_kept_counts_of_blocks_pass_a_chi_square_test(drop_ratio: float) -> None:
    cells, size = 1024, COUNT // 1024
    counts = mask(drop_ratio).view(cells, size).sum(dim=1).double()
    expected = size * (1 - drop_ratio)
    chi_square = float(((counts - expected) ** 2 / (expected * drop_ratio)).sum())
    # Mean `cells`, standard deviation sqrt(2 * cells) with that many degrees of freedom.
    assert abs(chi_square - cells) < 4 * math.sqrt(2 * cells)


def test_hashed_bytes_pass_a_chi_square_test() -> None:
    key = torch.tensor(mask_key(0, "d", "t", 0), dtype=torch.int32)
    hashed = hash_counters(torch.arange(COUNT, dtype=torch.int32), key)
    for byte in hashed.view(torch.uint8).view(-1, 4).T:
        counts = torch.bincount(byte.to(torch.int64), minlength=256).double()
        expected = COUNT / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


@pytest.mark.parametrize("drop_ratio", [1.0, 1.5, -0.1, math.nan])
def test_key_row_refuses_drop_ratios_outside_the_range(drop_ratio: float) -> None:
    with pytest.raises(ValueError, match=r"drop_ratio|NaN"):
        key_row(0, "d", "t", 0, drop_ratio)
