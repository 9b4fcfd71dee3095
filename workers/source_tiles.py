"""What a merge reads, cut into tiles: views of the sources, and where their elements are.

Nothing here depends on weights or drop ratios, so a live model's tiles are cut once and serve
every candidate.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from workers.drops import Hashed, Indices
from workers.mask import BLOCK_ELEMENTS, checkpoint_factor, tensor_key, weyl
from workers.plan import TensorMerge
from workers.tiles import Tile, Window, cut_tiles

# Rows up to this width are kept; wider ones, which only the eager path of an accelerator has, are
# too much.
_KEPT_WIDTH = 2**15


class SourceTile(NamedTuple):
    """One tile ``(r, w)`` of a tensor in everything that a merge reads.

    Attributes:
        tile: Where it is.
        base: View of the base; None for methods without one.
        tuned: Views of the checkpoints that contribute.
        position: Of its elements, as the method's drops need it; None where nothing is dropped.
    """

    tile: Tile
    base: Tensor | None
    tuned: tuple[Tensor, ...]
    position: Hashed | Indices | None


def source_tiles(
    plan: TensorMerge,
    base: Tensor | None,
    tuned: Sequence[Tensor | None],
    *,
    window: Window,
    limit: int,
    flat_width: int | None,
) -> Iterator[SourceTile]:
    """Cut what a merge of a part reads.

    Args:
        plan: Of the tensor; says what contributes, and what is dropped how.
        base: The part of the base, ``(n,)`` or ``(r, w)``; ignored where the method needs none.
        tuned: The part of every checkpoint; None for those that do not contribute.
        window: Where the part is in the whole tensor.
        limit: As for :func:`workers.tiles.cut_tiles`.
        flat_width: As for :func:`workers.tiles.cut_tiles`.
    """
    needed = base if plan.method.needs_base else None
    parts = [part for index in plan.active if (part := tuned[index]) is not None]
    like = parts[0] if parts else needed
    if like is None:
        return
    for tile in cut_tiles(like.shape, window, limit, flat_width=flat_width):
        yield SourceTile(
            tile,
            None if needed is None else tile.of(needed),
            tuple(tile.of(part) for part in parts),
            _position(plan, tile, like.device) if plan.drops_any else None,
        )


def same_sources(plan: TensorMerge) -> tuple[object, ...]:
    """Return what, besides the part itself, :func:`source_tiles` depends on."""
    digests = (plan.base_digest, *(plan.terms[index].digest for index in plan.active))
    return plan.method.name, plan.active, digests, plan.drops_any, plan.mask_seed


def _position(plan: TensorMerge, tile: Tile, device: torch.device) -> Hashed | Indices:
    block, offset = divmod(tile.start, BLOCK_ELEMENTS)
    rows = torch.arange(tile.rows, dtype=torch.int32, device=device) * tile.stride + offset
    if plan.method.drop == "trim":
        return Indices(rows, _lanes(tile.width, device))
    key = tensor_key(plan.mask_seed, plan.tensor_name, block)
    factors = [
        checkpoint_factor(plan.mask_seed, term.digest, plan.tensor_name, block)
        for term in plan.active_terms
    ]
    return Hashed(
        weyl(rows, key.offset),
        _hashed_lanes(tile.width, device),
        torch.tensor(key.word, dtype=torch.int32).to(device),
        torch.tensor(factors, dtype=torch.int32).to(device),
    )


def _lanes(width: int, device: torch.device) -> Tensor:
    return (_kept_lanes if width <= _KEPT_WIDTH else _count)(width, device)


def _hashed_lanes(width: int, device: torch.device) -> Tensor:
    return (_kept_hashed if width <= _KEPT_WIDTH else _hash)(width, device)


def _count(width: int, device: torch.device) -> Tensor:
    return torch.arange(width, dtype=torch.int32, device=device)


def _hash(width: int, device: torch.device) -> Tensor:
    return weyl(_count(width, device), 0)


_kept_lanes = lru_cache(maxsize=16)(_count)
_kept_hashed = lru_cache(maxsize=16)(_hash)
