"""Merge methods: what each one does to the elements of one tensor.

A method is a :class:`MergeMethod` in ``METHODS``. Its inner loop is a *chunk function* of plain
torch ops, called for one chunk of a tensor after another: as it is by the eager path, compiled
into one pass by ``workers.compiled``. All arithmetic is float32, checkpoints are added in their
order, and the result is rounded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import ConfigError
from workers.mask import Masks

ChunkFunction = Callable[[Tensor, Tensor | None, Sequence[Tensor], Tensor, Masks | None], None]
"""Called as ``chunk(out, base, tuned, scales, masks)`` for one chunk of a tensor: see
:func:`add_task_vectors` for shapes and dtypes. Plain torch ops only, so that it compiles."""


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A way to merge, registered by name in ``METHODS``.

    ``needs_base``: the method is defined on task vectors (tuned - base).
    ``uses_drop_ratios``: drop ratios other than 0 mean something.
    ``chunk``: what it does to the elements.
    ``paper``: where it comes from.
    """

    name: str
    needs_base: bool
    uses_drop_ratios: bool
    chunk: ChunkFunction
    paper: str


def get_method(name: str) -> MergeMethod:
    """Return the method of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in METHODS:
        raise ConfigError.single(
            "merge.method", f"`{name}` is no merge method; there are {', '.join(METHODS)}"
        )
    return METHODS[name]


def add_task_vectors(
    out: Tensor,
    base: Tensor | None,
    tuned: Sequence[Tensor],
    scales: Tensor,
    masks: Masks | None,
) -> None:
    """Write base + sum_i scale_i * where(kept_i, tuned_i - base, 0) into ``out``.

    The chunk function of DARE (arXiv:2311.03099, section 3.2: the scale holds its 1/(1-p), not
    the match of L1 norms that mergekit calls rescale) and of task arithmetic.

    Args:
        out: ``(n,)``, float32 or half; overwritten.
        base: ``(n,)``, not None.
        tuned: c tensors ``(n,)``.
        scales: ``(c,)`` float32, w_i / (1 - p_i).
        masks: Those of the c checkpoints; None keeps everything.
    """
    assert base is not None  # noqa: S101 - checked by merge_flat; here it tells the type checker
    origin = base.float()
    total = origin
    for index, source in enumerate(tuned):
        delta = source.float() - origin
        if masks is not None and masks.applies[index]:
            # where(), not multiplication: 0 * inf is NaN.
            delta = torch.where(masks.kept(index, out.numel()), delta, 0.0)
        total = total + delta * scales[index]
    out.copy_(total)


def add_tuned(
    out: Tensor,
    base: Tensor | None,  # noqa: ARG001 - the shape of every chunk function
    tuned: Sequence[Tensor],
    scales: Tensor,
    masks: Masks | None,  # noqa: ARG001
) -> None:
    """Write sum_i scale_i * tuned_i into ``out``: the chunk function of ``linear``.

    Arguments as in :func:`add_task_vectors`; base and masks are not used.
    """
    total = tuned[0].float() * scales[0]
    for index, source in enumerate(tuned[1:], start=1):
        total = total + source.float() * scales[index]
    out.copy_(total)


METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod("dare_linear", True, True, add_task_vectors, "DARE, arXiv:2311.03099"),
        MergeMethod(
            "task_arithmetic", True, False, add_task_vectors, "Task arithmetic, arXiv:2212.04089"
        ),
        MergeMethod("linear", False, False, add_tuned, "Model soups, arXiv:2203.05482"),
    )
}
"""Name -> method. ``dare_linear``: base + sum_i w_i / (1 - p_i) * keep_i * (tuned_i - base).
``task_arithmetic``: the same with every p_i = 0. ``linear``: sum_i w_i * tuned_i, without a base.
"""
