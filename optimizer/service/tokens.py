"""The token of a service, and the sessions of browsers that showed it once.

A session is no state of the service: it is an expiry and a random number, signed with the token.
So sessions outlive restarts, and a new token ends all of them.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from configs.errors import ConfigError

_SESSION = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{16,64})\.([0-9a-f]{64})")
_SHORTEST = 20


class Keys:
    """Tells who knows the token from who does not.

    Args:
        token: The secret.
        session_s: Seconds that a session lasts.
        clock: Seconds since 1970; replaced in tests.
    """

    def __init__(
        self, token: str, *, session_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._token = token.encode()
        self._session_s = session_s
        self._clock = clock

    def is_token(self, text: str) -> bool:
        """Whether a text is the token, in a time that does not depend on it."""
        return hmac.compare_digest(_digest(text.encode()), _digest(self._token))

    def new_session(self) -> str:
        """Return the value of a cookie."""
        body = f"{int(self._clock() + self._session_s)}.{secrets.token_urlsafe(18)}"
        return f"{body}.{self._signature(body)}"

    def is_session(self, text: str) -> bool:
        """Whether a cookie is one of ours, and not over yet."""
        found = _SESSION.fullmatch(text)
        if found is None:
            return False
        genuine = hmac.compare_digest(found[3], self._signature(f"{found[1]}.{found[2]}"))
        return genuine and self._clock() < int(found[1])

    def _signature(self, body: str) -> str:
        return hmac.new(self._token, f"session {body}".encode(), hashlib.sha256).hexdigest()


def find_or_make_token(path: Path) -> str:
    """Return the token in a file, which is made where it is missing, for its owner alone.

    Raises:
        ConfigError: It cannot be read or made, others can read it, or it is too short.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{secrets.token_urlsafe(32)}\n")
        return _read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError.single(str(path), f"the token cannot be read or made: {error}") from error


def _read(path: Path) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError.single(
            str(path),
            f"others can read the token (mode {mode:o}); remove it for a new one, or `chmod 600`",
        )
    token = path.read_text(encoding="ascii").strip()
    if len(token) < _SHORTEST:
        raise ConfigError.single(
            str(path), f"a token has at least {_SHORTEST} characters; remove it for a new one"
        )
    return token


def _digest(text: bytes) -> bytes:
    # Of equal length, whatever was sent.
    return hashlib.sha256(text).digest()
