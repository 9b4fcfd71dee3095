"""The smallest model that learns: two weights, whose merges are computed by hand."""

from types import SimpleNamespace

import torch
from torch import Tensor


class TwoClasses(torch.nn.Module):
    """Logits of two classes: a weight each, times the only token of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 1))

    def can_generate(self) -> bool:
        return False

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=input_ids.float() @ self.weight.T)
