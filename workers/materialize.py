"""From a recipe to weights in a live model; ``workers.merged_checkpoint`` writes them to disk.

Both go through :meth:`SourcePool.merge`, part by part, so what is exported is bit for bit what was
scored (D1). Sources stay memory-mapped, or where ``workers.residency`` puts them (D7).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from configs.recipe import MergeRecipe
from configs.worker_settings import Residency
from workers.binding import Binding
from workers.block import Block, LocalPart, full_tensor, local_part
from workers.digest import weights_digest
from workers.live_tensors import live_tensors
from workers.merge_backend import BackendChoice
from workers.merged_checkpoint import merged_entries
from workers.residency import Placement, TensorStore, choose_placement, measure_memory
from workers.shard_header import TensorEntry
from workers.side_by_side import Work, do_side_by_side
from workers.source_pool import SourcePool
from workers.sources import Sources

# Merged at once for a model of a wider dtype: 64 MiB at most.
_CONVERTED_ELEMENTS = 2**24
_SMALL_ELEMENTS = 2**16


class Materializer:
    """Writes merged weights into a live model, again and again.

    Keeps the checkpoints open between calls. Every tensor is written whole every time, so
    materializing A, then B, then A gives A's bits.

    Args:
        sources: The pool that recipes are made of.
        backend: How tensors are merged; does not change the bits.
        residency: Where checkpoints are kept between calls (``workers.residency``).
        gpu_share: Of a GPU, what belongs to this process (``workers.gpus``); at most 1.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        backend: BackendChoice = "auto",
        residency: Residency = "auto",
        gpu_share: float = 1.0,
    ) -> None:
        self._sources = sources
        self._backend: BackendChoice = backend
        self._pool = SourcePool(sources, backend=backend, keeps_tiles=True)
        self._residency: Residency = residency
        self._gpu_share = gpu_share
        self._placement: Placement | None = None
        # What is merged now, and what was merged last without an error.
        self._current: MergeRecipe | None = None
        self._recipe: MergeRecipe | None = None
        self._binding = Binding()
        # What was prepared for these parts of a model, where it serves the next recipe too.
        self._prepared: tuple[Mapping[str, LocalPart], list[Work]] | None = None

    @property
    def placement(self) -> Placement | None:
        """Where the checkpoints are kept; None before :meth:`place`."""
        return self._placement

    def place(self, model: nn.Module) -> None:
        """Decide where the checkpoints are kept, for this model on its devices.

        :meth:`into` does so on its first call; a worker does it before its first candidate.

        Raises:
            ConfigError: The residency that was asked for by name is not possible here.
        """
        parts = [local_part(tensor).tensor for tensor in model.state_dict().values()]
        devices = {part.device for part in parts}
        device = next(
            (d for d in sorted(devices, key=str) if d.type == "cuda"), torch.device("cpu")
        )
        # Under tensor parallelism a process reads its share of every checkpoint.
        held = sum(part.numel() for part in parts)
        total = sum(tensor.numel() for tensor in model.state_dict().values())
        self._placement = choose_placement(
            self._residency,
            device_type=device.type,
            source_bytes=round(self._pool.size_bytes * held / max(total, 1)),
            memory=measure_memory(device, self._gpu_share),
        )
        self._pool.store = TensorStore(self._placement)

    def into(self, model: nn.Module, recipe: MergeRecipe) -> None:
        """Write the merge that a recipe names into a model's parameters, in place.

        On the CPU as many tensors are merged at once as torch may use threads. Extra memory for
        each of them, beyond the model and the checkpoints where their residency puts them: a few
        MiB of temporaries; 64 MiB where the model's dtype is wider than the recipe's; on a GPU
        32 MiB (half precision) for each contributing checkpoint that is not resident there.
        Methods that know whole tensors take more on their first use of one: TIES and SLERP copy
        one tensor per checkpoint to a device where it is not resident, DELLA takes some 40 bytes
        per checkpoint for each of 2^20 elements (2^24 on a GPU), or of a longer row. After an
        error the model's weights are those of no recipe.

        Of a parameter that is a DTensor (``tp_plan``, ``parallelize_module``, ``fully_shard``) the
        rank merges its own shard, and reads nothing else of the checkpoints; TIES and SLERP read
        whole tensors on first use, DELLA whole rows.

        Args:
            model: A transformers model of the pool's architecture; parameters of the recipe's
                dtype, or of a wider one that holds the merged values exactly, on any devices.
                Tied weights are written once.
            recipe: Names sources of the pool.

        Raises:
            IncompatibleCheckpointsError: The model's tensors are not those of the checkpoints.
            CheckpointError: The recipe names a checkpoint that is not in the pool.
            ConfigError: As for :meth:`place`.
        """
        if recipe.vocabulary != self._pool.vocabulary:
            self._pool.close()
            self._pool = SourcePool(
                self._sources,
                backend=self._backend,
                vocabulary=recipe.vocabulary,
                keeps_tiles=True,
            )
            self._placement = None
            self._prepared = None
        merged_dtype = getattr(torch, recipe.dtype)
        targets = self._binding.of(model, self._pool.reference, merged_dtype)
        if self._placement is None:
            self.place(model)
        self._recipe, self._current = None, recipe
        devices = {part.tensor.device.type for part in targets.values()}
        device_type = "cpu" if devices == {"cpu"} else "gpu"
        known, self._prepared = self._prepared, None
        if known is not None and known[0] is targets and self._pool.go_on_with(recipe):
            works = known[1]
            do_side_by_side(works, device_type=device_type)
        else:
            works = []
            do_side_by_side(
                self._kept(works, recipe, targets, merged_dtype), device_type=device_type
            )
        self._prepared = targets, works
        self._recipe = recipe

    def _kept(
        self,
        works: list[Work],
        recipe: MergeRecipe,
        targets: Mapping[str, LocalPart],
        merged_dtype: torch.dtype,
    ) -> Iterator[Work]:
        """Yield everything to do, and note it."""
        for work in self._works(recipe, targets, merged_dtype):
            works.append(work)
            yield work

    def _works(
        self, recipe: MergeRecipe, targets: Mapping[str, LocalPart], merged_dtype: torch.dtype
    ) -> Iterator[Work]:
        # Large ones first: what is left for the end is short.
        names = sorted(targets, key=lambda name: -targets[name].tensor.numel())
        large = [name for name in names if targets[name].tensor.numel() >= _SMALL_ELEMENTS]
        small = names[len(large) :]
        for name in large[:1]:
            yield self._work(recipe, name, targets[name], merged_dtype)
        # Small ones are calls and hardly any work: by themselves, threads would only wait for each
        # other, so one does them while the others have something large.
        yield partial(
            _do_all, [self._work(recipe, name, targets[name], merged_dtype) for name in small]
        )
        for name in large[1:]:
            yield self._work(recipe, name, targets[name], merged_dtype)

    def _work(
        self, recipe: MergeRecipe, name: str, part: LocalPart, merged_dtype: torch.dtype
    ) -> Work:
        """Prepare the merge of what this process holds of a tensor."""
        target, block = part.tensor, part.block
        assert block is not None  # noqa: S101 - refused by `binding`
        converts = target.is_floating_point() and target.dtype != merged_dtype
        if target.is_contiguous() and not converts:
            return self._pool.prepare(recipe, name, target.view(-1), block)
        buffer_dtype = merged_dtype if converts else target.dtype
        return partial(self._write, name, target, block, buffer_dtype)

    def _write(self, name: str, target: Tensor, block: Block, buffer_dtype: torch.dtype) -> None:
        """Merge into a buffer, and copy it to where the model's memory has another form."""
        # A target with strides of its own has no flat form to cut.
        limit = _CONVERTED_ELEMENTS if target.is_contiguous() else max(block.numel, 1)
        merged = torch.empty(min(limit, block.numel), dtype=buffer_dtype, device=target.device)
        for begin, piece in block.pieces(limit):
            filled = merged[: piece.numel]
            assert self._current is not None  # noqa: S101 - set by `into`
            self._pool.merge(self._current, name, filled, piece)
            if target.is_contiguous():
                target.view(-1)[begin : begin + piece.numel].copy_(filled)
            else:
                target.copy_(filled.view(target.shape))

    def digest_of(self, model: nn.Module) -> str:
        """Return the digest of the weights that :meth:`into` wrote last.

        Equals what :func:`workers.merged_checkpoint.write_checkpoint` returns for the same recipe.
        DTensors are gathered one at a time, so all ranks have to call this, and each needs room
        for the largest.

        Raises:
            ValueError: Nothing was written yet, or the last attempt failed.
        """
        if (recipe := self._recipe) is None:
            raise ValueError("nothing was materialized; call `into` first")
        live = live_tensors(model, self._pool.reference.entries)

        def merged(entry: TensorEntry) -> Tensor:
            dtype: torch.dtype = getattr(torch, entry.dtype)
            if entry.name in live:
                # Narrowing back is exact: `into` refuses models that do not hold merged values.
                return full_tensor(live[entry.name]).detach().to(dtype)
            tensor = torch.empty(entry.numel, dtype=dtype)
            self._pool.merge(recipe, entry.name, tensor)
            return tensor.view(entry.shape)

        entries = merged_entries(self._pool.reference, recipe.dtype)
        return weights_digest((entry.name, merged(entry)) for entry in entries)

    def release(self) -> None:
        """Let go of the model that was merged into last; its tensors are held until then."""
        self._prepared, self._binding = None, Binding()
        self._recipe = self._current = None

    def close(self) -> None:
        """Close the checkpoints."""
        self._pool.close()


def _do_all(works: Sequence[Work]) -> None:
    for work in works:
        work()
