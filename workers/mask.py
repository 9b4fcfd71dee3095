"""The DARE mask: a function of (seed, checkpoint, tensor, element), not a stream of random numbers.

Element j is kept or dropped by an integer hash under a key, so a mask needs no memory and does
not depend on chunks, threads, shards or devices, and a larger drop ratio drops a superset.
Start at :func:`keep_mask`.
"""

import hashlib
import math

import torch
from torch import Tensor

from configs.recipe import MASK_VERSION

# Elements that share one key. Counters inside a block fit 31 bits, so int32 holds them.
BLOCK_ELEMENTS = 2**31

_SIGN_BIT = -(2**31)


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
    row = key_row(mask_seed, digest, tensor_name, 0, drop_ratio)
    counters = torch.arange(count, dtype=torch.int32, device=device)
    return keeps(counters, torch.tensor(row, dtype=torch.int32, device=device))


def keeps(counters: Tensor, key: Tensor) -> Tensor:
    """Say which elements a mask keeps.

    Args:
        counters: int32, any shape: the elements' indices inside their block.
        key: ``(4,)`` int32, from :func:`key_row`, on the same device.

    Returns:
        bool, same shape.
    """
    # Flipping the sign bits turns the signed comparison into the unsigned one.
    return (hash_counters(counters, key) ^ _SIGN_BIT) >= key[3]


def key_row(
    mask_seed: int, digest: str, tensor_name: str, block: int, drop_ratio: float
) -> tuple[int, int, int, int]:
    """Return the key words of a mask, and its threshold with the sign bit flipped, as int32.

    Raises:
        ValueError: Nothing would be kept: the drop ratio is within 2^-32 of one.
    """
    threshold = mask_threshold(drop_ratio)
    if not 0 <= threshold < 2**32:
        raise ValueError(f"drop_ratio must be in [0, 1 - 2^-32], got {drop_ratio}")
    return (*mask_key(mask_seed, digest, tensor_name, block), threshold - 2**31)


def mask_key(mask_seed: int, digest: str, tensor_name: str, block: int) -> tuple[int, int, int]:
    """Derive the key of one block of a tensor's mask: three words, as signed 32-bit integers.

    SHA-256 over the mask's version, the seed, the checkpoint, the tensor and the block, each
    with its length, so that no two different inputs are the same text.
    """
    parts = (f"mergefront mask {MASK_VERSION}", str(mask_seed), digest, tensor_name, str(block))
    text = b"".join(len(part).to_bytes(8, "little") + part for part in map(str.encode, parts))
    words = hashlib.sha256(text).digest()
    return (
        int.from_bytes(words[0:4], "little", signed=True),
        int.from_bytes(words[4:8], "little", signed=True),
        int.from_bytes(words[8:12], "little", signed=True),
    )


def mask_threshold(drop_ratio: float) -> int:
    """Return t in [0, 2^32]: an element is kept iff its 32-bit hash, unsigned, is >= t.

    t = ceil(p * 2^32), so u = hash / 2^32 is compared with p without any rounding.
    """
    return math.ceil(drop_ratio * 2**32)


def hash_counters(counters: Tensor, key: Tensor) -> Tensor:
    """Hash int32 counters under a key; the same bits on every device.

    triple32 (C. Wellons, https://nullprogram.com/blog/2018/07/31/) is a bijection
    on 32 bits. A key word enters before each of its three rounds: were it only xored to the
    counter, the masks of two tensors would be permutations of each other.

    Args:
        counters: int32, any shape, any device.
        key: Three or more int32 words on the same device.

    Returns:
        int32, same shape; read as unsigned it is uniform.
    """
    # int32 has no logical shift: the mask after >> clears the copies of the sign bit.
    x = counters ^ key[0]
    x ^= (x >> 17) & 0x7FFF
    x *= 0xED5AD4BB - 2**32
    x ^= (x >> 11) & 0x1F_FFFF
    x ^= key[1]
    x *= 0xAC4C1B51 - 2**32
    x ^= (x >> 15) & 0x1_FFFF
    x += key[2]
    x *= 0x31848BAB
    x ^= (x >> 14) & 0x3_FFFF
    return x
