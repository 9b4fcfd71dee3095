"""The directory and the processes of a local Ray: none outlives this process, not even kill -9.

Ray's own processes follow a killed driver within two seconds, except for two agents that first
try for a minute to report the death to nobody; and its directory of logs would stay for good.
"""

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

PREFIX = "mergefront-"
# Unix sockets take paths of 107 bytes, of which Ray's session needs 68 and our name 20.
_MAX_ROOT_BYTES = 19
# Runs beside the driver and reads from it. The end of the input without a goodbye is its death.
_WATCH = """
while read -r line; do pids=$line; done
[ "$pids" = goodbye ] && exit
kill -KILL $pids
sleep 3
rm -rf -- "$1"
"""


def session_root() -> Path:
    """Return the system's directory for temporary files, or /tmp where that path is too long."""
    root = Path(tempfile.gettempdir())
    return root if len(os.fsencode(root)) <= _MAX_ROOT_BYTES else Path("/tmp")  # noqa: S108 - mkdtemp makes a private one in it


class LocalSession:
    """A private directory, and a watcher that cleans up if this process is killed.

    Attributes:
        directory: Made with the session, removed with it; its path is short enough for Ray's
            sockets below it unless ``root`` says otherwise.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root or session_root()))
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C reaches every process of the terminal's job; this one has work to do then.
            start_new_session=True,
            text=True,
        )
        self._others = psutil.Process().children(recursive=True)

    def watch_processes(self) -> None:
        """Let the watcher end the session's processes if this process dies.

        They are all that have come below this process since the session was made.
        """
        self._tell(" ".join(str(process.pid) for process in self._processes()))

    def end_processes(self) -> None:
        """Kill the session's processes now."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        """Dismiss the watcher and remove the directory; the processes have ended by now."""
        if self._watcher.returncode is None:
            self._tell("goodbye")
            self._watcher.communicate()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _processes(self) -> list[psutil.Process]:
        below = psutil.Process().children(recursive=True)
        return [process for process in below if process not in self._others]

    def _tell(self, line: str) -> None:
        if self._watcher.stdin is not None:
            print(line, file=self._watcher.stdin, flush=True)
