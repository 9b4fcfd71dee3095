"""What an operator decides when the service is started: where it looks, and what it allows."""

import hashlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    from workers.ray_jobs import ClusterAccess

DEFAULT_PORT = 8642

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine that no other can take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What the service serves, and what jobs that come over HTTP may use.

    Attributes:
        archive_dir: Directory of the archives, resolved; new searches get a directory in it.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        host_names: Names under which browsers and programs may ask for it, beside loopback.
        model_roots: Directories that models and items of jobs may lie in, resolved.
        model_urls: Beginnings of URLs that models may have.
        hub: Beginnings of hub ids that models may have (``org/``); empty allows none.
        scorers: ``module``, ``module:function``, ``file.py``, ``file.py:function`` or a directory
            of files, files and directories by their absolute paths. Where no function is named,
            all are allowed that are no attributes of something else.
        task_dirs: Directories with task YAMLs, resolved.
        trackers: ``wandb``, or URLs of MLflow servers.
        allow_code_execution: Whether jobs may run generated code in the sandbox.
        allow_weak_sandbox: Whether that may be the weak one.
        max_searches: Searches and exports that run on this machine at a time.
        cluster: Where searches run; None is this machine.
        cluster_python: Python on the head node.
        session_s: Seconds that a browser stays logged in.
        max_body_bytes: Largest body of a request.
        max_job_bytes: Longest text of a job.
        max_streams: Event streams at a time.
        stream_s: Seconds after which an event stream ends; browsers ask again by themselves.
        poll_s: Seconds between two looks at an archive that somebody watches.
    """

    archive_dir: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    host_names: frozenset[str] = frozenset()
    model_roots: tuple[Path, ...] = ()
    model_urls: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    scorers: tuple[str, ...] = ()
    task_dirs: tuple[Path, ...] = ()
    trackers: tuple[str, ...] = ()
    allow_code_execution: bool = False
    allow_weak_sandbox: bool = False
    max_searches: int = 2
    cluster: "ClusterAccess | None" = None
    cluster_python: str = "python"
    session_s: float = 12 * 3600.0
    max_body_bytes: int = 1_000_000
    max_job_bytes: int = 200_000
    max_streams: int = 64
    stream_s: float = 3600.0
    poll_s: float = 1.0
    known_hosts: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = {*LOOPBACK, *(name.lower() for name in self.host_names)}
        if self.host not in {"0.0.0.0", "::", ""}:  # noqa: S104 - compared, not bound
            names.add(self.host.lower())
        else:
            names.add(socket.gethostname().lower())
        object.__setattr__(self, "known_hosts", frozenset(names))


def existing_directories(flag: str, paths: list[Path]) -> tuple[Path, ...]:
    """Resolve directories that an option names.

    Raises:
        ConfigError: One of them is none, or its path is not in UTF-8, as jobs and answers are.
    """
    problems = [Problem(flag, f"{path}: no such directory") for path in paths if not path.is_dir()]
    found = tuple(path.resolve() for path in paths)
    problems += [
        Problem(flag, f"{path}: its path is not in UTF-8; rename it")
        for path in found
        if not is_text(str(path))
    ]
    if problems:
        raise ConfigError("the service cannot be started", problems)
    return found


def is_text(name: str) -> bool:
    """Whether a name of a file is in UTF-8; Python stands for other bytes by surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def existing_scorers(flag: str, texts: list[str]) -> tuple[str, ...]:
    """Make the files and directories of scorers absolute; modules stay as they are.

    A directory is named with a slash: without one it is the module of that name, which is less.

    Raises:
        ConfigError: A file or directory is missing.
    """
    found, problems = [], []
    for text in texts:
        file, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
        if "/" not in file and not file.endswith(".py"):
            found.append(text)
            continue
        path = Path(file).resolve()
        if not path.exists():
            problems.append(Problem(flag, f"{path}: no such file or directory"))
        found.append(f"{path}{colon}{function}")
    if problems:
        raise ConfigError("the service cannot be started", problems)
    return tuple(found)


def token_path(archive_dir: Path) -> Path:
    """Return where the token of an archive directory is kept: with the user, not the archives.

    Directories of archives are shared and copied, and a token is for this user's service alone.
    """
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(os.fsencode(archive_dir)).hexdigest()[:16]
    return home / "mergefront" / f"service-{name}.token"
