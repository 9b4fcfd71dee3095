"""The directory and the processes of a local Ray: none outlives this process, not even kill -9.

Ray's own processes follow a killed driver within two seconds, except for two agents that first
try for a minute to report the death to nobody; and its directory of logs would stay for good.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

PREFIX = "mergefront-"
# Unix sockets take paths of 107 bytes, of which Ray's session needs 68 and our name 20.
_MAX_ROOT_BYTES = 19
# Kills the processes that have a file open in the directory $1, except for process $2. Ray's
# processes all keep their logs open, and rename themselves, so that nothing else tells them.
_END_PROCESSES = """
find /proc/[0-9]*/fd -lname "$1/*" 2>/dev/null | cut -d/ -f3 | sort -u | grep -vx "$2" |
    xargs -r kill -KILL 2>/dev/null
"""
# Reads from the driver, and knows by the end of its input without a goodbye that it is dead.
_WATCH = f"""
read -r line && exit
for second in 1 2 3; do
    {_END_PROCESSES}
    sleep 1
done
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
            self._shell(_WATCH),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C reaches every process of the terminal's job; this one has work to do then.
            start_new_session=True,
        )

    def end_processes(self) -> None:
        """Kill the processes that have a file of the session open, except for this one."""
        subprocess.run(self._shell(_END_PROCESSES), check=False)

    def close(self) -> None:
        """Dismiss the watcher and remove the directory; the processes have ended by now."""
        if self._watcher.returncode is None:
            self._watcher.communicate(b"goodbye\n")
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _shell(self, script: str) -> list[str]:
        return ["sh", "-c", script, "sh", str(self.directory), str(os.getpid())]
