"""Checkpoints behind URLs (s3://, gs://, https:// ...): fetched once per machine, by fsspec.

Files come into the user's cache, under a name made of the URL and of what the store says of every
file, so that another version of a checkpoint is another directory. Processes of one machine wait
for each other; what a killed one left is fetched again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    store: "AbstractFileSystem", root: str, files: Mapping[str, object], target: Path
) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in files:
        store.get_file(f"{root.rstrip('/')}/{name}", str(partial / name))
    partial.rename(target)
