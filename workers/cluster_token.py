"""Where the token of a cluster lies; whoever talks to one with authentication must show it."""

import os
from pathlib import Path

from configs.errors import ClusterError

PLACES = "RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
"""Where Ray looks, for messages."""


def find_token(token_file: Path | None) -> str | None:
    """Return the token for a cluster, or None where there is none to be found.

    Raises:
        ClusterError: A file that was named cannot be read or is empty, or ``RAY_AUTH_MODE`` is
            ``token`` and there is no token.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if token_file is None and mode == "disabled":
        return None
    if token_file is None and (token := os.environ.get("RAY_AUTH_TOKEN", "").strip()):
        return token
    named = token_file or os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise ClusterError(f"{path}: the token cannot be read: {error}") from error
        token = ""
    if token:
        return token
    if named:
        raise ClusterError(f"{path}: holds no token; write the cluster's into it")
    if mode == "token":
        raise ClusterError(
            f"RAY_AUTH_MODE is `token`, but there is no token: put the cluster's in {PLACES}"
        )
    return None


def token_place() -> str:
    """Return the first place where Ray finds a token, for messages."""
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
