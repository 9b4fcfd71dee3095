"""The arithmetic of merging: one tensor of all checkpoints into memory that exists.

Start at :func:`merge_flat`, which walks over a tensor in chunks and calls what a method from
``workers.methods`` does to the elements. Called as it is, that is the eager path, the reference.
Compiled by ``workers.compiled`` it becomes one pass over the sources. Both give the same bits:
nothing is contracted into fused multiply-add, and nothing depends on where a chunk ends.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from workers.compiled import COMPILED_CHUNK, COMPILED_WIDTH, Operands, fuse, merge_chunk
from workers.drops import Drops, RandomDrops, RankedDrops, TrimDrops
from workers.mask import (
    BLOCK_ELEMENTS,
    checkpoint_factor,
    mask_threshold,
    signed_threshold,
    tensor_key,
    weyl,
)
from workers.methods import MergeMethod
from workers.statistics import StatisticsCache, Trim, ranked_drop_ratios
from workers.tiles import WHOLE, Tile, Window, cut_tiles

Backend = Literal["eager", "compiled"]

SOURCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What can be merged; every value of these is exact in float32."""

# Eager chunks on the CPU: temporaries of 128 KiB each stay in the L2 cache, and torch works on
# so few elements in the calling thread; waiting for others after every operation costs more.
_CPU_CHUNK = 2**15
# On an accelerator the temporaries lie in its memory, 256 MiB each; launches cost more below.
_ACCELERATOR_CHUNK = 2**26


@dataclass(frozen=True, slots=True)
class MergeTerm:
    """What one checkpoint contributes to one tensor.

    ``weight`` is dimensionless and finite; ``drop_ratio`` is in [0, 1); ``digest`` names the
    checkpoint in the mask.
    """

    weight: float
    drop_ratio: float
    digest: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop_ratio < 1.0:
            raise ValueError(f"drop_ratio must be in [0, 1), got {self.drop_ratio}")
        rescaled = self.weight / (1.0 - self.drop_ratio)
        if not math.isfinite(rescaled) or abs(rescaled) > torch.finfo(torch.float32).max:
            raise ValueError(
                f"weight / (1 - drop_ratio) must be finite in float32, got {self.weight} / "
                f"(1 - {self.drop_ratio})"
            )

    @property
    def contributes(self) -> bool:
        """Whether the checkpoint enters the result at all.

        A weight of zero skips it, so that its infinities and NaN do not spread as 0 * inf.
        """
        return self.weight != 0.0 and mask_threshold(self.drop_ratio) < 2**32


@dataclass(frozen=True, slots=True)
class TensorMerge:
    """All that decides how one tensor is merged, besides its elements.

    Attributes:
        method: From :func:`workers.methods.get_method`.
        tensor_name: Name of the tensor in its checkpoint; part of the mask's key.
        terms: One per checkpoint.
        options: The method's, complete.
        mask_seed: Seed of the masks.
        base_digest: Names the base among what is kept in a cache of statistics.
    """

    method: MergeMethod
    tensor_name: str
    terms: tuple[MergeTerm, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    mask_seed: int = 0
    base_digest: str = "base"

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a merge needs at least one term")
        if not self.method.uses_drop_ratios and any(term.drop_ratio for term in self.terms):
            raise ValueError(f"method `{self.method.name}` drops nothing; drop ratios must be 0")
        if self.method.num_checkpoints not in (None, len(self.terms)):
            raise ValueError(
                f"method `{self.method.name}` merges {self.method.num_checkpoints} checkpoints, "
                f"got {len(self.terms)}"
            )


def merge_flat(
    plan: TensorMerge,
    out: Tensor,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    *,
    backend: Backend = "eager",
    chunk_elements: int | None = None,
    row_length: int | None = None,
    statistics: StatisticsCache | None = None,
) -> None:
    """Merge one tensor of all checkpoints.

    Args:
        plan: What to do.
        out: ``(n,)`` result, float32, bfloat16 or float16, any device; overlaps no source.
        base: ``(n,)`` tensor of the base, same device as ``out``; None where the method needs none.
        tuned: One ``(n,)`` tensor per checkpoint, same device; not read, and may be None, where
            its term does not contribute.
        backend: ``compiled`` fuses everything into one pass (``workers.compiled``) unless the
            tensor is small.
        chunk_elements: Elements per chunk; None chooses by device. Does not change the bits.
        row_length: Elements of a row, for methods that rank in rows; None is one row.
        statistics: Where facts about the tensors are kept between calls.

    Raises:
        ValueError: Shapes, dtypes, devices or drop ratios that do not fit the method.
    """
    _check_operands(plan, out, base, tuned)
    facts = whole_facts(
        plan, base, tuned, row_length=row_length, statistics=statistics or StatisticsCache()
    )
    merge_window(plan, facts, out, base, tuned, backend=backend, chunk_elements=chunk_elements)


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a merge needs to know of whole tensors; nothing for most methods.

    One entry per contributing checkpoint: ``scales`` where the method has coefficients,
    ``trims`` where it trims, ``ratios`` (``(n,)`` float32, of the whole tensor, or of consecutive
    elements of it from index ``first_ratio``) where it ranks.
    """

    scales: tuple[float, ...]
    trims: tuple[Trim, ...] = ()
    ratios: tuple[Tensor, ...] = ()
    first_ratio: int = 0


def whole_facts(
    plan: TensorMerge,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    *,
    row_length: int | None = None,
    statistics: StatisticsCache,
) -> TensorFacts:
    """Find out what the method needs to know of whole tensors, ``(n,)`` each, which fit."""
    method, active = plan.method, _active(plan, tuned)
    terms = [term for term, _ in active]
    scales = tuple(term.weight for term in terms)
    if method.drop == "random":
        scales = tuple(term.weight / (1.0 - term.drop_ratio) for term in terms)
    if method.coefficients is not None and tuned and all(t is not None for t in tuned):
        present = [tensor for tensor in tuned if tensor is not None]
        digests = [term.digest for term in plan.terms]
        gram = statistics.gram(plan.tensor_name, digests, present)
        factors = method.coefficients([term.weight for term in plan.terms], gram)
        pairs = zip(factors, plan.terms, strict=True)
        scales = tuple(factor for factor, term in pairs if term.contributes)
    if method.drop == "trim" and base is not None:
        trims = tuple(
            statistics.trim(
                plan.tensor_name, (plan.base_digest, term.digest), base, tensor, term.drop_ratio
            )
            for term, tensor in active
        )
        return TensorFacts(scales, trims=trims)
    if method.drop == "ranked" and base is not None:
        ratios = tuple(
            ranked_drop_ratios(
                base,
                tensor,
                row_length or base.numel(),
                term.drop_ratio,
                plan.options.get("epsilon", 0.0),
            )
            for term, tensor in active
        )
        return TensorFacts(scales, ratios=ratios)
    return TensorFacts(scales)


def merge_window(
    plan: TensorMerge,
    facts: TensorFacts,
    out: Tensor,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    *,
    window: Window = WHOLE,
    backend: Backend = "eager",
    chunk_elements: int | None = None,
) -> None:
    """Merge a part of a tensor, which gets the bits that the whole merge has there.

    Args:
        plan: What to do.
        facts: Of the whole tensors, from :func:`whole_facts`.
        out: ``(n,)`` or ``(r, w)``; a matrix may be a view with strides.
        base: The same part of the base.
        tuned: The same part of every checkpoint.
        window: Where the part is in the whole tensor.
        backend: As for :func:`merge_flat`.
        chunk_elements: As for :func:`merge_flat`.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit.
    """
    _check_operands(plan, out, base, tuned)
    active = _active(plan, tuned)
    needed_base = base if plan.method.needs_base else None
    if not active:
        out.zero_() if needed_base is None else out.copy_(needed_base)
        return
    weights, scales = (
        torch.tensor(values, dtype=torch.float32).to(out.device)
        for values in ([term.weight for term, _ in active], facts.scales)
    )
    options = tuple(sorted(plan.options.items()))
    width = COMPILED_WIDTH if backend == "compiled" else None
    limit = chunk_elements or (_default_chunk(out) if width is None else COMPILED_CHUNK)
    parts = (out, needed_base, *(tensor for _, tensor in active))
    with torch.no_grad():
        for tile in cut_tiles(out.shape, window, limit, flat_width=width):
            out_tile, base_tile, *tuned_tiles = (
                None if part is None else tile.of(part) for part in parts
            )
            assert out_tile is not None  # noqa: S101 - tells the type checker
            operands = Operands(
                out=out_tile,
                base=base_tile,
                tuned=[tensor for tensor in tuned_tiles if tensor is not None],
                weights=weights,
                scales=scales,
                drops=_drops(plan, facts, [term for term, _ in active], tile, out.device),
            )
            merge = (fuse(out_tile) if backend == "compiled" else None) or merge_chunk
            merge(plan.method.combine, options, operands)


def _active(plan: TensorMerge, tuned: Sequence[Tensor | None]) -> list[tuple[MergeTerm, Tensor]]:
    pairs = zip(plan.terms, tuned, strict=True)
    return [(term, t) for term, t in pairs if term.contributes and t is not None]


def _drops(
    plan: TensorMerge,
    facts: TensorFacts,
    terms: Sequence[MergeTerm],
    tile: Tile,
    device: torch.device,
) -> Drops | None:
    applies = tuple(term.drop_ratio > 0.0 for term in terms)
    if not any(applies):
        return None
    block, offset = divmod(tile.start, BLOCK_ELEMENTS)

    def words(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device)

    rows = torch.arange(tile.rows, dtype=torch.int32, device=device) * tile.stride + offset
    if plan.method.drop == "trim":
        thresholds = torch.tensor([trim.threshold for trim in facts.trims], dtype=torch.float32)
        # Ties end in this block, before it or after it.
        last_ties = [
            min(max(trim.last_tie - block * BLOCK_ELEMENTS, -1), BLOCK_ELEMENTS - 1)
            for trim in facts.trims
        ]
        lanes = _lanes(tile.width, device)
        return TrimDrops(rows, lanes, thresholds.to(device), words(last_ties), applies)
    key = tensor_key(plan.mask_seed, plan.tensor_name, block)
    factors = [
        checkpoint_factor(plan.mask_seed, term.digest, plan.tensor_name, block) for term in terms
    ]
    hashed = (
        weyl(rows, key.offset),
        _hashed_lanes(tile.width, device),
        words(key.word),
        words(factors),
    )
    if plan.method.drop == "random":
        thresholds = words([signed_threshold(term.drop_ratio) for term in terms])
        return RandomDrops(*hashed, thresholds, applies)
    first = tile.start - facts.first_ratio
    ratios = [
        ratio.as_strided((tile.rows, tile.width), (tile.stride, 1), first) for ratio in facts.ratios
    ]
    return RankedDrops(*hashed, ratios, applies)


def _lanes(width: int, device: torch.device) -> Tensor:
    return _kept_lanes(width, device) if width <= _CPU_CHUNK else _count(width, device)


def _hashed_lanes(width: int, device: torch.device) -> Tensor:
    return weyl(_count(width, device), 0) if width > _CPU_CHUNK else _kept_hashed(width, device)


def _count(width: int, device: torch.device) -> Tensor:
    return torch.arange(width, dtype=torch.int32, device=device)


# Wider rows, which only the eager path of an accelerator has, are too much to keep.
_kept_lanes = lru_cache(maxsize=16)(_count)


@lru_cache(maxsize=16)
def _kept_hashed(width: int, device: torch.device) -> Tensor:
    return weyl(_count(width, device), 0)


def _default_chunk(out: Tensor) -> int:
    return _CPU_CHUNK if out.device.type == "cpu" else _ACCELERATOR_CHUNK


def _check_operands(
    plan: TensorMerge, out: Tensor, base: Tensor | None, tuned: Sequence[Tensor | None]
) -> None:
    if len(tuned) != len(plan.terms):
        raise ValueError(f"one term per checkpoint: {len(tuned)} tensors, {len(plan.terms)} terms")
    if plan.method.needs_base and base is None:
        raise ValueError(f"method `{plan.method.name}` needs a base")
    operands = {"out": out, "base": base}
    for index, (tensor, term) in enumerate(zip(tuned, plan.terms, strict=True)):
        if term.contributes and tensor is None:
            raise ValueError(f"tuned[{index}] is missing but its weight is {term.weight}")
        operands[f"tuned[{index}]"] = tensor
    for label, tensor in operands.items():
        if tensor is None:
            continue
        if tensor.dim() not in (1, 2) or tensor.shape != out.shape or tensor.device != out.device:
            raise ValueError(
                f"{label} must have shape {tuple(out.shape)} on {out.device}, found "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.dtype not in SOURCE_DTYPES:
            raise ValueError(f"{label} must be float32, bfloat16 or float16, found {tensor.dtype}")
