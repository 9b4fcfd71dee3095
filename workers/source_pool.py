"""The open checkpoints of a search, and the one place that merges a tensor of theirs."""

from collections.abc import Iterable
from functools import partial
from threading import Lock
from typing import Self

import torch
from torch import Tensor

from configs.recipe import MergeRecipe, Vocabulary
from workers.block import Block, whole
from workers.coefficients import Coefficients
from workers.compiled import CompilerError, Step
from workers.facts_cache import FactsCache, is_of_whole
from workers.kernels import (
    Backend,
    TensorFacts,
    cut_sources,
    merge_steps,
    merge_window,
)
from workers.merge_backend import BackendChoice, MergeBackend
from workers.plan import RecipePlan, TensorMerge
from workers.pool_readers import Found, PoolReaders
from workers.residency import TensorStore
from workers.source_tiles import SourceTile, same_sources
from workers.sources import Sources

# Elements that are brought to another device at once, or read between two releases of pages:
# enough to keep a bus or a disk busy, 32 MiB per checkpoint in half precision.
_PIECE_ELEMENTS = 2**24
# Ranking takes some 40 bytes per element and checkpoint, and every thread of the CPU ranks.
_RANKED_ON_CPU = 2**20

# Of tensors that are merged once, one after another, for their parts: 32 MiB.
_HISTOGRAMS_OF_ONE_MERGE = 2**10


class SourcePool:
    """The open checkpoints of a search, found by their digests; threads may merge side by side.

    Args:
        sources: From :func:`workers.sources.resolve_sources`.
        backend: How tensors are merged; does not change the bits.
        vocabulary: Of the recipes that will be merged.
        keeps_tiles: Whether the same blocks are merged again and again: what a compiled merge
            of them reads is then cut once.

    Attributes:
        vocabulary: As given.
        reference: Reader of the base, or of the first checkpoint: it decides the tensors.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        backend: BackendChoice = "auto",
        vocabulary: Vocabulary | None = None,
        keeps_tiles: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self._store = TensorStore()
        self._facts = FactsCache(None if keeps_tiles else _HISTOGRAMS_OF_ONE_MERGE)
        self._plan: RecipePlan | None = None
        self._shared: dict[tuple[int, torch.device], Coefficients] = {}
        # Threads merge parts of one recipe: one of them begins with it, for all.
        self._planning = Lock()
        # Whether all that was prepared since depends on a recipe's structure and on what is shared.
        self._can_go_on = False
        self._keeps_tiles = keeps_tiles
        self._tiles: dict[str, tuple[tuple[object, ...], list[SourceTile]]] = {}
        self._readers = PoolReaders(sources, vocabulary)
        self.reference = self._readers.reference
        num_elements = sum(entry.numel for entry in self.reference.entries.values())
        self._backend = MergeBackend(backend, num_elements)

    @property
    def store(self) -> TensorStore:
        """Where tensors are kept between merges; at first they are left to the page cache."""
        return self._store

    @store.setter
    def store(self, store: TensorStore) -> None:
        self._tiles.clear()
        self._can_go_on = False
        self._store = store

    @property
    def size_bytes(self) -> int:
        """Bytes of all checkpoints: what one candidate reads at most."""
        return self._readers.size_bytes

    def merge(
        self, recipe: MergeRecipe, name: str, out: Tensor, block: Block | None = None
    ) -> None:
        """Merge one tensor, or a block of it, which gets the bits that the whole merge has there.

        Of the memory-mapped checkpoints nothing outside the block is read, but by methods that
        need to know whole tensors: ``trim`` drops (TIES) and coefficients (SLERP) read all of
        them on first use, ``ranked`` drops (DELLA) the rows that the block touches.

        Where the checkpoints are not on the device of ``out``, it needs room there for 2^24
        elements of each that contributes; for methods that need whole tensors, for those.

        Args:
            recipe: Names checkpoints of the pool.
            name: Of a tensor. One that is not floating (counters, masks) is the reference's.
            out: ``(n,)``, of the recipe's dtype, on any device.
            block: Of n elements; None is the whole tensor.

        Raises:
            CheckpointError: The recipe names a checkpoint that is not in the pool, or a
                checkpoint that lacks the tensor.
            ValueError: The tensor is not in exactly one group.
        """
        with torch.no_grad():
            self.prepare(recipe, name, out, block)()

    def prepare(
        self, recipe: MergeRecipe, name: str, out: Tensor, block: Block | None = None
    ) -> Step:
        """Do what the host has to do for :meth:`merge`, and return the rest of it.

        Of blocks that are merged again and again, that is a call of compiled code and nothing
        else, so threads that do such rests hardly wait for Python. To be called without gradients.
        """
        plan = self._plan_of(recipe)
        entry = self.reference.entries[name]
        block = block or whole(entry.numel)
        if not entry.is_floating:
            source = block.of(self.reference.tensor(name).reshape(-1))
            return partial(_copy, block.shape_like(out), source)
        tensor_plan = plan.tensor(name)
        takes_columns = tensor_plan.method.takes_columns
        backend = "eager" if takes_columns else self._backend.choose(out.device)
        step = self._prepare(tensor_plan, out, block, backend)
        if backend == "eager" or not self._backend.may_fall_back:
            return step
        return partial(self._attempt, step, name, out, block)

    def go_on_with(self, recipe: MergeRecipe) -> bool:
        """Let all that was prepared of the last recipe do another one from now on.

        Returns:
            False where that cannot be, because other checkpoints contribute or something has to be
            found out first: it is to be prepared anew.
        """
        if self._plan is None or not self._can_go_on:
            return False
        plan = RecipePlan(recipe)
        if plan.structure != self._plan.structure:
            return False
        for (group, _), coefficients in self._shared.items():
            common = plan.group(group)
            coefficients.set(common, common.scales)
        self._plan = plan
        return True

    def _attempt(self, step: Step, name: str, out: Tensor, block: Block) -> None:
        try:
            step()
        except CompilerError as error:
            self._backend.fall_back(error)
            self._can_go_on = False
            assert self._plan is not None  # noqa: S101 - it was prepared
            self._prepare(self._plan.tensor(name), out, block, "eager")()

    def close(self) -> None:
        """Close the files of all checkpoints, and forget what was kept of them."""
        self._tiles.clear()
        self.store.clear()
        self._readers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _prepare(self, plan: TensorMerge, out: Tensor, block: Block, backend: Backend) -> Step:
        name = plan.tensor_name
        key = (same_sources(plan), block, out.device, backend)
        known = self._tiles.get(name)
        if known is not None and known[0] == key:
            tiles = known[1]
        else:
            readers = self._needed(plan)
            held = [
                None if found is None else self.store.block(*found, name, block, out.device)
                for found in readers
            ]
            if self._in_pieces(plan, held, out):
                self._can_go_on = False
                return partial(self._merge_pieces, plan, held, out, block, backend)
            base, *tuned = held
            cut = cut_sources(plan, base, tuned, window=block.window, backend=backend)
            # Eager tiles are many; views of tensors that are read anew each time hold copies.
            if backend == "eager" or not self._stay(readers, name):
                self._can_go_on = False
                return partial(self._merge_tiles, plan, out, block, cut, backend)
            tiles = list(cut)
            if self._keeps_tiles:
                self._tiles[name] = key, tiles
        if (facts := self._facts.known(plan, out.device)) is None:
            self._can_go_on = False
            return partial(self._merge_tiles, plan, out, block, tiles, backend)
        shared = None if is_of_whole(plan) else self._shared_by(plan, out.device)
        if shared is None:
            self._can_go_on = False
        part = block.shape_like(out)
        return partial(
            _do, list(merge_steps(plan, facts, part, tiles, backend=backend, coefficients=shared))
        )

    def _merge_tiles(
        self,
        plan: TensorMerge,
        out: Tensor,
        block: Block,
        tiles: Iterable[SourceTile],
        backend: Backend,
    ) -> None:
        facts = self._facts_of(plan, out.device)
        _do(merge_steps(plan, facts, block.shape_like(out), tiles, backend=backend))

    def _merge_pieces(
        self,
        plan: TensorMerge,
        held: list[Tensor | None],
        out: Tensor,
        block: Block,
        backend: Backend,
    ) -> None:
        """Merge a block that is too much at once, piece by piece."""
        readers = self._needed(plan)
        is_ranked = plan.method.drop == "ranked"
        facts = None if is_ranked else self._facts_of(plan, out.device)
        row_length = self.reference.entries[plan.tensor_name].row_length
        limit = _PIECE_ELEMENTS
        if is_ranked and out.device.type == "cpu":
            # Rows that are longer are ranked whole for each of their pieces.
            limit = max(_RANKED_ON_CPU, min(row_length, limit))
        for begin, piece in block.pieces(limit, multiple_of=row_length):
            parts = [None if tensor is None else _cut(tensor, begin, piece) for tensor in held]
            base, *tuned = [None if part is None else part.to(out.device) for part in parts]
            merge_window(
                plan,
                facts or self._facts_of_rows(plan, readers, piece, out.device),
                piece.shape_like(out[begin : begin + piece.numel]),
                base,
                tuned,
                window=piece.window,
                backend=backend,
            )
            for part in parts:
                if part is not None:
                    self.store.release(part)

    def _plan_of(self, recipe: MergeRecipe) -> RecipePlan:
        with self._planning:
            plan = self._plan
            if plan is None or plan.recipe is not recipe:
                plan = self._plan = RecipePlan(recipe)
                # What was prepared before keeps its own.
                self._shared = {}
                self._can_go_on = True
            return plan

    def _shared_by(self, plan: TensorMerge, device: torch.device) -> Coefficients:
        key = plan.group, device
        with self._planning:
            if key not in self._shared:
                self._shared[key] = Coefficients(plan, plan.scales, device)
            return self._shared[key]

    def _stay(self, readers: list[Found | None], name: str) -> bool:
        return all(found is None or self.store.keeps(found[1], name) for found in readers)

    def _needed(self, plan: TensorMerge) -> list[Found | None]:
        assert self._plan is not None  # noqa: S101 - `plan` is a part of it
        return self._readers.needed(plan, self._plan.recipe)

    def _in_pieces(self, plan: TensorMerge, held: list[Tensor | None], out: Tensor) -> bool:
        """Say whether a block is too much at once: for a bus, for ranking, for memory."""
        is_elsewhere = any(tensor is not None and tensor.device != out.device for tensor in held)
        return is_elsewhere or plan.method.drop == "ranked" or self.store.placement == "streamed"

    def _facts_of(self, plan: TensorMerge, device: torch.device) -> TensorFacts:
        """Return what holds for all of a tensor."""
        if plan.method.takes_columns:
            assert self._plan is not None  # noqa: S101 - `plan` is a part of it
            columns = self._readers.columns(plan, self._plan.recipe, device)
            return TensorFacts(plan.scales, columns=columns)
        name = plan.tensor_name
        block = whole(self.reference.entries[name].numel)
        return self._facts.find(
            plan, device, lambda: self._read(name, self._needed(plan), block, device)
        )

    def _facts_of_rows(
        self, plan: TensorMerge, readers: list[Found | None], piece: Block, device: torch.device
    ) -> TensorFacts:
        """Return what a piece needs to know of the rows that it touches."""
        length = self.reference.entries[plan.tensor_name].row_length
        first = piece.start // length * length
        rows = Block(first, -(-(piece.end - first) // length) * length)
        base, *tuned = self._read(plan.tensor_name, readers, rows, device)
        return self._facts.of_rows(plan, base, tuned, row_length=length, first=first)

    def _read(
        self, name: str, readers: list[Found | None], block: Block, device: torch.device
    ) -> list[Tensor | None]:
        """Read consecutive elements of every checkpoint, for the moment."""
        return [
            None if found is None else self.store.read(*found, name, block, device)
            for found in readers
        ]


def _copy(out: Tensor, source: Tensor) -> None:
    out.copy_(source)


def _do(steps: Iterable[Step]) -> None:
    for step in steps:
        step()


def _cut(held: Tensor, begin: int, piece: Block) -> Tensor:
    """Return a piece of a block: its first element has index ``begin`` inside the block."""
    if held.dim() == 1:
        return held[begin : begin + piece.numel]
    row, column = divmod(begin, held.shape[1])
    if piece.rows == 1:
        return held[row, column : column + piece.width]
    return held[row : row + piece.rows]
