"""The hidden directory that an export writes into before it takes its final name.

Its owner holds a kernel lock on it for as long as it lives, so that a later export can tell what
a killed one left behind from what another one is writing now.
"""

import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

_ATTEMPTS = 8


class WorkDirectory:
    """A new locked directory beside a target.

    Args:
        target: Where the directory will go; its parent exists.

    Attributes:
        path: Of the directory: ``.NAME.partial-XXXXXXXX``.
        is_published: Whether it has its final name.

    Raises:
        OSError: It cannot be created.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self.is_published = False
        for _ in range(_ATTEMPTS):
            self.path = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
            self.path.mkdir()
            self._lock = _open(self.path)
            # Another export may have taken it for a leftover before it was locked.
            if self._lock is not None and _lock(self._lock) != "held" and self.path.is_dir():
                return
            self._unlock()
            shutil.rmtree(self.path, ignore_errors=True)
        raise OSError(f"cannot lock a new directory beside {target}")

    def publish(self) -> None:
        """Give the directory its final name, durably.

        Raises:
            OSError: Something other than an empty directory has that name, or, where
                ``is_published``, only the durability of the name is in doubt.
        """
        sync_directory(self.path)
        self.path.rename(self._target)
        self.is_published = True
        sync_directory(self._target.parent)

    def close(self) -> None:
        """Remove the directory unless it was published."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_leftovers(target: Path) -> list[Path]:
    """Remove what killed exports to a target left beside it; returns what was removed."""
    leftover = re.compile(rf"\.{re.escape(target.name)}\.partial-[0-9a-f]{{8}}")
    removed: list[Path] = []
    for path in sorted(target.parent.iterdir()):
        if not leftover.fullmatch(path.name) or path.is_symlink():
            continue
        with suppress(OSError):
            if (descriptor := _open(path)) is None:
                continue
            # Where nothing can be locked, nobody knows whether its owner lives.
            if _lock(descriptor) == "locked":
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
            os.close(descriptor)
    return removed


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None


def _lock(descriptor: int) -> Literal["locked", "held", "unknown"]:
    """Lock a directory until its descriptor is closed, by the kernel if its process dies.

    ``held`` by another process; ``unknown`` where the file system knows no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    return "locked"
