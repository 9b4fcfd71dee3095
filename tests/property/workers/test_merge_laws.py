"""Laws of merging, on random tensors with every kind of float in them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.workers.merge_cases import DTYPES, merge, same_bits
from workers.mask import keep_mask
from workers.plan import MergeTerm

weights = st.floats(-2.0, 2.0, allow_subnormal=False)
drop_ratios = st.floats(0.0, 1.0, exclude_max=True)
dtypes = st.sampled_from(DTYPES)
# NaN, infinities, subnormals and signed zeros included.
any_floats = st.floats(width=32)


@st.composite
def pools(draw: st.DrawFn) -> tuple[torch.Tensor, list[torch.Tensor], list[MergeTerm]]:
    count, num_tuned = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    dtype = draw(dtypes)

    def tensor() -> torch.Tensor:
        return torch.tensor(draw(st.lists(any_floats, min_size=count, max_size=count))).to(dtype)

    terms = [
        MergeTerm(draw(weights), draw(drop_ratios), f"digest-{draw(st.integers(0, 99))}")
        for _ in range(num_tuned)
    ]
    return tensor(), [tensor() for _ in range(num_tuned)], terms


@settings(deadline=None)  # machines differ
@given(pools(), st.integers(1, 50))
def test_chunks_never_change_the_bits(
    case: tuple[torch.Tensor, list[torch.Tensor], list[MergeTerm]], chunk: int
) -> None:
    base, tuned, terms = case
    assert same_bits(merge(base, tuned, terms, chunk_elements=chunk), merge(base, tuned, terms))


@settings(deadline=None)  # machines differ
@given(pools())
def test_checkpoints_of_weight_zero_change_nothing(
    case: tuple[torch.Tensor, list[torch.Tensor], list[MergeTerm]],
) -> None:
    base, tuned, terms = case
    silent = MergeTerm(0.0, 0.5, "silent")
    poisoned = torch.full_like(base, torch.nan)
    plain = merge(base, tuned, terms)
    assert same_bits(merge(base, [poisoned, *tuned], [silent, *terms]), plain)
    assert same_bits(merge(base, [*tuned, poisoned], [*terms, silent]), plain)


@settings(deadline=None)  # machines differ
@given(pools())
def test_a_merge_is_its_halves_side_by_side_when_nothing_is_dropped(
    case: tuple[torch.Tensor, list[torch.Tensor], list[MergeTerm]],
) -> None:
    base, tuned, terms = case
    plain = [MergeTerm(term.weight, 0.0, term.digest) for term in terms]
    half = base.numel() // 2
    halves = [
        merge(base[part], [tensor[part] for tensor in tuned], plain)
        for part in (slice(0, half), slice(half, None))
    ]
    assert same_bits(torch.cat(halves), merge(base, tuned, plain))


@settings(deadline=None)  # machines differ
@given(pools(), st.integers(1, 50), st.integers(0, 8))
def test_chunks_never_change_the_bits_of_delta_guided_fusion(
    case: tuple[torch.Tensor, list[torch.Tensor], list[MergeTerm]], chunk: int, power: int
) -> None:
    base, tuned, terms = case
    how = {"method": "delta_guided", "options": {"power": power}}
    plain = [MergeTerm(term.weight, 0.0, term.digest) for term in terms]
    whole = merge(base, tuned, plain, **how)
    assert same_bits(merge(base, tuned, plain, **how, chunk_elements=chunk), whole)
    # What is broken in a checkpoint that takes part is seen.
    taking_part = [t for t, term in zip(tuned, plain, strict=True) if term.weight]
    for tensor in taking_part:
        assert not whole[~tensor.isfinite()].isfinite().any()


@st.composite
def matrices(
    draw: st.DrawFn,
) -> tuple[tuple[int, int], list[torch.Tensor], list[MergeTerm], list[torch.Tensor]]:
    """Checkpoints of one matrix, and a number per column of each."""
    rows, columns, count = (draw(st.integers(1, most)) for most in (6, 7, 3))
    dtype = draw(dtypes)

    def numbers(size: int, kind: st.SearchStrategy[float]) -> torch.Tensor:
        return torch.tensor(draw(st.lists(kind, min_size=size, max_size=size)))

    tuned = [numbers(rows * columns, any_floats).to(dtype) for _ in range(count)]
    terms = [MergeTerm(draw(weights), 0.0, f"digest-{index}") for index in range(count)]
    coefficients = [numbers(columns, st.floats(-2, 2, width=32)) for _ in range(count)]
    return (rows, columns), tuned, terms, coefficients


@settings(deadline=None)  # machines differ
@given(matrices(), st.integers(1, 50))
def test_columns_never_depend_on_chunks_and_are_merged_one_by_one(
    case: tuple[tuple[int, int], list[torch.Tensor], list[MergeTerm], list[torch.Tensor]],
    chunk: int,
) -> None:
    shape, tuned, terms, coefficients = case
    how = {"method": "dam", "columns": coefficients}
    whole = merge(None, tuned, terms, **how)
    assert same_bits(merge(None, tuned, terms, **how, chunk_elements=chunk), whole)
    # Each column is the column alone, a vector whose elements all have its number.
    for column in range(shape[1]):
        alone = [tensor.view(shape)[:, column].contiguous() for tensor in tuned]
        numbers = [part[column].repeat(shape[0]) for part in coefficients]
        expected = merge(None, alone, terms, method="dam", columns=numbers)
        assert same_bits(whole.view(shape)[:, column].contiguous(), expected)


@settings(deadline=None)  # machines differ
@given(st.tuples(drop_ratios, drop_ratios), st.integers(0, 2**63 - 1), st.text(max_size=20))
def test_a_larger_drop_ratio_drops_a_superset(
    pair: tuple[float, float], seed: int, name: str
) -> None:
    small, large = sorted(min(p, 1 - 2.0**-32) for p in pair)
    few, many = (
        keep_mask(500, mask_seed=seed, digest="d", tensor_name=name, drop_ratio=p)
        for p in (large, small)
    )
    assert (many | ~few).all()


@settings(deadline=None)  # machines differ
@given(drop_ratios, st.integers(0, 2**63 - 1), st.integers(1, 300), st.integers(1, 300))
def test_a_mask_is_a_prefix_of_every_longer_one(
    drop_ratio: float, seed: int, first: int, second: int
) -> None:
    drop_ratio = min(drop_ratio, 1 - 2.0**-32)
    short, long = (
        keep_mask(count, mask_seed=seed, digest="d", tensor_name="t", drop_ratio=drop_ratio)
        for count in sorted((first, second))
    )
    assert torch.equal(long[: short.numel()], short)
