"""Where an archive is: a file, or a search in a PostgreSQL database.

Only the text is looked at here; ``optimizer.archive.store`` goes there.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

DEFAULT_SEARCH = "default"
"""The search that a URL without ``search=`` means."""

SCHEMES = ("postgresql", "postgres")

CONNECTION_OPTIONS = frozenset(
    {
        "application_name",
        "connect_timeout",
        "host",
        "port",
        "service",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "target_session_attrs",
    }
)
"""What a URL may say beside the search, as libpq reads it."""

_SEARCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class FilePlace:
    """An archive in an SQLite file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def public_name(self) -> str:
        """What commands in published files call it: the name of the file."""
        return self.path.name

    def beside(self, word: str) -> "FilePlace":
        """Return the archive that stands beside this one: ``run.sqlite``, ``run.WORD.sqlite``."""
        return FilePlace(self.path.with_name(f"{self.path.stem}.{word}{self.path.suffix}"))

    def output(self, word: str) -> Path:
        """Return where a file that is made from it goes: beside it, as ``run-WORD``."""
        return self.path.with_name(f"{self.path.stem}-{word}")


@dataclass(frozen=True, slots=True)
class DatabasePlace:
    """A search in a PostgreSQL database, which can hold many.

    Attributes:
        connection: Keywords of libpq: ``host``, ``port``, ``user``, ``dbname`` and some of
            ``CONNECTION_OPTIONS``; what is missing is libpq's default. Never a password.
        search: Name of the search in the database.
    """

    connection: Mapping[str, str] = field(hash=False)
    search: str

    def __str__(self) -> str:
        return f"{self.database}{'&' if '?' in self.database else '?'}search={self.search}"

    @property
    def database(self) -> str:
        """The URL of the database, whatever the search."""
        left = dict(self.connection)
        user, host, port, name = (left.pop(key, "") for key in ("user", "host", "port", "dbname"))
        if "/" in host or "," in host:  # a directory of sockets, or several hosts
            left["host"], host = host, ""
        if port and not host:
            left["port"], port = port, ""
        where = f"{quote(user, safe='')}@" if user else ""
        where += (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        options = f"?{urlencode(left, safe='/')}" if left else ""
        return f"postgresql://{where}/{quote(name, safe='')}{options}"

    @property
    def public_name(self) -> str:
        """What commands in published files call it: servers and users are not published."""
        return "ARCHIVE"

    def beside(self, word: str) -> "DatabasePlace":
        """Return the search that stands beside this one: ``run``, ``run.WORD``."""
        return replace(self, search=f"{self.search}.{word}")

    def output(self, word: str) -> Path:
        """Return where a file that is made from it goes: the working directory."""
        return Path(f"{self.search}-{word}")


Place = FilePlace | DatabasePlace


def read_place(text: "str | os.PathLike[str] | Place") -> Place:
    """Read where an archive is: the path of a file, or ``postgresql://USER@HOST/DB?search=NAME``.

    Raises:
        ValueError: It is a URL that cannot be used. No message holds a password.
    """
    if isinstance(text, FilePlace | DatabasePlace):
        return text
    if not isinstance(text, str) or "://" not in text:
        return FilePlace(Path(text))
    scheme = text.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(
            f"`{scheme}://` is no place for an archive; give the path of a file, or "
            "postgresql://USER@HOST:PORT/DATABASE?search=NAME"
        )
    return _database_place(text)


def _database_place(text: str) -> DatabasePlace:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ValueError(f"the URL cannot be read: {_reason(error)}") from None
    given = dict(options)
    if parts.password is not None or "password" in given:
        raise ValueError(
            "the URL holds a password, and job files, commands and archives are shown to others: "
            "leave it out, and put it into ~/.pgpass or the environment variable PGPASSWORD"
        )
    search = given.pop("search", DEFAULT_SEARCH)
    if unknown := sorted(given.keys() - CONNECTION_OPTIONS):
        raise ValueError(
            f"`{unknown[0]}` is no option of the URL; there are `search` and "
            f"{', '.join(sorted(CONNECTION_OPTIONS))}"
        )
    if not _SEARCH.fullmatch(search):
        raise ValueError(
            f"`search={search}` must be 1 to 100 letters, digits, `.`, `_` and `-`, a letter or "
            "digit first"
        )
    name = unquote(parts.path.removeprefix("/"))
    if (not name and "service" not in given) or "/" in name:
        raise ValueError(
            "the URL must name one database: postgresql://USER@HOST:PORT/DATABASE?search=NAME"
        )
    said = {"user": unquote(parts.username or ""), "host": host or "", "dbname": name}
    said["port"] = "" if port is None else str(port)
    return DatabasePlace({key: value for key, value in said.items() if value} | given, search)


def _reason(error: ValueError) -> str:
    # What urllib says may repeat the part with a password in it.
    return "the port is no number" if "port" in str(error).lower() else "it is malformed"
