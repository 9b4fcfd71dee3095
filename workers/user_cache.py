"""Where things are kept between processes of a user, that can be made again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Return the directory: ``$XDG_CACHE_HOME/mergefront``, below ``~/.cache`` without it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergefront"
