"""What an operator decides when the service is started: where it looks, and what it allows."""

import hashlib
import ipaddress
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


@dataclass(frozen=True, slots=True)
class ScorerRule:
    """Python scorers that jobs may use.

    Attributes:
        place: Their module, or their file or a directory of files, resolved.
        function: The only one; None allows all that are no attributes of something else.
    """

    place: str | Path
    function: str | None = None

    def names(self, function: str) -> bool:
        """Whether it is about a function, of whatever module."""
        if self.function is not None:
            return function == self.function
        # An attribute of something may be anything: of a module that is imported there, for one.
        return "." not in function

    def __str__(self) -> str:
        return str(self.place) if self.function is None else f"{self.place}:{self.function}"


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
        scorers: Rules of which Python scorers jobs may use.
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
    scorers: tuple[ScorerRule, ...] = ()
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
        here = socket.gethostname() if is_any_address(self.host) else self.host
        names.add(here.lower())
        object.__setattr__(self, "known_hosts", frozenset(names))


def is_any_address(host: str) -> bool:
    """Whether a host stands for all addresses of this machine; names stand for one."""
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


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


def existing_scorers(flag: str, texts: list[str]) -> tuple[ScorerRule, ...]:
    """Read which scorers are allowed: ``FILE.py``, ``DIR/``, ``MODULE``; ``:FUNCTION`` is that one.

    A directory is named with a slash: without one it is the module of that name, which is less.

    Raises:
        ConfigError: A file or directory is missing, or a text is none of these.
    """
    found, problems = [], []
    for text in texts:
        rule = _scorer_rule(text)
        if isinstance(rule.place, Path):
            if not rule.place.exists():
                problems.append(Problem(flag, f"{rule.place}: no such file or directory"))
        elif not all(part.isidentifier() for part in rule.place.split(".")):
            expected = (
                "FILE.py, DIR/ or MODULE, and :FUNCTION behind a file or module for that alone"
            )
            problems.append(Problem(flag, f"expected {expected}; found `{text}`"))
        found.append(rule)
    if problems:
        raise ConfigError("the service cannot be started", problems)
    return tuple(found)


def _scorer_rule(text: str) -> ScorerRule:
    place, _, function = text.rpartition(":")
    # Directories may have colons, too.
    has_function = place.endswith(".py") or bool(place and not _is_path(text))
    if not has_function or not function.replace(".", "_").isidentifier():
        place, function = text, ""
    return ScorerRule(Path(place).resolve() if _is_path(place) else place, function or None)


def _is_path(scorer: str) -> bool:
    return "/" in scorer or scorer.endswith(".py")


def token_path(archive_dir: Path) -> Path:
    """Return where the token of an archive directory is kept: with the user, not the archives.

    Directories of archives are shared and copied, and a token is for this user's service alone.
    """
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(os.fsencode(archive_dir)).hexdigest()[:16]
    return home / "mergefront" / f"service-{name}.token"
