"""Landlock and seccomp, for the fork server and the programs in it.

Runs inside the sandbox (see ``evaluators.sandbox_server``): standard library only, Python 3.9 or
later. Landlock is three system calls, made through the C library; seccomp filters are written by
libseccomp 2, which knows the numbers of system calls on every architecture.

``landlock`` is the wall around files of the sandbox without bubblewrap. ``program_filter`` holds
for programs of both sandboxes: a program is one process with threads, which cannot start others,
signal or trace any, open sockets, or keep memory where its limits do not count.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

# landlock(7): the first version that can refuse truncate(2); Linux 6.2.
MIN_LANDLOCK_ABI = 3
LIBSECCOMP = "libseccomp.so.2"
READABLE = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _EXECUTE = 1 << 1, 1 << 2, 1 << 3, 1 << 0
_TRUNCATE = 1 << 14
# From this version of the interface on: (rights over files, over TCP, scopes) that can be refused.
_HANDLED = {
    3: ((1 << 15) - 1, 0, 0),
    4: ((1 << 15) - 1, 3, 0),
    5: ((1 << 16) - 1, 3, 0),
    6: ((1 << 16) - 1, 3, 3),
}

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_PR_SET_PTRACER = 0x59616D61
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NE, _EQ, _MASKED_EQ = 1, 4, 7
_CLONE_THREAD, _AF_UNIX = 0x10000, 1
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_FIOSETOWN, _SIOCSPGRP, _TIOCSTI = 0x8901, 0x8902, 0x5412

_DENIED = {
    "processes": "fork vfork execve execveat unshare setns",
    "signals": "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo",
    "other processes": "ptrace process_vm_readv process_vm_writev kcmp setpriority ioprio_set "
    "migrate_pages move_pages",
    "network": "socket connect bind listen accept accept4 sendmsg sendmmsg",
    "memory that no limit counts": "memfd_create shmget shmat shmctl msgget msgsnd semget mq_open",
    "the kernel": "userfaultfd bpf perf_event_open keyctl add_key request_key mount umount2 "
    "pivot_root chroot init_module finit_module delete_module kexec_load kexec_file_load reboot "
    "swapon swapoff acct quotactl open_by_handle_at name_to_handle_at fanotify_init personality "
    "syslog settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname iopl "
    "ioperm modify_ldt vhangup",
}
# What Landlock lets through, and read-only mounts do not: changing a file's mode, owner or times.
_DENIED_OUTSIDE_MOUNTS = (
    "chmod fchmod fchmodat chown fchown lchown fchownat setxattr lsetxattr fsetxattr removexattr "
    "lremovexattr fremovexattr utime utimes futimesat utimensat inotify_init inotify_init1"
)
# System calls that some libseccomp 2 do not know; from 424 on a number means the same everywhere.
_CLONE3 = 435
_DENIED_NUMBERS = (
    *range(424, 435),  # pidfd_send_signal, io_uring_*, the new mount interface, pidfd_open
    *(438, 440, 442, 443),  # pidfd_getfd, process_madvise, mount_setattr, quotactl_fd
    *(447, 448, 467),  # memfd_secret, process_mrelease, open_tree_attr
)
_DENIED_NUMBERS_OUTSIDE_MOUNTS = (452, 463, 466, 469)  # fchmodat2, set/removexattrat, file_setattr
# Name, argument, comparison, operands: denied where the comparison holds.
_DENIED_IF = (
    ("clone", 0, _MASKED_EQ, _CLONE_THREAD, 0),
    ("fcntl", 1, _EQ, _F_SETOWN, 0),
    ("fcntl", 1, _EQ, _F_SETOWN_EX, 0),
    ("fcntl", 1, _EQ, _F_SETSIG, 0),
    ("ioctl", 1, _EQ, _FIOSETOWN, 0),
    ("ioctl", 1, _EQ, _SIOCSPGRP, 0),
    ("ioctl", 1, _EQ, _TIOCSTI, 0),
    ("socketpair", 0, _NE, _AF_UNIX, 0),
    ("sendto", 4, _NE, 0, 0),
    ("prctl", 0, _EQ, _PR_SET_PDEATHSIG, 0),
    ("prctl", 0, _EQ, _PR_SET_DUMPABLE, 0),
    ("prctl", 0, _EQ, _PR_SET_PTRACER, 0),
    ("prlimit64", 0, _NE, 0, 0),
    ("sched_setaffinity", 0, _NE, 0, 0),
    ("sched_setscheduler", 0, _NE, 0, 0),
    ("sched_setparam", 0, _NE, 0, 0),
    ("sched_setattr", 0, _NE, 0, 0),
)

_libc = ctypes.CDLL(None, use_errno=True)


class WallError(Exception):
    """This machine cannot build a wall; the message says what is missing, and what to do."""


class _Comparison(ctypes.Structure):
    """One condition on an argument: ``struct scmp_arg_cmp``."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _prctl(option: int, *values: int | ctypes.c_void_p) -> None:
    arguments = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    padding = [ctypes.c_ulong(0)] * (4 - len(arguments))
    if _libc.prctl(option, *arguments, *padding) != 0:
        raise WallError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, of that pid, ends.

    Raises:
        WallError: The parent has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        raise WallError("the parent has ended")


def hide_from_same_user() -> None:
    """Keep processes of the same user out of this one's memory and /proc entries, for good."""
    _prctl(_PR_SET_DUMPABLE, 0)


def refuse_privileges() -> None:
    """Gain no privileges by exec from here on; the kernel wants this before either wall."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def landlock_abi() -> int:
    """Return the version of the kernel's Landlock; 0 where there is none."""
    version: int = _libc.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)
    )
    return max(0, version)


def landlock(scratch: str) -> None:
    """Allow this process and its children to read the system, and to write below ``scratch``.

    Everything else that names a file to open, make, move or remove is refused: home directories,
    /etc, /proc, /tmp, /dev/shm. Where the kernel can (Linux 6.10), signals and abstract sockets
    that leave the sandbox are refused too.

    Raises:
        WallError: The kernel has no Landlock, or one that is too old.
    """
    abi = landlock_abi()
    if abi < MIN_LANDLOCK_ABI:
        found = f"version {abi} of Landlock" if abi else "no Landlock"
        raise WallError(
            f"the kernel has {found}, and version {MIN_LANDLOCK_ABI} is needed (Linux 6.2 or "
            "later, with `landlock` among its security modules); install bubblewrap and set "
            "`evaluation.sandbox: strict` instead"
        )
    files, tcp, scopes = _HANDLED[min(abi, max(_HANDLED))]
    attributes = struct.pack("QQQ", files, tcp, scopes)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _landlock_call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in READABLE:
            _allow(ruleset, path, _READ_FILE | _READ_DIR | _EXECUTE)
        for path in DEVICES:
            _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
        _allow(ruleset, scratch, files & ~_EXECUTE)
        _landlock_call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        _landlock_call(
            _ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_RULE_PATH_BENEATH),
            rule,
            ctypes.c_uint32(0),
        )
    finally:
        os.close(descriptor)


def _landlock_call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise WallError(f"Landlock (system call {number}): {os.strerror(ctypes.get_errno())}")
    return result


class ProgramFilter:
    """A seccomp filter, written once and applied in every fork that runs a program.

    Args:
        mounts_protect: Files outside are on read-only mounts; else calls that change what
            Landlock does not watch are refused too.

    Raises:
        WallError: libseccomp is missing.
    """

    def __init__(self, *, mounts_protect: bool) -> None:
        names = " ".join(_DENIED.values()).split()
        numbers = list(_DENIED_NUMBERS)
        if not mounts_protect:
            names += _DENIED_OUTSIDE_MOUNTS.split()
            numbers += _DENIED_NUMBERS_OUTSIDE_MOUNTS
        code = _write_filter(names, numbers)
        # The structure of seccomp(2) points into the buffer, which therefore stays.
        self._buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(self._buffer))
        self._program = ctypes.create_string_buffer(program, len(program))

    def apply(self) -> None:
        """Put this process, and whatever it becomes, under the filter; there is no way back."""
        _prctl(
            _PR_SET_SECCOMP,
            _SECCOMP_MODE_FILTER,
            ctypes.c_void_p(ctypes.addressof(self._program)),
        )


def _write_filter(names: list[str], numbers: list[int]) -> bytes:
    """Return the filter as the kernel's instructions, 8 bytes each."""
    library = _libseccomp()
    context = library.seccomp_init(ctypes.c_uint32(_ALLOW))
    if not context:
        raise WallError("libseccomp cannot make a filter")
    denied = ctypes.c_uint32(_ERRNO | errno.EPERM)

    def deny(number: int, action: ctypes.c_uint32, *comparisons: _Comparison) -> None:
        array = (_Comparison * max(1, len(comparisons)))(*comparisons)
        failed = library.seccomp_rule_add_array(
            ctypes.c_void_p(context), action, number, len(comparisons), array
        )
        # Calls that this architecture does not have can be added to no filter.
        if failed and number >= 0:
            raise WallError(f"libseccomp refuses a rule for system call {number}: {failed}")

    try:
        # The C library falls back to clone, whose flags a filter can see.
        deny(_CLONE3, ctypes.c_uint32(_ERRNO | errno.ENOSYS))
        for number in {*numbers, *(_number(library, name) for name in names)}:
            deny(number, denied)
        for name, argument, operation, first, second in _DENIED_IF:
            deny(_number(library, name), denied, _Comparison(argument, operation, first, second))
        return _exported(library, context)
    finally:
        library.seccomp_release(ctypes.c_void_p(context))


def _libseccomp() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBSECCOMP)
    except OSError as error:
        raise WallError(
            f"`{LIBSECCOMP}` cannot be loaded ({error}); install it with "
            "`apt-get install libseccomp2`"
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def _number(library: ctypes.CDLL, name: str) -> int:
    """Return the number of a system call, below 0 where there is none here."""
    number: int = library.seccomp_syscall_resolve_name(name.encode())
    return number


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    # A filter has at most 4,096 instructions of 8 bytes, which a pipe holds.
    read_end, write_end = os.pipe()
    try:
        if library.seccomp_export_bpf(ctypes.c_void_p(context), write_end):
            raise WallError("libseccomp cannot write its filter")
        return os.read(read_end, 1 << 16)
    finally:
        os.close(read_end)
        os.close(write_end)
