"""Merge kernels as one fused pass: ``torch.compile`` of one function, same bits.

Inductor makes C++ with vector instructions for the CPU and Triton for GPUs. Compiling takes
seconds, is kept on disk by torch between processes, and pays off for large models only.
"""

import logging
import types
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from workers.cpp_compiler import CompilerOptions, cpp_options, find_cpp_compiler
from workers.drops import Drops, RankedDrops
from workers.methods.contract import Chunk, Combine

Options = tuple[tuple[str, float], ...]
"""Names and values of a method's options, sorted: constants of a compiled graph."""

logger = logging.getLogger(__name__)

# One pass has no temporaries; below 2^31 elements its indices stay 32 bits wide.
COMPILED_CHUNK = 2**28
# Tensors are merged in rows of this many elements: a width that is known makes loops without a
# remainder, and what is per column stays in the first-level cache.
COMPILED_WIDTH = 4096
# Smaller chunks take the eager path: same bits, and a call costs more than the work.
_SMALLEST_CHUNK = 2**14
# The compiler makes a graph of its own for a size of one; threads share the rows.
_FEWEST_ROWS = 2
# A candidate with fewer elements is merged in a second or two; compiling takes longer.
_SMALLEST_POOL = 2**24

_NEVER = 10**6
_OPTIONS: CompilerOptions = {
    # Fused multiply-add rounds once where the eager path rounds twice. The first option is for
    # C++, the second turns it off in Triton as a part of following eager's roundings.
    "cpp.enable_floating_point_contract_flag": "off",
    "emulate_precision_casts": True,
    # Triton divides approximately otherwise.
    "eager_numerics.division_rounding": True,
    # Called through C++, which lets go of Python's lock: tensors, or parts of them, are merged side
    # by side by threads of our own. Those of OpenMP would be the compiler's, beside torch's.
    "cpp_wrapper": True,
    "cpp.threads": 1,
    # Everything stays in registers: by default long expressions and many reads are stored between.
    "realize_opcount_threshold": _NEVER,
    "realize_reads_threshold": _NEVER,
    "realize_acc_reads_threshold": _NEVER,
}


def is_worthwhile(total_elements: int, device: torch.device) -> bool:
    """Say whether compiling pays off for candidates of this many elements on this device."""
    return total_elements >= _SMALLEST_POOL and has_compiler(device.type)


def has_compiler(device_type: str) -> bool:
    """Say whether inductor finds what it needs: a C++ compiler, or Triton for a GPU."""
    if device_type == "cpu":
        return find_cpp_compiler() is not None
    return find_spec("triton") is not None


class CompilerError(RuntimeError):
    """A merge could not be compiled; the eager path gives the same bits.

    A machine without compiler headers, or without a place for torch's cache.
    """


class Operands(NamedTuple):
    """The tensors of one chunk; c checkpoints contribute.

    Attributes:
        out: ``(r, w)``, float32 or half; overwritten.
        base: Same shape, or None for methods without a base.
        tuned: c tensors of that shape.
        weights: ``(c,)`` float32.
        scales: ``(c,)`` float32.
        drops: What is dropped; None keeps everything.
        columns: c tensors that fit ``out``, or none: ``workers.methods.contract.Chunk``.
    """

    out: Tensor
    base: Tensor | None
    tuned: Sequence[Tensor]
    weights: Tensor
    scales: Tensor
    drops: Drops | None
    columns: Sequence[Tensor] = ()


MergeChunk = Callable[[Combine, Options, Operands], None]
"""The signature of :func:`merge_chunk`."""

Step = Callable[[], None]
"""A part of a merge that is ready to be done."""


def merge_chunk(combine: Combine, options: Options, operands: Operands) -> None:
    """Merge one chunk, rounding once: the eager path, and what is compiled.

    ``combine`` is what the method does, on a :class:`workers.methods.contract.Chunk`.
    """
    out, base, tuned, weights, scales, drops, columns = operands
    origin = None if base is None else base.float()
    words = None if drops is None else drops.position.words()
    chunk = Chunk(origin, tuned, weights, scales, dict(options), drops, words, columns)
    out.copy_(combine(chunk))


def fuse(combine: Combine, options: Options, operands: Operands) -> Step | None:
    """Return a call of the compiled form of :func:`merge_chunk`; None where chunks are too small.

    One graph is compiled, by the first call that needs it, per method with its options, number of
    checkpoints, their dtypes, width w, and whether anything is dropped; the number of rows is
    dynamic. A dynamic w costs a quarter of the speed.
    """
    out, base, tuned, _, _, drops, _ = operands
    if out.numel() < _SMALLEST_CHUNK or out.shape[0] < _FEWEST_ROWS:
        return None
    dtypes = tuple(None if t is None else t.dtype for t in (out, base, *tuned))
    key = (combine, options, dtypes, out.shape[1], out.device.type, type(drops))
    graph = _GRAPHS.get(key)
    if graph is None:
        return partial(_first_call, key, combine, options, operands)
    return partial(_call, graph, combine, options, operands)


def _call(graph: MergeChunk, combine: Combine, options: Options, operands: Operands) -> None:
    """Call compiled code, which may compile itself for another kind of operands.

    Raises:
        CompilerError: It cannot. Tensors lie in memory by now, so that an error of the system,
            too, comes from the compiler.
    """
    try:
        graph(combine, options, operands)
    except (RuntimeError, OSError) as error:
        origin = type(error).__module__
        if isinstance(error, OSError) or origin.startswith(("torch._dynamo", "torch._inductor")):
            raise CompilerError(str(error) or type(error).__name__) from error
        raise


def _first_call(
    key: tuple[object, ...], combine: Combine, options: Options, operands: Operands
) -> None:
    """Compile while calling; other threads wait instead of doing it too."""
    with _COMPILING:
        if key in _FAILED:
            raise CompilerError(_FAILED[key])
        if key not in _GRAPHS:
            graph = _compile(combine, options, key, operands.out.device.type)
            _mark_rows_dynamic(operands)
            try:
                with torch._dynamo.error_on_graph_break(True):
                    _call(graph, combine, options, operands)
            except CompilerError as error:
                # Not the error itself: its traceback holds models and sources.
                _FAILED[key] = str(error)
                raise
            _GRAPHS[key] = graph
            return
    _call(_GRAPHS[key], combine, options, operands)


def _compile(
    combine: Combine, options: Options, key: tuple[object, ...], device_type: str
) -> MergeChunk:
    name = getattr(combine, "__name__", "combine")
    logger.info("compiling %s with %s for %s", name, dict(options), key[2:])
    # torch limits the graphs per code object, so each key gets a code object of its own.
    code = merge_chunk.__code__.replace(co_name=f"merge_chunk_{abs(hash(key))}")
    copied = types.FunctionType(code, merge_chunk.__globals__, "merge_chunk")
    # One thread keeps a GPU busy, and a wrapper in C++ would need CUDA's headers there.
    of_device = cpp_options() if device_type == "cpu" else {"cpp_wrapper": False}
    chosen = _OPTIONS | of_device
    # Not `fullgraph`: torch 2.13 counts frames for that in one place for all threads, and of calls
    # side by side one may find another's count, and raise. `_first_call` asks for the same.
    compiled: MergeChunk = torch.compile(copied, options=chosen)
    return compiled


def _mark_rows_dynamic(operands: Operands) -> None:
    """Tell the compiler, before a graph's first call, that others will have more or fewer rows."""
    out, base, tuned, _, _, drops, _ = operands
    by_rows = [out, *tuned, *([] if base is None else [base])]
    if drops is not None:
        by_rows += [drops.position.rows, *(drops.ratios if isinstance(drops, RankedDrops) else [])]
    for tensor in by_rows:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


_GRAPHS: dict[tuple[object, ...], MergeChunk] = {}
_FAILED: dict[tuple[object, ...], str] = {}
_COMPILING = Lock()
