"""From a recipe to weights in a live model; ``workers.merged_checkpoint`` writes them to disk.

Both go through :meth:`SourcePool.merge`, part by part, so what is exported is bit for bit what was
scored (D1). Sources stay memory-mapped, or where ``workers.residency`` puts them (D7).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from configs.errors import IncompatibleCheckpointsError, Problem
from configs.recipe import MergeRecipe
from configs.schema import Residency
from workers.architecture import unused_tensors
from workers.block import Block, LocalPart, full_tensor, local_part
from workers.digest import weights_digest
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
    """

    def __init__(
        self,
        sources: Sources,
        *,
        backend: BackendChoice = "auto",
        residency: Residency = "auto",
    ) -> None:
        self._sources = sources
        self._backend: BackendChoice = backend
        self._pool = SourcePool(sources, backend=backend, keeps_tiles=True)
        self._residency: Residency = residency
        self._placement: Placement | None = None
        self._recipe: MergeRecipe | None = None

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
            memory=measure_memory(device),
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
        per checkpoint for each of 2^24 elements. After an error the model's weights are those of
        no recipe.

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
        merged_dtype = getattr(torch, recipe.dtype)
        targets = self._bind(model, merged_dtype)
        if self._placement is None:
            self.place(model)
        self._recipe = None
        devices = {part.tensor.device.type for part in targets.values()}
        do_side_by_side(
            self._works(recipe, targets, merged_dtype),
            device_type="cpu" if devices == {"cpu"} else "gpu",
        )
        self._recipe = recipe

    def _works(
        self, recipe: MergeRecipe, targets: Mapping[str, LocalPart], merged_dtype: torch.dtype
    ) -> Iterator[Work]:
        # Large ones first: what is left for the end is short.
        names = sorted(targets, key=lambda name: -targets[name].tensor.numel())
        small = []
        for name in names:
            work = self._work(recipe, name, targets[name], merged_dtype)
            if targets[name].tensor.numel() >= _SMALL_ELEMENTS:
                yield work
            else:
                small.append(work)
        # Small ones are calls and hardly any work: threads would only wait for each other.
        yield partial(_do_all, small)

    def _work(
        self, recipe: MergeRecipe, name: str, part: LocalPart, merged_dtype: torch.dtype
    ) -> Work:
        """Prepare the merge of what this process holds of a tensor."""
        target, block = part.tensor, part.block
        assert block is not None  # noqa: S101 - refused by _bind
        converts = target.is_floating_point() and target.dtype != merged_dtype
        if target.is_contiguous() and not converts:
            return self._pool.prepare(recipe, name, target.view(-1), block)
        buffer_dtype = merged_dtype if converts else target.dtype
        return partial(self._write, recipe, name, target, block, buffer_dtype)

    def _write(
        self,
        recipe: MergeRecipe,
        name: str,
        target: Tensor,
        block: Block,
        buffer_dtype: torch.dtype,
    ) -> None:
        """Merge into a buffer, and copy it to where the model's memory has another form."""
        # A target with strides of its own has no flat form to cut.
        limit = _CONVERTED_ELEMENTS if target.is_contiguous() else max(block.numel, 1)
        merged = torch.empty(min(limit, block.numel), dtype=buffer_dtype, device=target.device)
        for begin, piece in block.pieces(limit):
            filled = merged[: piece.numel]
            self._pool.merge(recipe, name, filled, piece)
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
        state: dict[str, Tensor] = model.state_dict()

        def merged(entry: TensorEntry) -> Tensor:
            dtype: torch.dtype = getattr(torch, entry.dtype)
            if entry.name in state:
                # Narrowing back is exact: `into` refuses models that do not hold merged values.
                return full_tensor(state[entry.name]).to(dtype)
            tensor = torch.empty(entry.numel, dtype=dtype)
            self._pool.merge(recipe, entry.name, tensor)
            return tensor.view(entry.shape)

        entries = merged_entries(self._pool.reference, recipe.dtype)
        return weights_digest((entry.name, merged(entry)) for entry in entries)

    def close(self) -> None:
        """Close the checkpoints."""
        self._pool.close()

    def _bind(self, model: nn.Module, merged_dtype: torch.dtype) -> dict[str, LocalPart]:
        """Find the live part of every tensor of the checkpoints, or say what does not fit."""
        state: dict[str, Tensor] = model.state_dict(keep_vars=True)
        entries = self._pool.reference.entries
        parts = {name: local_part(state[name]) for name in entries if name in state}
        unused = unused_tensors(model)
        problems = [
            Problem(name, "is in the checkpoints, but the model has no tensor of that name")
            for name in entries
            if name not in state and not unused.search(name)
        ]
        written: dict[int, str] = {}
        for name, part in parts.items():
            address = part.tensor.data_ptr()
            if message := _misfit(entries[name], state[name], part, merged_dtype):
                problems.append(Problem(name, message))
            elif part.tensor.numel() and (other := written.setdefault(address, name)) != name:
                problems.append(
                    Problem(
                        name,
                        f"the model ties it to `{other}`, the checkpoints hold both; load the "
                        "model with `tie_word_embeddings=False`, or save the checkpoints tied",
                    )
                )
        covered = {part.tensor.data_ptr() for part in parts.values()}
        problems += [
            Problem(name, "is in the model, but the checkpoints have no tensor of that name")
            for name, tensor in state.items()
            if name not in parts
            and isinstance(tensor, nn.Parameter)
            and _is_elsewhere(local_part(tensor).tensor, covered)
        ]
        if problems:
            raise IncompatibleCheckpointsError(
                f"{type(model).__name__} cannot take {self._pool.reference.directory}'s weights",
                problems,
            )
        return parts


def _do_all(works: Sequence[Work]) -> None:
    for work in works:
        work()


def _is_elsewhere(tensor: Tensor, covered: set[int]) -> bool:
    """Say whether a tensor holds elements, none of which are at the given addresses."""
    return tensor.numel() > 0 and tensor.data_ptr() not in covered


def _misfit(
    entry: TensorEntry, target: Tensor, part: LocalPart, merged_dtype: torch.dtype
) -> str | None:
    """Say why a live tensor cannot take a merged one, or None."""
    if tuple(target.shape) != entry.shape:
        return f"the model expects {tuple(target.shape)}, the checkpoints hold {entry.shape}"
    if part.tensor.device.type == "meta":
        return (
            "the model was loaded without memory for it (offloaded); load it onto devices that "
            "hold it, with a `device_map` that puts nothing on `disk`, or on `cpu` beside GPUs"
        )
    if part.block is None:
        return (
            "the model is sharded in a way that a merge cannot be cut; shard the tensor along one "
            "axis, or replicate it"
        )
    if not entry.is_floating:
        exact = target.dtype == getattr(torch, entry.dtype)
    else:
        exact = torch.promote_types(target.dtype, merged_dtype) == target.dtype
    if not exact:
        found = str(target.dtype).removeprefix("torch.")
        wanted = str(merged_dtype).removeprefix("torch.") if entry.is_floating else entry.dtype
        return f"the model holds it in {found}, which cannot hold {wanted} exactly; load it so"
    return None
