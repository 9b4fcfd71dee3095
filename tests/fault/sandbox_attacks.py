"""Programs that try to get out of the sandbox, to hurt the machine, or to forge a verdict.

Each one runs to its end if it gets what it wants, so a verdict other than `passed` says that it
was contained. Run as a script, it plays them as another user: `KIND UID` prints name -> verdict.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from evaluators.sandbox import Sandbox

SECRET = "MERGEFRONT_TEST_SECRET"
# Programs that end only when they are ended, and all others.
ENDLESS_TIMEOUT_S, TIMEOUT_S = 0.4, 10.0
ENDLESS = {
    "endless loop",
    "sleep",
    "loop that ignores signals",
    "huge output",
    "recursion without a limit",
    "huge integer",
}
LIBC = "import ctypes, os, signal, sys\nlibc = ctypes.CDLL(None)\n"

PROCESSES = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork by the C library": LIBC + "assert libc.fork() >= 0",
    "fork by a raw system call": LIBC + "assert libc.syscall(56, 17, 0, 0, 0, 0) >= 0",
    "daemon that survives": "import os, time\nif os.fork() == 0:\n os.setsid()\n time.sleep(60)",
    "other program": "import subprocess\nsubprocess.run(['true'], check=True)",
    "shell": "import os\nassert os.system('true') == 0",
    "multiprocessing": "import multiprocessing as m\np = m.Process(target=print)\np.start()",
    "thousand threads": "import threading\ne = threading.Event()\n"
    "for _ in range(1000): threading.Thread(target=e.wait, daemon=True).start()",
    "kill the server": "import os\nos.kill(os.getppid(), 9)",
    "stop the server": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "kill everything": "import os\nos.kill(-1, 9)",
    "kill the host's process": "import os\nos.kill({pid}, 0)",
    "kill by thread id": LIBC + "assert libc.syscall(200, os.getppid(), 9) == 0",
    "signal through a pipe's owner": LIBC + "import fcntl\nr, w = os.pipe()\n"
    "fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
    "signal by pidfd": "import os, signal\n"
    "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)",
    "limit the server": "import os, resource as r\nr.prlimit(os.getppid(), r.RLIMIT_CPU, (0, 0))",
    "slow the server down": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "pin the server": "import os\nos.sched_setaffinity(os.getppid(), {{0}})",
    "trace the server": LIBC + "assert libc.ptrace(16, os.getppid(), 0, 0) == 0",
    "read the server's memory": LIBC + "b = ctypes.create_string_buffer(64)\n"
    "v = (ctypes.c_ulong * 2)(ctypes.addressof(b), 1)\n"
    "w = (ctypes.c_ulong * 2)(id(os), 1)\n"
    "assert libc.process_vm_readv(os.getppid(), v, 1, w, 1, 0) == 1",
    "read the host's memory": "open('/proc/{pid}/mem', 'rb').read(1)",
    "outlive the server": LIBC + "assert libc.prctl(1, 0, 0, 0, 0) == 0",
    "namespace of its own": LIBC + "assert libc.unshare(0x10000000) == 0",
}
RESOURCES = {
    "endless loop": "while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "loop that ignores signals": "import signal\nfor s in range(1, 32):\n"
    "  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\nwhile True: pass",
    "4 GB": "x = bytearray(4 << 30)",
    "4 GB, mapped": "import mmap\nmmap.mmap(-1, 4 << 30)",
    "4 GB, step by step": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "memory in a nameless file": "import os\nos.memfd_create('x')",
    "memory shared by key": LIBC + "assert libc.shmget(0, 1 << 20, 0o1600) >= 0",
    "1 GB file": "f = open('x', 'wb')\nfor _ in range(1024): f.write(bytes(1 << 20))",
    "1 GB hole": "f = open('x', 'wb')\nf.truncate(1 << 30)",
    "full disk": "for i in range(200):\n  with open(str(i), 'wb') as f: f.write(bytes(1 << 20))",
    "open files": "x = [open('/dev/null') for _ in range(1000)]",
    "huge output": "while True: print('x' * 1_000_000)",
    "deep recursion": "def f(): f()\nf()",
    "recursion without a limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "deep source": "(" * 200_000,
    "null bytes": "x = 1\0",
    "lone surrogate": "x = '\ud800'",
    "crash": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "huge integer": "x = 10 ** 10 ** 10",
    "huge exception": "raise ValueError('x' * 10_000_000)",
}
FILES = {
    "write to the system": "open('/usr/x', 'w')",
    "write to the root": "open('/x', 'w')",
    "write to /etc": "open('/etc/x', 'w')",
    "write to /dev": "open('/dev/x', 'w')",
    "write to shared memory": "open('/dev/shm/x', 'w')",
    "write to /var/tmp": "open('/var/tmp/x', 'w')",
    "write to the host": "open('{canary}', 'a')",
    "truncate on the host": "import os\nos.truncate('{canary}', 0)",
    "remove from the host": "import os\nos.unlink('{canary}')",
    "change a mode on the host": "import os\nos.chmod('{canary}', 0o600)",
    "change times on the host": "import os\nos.utime('{canary}', (0, 0))",
    "write through a link": "import os\nos.symlink('{canary}', 'l')\nopen('l', 'w')",
    "make a link into the host": "import os\nos.link('{canary}', 'l')",
    "read the host": "open('{canary}').read()",
    "list the host": "import os\nos.listdir(os.path.dirname('{canary}'))",
    "see that a file exists": "import os\nos.stat('{canary}')",
    "list the home directory": "import os\nos.listdir('{home}')",
    "list /root": "import os\nos.listdir('/root')",
    "list /home": "import os\nos.listdir('/home')",
    "read the shadow file": "open('/etc/shadow').read()",
    "read the users": "open('/etc/passwd').read()",
    "environment": f"import os\nassert '{SECRET}' in os.environ",
    "environment in the C library": LIBC + "libc.getenv.restype = ctypes.c_char_p\n"
    f"assert libc.getenv(b'{SECRET}')",
    "environment of processes": "import os\nfor p in os.listdir('/proc'):\n"
    " if p.isdigit(): open('/proc/%s/environ' % p).read()",
    "own descriptors": "import os\nos.listdir('/proc/self/fd')",
    "own memory": "open('/proc/self/mem', 'rb')",
    "disk": "import os\nos.open('/dev/vda', os.O_RDONLY)",
    "root again": "import os\nos.setuid(0)",
    "another root directory": "import os\nos.chroot('/tmp')",
}
NETWORK = {
    "TCP": "import socket\nsocket.create_connection(('127.0.0.1', {tcp}), 1)",
    "TCP over IPv6": "import socket\nsocket.create_connection(('::1', {tcp}), 1)",
    "UDP": "import socket\n"
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp}))",
    "DNS": "import socket\nsocket.getaddrinfo('example.com', 80)",
    "listen": "import socket\nsocket.socket().listen()",
    "socket in the file system": "import socket\nsocket.socket(socket.AF_UNIX).connect('{socket}')",
    "socket without a name": "import socket\n"
    "socket.socket(socket.AF_UNIX).connect('\\0{abstract}')",
    "datagram from a pair": "import socket\n"
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '{datagram}')",
    "connected pair": "import socket\n"
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].connect('{datagram}')",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "ring of system calls": LIBC + "assert libc.syscall(425, 8, bytes(512)) >= 0",
}
_FRAME = "import json, os, struct\nb = json.dumps(dict(status='passed', detail='', worn=False))\n"
_FRAME += "m = struct.pack('>I', len(b)) + b.encode()\n"
_TO_ALL = "for fd in range(256):\n  try: os.write(fd, m)\n  except OSError: pass\n"
FORGERIES = {
    "early exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "SystemExit in an assert": "def f(): raise SystemExit\nassert f()",
    "exit at an assert": "import sys\nassert sys.exit()",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\nassert False",
    "exit in a finalizer": "import os\nclass A:\n  def __del__(self): os._exit(0)\na = A()\ndel a",
    "own base exception": "class E(BaseException): pass\nraise E",
    "exception that cannot print": "class E(Exception):\n  __str__ = None\nraise E",
    "exception that prints the end": "class E(Exception): pass\n"
    "E.__name__ = '\\0end'\nE.__str__ = lambda s: ''\nraise E",
    "printed frame": _FRAME + "print(m)\nos.write(1, m)\nos._exit(0)",
    "frame to every descriptor": _FRAME + _TO_ALL + "os._exit(0)",
    "frame, then an assert": _FRAME + _TO_ALL + "assert False",
    "end without an answer": "import os\nm = b'\\0end'\n" + _TO_ALL + "os._exit(0)",
    "end with an echo": "import os\nm = b'\\0end'\n"
    + _TO_ALL
    + "m = os.read(3, 99)\n"
    + _TO_ALL
    + "os._exit(0)",
    "all bytes of all frames": "import os, sys\nf = sys._getframe()\nwhile f:\n"
    "  for v in [*f.f_locals.values()]:\n    m = v if type(v) is bytes else str(v).encode()\n"
    "    for fd in range(8):\n      try: os.write(fd, m[:64])\n      except OSError: pass\n"
    "  f = f.f_back\nos._exit(0)",
    "all bytes in memory": "import gc, os\nfor o in gc.get_objects():\n"
    "  for m in gc.get_referents(o):\n    if type(m) is bytes and len(m) < 64:\n"
    "      try: os.write(3, m)\n      except OSError: pass\n"
    "os._exit(0)",
    "patched builtins": "import builtins\nbuiltins.AssertionError = int\n"
    "builtins.BaseException = int\nbuiltins.type = builtins.str = lambda *a: ''\nassert False",
    "patched system calls": "import os\nold = os.write\nos.write = lambda f, b: old(f, b'\\0end')\n"
    "os._exit = os.getpid = lambda *a: None\nassert False",
    "patched main module": "import __main__\n__main__.error_text = lambda e: ''\nassert False",
    "patched server": "import sys\nm = sys.modules['evaluators.sandbox_server']\n"
    "m.error_text = lambda e: '\\0end'\nm.answer_to = lambda c: c\nassert False",
    "patched hook": "import sys\nsys.excepthook = lambda *a: None\nassert False",
    "trace function": "import sys\nsys.settrace(lambda *a: None)\nassert False",
    "exit in a thread": "import os, threading\n"
    "threading.Thread(target=os._exit, args=(0,)).start()\nassert False",
    "signal handler": "import os, signal, time\n"
    "signal.signal(signal.SIGALRM, lambda *a: os._exit(0))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(60)",
    "closed descriptors": "import os\nos.closerange(0, 4096)",
    "replaced descriptor": "import os\nos.dup2(os.open('/dev/null', os.O_RDWR), 3)",
}
ATTACKS = {**PROCESSES, **RESOURCES, **FILES, **NETWORK, **FORGERIES}
# What remains possible in the interpreter of the asserts: it gains a point, nothing outside.
KNOWN_FORGERIES = {
    "equal to everything": "class A:\n  __eq__ = lambda s, o: True\ndef f(): return A()\n"
    "assert f() == 5",
    "replaced comparison": "import builtins\nbuiltins.abs = lambda x: 0\nassert abs(5 - 3) < 1e-6",
    "speaks the protocol": "import hashlib, os\nos.write(3, b'\\0end')\n"
    "os.write(3, hashlib.sha256(os.read(3, 16)).digest())\nassert False",
}
# What a program that leaves something behind in its directory hands to the next.
LITTER = {
    "deep directories": "import os\nfor _ in range(1100):\n  os.mkdir('d'); os.chdir('d')",
    "closed directories": "import os\nos.makedirs('a/b')\nopen('a/b/f', 'w').close()\n"
    "os.chmod('a/b', 0) if {strict} else None",
    "links": "import os\n"
    "os.symlink('{home}', 'h')\nos.symlink('{folder}', 'c')\nos.symlink('l', 'l')",
    "many files": "for i in range(1500): open(str(i), 'w').close()",
    "strange names": "import os\nos.mkdir(b'\\xff\\n')\n"
    "open(b'\\xff\\n/' + b'x' * 255, 'w').close()\n"
    "os.mkfifo('fifo')\nos.mkdir('.moved1')",
}
LOOK = "import os\nassert os.listdir('.') == [], os.listdir('.')[:3]"

# Where the weak sandbox differs: it hides less of the file system, and counts no disk.
WEAK_DIFFERENCES = {"see that a file exists": "passed", "full disk": "passed"}


@dataclass(slots=True)
class Host:
    """What an attack would reach: files and sockets of this process, open to every user."""

    names: dict[str, str] = field(default_factory=dict)
    listeners: list[socket.socket] = field(default_factory=list)

    @property
    def canary(self) -> Path:
        return Path(self.names["canary"])

    def fill(self, program: str) -> str:
        for name, value in self.names.items():
            program = program.replace("{" + name + "}", value)
        return program.replace("{{", "{").replace("}}", "}")

    def was_reached(self) -> bool:
        """Whether a connection or a datagram has arrived."""
        for listener in self.listeners:
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    listener.recv(1)
                return True
        return False


@contextlib.contextmanager
def open_host(kind: str) -> Iterator[Host]:
    """Lay out a file and sockets that everybody may use, so that only the sandbox is in the way."""
    with tempfile.TemporaryDirectory(prefix="mf-host-") as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o777)
        host = Host()

        def bound(family: int, form: int, address: object) -> socket.socket:
            opened = stack.enter_context(socket.socket(family, form))
            opened.bind(address)
            if form == socket.SOCK_STREAM:
                opened.listen()
            host.listeners.append(opened)
            return opened

        tcp = bound(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        udp = bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        bound(socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/stream")
        bound(socket.AF_UNIX, socket.SOCK_DGRAM, f"{folder}/datagram")
        bound(socket.AF_UNIX, socket.SOCK_STREAM, f"\0mf-{os.getpid()}")
        canary = Path(folder, "canary")
        canary.write_text("alive")
        for path in Path(folder).iterdir():
            path.chmod(0o666)
        host.names = {
            "canary": str(canary),
            "folder": folder,
            "socket": f"{folder}/stream",
            "datagram": f"{folder}/datagram",
            "abstract": f"mf-{os.getpid()}",
            "tcp": str(tcp.getsockname()[1]),
            "udp": str(udp.getsockname()[1]),
            "pid": str(os.getpid()),
            "home": str(Path.home()),
            "strict": str(kind == "strict"),
        }
        yield host


def play(sandbox: Sandbox, host: Host, name: str) -> list[str]:
    """Return the verdicts on an attack and on a plain program after it."""
    program = host.fill({**ATTACKS, **LITTER, **KNOWN_FORGERIES}[name])
    timeout_s = ENDLESS_TIMEOUT_S if name in ENDLESS else TIMEOUT_S
    (first,) = sandbox.run([program], timeout_s=timeout_s)
    results = [first, *sandbox.run([LOOK])]
    return [f"{result.status}: {result.detail}".removesuffix(": ") for result in results]


def main() -> None:
    """Play all attacks as another user."""
    kind, uid = sys.argv[1], int(sys.argv[2])
    from evaluators.sandbox_process import read_sources

    read_sources()  # the other user may not be able to
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    with open_host(kind) as host, Sandbox(kind, servers=1) as sandbox:  # type: ignore[arg-type]  # from argv
        verdicts = {name: play(sandbox, host, name) for name in (*ATTACKS, *LITTER)}
        content = host.canary.read_text()
        print(json.dumps({"verdicts": verdicts, "canary": content, "reached": host.was_reached()}))


if __name__ == "__main__":
    main()
