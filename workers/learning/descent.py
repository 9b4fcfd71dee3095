"""Gradient descent on the coefficients of a merge, and what is told of every step."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from configs.errors import EvaluationError
from workers.learning.merged_model import LearnableMerge


class Step(NamedTuple):
    """One step of learning: its number from 1, of how many, and the losses before it, in nats."""

    number: int
    total: int
    losses: Mapping[str, float]


OnStep = Callable[[Step], None]
"""Is told of every step; what it raises ends the learning."""


def descend(
    merge: LearnableMerge,
    optimizer: torch.optim.Optimizer,
    add_gradients: Callable[[], Mapping[str, float]],
    *,
    steps: int,
    on_step: OnStep,
) -> list[dict[str, float]]:
    """Take steps; the model holds the learned merge afterwards.

    Args:
        merge: Whose coefficients are learned.
        optimizer: Of its leaves.
        add_gradients: Adds the gradients of one step to the leaves, with the merge as it is now
            in the model, and returns the parts of the loss.
        steps: How many, >= 1.
        on_step: Told after each.

    Returns:
        The parts of the loss and their sum (``loss``), one mapping per step.

    Raises:
        EvaluationError: A loss or a coefficient is not finite.
    """
    record: list[dict[str, float]] = []
    for number in range(1, steps + 1):
        merge.clear_gradients()
        parts = dict(add_gradients())
        losses = {**parts, "loss": math.fsum(parts.values())}
        if not all(map(math.isfinite, losses.values())):
            raise EvaluationError(
                f"the loss of step {number} is not finite ({losses}): the merge of before is "
                "broken, or a checkpoint is; lower --lr, or look at the checkpoints alone"
            )
        optimizer.step()
        if not all(bool(one.detach().isfinite().all()) for one in merge.leaves):
            raise EvaluationError(
                f"step {number}: coefficients are not finite any more; lower --lr"
            )
        record.append(losses)
        on_step(Step(number, steps, losses))
    merge.write()
    return record


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Let torch add in the same order every time, on this machine with these threads.

    Of CUDA's operations, those that have no such form only warn.
    """
    # Read when cuBLAS begins; without it products of matrices are not repeatable.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=warned)
