"""Which C++ compiler makes the merge kernels, and what inductor has to tell it.

LLVM's where it is complete, else GCC: both give the same bits, and a DARE merge by LLVM's code
takes five sixths of the time. GCC takes the outcome of every comparison from the mask register
that has it to a vector and back, and shifts by counts that it reads.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

# Of compilers with a version in their name, the newest; older ones do not know bfloat16.
_CLANG = ("clang++", *(f"clang++-{version}" for version in range(30, 13, -1)))
# What inductor's files need: headers of the standard library and of OpenMP, and both libraries.
_PROBE = "#include <cmath>\n#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n"
# GCC copies a vector of integers by halves on processors without AVX-512, and the load of the whole
# that follows waits until both halves have left the store buffer: half of the time of a DARE merge.
_WHOLE_MOVES: tuple[str, ...] = ("-mmove-max=256",)
# Inductor finds its precompiled headers by a hash of all that they include; LLVM looks at the times
# of those files besides, and after torch is installed again at the same place it refuses them.
_NO_TIMES: tuple[str, ...] = ("-Xclang", "-fno-pch-timestamp")
# What stands there asks for memory ahead and stores past the caches: a merge takes two thirds to
# nine tenths of the time on Xeons.
_HEADERS = Path(__file__).parent / "headers"

CompilerOptions = dict[str, str | int | bool | Callable[..., object]]
"""Of ``torch.compile``: names of inductor's settings and their values."""


def find_cpp_compiler() -> str | None:
    """Return the C++ compiler of the merge kernels: ``CXX``, LLVM's where complete, else GCC."""
    if named := os.environ.get("CXX"):
        return named if shutil.which(named) else None
    return _clang() or ("g++" if shutil.which("g++") else None)


def cpp_options() -> CompilerOptions:
    """Return inductor's options for that compiler."""
    compiler = find_cpp_compiler()
    if compiler is None:
        return {}  # The first call says so.
    place = shutil.which(compiler)
    options: CompilerOptions = {"cpp.cxx": compiler} if compiler == _clang() else {}
    vectors = torch.backends.cpu.get_cpu_capability()
    wanted = [_NO_TIMES, *([_WHOLE_MOVES] if vectors == "AVX2" else [])]
    flags = [flag for flags in wanted if place and _knows(place, flags) for flag in flags]
    if vectors == "AVX512" and "Intel" in str(torch.cpu.get_capabilities().get("cpu_name")):
        flags += _memory_flags()
    from torch._inductor import config as inductor

    # The one setting whose text is handed on to the compiler; it may be somebody's own, or empty.
    march = "native" if inductor.cpp.march is None else inductor.cpp.march
    if flags and march:
        options["cpp.march"] = " ".join([march, *flags])
    return options


@cache
def _memory_flags() -> tuple[str, ...]:
    """Return the flags that put our headers first; other headers are other precompiled ones."""
    try:
        texts = [path.read_bytes() for path in sorted(_HEADERS.rglob("*.h"))]
    except OSError:
        texts = []
    if not texts:
        return ()  # As in an archive of modules.
    digest = hashlib.sha256(b"".join(texts)).hexdigest()[:16]
    return (f"-I{shlex.quote(str(_HEADERS))}", f"-DMERGEFRONT_HEADERS_DIGEST=0x{digest}")


def _clang() -> str | None:
    """Return the name of LLVM's compiler, where it has all that it needs."""
    places = ((name, shutil.which(name)) for name in _CLANG)
    return next((name for name, place in places if place and _is_complete(place)), None)


@cache
def _is_complete(compiler: str) -> bool:
    try:
        with tempfile.TemporaryDirectory() as directory:
            out = f"{directory}/probe.so"
            return _compiles(compiler, "-fopenmp", "-shared", "-fPIC", "-o", out, source=_PROBE)
    except OSError:
        return False  # There is no room for temporary files.


@cache
def _knows(compiler: str, flags: tuple[str, ...]) -> bool:
    return _compiles(compiler, *flags, "-fsyntax-only", source="")


def _compiles(compiler: str, *arguments: str, source: str) -> bool:
    command = [compiler, *arguments, "-x", "c++", "-"]
    try:
        done = subprocess.run(command, input=source.encode(), check=False, capture_output=True)
    except OSError:
        return False
    return done.returncode == 0
