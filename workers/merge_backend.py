"""Whether merges are compiled: chosen for a model and a device, and given up where that fails."""

import logging
from threading import Lock
from typing import Literal

import torch

from workers.compiled import has_compiler, is_worthwhile
from workers.kernels import Backend

logger = logging.getLogger(__name__)

BackendChoice = Backend | Literal["auto"]
"""``auto`` compiles where a compiler is found and the model is large enough to be worth it."""

# Elements of a model whose merges a compiler would make faster.
_WORTH_SAYING = 2**24


class MergeBackend:
    """The backend of the merges of one model; does not change their bits. Threads may share it.

    Args:
        choice: What was asked for. Only ``auto`` falls back; a compiler that was asked for by
            name and does not work is an error.
        num_elements: Of all tensors of the model.
    """

    def __init__(self, choice: BackendChoice, num_elements: int) -> None:
        self._choice: BackendChoice = choice
        self._num_elements = num_elements
        self._lock = Lock()
        self._found: dict[str, Backend] = {}
        self.may_fall_back = choice == "auto"

    def choose(self, device: torch.device) -> Backend:
        """Return how to merge on a device."""
        if self._choice != "auto":
            return self._choice
        with self._lock:
            # To look for a compiler takes a millisecond, and this is asked for parts of tensors.
            if device.type not in self._found:
                self._found[device.type] = self._find(device)
            return self._found[device.type]

    def fall_back(self, error: Exception) -> None:
        """Stop compiling; of threads that fail at the same time, one says so."""
        with self._lock:
            if self._choice != "eager":
                # Torch adds paragraphs on how to debug it.
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logger.warning(
                    "merging without a compiler from now on, which is slower: %s", reason
                )
            self._choice = "eager"

    def _find(self, device: torch.device) -> Backend:
        if is_worthwhile(self._num_elements, device):
            return "compiled"
        if self._num_elements >= _WORTH_SAYING and not has_compiler(device.type):
            # Not an error: the bits are the same.
            missing = "a C++ compiler (CXX, g++ or clang++)" if device.type == "cpu" else "triton"
            logger.warning(
                "merging without %s, which was not found: the same result, but slower for "
                "searches of large models",
                missing,
            )
        return "eager"
