"""What merges know of whole tensors, found out once: thresholds of magnitude, inner products."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

import torch
from torch import Tensor

from workers.kernels import TensorFacts, whole_facts
from workers.plan import TensorMerge
from workers.statistics import StatisticsCache


class FactsCache:
    """The facts of the tensors of a pool; threads may ask side by side.

    Args:
        num_histograms: Of the magnitudes of a tensor, kept for other drop ratios; None is all.
    """

    def __init__(self, num_histograms: int | None = None) -> None:
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)
        # Of every tensor, for its next part: plan and device, facts.
        self._last: dict[str, tuple[tuple[TensorMerge, torch.device], TensorFacts]] = {}
        self._statistics = StatisticsCache(num_histograms)

    def known(self, plan: TensorMerge, device: torch.device) -> TensorFacts | None:
        """Return what holds for all of a tensor, where nothing has to be read to know it."""
        if not is_of_whole(plan):
            return TensorFacts(plan.scales)
        found = self._last.get(plan.tensor_name)
        return None if found is None or found[0] != (plan, device) else found[1]

    def find(
        self, plan: TensorMerge, device: torch.device, read: Callable[[], Sequence[Tensor | None]]
    ) -> TensorFacts:
        """Return what holds for all of a tensor.

        Args:
            plan: Of the tensor.
            device: Where it is merged.
            read: Gives the base and every checkpoint, ``(n,)`` each, whole; None for those that
                are not needed.
        """
        name = plan.tensor_name
        # One thread finds them out, those that merge other parts of the tensor wait.
        with self._locks[name]:
            if (facts := self.known(plan, device)) is None:
                base, *tuned = read()
                facts = whole_facts(plan, base, tuned, statistics=self._statistics)
                self._last[name] = (plan, device), facts
            return facts

    def of_rows(
        self,
        plan: TensorMerge,
        base: Tensor | None,
        tuned: Sequence[Tensor | None],
        *,
        row_length: int,
        first: int,
    ) -> TensorFacts:
        """Return what a part needs to know of its rows, ``(n,)`` from the element ``first`` on."""
        facts = whole_facts(plan, base, tuned, row_length=row_length, statistics=self._statistics)
        return replace(facts, first_ratio=first)


def is_of_whole(plan: TensorMerge) -> bool:
    """Say whether a merge depends on whole tensors: thresholds of magnitude, inner products."""
    return plan.method.drop == "trim" or plan.method.coefficients is not None
