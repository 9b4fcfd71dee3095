"""Where the models of a job are: hub ids and paths become local directories with digests."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from configs.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from configs.schema import Models, ModelSource
from workers.checkpoint import CheckpointReader
from workers.digest import source_digest
from workers.fetched import fetch, is_url
from workers.lora import Adapter, is_adapter
from workers.tied_weights import check_duplicates

BASE_NAME = "base"
"""What the base is called in recipes and tables."""

# Scheme of a URL -> our extra with what fsspec reads it by.
_STORE_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# What a snapshot of a hub repository must bring: weights, configuration, tokenizer; never code.
_HUB_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md")
# Weights in other layouts that many repositories carry beside the usual one; of directories only
# the modules of sentence encoders (`1_Pooling`, `2_Dense`) are wanted, but for the model itself.
_HUB_IGNORED = ("[!1-9]*/*", "?[!_]*/*", "??[!A-Z]*/*", "consolidated*")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """One model of the pool: its name, its local directory, and the digest of its tensors."""

    name: str
    directory: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Sources:
    """The resolved pool; checkpoints in the order of the job file. Small, and picklable.

    ``coefficients`` are directories with files of column coefficients, for the recipes that name
    their digests (``workers.column_coefficients``); they are no models.
    """

    base: ResolvedSource | None
    checkpoints: tuple[ResolvedSource, ...]
    coefficients: tuple[ResolvedSource, ...] = ()

    @property
    def everything(self) -> tuple[ResolvedSource, ...]:
        """The base, where there is one, then the checkpoints."""
        return ((self.base,) if self.base else ()) + self.checkpoints

    @property
    def reference(self) -> ResolvedSource:
        """The model that decides names, config and tokenizer: the base, or the first one."""
        return self.everything[0]


class BaseNeededError(CheckpointError):
    """A LoRA adapter was named without the model that it was trained on."""


def resolve_sources(models: Models, *, with_digests: bool = True) -> Sources:
    """Find, fetch and check every model of a job.

    Directories are taken as they are; hub ids are downloaded into the Hugging Face cache
    (``HF_HUB_OFFLINE=1`` takes only what is there already), URLs into our own. The headers of all
    weights are checked before any digest is computed. A LoRA adapter becomes the directory of the
    base with the adapter merged onto it (``workers.lora``).

    Args:
        models: The pool.
        with_digests: False leaves all digests empty, and reads no tensor but those that an
            adapter is merged onto.

    Raises:
        ConfigError: A checkpoint is called ``base``, beside a base.
        CheckpointError: Some models cannot be used; the message names every problem. It is a
            CheckpointNotFoundError or CorruptCheckpointError where all problems are of that kind.
    """
    if models.base and BASE_NAME in models.checkpoints:
        raise ConfigError.single(
            f"models.checkpoints.{BASE_NAME}", f"the name `{BASE_NAME}` means the base; rename it"
        )
    pool = [(BASE_NAME, models.base)] if models.base else []
    pool += models.checkpoints.items()
    found: dict[str, CheckpointReader | Adapter] = {}
    errors: list[CheckpointError] = []
    with ExitStack() as stack:
        for name, source in pool:
            try:
                opened = _open(name, _directory_of(name, source), models, found)
            except CheckpointError as error:
                errors.append(error)
                continue
            if isinstance(opened, CheckpointReader):
                stack.enter_context(opened)
            if opened is not None:
                found[name] = opened
        if errors:
            raise _combined(errors)
        resolved = [
            _resolve(name, opened, with_digests=with_digests) for name, opened in found.items()
        ]
    base = resolved.pop(0) if models.base else None
    return Sources(base, tuple(resolved))


def hub_id(source: ModelSource) -> str | None:
    """Return the id of a model on the hub, without its revision; None of what is not there.

    A directory, also one that is gone, and a URL have none.
    """
    return None if is_url(source.path) or _names_directory(source) else source.path


def missing_directories(models: Models) -> list[tuple[str, str]]:
    """Return name and path of the models that are directories elsewhere, but none here.

    Hub ids are none of them: a node downloads what it needs.
    """
    pool = {BASE_NAME: models.base} if models.base else {}
    return [
        (name, source.path)
        for name, source in (pool | models.checkpoints).items()
        if _names_directory(source) and not Path(source.path).expanduser().is_dir()
    ]


def _names_directory(source: ModelSource) -> bool:
    if is_url(source.path):
        return False
    path = Path(source.path).expanduser()
    return path.exists() or path.is_absolute() or not _HUB_ID.fullmatch(source.path)


def _open(
    name: str,
    directory: Path,
    models: Models,
    found: Mapping[str, CheckpointReader | Adapter],
) -> CheckpointReader | Adapter | None:
    """Open a checkpoint, or an adapter on the base; None where the base has failed already."""
    if not is_adapter(directory):
        reader = CheckpointReader(directory)
        check_duplicates(reader)
        return reader
    if models.base is None:
        raise BaseNeededError(
            f"{directory}: `{name}` is a LoRA adapter, which needs what it was trained on; name "
            "it in models.base",
            path=str(directory),
        )
    if name == BASE_NAME:
        raise CheckpointError(
            f"{directory}: the base is a LoRA adapter; name the model that it was trained on",
            path=str(directory),
        )
    base = found.get(BASE_NAME)
    return Adapter(directory, base) if isinstance(base, CheckpointReader) else None


def _resolve(
    name: str, opened: CheckpointReader | Adapter, *, with_digests: bool
) -> ResolvedSource:
    if isinstance(opened, Adapter):
        with CheckpointReader(opened.merge()) as reader:
            return _resolve(name, reader, with_digests=with_digests)
    return ResolvedSource(name, opened.directory, source_digest(opened) if with_digests else "")


def _combined(errors: list[CheckpointError]) -> CheckpointError:
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else CheckpointError
    title = f"{len(errors)} models cannot be used"
    return kind("\n".join([title, *(error.message for error in errors)]), errors=errors)


def _fetched(name: str, url: str) -> Path:
    try:
        return fetch(name, url, _HUB_PATTERNS)
    except CheckpointError as error:
        extra = _STORE_EXTRAS.get(url.partition("://")[0])
        if extra is None or not isinstance(error.__cause__, ImportError):
            raise
        raise CheckpointError(
            f"model `{name}`: {url} cannot be read without a package that is not installed "
            f"({error.__cause__}): pip install 'mergefront[{extra}]', on every node of a cluster",
            **error.context,
        ) from error


def _directory_of(name: str, source: ModelSource) -> Path:
    if is_url(source.path):
        return _fetched(name, source.path)
    path = Path(source.path).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise CheckpointNotFoundError(
            f"model `{name}`: {path} is a file; name the directory that holds it", path=str(path)
        )
    if _names_directory(source):
        raise CheckpointNotFoundError(
            f"model `{name}`: {path}: no such directory; check the path", path=str(path)
        )
    return _download(name, source)


def _download(name: str, source: ModelSource) -> Path:
    # The client takes a third of a second to import, and most jobs name directories.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"model `{name}`: no directory `{source.path}` here"
    label = f"`{source.path}`" + (f" at revision `{source.revision}`" if source.revision else "")
    try:
        return Path(
            snapshot_download(
                source.path,
                revision=source.revision,
                allow_patterns=list(_HUB_PATTERNS),
                ignore_patterns=list(_HUB_IGNORED),
            )
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{where}, and {label} is not in the Hugging Face cache while the hub is out of reach "
            "(offline mode or no network); download it first, or name a directory",
            path=source.path,
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointNotFoundError(
            f"{where}, and the hub does not know {label}; check the name, the revision, and for "
            "private or gated models the token (`hf auth login`)",
            path=source.path,
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{where}, and {label} could not be downloaded: {error}; try again",
            path=source.path,
        ) from error
