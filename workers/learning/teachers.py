"""What the checkpoints predict: computed in the one live model, into which each is written."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.learning.merged_model import LearnableMerge
from workers.learning.predictions import predict
from workers.learning.texts import TextBatch
from workers.residency import measure_memory

# Of the memory that is free, the share that logits may take.
_SHARE = 0.25


class Teachers:
    """Logits of checkpoints on batches of their own data; the live model is that of a merge.

    Where the logits of all batches fit into a quarter of the free memory, every checkpoint is
    written into the model once and they are kept, as float32 on the CPU. Else they are computed
    anew whenever they are asked for, which costs a forward pass and a pass over the checkpoint.
    The numbers are the same either way.

    Args:
        merge: Its model is overwritten.
        batches: Index of a checkpoint -> the batches of its data.
        keeps: Whether to keep the logits; None decides by memory.
    """

    def __init__(
        self,
        merge: LearnableMerge,
        batches: Sequence[Sequence[TextBatch]],
        *,
        keeps: bool | None = None,
    ) -> None:
        self._merge = merge
        self._batches = batches
        self._kept: dict[tuple[int, int], Tensor] = {}
        self.keeps = self._fits() if keeps is None else keeps
        if self.keeps:
            for index, own in enumerate(batches):
                wanted = [(index, number) for number in range(len(own))]
                self._kept.update(zip(wanted, self._compute(wanted), strict=True))

    def logits(self, wanted: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the logits ``(p, v)`` of some (checkpoint, batch), on the CPU.

        Where they are not kept, the model then holds the last of the checkpoints.
        """
        if self.keeps:
            return [self._kept[key] for key in wanted]
        return self._compute(wanted)

    @torch.no_grad()
    def _compute(self, wanted: Sequence[tuple[int, int]]) -> list[Tensor]:
        found = []
        held: int | None = None
        for index, number in wanted:
            if index != held:
                self._merge.write_source(index)
                held = index
            found.append(predict(self._merge.model, self._batches[index][number]).float().cpu())
        return found

    @torch.no_grad()
    def _fits(self) -> bool:
        """Say whether all logits can be kept, after a look at those of the smallest batch."""
        everything = [batch for own in self._batches for batch in own]
        if not everything:
            return True
        smallest = min(everything, key=lambda batch: int(batch.mask.sum()))
        size_bytes = 4 * predict(self._merge.model, smallest).numel()
        share = int(smallest.mask.sum()) / sum(int(batch.mask.sum()) for batch in everything)
        free_bytes = measure_memory(torch.device("cpu")).host_available
        return size_bytes / share <= _SHARE * free_bytes
