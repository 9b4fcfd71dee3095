"""Coefficients per input column of every tensor and checkpoint: what learned merges bring along.

A file of them is ``coefficients.safetensors``: tensors ``"{i}.{tensor name}"``, i the position of
the checkpoint in its recipe, float32, one finite number per column: of a matrix ``(rows,
columns)`` that many, of a vector one per element, of a scalar one. Recipes name it by a digest, as
they name checkpoints. What a job uses is kept in the user's cache under that digest, since a search
is resumed and exported long after it was learned.
"""

import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    Problem,
)
from configs.recipe import MergeRecipe, Source
from workers.digest import tensors_digest
from workers.fetched import machine_lock
from workers.methods import get_method
from workers.shard_header import TensorEntry, read_header
from workers.sources import ResolvedSource, Sources
from workers.user_cache import user_cache
from workers.vocabulary import open_readers

if TYPE_CHECKING:
    from torch import Tensor

COEFFICIENTS_FILE = "coefficients.safetensors"
"""Name of the file beside the ``recipe.json`` of a learned merge."""

EXPORTED_FILE = f"merge/{COEFFICIENTS_FILE}"
"""Where a checkpoint directory has it: not beside the weights, where some programs read every
``*.safetensors`` as a shard."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a file of coefficients must fit: a number of checkpoints, and their tensors."""

    num_checkpoints: int
    entries: Mapping[str, TensorEntry]

    def lengths(self) -> Iterator[tuple[str, int]]:
        """Yield the name of every tensor of the file, and its length."""
        for index in range(self.num_checkpoints):
            for name, entry in self.entries.items():
                if entry.is_floating:
                    yield f"{index}.{name}", entry.row_length


class CoefficientFile:
    """A file of coefficients, whose header is checked when it is opened.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CorruptCheckpointError: Its header lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointNotFoundError(
                f"{path}: no such file; a merge with column coefficients has it beside its "
                "recipe.json: copy both",
                path=str(path),
            )
        try:
            found = read_header(path)
        except ValueError as error:
            raise CorruptCheckpointError(f"{path}: {error}", path=str(path)) from error
        self.entries = {entry.name: entry for entry in found}

    @cached_property
    def _tensors(self) -> "dict[str, Tensor]":
        from safetensors.torch import load_file

        return load_file(self.path)

    def of(self, checkpoint: int, tensor_name: str) -> "Tensor":
        """Return the coefficients of one tensor of one checkpoint, ``(columns,)`` float32.

        Raises:
            CheckpointError: There are none; a file that :meth:`check` has seen has them all.
        """
        found = self._tensors.get(f"{checkpoint}.{tensor_name}")
        if found is None:
            raise CheckpointError(f"{self.path}: has no `{checkpoint}.{tensor_name}`; learn again")
        return found

    @property
    def digest(self) -> str:
        """SHA-256 that names its tensors, made as that of a checkpoint; reads every byte."""
        return tensors_digest(self.entries.values(), lambda name: self._tensors[name])

    def check(self, wanted: Wanted) -> None:
        """Check that the file has what a merge needs, and nothing else; reads it once.

        Raises:
            CorruptCheckpointError: It does not; lists every problem.
        """
        problems = [*self._misfits(wanted), *self._not_finite()]
        if problems:
            raise CorruptCheckpointError(
                "\n".join(
                    [
                        f"{self.path}: coefficients that cannot be used; learn them again with "
                        "these checkpoints",
                        *(f"  {problem}" for problem in problems),
                    ]
                ),
                path=str(self.path),
                problems=problems,
            )

    def _misfits(self, wanted: Wanted) -> Iterator[Problem]:
        expected = dict(wanted.lengths())
        for name, length in expected.items():
            entry = self.entries.get(name)
            if entry is None:
                yield Problem(name, f"is missing; expected float32 of shape ({length},)")
            elif entry.shape != (length,):
                yield Problem(name, f"expected shape ({length},), found {entry.shape}")
        for name, entry in self.entries.items():
            if name not in expected:
                count = wanted.num_checkpoints
                yield Problem(name, f"belongs to no floating tensor of the {count} checkpoints")
            elif entry.dtype != "float32":
                yield Problem(name, f"expected float32, found {entry.dtype}")

    def _not_finite(self) -> Iterator[Problem]:
        for name, tensor in self._tensors.items():
            if tensor.is_floating_point() and (bad := int((~tensor.isfinite()).sum())):
                yield Problem(name, f"holds NaN or infinity in {bad} of {tensor.numel()} columns")


def coefficients_of(source: Source, recipe: Path) -> ResolvedSource:
    """Find the coefficients of a ``recipe.json``: beside it, where exports have them, or kept.

    Raises:
        CheckpointError: As for :func:`resolve_coefficients`.
    """
    if (found := coefficients_beside(recipe)) is not None:
        return resolve_coefficients(source, found)
    if (_kept(source.digest) / COEFFICIENTS_FILE).is_file():
        return recall_coefficients(source)
    return resolve_coefficients(source, recipe.with_name(COEFFICIENTS_FILE))


def coefficients_beside(recipe: Path) -> Path | None:
    """Return the file that lies beside a ``recipe.json``, or where exports have it; None without.

    What it holds is not looked at.
    """
    places = [recipe.parent / name for name in (COEFFICIENTS_FILE, EXPORTED_FILE)]
    return next((place for place in places if place.is_file()), None)


def recipe_path(place: str | Path) -> Path:
    """Return the recipe of a baseline of a job, which may name the directory that holds it."""
    path = Path(place).expanduser()
    return path / "recipe.json" if path.is_dir() else path


def resolve_coefficients(source: Source, path: Path) -> ResolvedSource:
    """Check a file against the digest that a recipe has of it, and keep it in the user's cache.

    Returns:
        The directory in the cache that holds the file as ``coefficients.safetensors``.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CorruptCheckpointError: It is damaged, or another one.
    """
    found = CoefficientFile(path)
    if found.digest != source.digest:
        raise CorruptCheckpointError(
            f"{path}: its coefficients have digest {found.digest[:12]}, the recipe names "
            f"{source.digest[:12]}; put the file back that belongs to the recipe, or learn again",
            path=str(path),
        )
    target = _kept(source.digest)
    with machine_lock(f"coefficients-{source.digest[:32]}"):
        if not (target / COEFFICIENTS_FILE).is_file():
            target.mkdir(parents=True, exist_ok=True)
            # Another machine may share the cache, and copies at the same time.
            partial = target / f".partial-{secrets.token_hex(4)}"
            try:
                shutil.copyfile(path, partial)
                partial.replace(target / COEFFICIENTS_FILE)
            finally:
                partial.unlink(missing_ok=True)
    return ResolvedSource(source.name, target, source.digest)


def recall_coefficients(source: Source) -> ResolvedSource:
    """Return the coefficients of a recipe that a search has used on this machine.

    Raises:
        CheckpointNotFoundError: They are not in the user's cache.
        CorruptCheckpointError: What is there is another file.
    """
    directory = _kept(source.digest)
    path = directory / COEFFICIENTS_FILE
    if not path.is_file():
        raise CheckpointNotFoundError(
            f"{path}: the coefficients `{source.name}` of the recipe (digest "
            f"{source.digest[:12]}) are not on this machine; `mergefront check` on a job whose "
            "`baselines` name the learned merge puts them there",
            path=str(path),
        )
    resolved = ResolvedSource(source.name, directory, source.digest)
    verify_coefficients([resolved])
    return resolved


def require_coefficients(recipe: MergeRecipe) -> None:
    """Check that a recipe has column coefficients where its method takes them, and only there.

    Raises:
        ConfigError: It lacks them, or has too many; or its method is not known here.
    """
    takes = get_method(recipe.method).takes_columns
    if takes and recipe.coefficients is None:
        raise ConfigError.single(
            "coefficients",
            f"`{recipe.method}` needs one coefficient per input column, and the recipe names "
            "none; `mergefront learn` makes such recipes",
        )
    if not takes and recipe.coefficients is not None:
        raise ConfigError.single(
            "coefficients", f"`{recipe.method}` takes none; remove them, or use the method `dam`"
        )


def check_coefficients(recipe: MergeRecipe, sources: Sources) -> None:
    """Check that a recipe's coefficients fit its checkpoints, where it has some; reads them once.

    Args:
        recipe: Its method is known here.
        sources: Models and coefficients of the recipe.

    Raises:
        ConfigError: Its method takes coefficients and it has none, or the other way round.
        CorruptCheckpointError: They do not fit; lists every problem.
        CheckpointError: They are not among the sources, or a file cannot be read.
    """
    require_coefficients(recipe)
    if recipe.coefficients is None:
        return
    with ExitStack() as stack:
        readers = open_readers(sources, recipe.vocabulary)
        for reader in readers.values():
            stack.enter_context(reader)
        entries = readers[sources.reference.name].entries
    file = find_coefficients(recipe.coefficients, sources)
    file.check(Wanted(len(recipe.checkpoints), entries))


def find_coefficients(source: Source, sources: Sources) -> CoefficientFile:
    """Open the file of coefficients that a recipe names.

    Raises:
        CheckpointError: It is not among the sources, or is damaged.
    """
    found = [each for each in sources.coefficients if each.digest == source.digest]
    if not found:
        raise CheckpointError(
            f"the recipe needs the coefficients `{source.name}` with digest {source.digest[:12]}, "
            "which are not among what was given; put their file beside the recipe"
        )
    return CoefficientFile(found[0].directory / COEFFICIENTS_FILE)


def exported_coefficients(sources: Sources) -> dict[str, bytes]:
    """Return the files of coefficients of one merge as an export has them: name -> content."""
    if not sources.coefficients:
        return {}
    (found,) = sources.coefficients
    return {EXPORTED_FILE: (found.directory / COEFFICIENTS_FILE).read_bytes()}


def verify_coefficients(sources: Sequence[ResolvedSource]) -> None:
    """Check that files of coefficients still have their digests.

    Raises:
        CheckpointError: One is gone, damaged or has changed.
    """
    for source in sources:
        path = source.directory / COEFFICIENTS_FILE
        if (found := CoefficientFile(path).digest) != source.digest:
            raise CorruptCheckpointError(
                f"{path}: `{source.name}` has changed: its digest was {source.digest[:12]}, now it "
                f"is {found[:12]}. Remove it; `mergefront check` puts it back",
                path=str(path),
            )


def _kept(digest: str) -> Path:
    return user_cache() / "coefficients" / digest
