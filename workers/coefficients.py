"""The numbers of a recipe where the kernels read them, the same place for recipe after recipe."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.mask import signed_threshold
from workers.plan import TensorMerge


class Coefficients:
    """What a recipe says of the c checkpoints that contribute to a group of tensors.

    Args:
        plan: Of any tensor of the group.
        scales: Of the contributing checkpoints, finite.
        device: Where the merge is done.

    Attributes:
        weights: ``(c,)`` float32.
        scales: ``(c,)`` float32, factors of what is kept.
        thresholds: ``(c,)`` int32, :func:`workers.mask.signed_threshold` of the drop ratios.
    """

    def __init__(self, plan: TensorMerge, scales: Sequence[float], device: torch.device) -> None:
        count = len(plan.active)
        self.weights = torch.empty(count, dtype=torch.float32, device=device)
        self.scales = torch.empty(count, dtype=torch.float32, device=device)
        self.thresholds = torch.empty(count, dtype=torch.int32, device=device)
        self.set(plan, scales)

    def set(self, plan: TensorMerge, scales: Sequence[float]) -> None:
        """Take the numbers of another plan, to which as many checkpoints contribute.

        Whatever was prepared with these coefficients does that plan from now on.
        """
        terms = plan.active_terms
        _write(self.weights, [term.weight for term in terms])
        _write(self.scales, scales)
        _write(self.thresholds, [signed_threshold(term.drop_ratio) for term in terms])


def _write(tensor: Tensor, values: Sequence[float]) -> None:
    tensor.copy_(torch.tensor(values, dtype=tensor.dtype))
