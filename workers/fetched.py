"""Checkpoints behind URLs (s3://, gs://, https:// ...): fetched once per machine, by fsspec.

Files come into the user's cache, under a name made of the URL and of what the store says of every
file, so that another version of a checkpoint is another directory. Processes of one machine wait
for each other. The cache may be a home that several machines share, whose locks cannot be trusted:
each fetches into a directory of its own, and the first that is complete gets the name.
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from configs.errors import CheckpointError, CheckpointNotFoundError
from workers.user_cache import user_cache

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What a store may say of a file that changes with its content.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "mtime")

# Whoever fetches shows so often that it lives, and is dead after so long a silence.
_BEAT_S = 60.0
_SILENT_S = 3600.0


def is_url(path: str) -> bool:
    """Say whether a model is named by a URL."""
    return "://" in path


def fetch(name: str, url: str, patterns: Sequence[str]) -> Path:
    """Return a local directory with a checkpoint's files, fetching them where they are not here.

    Args:
        name: Of the model, for messages.
        url: Of the directory, as fsspec reads it.
        patterns: Names of the files that are wanted.

    Raises:
        CheckpointNotFoundError: There is nothing at the URL.
        CheckpointError: The store cannot be read, or its package is not installed.
    """
    import fsspec

    try:
        store, root = fsspec.core.url_to_fs(url)
        files = _wanted(store, root, patterns)
        target = user_cache() / "fetched" / _key(url, files)
        with machine_lock(target.name):
            if files and not target.is_dir():
                _download(store, root, files, target)
    except Exception as error:
        raise CheckpointError(
            f"model `{name}`: {url} cannot be read: {type(error).__name__}: {error}. Check the URL "
            "and the credentials of this machine",
            path=url,
        ) from error
    if not files:
        raise CheckpointNotFoundError(
            f"model `{name}`: {url} holds no safetensors weights; check the URL", path=url
        )
    return target


@contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Hold a lock among a user's processes on this machine, whatever file systems it shares."""
    directory = Path(tempfile.gettempdir()) / f"mergefront-locks-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    with FileLock(directory / f"{name}.lock"):
        yield


def _wanted(
    store: "AbstractFileSystem", root: str, patterns: Sequence[str]
) -> dict[str, Mapping[str, object]]:
    """Return name -> what the store says of it, of the files right below a directory."""
    found = {
        str(entry["name"]).rstrip("/").rpartition("/")[2]: entry
        for entry in store.ls(root, detail=True)
        if entry["type"] == "file"
    }
    wanted = {
        name: entry
        for name, entry in sorted(found.items())
        if any(fnmatch(name, pattern) for pattern in patterns)
    }
    has_weights = any(name.endswith(".safetensors") for name in wanted)
    return wanted if has_weights else {}


def _key(url: str, files: Mapping[str, Mapping[str, object]]) -> str:
    facts = [
        [name, entry.get("size"), *(str(entry[mark]) for mark in _MARKS if mark in entry)]
        for name, entry in files.items()
    ]
    return hashlib.sha256(json.dumps([url.rstrip("/"), facts]).encode()).hexdigest()[:32]


def _download(
    store: "AbstractFileSystem",
    root: str,
    files: Mapping[str, Mapping[str, object]],
    target: Path,
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _own_directory(target) as partial:
        for name, entry in files.items():
            path = partial / name
            store.get_file(f"{root.rstrip('/')}/{name}", str(path))
            found, size = path.stat().st_size, entry.get("size")
            if isinstance(size, int) and found != size:
                raise OSError(f"{name}: {found} bytes arrived of {size}")
        try:
            partial.rename(target)
        except OSError:
            # Another machine that shares the cache was faster: what it fetched is the same.
            if not target.is_dir():
                raise


@contextmanager
def _own_directory(target: Path) -> Iterator[Path]:
    """Make a directory beside a target that is nobody else's; removed unless it was renamed."""
    own = target.with_name(f".{target.name}.partial-{secrets.token_hex(8)}")
    own.mkdir()
    is_over = threading.Event()

    def show_life() -> None:
        while not is_over.wait(_BEAT_S):
            with suppress(OSError):
                os.utime(own)

    heart = threading.Thread(target=show_life, name="fetch-heartbeat", daemon=True)
    heart.start()
    try:
        # The time of the file system's own clock, which may not be that of this machine.
        _remove_leftovers(target.parent, own.stat().st_mtime)
        yield own
    finally:
        is_over.set()
        heart.join()
        shutil.rmtree(own, ignore_errors=True)


def _remove_leftovers(directory: Path, now: float) -> None:
    """Remove what was left by fetchers that have been silent for too long to be alive."""
    for path in directory.glob(".*.partial*"):
        with suppress(OSError):
            if now - path.stat().st_mtime > _SILENT_S:
                shutil.rmtree(path, ignore_errors=True)
