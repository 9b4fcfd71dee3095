"""The compiler of merge kernels: chosen by what it can do, and the same bits whichever it is."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from workers.cpp_compiler import cpp_options, find_cpp_compiler

MERGE = """
import torch
import torch._inductor.config
from tests.unit.workers.merge_cases import merge, pool, same_bits, terms
base, tuned = pool(100_003, num_tuned=3)
odd = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-40, -1e-40, 3e38])
for tensor in (base, *tuned):
    tensor[:8] = odd = odd.roll(1)
base, *tuned = (tensor.bfloat16() for tensor in (base, *tuned))
for method in ("dare_linear", "dare_ties"):
    chosen = terms([0.7, -0.3, 1.1], [0.5, 0.0, 0.9])
    eager = merge(base, tuned, chosen, method=method)
    assert same_bits(merge(base, tuned, chosen, method=method, backend="compiled"), eager)
print("same bits")
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Make a path with no program on it; returns its only directory."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(directory: Path, name: str, script: str) -> None:
    """Put a shell script on a path."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_compiler_is_looked_for_on_the_path(path):
    assert find_cpp_compiler() is None
    assert cpp_options() == {}
    program(path, "g++", "exit 0")
    assert find_cpp_compiler() == "g++"


def test_complete_compiler_of_llvm_is_preferred_and_an_incomplete_one_is_not(path):
    program(path, "g++", "exit 0")
    # As where omp.h is missing.
    program(path, "clang++", "exit 1")
    assert find_cpp_compiler() == "g++"
    assert "cpp.cxx" not in cpp_options()
    program(path, "clang++-18", "exit 0")
    assert cpp_options()["cpp.cxx"] == "clang++-18"


def test_named_compiler_is_obeyed(path, monkeypatch):
    program(path, "clang++", "exit 0")
    monkeypatch.setenv("CXX", "icpx")
    assert find_cpp_compiler() is None
    program(path, "icpx", "exit 0")
    assert find_cpp_compiler() == "icpx"
    assert "cpp.cxx" not in cpp_options()


@pytest.mark.parametrize("understands", [True, False])
def test_integers_are_moved_whole_where_the_compiler_can(path, monkeypatch, understands):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    program(path, "g++", f'case "$*" in -mmove*) exit {int(not understands)};; *) exit 1;; esac')
    assert cpp_options() == ({"cpp.march": "native -mmove-max=256"} if understands else {})


@pytest.mark.parametrize(
    ("asked", "given"), [("x86-64-v3", "x86-64-v3 -mmove-max=256"), ("", None)]
)
def test_architecture_that_somebody_chose_stays(path, monkeypatch, asked, given):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    program(path, "g++", 'case "$*" in -mmove*) exit 0;; *) exit 1;; esac')
    with torch._inductor.config.patch({"cpp.march": asked}):
        assert cpp_options().get("cpp.march") == given


def test_compiler_that_nobody_can_try_is_none(path, monkeypatch):
    program(path, "clang++", "exit 0")
    monkeypatch.setattr(tempfile, "tempdir", str(path / "nowhere"))
    assert find_cpp_compiler() is None


@pytest.fixture(params=["g++", "clang++"])
def assembly(request, monkeypatch):
    """Return what compiles a text as a merge kernel on a named processor, to its assembly."""
    compiler = request.param
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")

    def compiled(processor: str, source: str, *more: str) -> str:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor})
        flags = shlex.split(f"-march={cpp_options().get('cpp.march', 'native')}")
        vectors = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
        return subprocess.run(
            [compiler, *flags, *vectors, *more, "-O2", "-S", "-o", "-", "-x", "c++", "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    return compiled


@pytest.mark.parametrize(("processor", "asks"), [("Intel Xeon", True), ("AMD EPYC", False)])
def test_loads_ask_for_memory_ahead_on_xeons(assembly, processor, asks):
    for kind, load in (("__m512i", "_mm512_loadu_si512"), ("__m512", "_mm512_loadu_ps")):
        source = f"#include <immintrin.h>\n{kind} load(void const* p) {{ return {load}(p); }}\n"
        assert ("prefetcht0" in assembly(processor, source)) == asks


@pytest.mark.parametrize(("processor", "streams"), [("Intel Xeon", True), ("AMD EPYC", False)])
def test_results_of_two_bytes_are_stored_past_the_caches_on_xeons(assembly, processor, streams):
    source = """
    #include <ATen/cpu/vec/vec.h>
    template <typename T> using Vector = at::vec::Vectorized<T>;
    void store(Vector<c10::BFloat16> values, void* p) { values.store(p); }
    void store(Vector<c10::Half> values, void* p) { values.store(p); }
    void store(Vector<int32_t> values, void* p) { values.store(p); }
    void store(Vector<float> values, void* p) { values.store(p); }
    """
    torch_flags = [f"-I{Path(torch.__file__).parent}/include", "-DCPU_CAPABILITY_AVX512"]
    text = assembly(processor, source, *torch_flags, "-std=c++20")
    assert text.count("vmovnt") == (2 if streams else 0)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_headers_that_were_installed_again_do_not_spoil_precompiled_ones(
    compiler, tmp_path, monkeypatch
):
    """Of the same content with other times, as after torch is installed again."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    monkeypatch.setenv("CXX", compiler)
    header, program = tmp_path / "torch.h", "int main() { return number; }\n"
    header.write_text("constexpr int number = 0;\n")
    (tmp_path / "prefix.h").write_text('#include "torch.h"\n')
    flags = f"-march={cpp_options().get('cpp.march', 'native')}".split()
    kind = "pch" if compiler == "clang++" else "gch"

    def run(*arguments: str) -> None:
        command = [compiler, *flags, *arguments]
        subprocess.run(command, input=program, text=True, cwd=tmp_path, check=True)

    run("-x", "c++-header", "prefix.h", "-o", f"prefix.h.{kind}")
    os.utime(header, (0, 0))
    run("-include", "prefix.h", "-fsyntax-only", "-x", "c++", "-")


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_compiler_gives_the_eager_bits(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    chosen = {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", MERGE],
        env={**os.environ, **chosen},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    if compiler == "clang++" and "omp.h" in done.stderr:
        pytest.skip("clang++ has no OpenMP: libomp-dev is missing")
    assert done.stdout == "same bits\n", done.stderr
