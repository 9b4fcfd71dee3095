"""The arithmetic of merging: one tensor of all checkpoints into memory that exists.

Start at :func:`merge_flat`, which walks over a tensor in chunks and calls what a method from
``workers.methods`` does to the elements. Called as it is, that is the eager path, the reference.
Compiled by ``workers.compiled`` it becomes one pass over the sources. Both give the same bits:
nothing is contracted into fused multiply-add, and nothing depends on where a chunk ends.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from workers.coefficients import Coefficients
from workers.compiled import COMPILED_CHUNK, COMPILED_WIDTH, Operands, Step, fuse, merge_chunk
from workers.drops import Drops, Hashed, Indices, RandomDrops, RankedDrops, TrimDrops
from workers.mask import BLOCK_ELEMENTS
from workers.plan import TensorMerge
from workers.side_by_side import do_side_by_side
from workers.source_tiles import SourceTile, source_tiles
from workers.statistics import StatisticsCache, Trim, ranked_drop_ratios
from workers.tiles import WHOLE, Tile, Window

Backend = Literal["eager", "compiled"]

SOURCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What can be merged; every value of these is exact in float32."""

# Eager chunks on the CPU: temporaries of 128 KiB each stay in the L2 cache, and torch works on
# so few elements in the calling thread; waiting for others after every operation costs more.
_CPU_CHUNK = 2**15
# On an accelerator some eight temporaries lie in its memory, 64 MiB each, beside models and texts.
_ACCELERATOR_CHUNK = 2**24
# Compiled code merges what is longer in several threads; to start one takes a tenth of this.
_LONG = 2**20


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
    columns: Sequence[Tensor] = (),
) -> None:
    """Merge one tensor of all checkpoints.

    Args:
        plan: What to do.
        out: ``(n,)`` result, float32, bfloat16 or float16, any device; overlaps no source.
        base: ``(n,)`` tensor of the base, same device as ``out``; None where the method needs none.
        tuned: One ``(n,)`` tensor per checkpoint, same device; not read, and may be None, where
            its term does not contribute.
        backend: ``compiled`` fuses everything into one pass (``workers.compiled``) unless the
            tensor is small; not for methods that take columns.
        chunk_elements: Elements per chunk; None chooses by device. Does not change the bits.
        row_length: Elements of a row, for methods that rank in rows; None is one row.
        statistics: Where facts about the tensors are kept between calls.
        columns: ``(row length,)`` float32 per checkpoint, for methods that take columns.

    Raises:
        ValueError: Shapes, dtypes, devices or drop ratios that do not fit the method.
    """
    _check_operands(plan, out, base, tuned)
    facts = whole_facts(
        plan, base, tuned, row_length=row_length, statistics=statistics or StatisticsCache()
    )
    if plan.method.takes_columns:
        facts = replace(facts, columns=tuple(columns[index] for index in plan.active))
    merge_window(plan, facts, out, base, tuned, backend=backend, chunk_elements=chunk_elements)


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a merge needs to know of whole tensors; nothing for most methods.

    One entry per contributing checkpoint: ``scales`` where the method has coefficients,
    ``trims`` where it trims, ``ratios`` (``(n,)`` float32, of the whole tensor, or of consecutive
    elements of it from index ``first_ratio``) where it ranks, ``columns`` (``(row length,)``
    float32, where the tensors are) where it takes a number per column.
    """

    scales: tuple[float, ...]
    trims: tuple[Trim, ...] = ()
    ratios: tuple[Tensor, ...] = ()
    first_ratio: int = 0
    columns: tuple[Tensor, ...] = ()


def whole_facts(
    plan: TensorMerge,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    *,
    row_length: int | None = None,
    statistics: StatisticsCache,
) -> TensorFacts:
    """Find out what the method needs to know of whole tensors, ``(n,)`` each, which fit."""
    method = plan.method
    active = [(plan.terms[i], t) for i in plan.active if (t := tuned[i]) is not None]
    scales = plan.scales
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

    Compiled code on the CPU merges as many pieces of a long part at once as torch may use threads.

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
    is_shared = backend == "compiled" and out.device.type == "cpu" and out.numel() > _LONG
    if is_shared and chunk_elements is None:
        chunk_elements = _share_of_a_thread(out.numel())
    tiles = cut_sources(
        plan, base, tuned, window=window, backend=backend, chunk_elements=chunk_elements
    )
    steps = merge_steps(plan, facts, out, tiles, backend=backend)
    if is_shared:
        do_side_by_side(steps, device_type=out.device.type)
        return
    with torch.no_grad():
        for step in steps:
            step()


def cut_sources(
    plan: TensorMerge,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    *,
    window: Window = WHOLE,
    backend: Backend = "eager",
    chunk_elements: int | None = None,
) -> Iterable[SourceTile]:
    """Cut what :func:`merge_window` reads into tiles of the size that suits a backend."""
    compiles = backend == "compiled" and not plan.method.takes_columns
    device = next((t.device for t in (base, *tuned) if t is not None), torch.device("cpu"))
    limit = chunk_elements or (COMPILED_CHUNK if compiles else _default_chunk(device))
    width = COMPILED_WIDTH if compiles else None
    return source_tiles(plan, base, tuned, window=window, limit=limit, flat_width=width)


def merge_steps(
    plan: TensorMerge,
    facts: TensorFacts,
    out: Tensor,
    tiles: Iterable[SourceTile],
    *,
    backend: Backend = "eager",
    coefficients: Coefficients | None = None,
) -> Iterator[Step]:
    """Yield what remains to be done for each tile, without gradients, after the host's part.

    Args:
        plan: What to do; of the same sources as the plan with which the tiles were cut
            (:func:`workers.source_tiles.same_sources`).
        facts: Of the whole tensors.
        out: The part of the result, of the shape that was cut.
        tiles: From :func:`cut_sources`.
        backend: The one for which the tiles were cut.
        coefficients: Of the plan, for tensors that share them; None makes some.
    """
    if not plan.active and not plan.method.needs_base:
        yield partial(_fill_zeros, out)
        return
    shared = coefficients or Coefficients(plan, facts.scales, out.device)
    options = tuple(sorted(plan.options.items()))
    combine = plan.method.combine
    for tile, base, tuned, position in tiles:
        out_tile = tile.of(out)
        if not plan.active and base is not None:
            yield partial(_copy, out_tile, base)
            continue
        drops = None if position is None else _drops(plan, facts, shared, tile, position)
        columns = tuple(_of_tile(part, tile) for part in facts.columns)
        operands = Operands(out_tile, base, tuned, shared.weights, shared.scales, drops, columns)
        compiles = backend == "compiled" and not columns
        fused = fuse(combine, options, operands) if compiles else None
        yield fused or partial(merge_chunk, combine, options, operands)


def _of_tile(columns: Tensor, tile: Tile) -> Tensor:
    """Return what belongs to the columns of a tile, ``(width,)`` where all its rows have the same.

    A tile of one row may go on over the rows of the tensor. Slices along the last of three axes
    have rows that begin in different columns, and get ``(rows, width)``.
    """
    length = columns.numel()
    first = tile.start % length
    if tile.rows > 1 and tile.stride % length:
        starts = torch.arange(tile.rows, device=columns.device) * tile.stride + first
        lanes = torch.arange(tile.width, device=columns.device)
        return columns[(starts[:, None] + lanes) % length]
    missing = first + tile.width - length
    if missing <= 0:
        return columns[first : first + tile.width]
    return columns.repeat(1 - (-missing // length))[first : first + tile.width]


def _copy(out: Tensor, source: Tensor) -> None:
    out.copy_(source)


def _fill_zeros(out: Tensor) -> None:
    out.zero_()


def _drops(
    plan: TensorMerge,
    facts: TensorFacts,
    coefficients: Coefficients,
    tile: Tile,
    position: Hashed | Indices,
) -> Drops:
    device = position.rows.device
    if isinstance(position, Indices):
        first = tile.start // BLOCK_ELEMENTS * BLOCK_ELEMENTS
        # Ties end in this block, before it or after it.
        last_ties = [
            min(max(trim.last_tie - first, -1), BLOCK_ELEMENTS - 1) for trim in facts.trims
        ]
        return TrimDrops(
            position,
            torch.tensor([trim.threshold for trim in facts.trims], dtype=torch.float32).to(device),
            torch.tensor(last_ties, dtype=torch.int32).to(device),
        )
    if plan.method.drop == "random":
        return RandomDrops(position, coefficients.thresholds)
    begin = tile.start - facts.first_ratio
    ratios = [
        ratio.as_strided((tile.rows, tile.width), (tile.stride, 1), begin) for ratio in facts.ratios
    ]
    return RankedDrops(position, ratios)


def _default_chunk(device: torch.device) -> int:
    return _CPU_CHUNK if device.type == "cpu" else _ACCELERATOR_CHUNK


def _share_of_a_thread(count: int) -> int:
    """Return the elements of a piece, whole rows, where each thread gets one of the same size."""
    rows = math.ceil(count / (COMPILED_WIDTH * torch.get_num_threads()))
    return min(rows * COMPILED_WIDTH, COMPILED_CHUNK)


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
