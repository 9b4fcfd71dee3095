"""Merge kernels as one fused pass: ``torch.compile`` of the chunk functions, same bits.

Inductor makes C++ with vector instructions for the CPU and Triton for GPUs. Compiling takes
seconds, is kept on disk by torch between processes, and pays off for large models only.
"""

import logging
import os
import shutil
import types
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from workers.mask import Masks
from workers.methods import ChunkFunction

logger = logging.getLogger(__name__)

# One pass has no temporaries; below 2^31 elements its indices stay 32 bits wide.
COMPILED_CHUNK = 2**28
# Smaller tensors take the eager path: same bits, and a call costs more than the work.
_SMALLEST_TENSOR = 2**14
# A candidate with fewer elements is merged in a second or two; compiling takes longer.
_SMALLEST_POOL = 2**24

_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    # Fused multiply-add rounds once where the eager path rounds twice. The first option is for
    # C++, the second turns it off in Triton as a part of following eager's roundings.
    "cpp.enable_floating_point_contract_flag": "off",
    "emulate_precision_casts": True,
}


def is_worthwhile(total_elements: int, device: torch.device) -> bool:
    """Say whether compiling pays off for candidates of this many elements on this device."""
    return total_elements >= _SMALLEST_POOL and has_compiler(device.type)


@cache
def has_compiler(device_type: str) -> bool:
    """Say whether inductor finds what it needs: a C++ compiler, or Triton for a GPU."""
    if device_type == "cpu":
        return any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))
    return find_spec("triton") is not None


def is_compiler_failure(error: BaseException) -> bool:
    """Say whether an error of a compiled merge came from compiling, not from merging.

    A machine without compiler headers, or without a place for torch's cache: the eager path
    gives the same bits there.
    """
    origin = type(error).__module__
    return origin.startswith(("torch._dynamo", "torch._inductor")) or isinstance(error, OSError)


def fuse(chunk: ChunkFunction, out: Tensor) -> ChunkFunction | None:
    """Return the compiled form of a chunk function, or None for tensors that are too small.

    One graph is compiled, on first use, per number of checkpoints, their dtypes, and whether
    anything is masked; lengths are dynamic.
    """
    if out.numel() < _SMALLEST_TENSOR:
        return None

    def fused(
        out: Tensor,
        base: Tensor | None,
        tuned: Sequence[Tensor],
        scales: Tensor,
        masks: Masks | None,
    ) -> None:
        if masks is not None:
            # All masked or none: 2 graphs, not 2^c. A mask with p = 0 keeps everything.
            masks = masks._replace(applies=(True,) * len(tuned))
        dtypes = tuple(None if t is None else t.dtype for t in (out, base, *tuned))
        signature = (dtypes, out.device.type, masks is None)
        _graph(chunk, signature)(out, base, list(tuned), scales, masks)

    return fused


@cache
def _graph(chunk: ChunkFunction, signature: tuple[object, ...]) -> ChunkFunction:
    logger.info("compiling %s for %s", chunk.__name__, signature)
    # torch limits the graphs per code object, so each signature gets a code object of its own.
    code = chunk.__code__.replace(co_name=f"{chunk.__name__}_{abs(hash(signature))}")
    copied = types.FunctionType(code, chunk.__globals__, chunk.__name__)
    compiled: ChunkFunction = torch.compile(copied, dynamic=True, fullgraph=True, options=_OPTIONS)
    return compiled
