"""The DARE mask: a function of (seed, checkpoint, tensor, element), not a stream of random numbers.

Element j is kept or dropped by an integer hash under a key, so a mask needs no memory and does
not depend on chunks, threads, shards or devices, and a larger drop ratio drops a superset.
Start at :func:`keep_mask`.

The hash has two parts. All checkpoints of a tensor share a word per element (:func:`mix`, keyed by
seed and tensor); each multiplies it by an odd number of its own. That is a bijection of 32 bits for
every checkpoint, and costs a merge of c checkpoints 1 + c/4 hashes instead of c.
"""

import hashlib
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from configs.recipe import MASK_VERSION

# Elements that share one key. Counters inside a block fit 31 bits, so int32 holds them.
BLOCK_ELEMENTS = 2**31

# Multipliers of lowbias32 (C. Wellons, https://nullprogram.com/blog/2018/07/31/), as int32.
STEP = 0x7FEB352D
_FACTOR = 0x846CA68B - 2**32


class TensorKey(NamedTuple):
    """What all checkpoints share in one block of a tensor: two words, signed 32-bit integers."""

    offset: int
    word: int


def keep_mask(
    count: int,
    *,
    mask_seed: int,
    digest: str,
    tensor_name: str,
    drop_ratio: float,
    device: str = "cpu",
) -> Tensor:
    """Return a whole mask, ``(count,)`` bool, True where kept; merging never builds it.

    Args:
        count: Elements of the tensor, at most 2^31.
        mask_seed: Seed of all masks of a recipe.
        digest: Names the checkpoint.
        tensor_name: Name of the tensor in the checkpoint.
        drop_ratio: p in [0, 1).
        device: Where the mask is made; does not change it.
    """
    key = tensor_key(mask_seed, tensor_name, 0)
    factor = checkpoint_factor(mask_seed, digest, tensor_name, 0)
    counters = torch.arange(count, dtype=torch.int32, device=device)
    words = mix(weyl(counters, key.offset), torch.tensor(key.word, dtype=torch.int32).to(device))
    return words * factor >= signed_threshold(drop_ratio)


@lru_cache(maxsize=2**14)
def tensor_key(mask_seed: int, tensor_name: str, block: int) -> TensorKey:
    """Derive what the checkpoints share in one block of a tensor."""
    words = _digest("tensor", str(mask_seed), tensor_name, str(block))
    return TensorKey(_int32(words[0:4]), _int32(words[4:8]))


@lru_cache(maxsize=2**16)
def checkpoint_factor(mask_seed: int, digest: str, tensor_name: str, block: int) -> int:
    """Derive the odd factor of one checkpoint in one block of a tensor, as a signed integer."""
    return _int32(_digest("checkpoint", str(mask_seed), digest, tensor_name, str(block))[0:4]) | 1


def _digest(*parts: str) -> bytes:
    """SHA-256 over the mask's version and the parts.

    Each with its length, so that no two different inputs are the same text.
    """
    everything = (f"mergefront mask {MASK_VERSION}", *parts)
    text = b"".join(len(part).to_bytes(8, "little") + part for part in map(str.encode, everything))
    return hashlib.sha256(text).digest()


def _int32(word: bytes) -> int:
    return int.from_bytes(word, "little", signed=True)


def mask_threshold(drop_ratio: float) -> int:
    """Return t in [0, 2^32]: an element is kept iff its 32-bit number u * 2^32 is >= t.

    t = ceil(p * 2^32), so u is compared with p without any rounding. The number is the hash with
    its sign bit flipped: signed integers, which is what torch has, compare like that.
    """
    return math.ceil(drop_ratio * 2**32)


def signed_threshold(drop_ratio: float) -> int:
    """Return the threshold for hashes that are read as signed integers.

    Raises:
        ValueError: Nothing would be kept: the drop ratio is within 2^-32 of one.
    """
    threshold = mask_threshold(drop_ratio)
    if not 0 <= threshold < 2**32:
        raise ValueError(f"drop_ratio must be in [0, 1 - 2^-32], got {drop_ratio}")
    return threshold - 2**31


def weyl(counters: Tensor, offset: int) -> Tensor:
    """Return (counter + offset) * STEP modulo 2^32, where the hash of a counter starts.

    Of the numbers of a row and of a column, without the offset, the sum is that of their element:
    so a merge multiplies once per row and per column, not once per element.
    """
    return (counters + offset) * STEP


def mix(numbers: Tensor, word: Tensor) -> Tensor:
    """Finish the hash that the checkpoints of a tensor share; the same bits on every device.

    Args:
        numbers: int32, any shape, of :func:`weyl`.
        word: () int32, of :class:`TensorKey`, on the same device.

    Returns:
        int32, same shape: a bijection of the counters.
    """
    # int32 has no logical shift: the mask after >> clears the copies of the sign bit.
    x = numbers ^ ((numbers >> 15) & 0x1_FFFF) ^ word
    x = x * _FACTOR
    return x ^ ((x >> 16) & 0xFFFF)
