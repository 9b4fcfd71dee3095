"""Keep the global random states of a process out of evaluation, and evaluation out of them.

lm-eval reseeds Python's, numpy's and torch's global generators, and some scorers draw from them.
A search that shares the process must not notice, and a score must not depend on who drew before.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def preserved_rng_state() -> Iterator[None]:
    """Restore the global states of ``random``, numpy and torch on leaving, whatever happens.

    torch is looked at only when it is already imported; every CUDA device's state is covered
    once CUDA is in use.
    """
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = None if torch is None else torch.random.get_rng_state()
    cuda_in_use = torch is not None and torch.cuda.is_initialized()
    cuda_states = torch.cuda.get_rng_state_all() if torch is not None and cuda_in_use else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch is not None and torch_state is not None:
            torch.random.set_rng_state(torch_state)
            if cuda_states is not None:
                torch.cuda.set_rng_state_all(cuda_states)


def seed_task() -> None:
    """Seed the global generators as the stock command does before it loads tasks.

    ``process_docs`` of some tasks draws from them: seeded per task, its items are the same on
    every machine, whichever tasks were loaded before. The values are the defaults of
    ``lm_eval.simple_evaluate``. Call it inside :func:`preserved_rng_state` only.
    """
    random.seed(0)
    np.random.seed(1234)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(1234)


def seed_scorer(name: str) -> None:
    """Seed ``random``, numpy's global state and ``langdetect`` before an item is scored.

    IFEval's checkers draw random letters for some items, and its language detection draws from
    samples: seeded by the item, a score depends on nothing but the response. Call it inside
    :func:`preserved_rng_state` only.

    Args:
        name: An item id, hexadecimal digits.
    """
    seed = int(name, 16)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if langdetect := sys.modules.get("langdetect"):
        # A constant, from which every detection starts anew.
        langdetect.DetectorFactory.seed = 0


def seed_torch(name: str) -> None:
    """Seed torch's global generators, CUDA's included, as :func:`seed_scorer` does the others.

    Call it inside :func:`preserved_rng_state` only. Does nothing where torch is not imported.

    Args:
        name: Hexadecimal digits.
    """
    if torch := sys.modules.get("torch"):
        torch.manual_seed(int(name, 16) % 2**63)
