"""Whether a text of a job file names something on this machine."""

from pathlib import Path


def exists(path: str) -> bool:
    """Say whether there is a file or directory of a name, which may be any text.

    A name that the system refuses (too long, or in a directory that may not be searched) is none.
    """
    try:
        return Path(path).exists()
    except OSError:
        return False
