"""Tensors and references for the tests of merging."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from workers.kernels import merge_flat
from workers.mask import TensorKey
from workers.methods import get_method
from workers.plan import MergeTerm, TensorMerge

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bits(tensor: Tensor) -> Tensor:
    """The bits of a floating tensor as integers; NaN with any payload becomes one value."""
    canonical = torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor)
    return canonical.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(bits(left), bits(right))


def pool(
    count: int, dtype: torch.dtype = torch.float32, *, num_tuned: int = 3, seed: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """A base and tuned tensors ``(count,)`` with realistic sizes of weights and deltas."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(count, generator=draw) * 0.05
    tuned = [base + torch.randn(count, generator=draw) * 0.003 for _ in range(num_tuned)]
    return base.to(dtype), [tensor.to(dtype) for tensor in tuned]


def terms(weights: Sequence[float], drop_ratios: Sequence[float] | None = None) -> list[MergeTerm]:
    drops = drop_ratios or [0.0] * len(weights)
    return [
        MergeTerm(weight, drop_ratio, f"digest-{index}")
        for index, (weight, drop_ratio) in enumerate(zip(weights, drops, strict=True))
    ]


def merge(
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    merge_terms: Sequence[MergeTerm],
    *,
    method: str = "dare_linear",
    dtype: torch.dtype | None = None,
    tensor_name: str = "layer.weight",
    mask_seed: int = 0,
    options: Mapping[str, float] | None = None,
    **how: object,
) -> Tensor:
    """Merge into a new tensor, which starts as NaN so that nothing unwritten goes unseen."""
    like = next(t for t in (base, *tuned) if t is not None)
    out = torch.full_like(like, torch.nan, dtype=dtype or like.dtype)
    merge_flat(plan(merge_terms, method, tensor_name, mask_seed, options), out, base, tuned, **how)
    return out


def plan(
    merge_terms: Sequence[MergeTerm],
    method: str = "dare_linear",
    tensor_name: str = "layer.weight",
    mask_seed: int = 0,
    options: Mapping[str, float] | None = None,
) -> TensorMerge:
    """How a tensor is merged; options that are not given keep the method's defaults."""
    chosen = get_method(method)
    complete = chosen.complete_options(options or {})
    return TensorMerge(chosen, tensor_name, tuple(merge_terms), complete, mask_seed)


def hash_by_hand(counter: int, key: TensorKey, factor: int) -> int:
    """A mask's hash in unbounded integers: the reference for the tensor operations.

    What is compared is read as signed, which adds 2^31 modulo 2^32 to the order of the bits.
    """
    x = (counter + key.offset) * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x ^= key.word & 0xFFFFFFFF
    x = x * 0x846CA68B & 0xFFFFFFFF
    x ^= x >> 16
    return (x * factor + 2**31) & 0xFFFFFFFF


def as_float32(value: float) -> float:
    """Round to float32, as one store does."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def merge_in_numpy(
    base: Tensor, tuned: Sequence[Tensor], merge_terms: Sequence[MergeTerm], masks: Sequence[Tensor]
) -> Tensor:
    """DARE in numpy float32, one rounding per operation: the reference for what is merged."""
    origin = base.float().numpy()
    total = origin.copy()
    for source, term, mask in zip(tuned, merge_terms, masks, strict=True):
        delta = source.float().numpy() - origin
        kept = np.where(mask.numpy(), delta, np.float32(0))
        total = total + kept * np.float32(term.weight / (1.0 - term.drop_ratio))
    return torch.from_numpy(total).to(base.dtype)
