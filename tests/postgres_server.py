"""A real PostgreSQL server for tests: Debian's programs, not as root, on a free port."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

SUPERUSER = "mergefront"
PASSWORD = "a secret of the tests"
_START_S = 30.0


def find_programs() -> Path | None:
    """The directory of ``initdb`` and ``postgres``, newest version first; None without any."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(versions, key=lambda file: int(file.parts[-3]), reverse=True)
    if newest:
        return newest[0].parent
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


class PostgresServer:
    """A server with an empty cluster; sockets trust everybody, TCP wants the password.

    It does not wait for the disk: what is tested here is not what a loss of power leaves.
    """

    def __init__(self, programs: Path, options: Mapping[str, str] | None = None) -> None:
        self._programs = programs
        self._options = {"fsync": "off", "max_connections": "60"} | dict(options or {})
        self.root = Path(tempfile.mkdtemp(prefix="mergefront-postgres-"))
        self._user = _unprivileged()
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases: set[str] = set()

    def __enter__(self) -> Self:
        secret = self.root / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            for path in (self.root, secret):
                os.chown(path, *self._user)
        cluster = [
            "--pgdata",
            str(self.root / "data"),
            "--no-sync",
            "--locale=C",
            "--encoding=UTF8",
        ]
        access = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}"]
        try:
            self._run(["initdb", *cluster, *access, f"--username={SUPERUSER}"])
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop(signal.SIGINT)
        shutil.rmtree(self.root, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = self._options | {"port": str(self.port), "listen_addresses": "127.0.0.1"}
        options |= {"unix_socket_directories": str(self.root)}
        command = ["postgres", "-D", str(self.root / "data")]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user(command), stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no PostgreSQL:\n{(self.root / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals) -> None:
        """End it: SIGINT in order, SIGQUIT as a crash would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement past all code of ours."""
        import psycopg

        keywords = {"host": str(self.root), "port": self.port, "user": SUPERUSER}
        with psycopg.connect(dbname=database, autocommit=True, **keywords) as connection:
            cursor = connection.execute("SET search_path = mergefront")
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def empty_database(self, name: str = "tests") -> str:
        """Make a database, or empty it, which is far cheaper than another; returns its name."""
        if name not in self._databases:
            self._databases.add(name)
            self.execute(f"CREATE DATABASE {name}")
        self.execute("DROP SCHEMA IF EXISTS mergefront CASCADE", name)
        self.execute(f"ALTER DATABASE {name} RESET ALL")
        return name

    def url(self, database: str, search: str | None = None) -> str:
        """Where a search is, through the socket."""
        wanted = "" if search is None else f"&search={search}"
        return f"postgresql://{SUPERUSER}@/{database}?host={self.root}&port={self.port}{wanted}"

    def tcp_url(self, database: str) -> str:
        """The same through TCP, which wants the password."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        import psycopg

        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            self._as_user(command), capture_output=True, text=True, cwd="/", check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")

    def _as_user(self, command: Sequence[str]) -> list[str]:
        program = [str(self._programs / command[0]), *command[1:]]
        # It ends with whoever runs the tests, be that by kill -9.
        prefix = ["setpriv", "--pdeathsig", "INT"]
        if self._user is not None:
            user, group = self._user
            prefix += [f"--reuid={user}", f"--regid={group}", "--clear-groups"]
        return [*prefix, *program]


def _unprivileged() -> tuple[int, int] | None:
    """Whom the server runs as: PostgreSQL refuses root. None keeps the user of the tests."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    found = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return found.pw_uid, found.pw_gid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
