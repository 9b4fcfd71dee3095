"""The arithmetic of merging: pure functions on flat tensors, the same bits everywhere.

Start at :func:`merge_flat`, which walks over a tensor in chunks and calls the chunk function of
a method from ``workers.methods``. Called as it is, that function is the eager path, the reference.
Compiled by ``workers.compiled`` it becomes one pass over the sources. Both give the same bits:
nothing is contracted into fused multiply-add, and nothing depends on where a chunk ends.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workers.compiled import COMPILED_CHUNK, fuse
from workers.mask import BLOCK_ELEMENTS, Masks, key_row, mask_threshold
from workers.methods import MergeMethod

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
        if not math.isfinite(self.scale) or abs(self.scale) > torch.finfo(torch.float32).max:
            raise ValueError(
                f"weight / (1 - drop_ratio) must be finite in float32, got {self.weight} / "
                f"(1 - {self.drop_ratio})"
            )

    @property
    def scale(self) -> float:
        """The factor of kept elements, w / (1 - p), in float64."""
        return self.weight / (1.0 - self.drop_ratio)

    @property
    def contributes(self) -> bool:
        """Whether the checkpoint enters the result at all.

        A weight of zero skips it, so that its infinities and NaN do not spread as 0 * inf.
        """
        return self.weight != 0.0 and mask_threshold(self.drop_ratio) < 2**32


def merge_flat(
    method: MergeMethod,
    out: Tensor,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    terms: Sequence[MergeTerm],
    *,
    tensor_name: str,
    mask_seed: int = 0,
    backend: Backend = "eager",
    chunk_elements: int | None = None,
) -> None:
    """Merge one tensor of all checkpoints into memory that exists.

    Args:
        method: From :func:`get_method`.
        out: ``(n,)`` result, float32, bfloat16 or float16, any device; overlaps no source.
        base: ``(n,)`` tensor of the base, same device as ``out``; None where the method needs none.
        tuned: One ``(n,)`` tensor per checkpoint, same device; not read, and may be None, where
            its term does not contribute.
        terms: One per checkpoint, in the order of ``tuned``.
        tensor_name: Name of the tensor in its checkpoint; part of the mask's key.
        mask_seed: Seed of the masks.
        backend: ``compiled`` fuses everything into one pass (``workers.compiled``) unless the
            tensor is small.
        chunk_elements: Elements per chunk; None chooses by device. Does not change the bits.

    Raises:
        ValueError: Shapes, dtypes, devices or drop ratios that do not fit the method.
    """
    _check_operands(method, out, base, tuned, terms)
    active = [(t, term) for t, term in zip(tuned, terms, strict=True) if term.contributes]
    if not active:
        out.copy_(base) if method.needs_base and base is not None else out.zero_()
        return
    sources = [t for t, _ in active if t is not None]
    kept_terms = [term for _, term in active]
    chunk, limit = method.chunk, _default_chunk(out)
    if backend == "compiled" and (fused := fuse(method.chunk, out)) is not None:
        chunk, limit = fused, COMPILED_CHUNK
    scales = torch.tensor([term.scale for term in kept_terms], dtype=torch.float32).to(out.device)
    with torch.no_grad():
        for begin, end in _chunks(out.numel(), chunk_elements or limit):
            part = slice(begin, end)
            masks = _masks(kept_terms, tensor_name, mask_seed, begin, out.device)
            chunk(
                out[part],
                None if base is None else base[part],
                [source[part] for source in sources],
                scales,
                masks,
            )


def _masks(
    terms: Sequence[MergeTerm],
    tensor_name: str,
    mask_seed: int,
    begin: int,
    device: torch.device,
) -> Masks | None:
    applies = tuple(term.drop_ratio > 0.0 for term in terms)
    if not any(applies):
        return None
    block, offset = divmod(begin, BLOCK_ELEMENTS)
    rows = [key_row(mask_seed, t.digest, tensor_name, block, t.drop_ratio) for t in terms]
    keys = torch.tensor(rows, dtype=torch.int32).to(device)
    start = torch.tensor(offset, dtype=torch.int32).to(device)
    return Masks(keys, start, applies)


def _chunks(count: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) in order; no chunk spans two blocks of the mask."""
    begin = 0
    while begin < count:
        block_end = (begin // BLOCK_ELEMENTS + 1) * BLOCK_ELEMENTS
        end = min(begin + limit, count, block_end)
        yield begin, end
        begin = end


def _default_chunk(out: Tensor) -> int:
    return _CPU_CHUNK if out.device.type == "cpu" else _ACCELERATOR_CHUNK


def _check_operands(
    method: MergeMethod,
    out: Tensor,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    terms: Sequence[MergeTerm],
) -> None:
    if len(tuned) != len(terms) or not terms:
        raise ValueError(f"one term per checkpoint: {len(tuned)} tensors, {len(terms)} terms")
    if method.needs_base and base is None:
        raise ValueError(f"method `{method.name}` needs a base")
    if not method.uses_drop_ratios and any(term.drop_ratio for term in terms):
        raise ValueError(f"method `{method.name}` drops nothing; drop ratios must be 0")
    operands = {"out": out, "base": base}
    for index, (tensor, term) in enumerate(zip(tuned, terms, strict=True)):
        if term.contributes and tensor is None:
            raise ValueError(f"tuned[{index}] is missing but its weight is {term.weight}")
        operands[f"tuned[{index}]"] = tensor
    for label, tensor in operands.items():
        if tensor is None:
            continue
        if tensor.shape != (out.numel(),) or tensor.device != out.device:
            raise ValueError(
                f"{label} must have shape ({out.numel()},) on {out.device}, found "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.dtype not in SOURCE_DTYPES:
            raise ValueError(f"{label} must be float32, bfloat16 or float16, found {tensor.dtype}")
