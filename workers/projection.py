"""The plain weights that come nearest to a merge whose weights are finer than a search's."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from configs.recipe import Group, MergeRecipe
from workers.column_coefficients import find_coefficients
from workers.sources import Sources
from workers.vocabulary import open_readers

# Elements that are squared at once: 32 MiB in float64.
_PIECE_ELEMENTS = 2**22
# What is left of the order in which a machine adds.
_DECIMALS = 6


def project_weights(
    recipe: MergeRecipe, sources: Sources, groups: Sequence[Group]
) -> tuple[tuple[float, ...], ...]:
    """Return one weight per checkpoint and group: the mean over columns of what a recipe says.

    A column's weight is the recipe's weight of its tensor, times its coefficient where the recipe
    has some; it counts by its squared norm in the checkpoint, so that a mean is what minimizes the
    squared distance of each checkpoint's part. Reads every checkpoint once. Where a group holds
    zeros only, all its columns count alike.

    Args:
        recipe: Of checkpoints of the pool; each tensor is in one of its groups.
        sources: The pool, with the recipe's coefficients.
        groups: Of the search; each tensor is in one of them.

    Returns:
        (checkpoints, groups), rounded to six decimals, so that machines agree.
    """
    columns = None
    if recipe.coefficients is not None:
        columns = find_coefficients(recipe.coefficients, sources)
    # Rows: sum of weight * size, of size, of weight, and number of columns.
    sums = torch.zeros(4, len(recipe.checkpoints), len(groups), dtype=torch.float64)
    with ExitStack() as stack:
        readers = {
            source.digest: stack.enter_context(reader)
            for source, reader in zip(
                sources.everything,
                open_readers(sources, recipe.vocabulary).values(),
                strict=True,
            )
        }
        entries = readers[sources.reference.digest].entries
        for entry in entries.values():
            if not entry.is_floating:
                continue
            own = recipe.group_of(entry.name)
            group = next(index for index, each in enumerate(groups) if each.holds(entry.name))
            for index, checkpoint in enumerate(recipe.checkpoints):
                tensor = readers[checkpoint.digest].tensor(entry.name)
                sizes = _squared_norms(tensor.reshape(-1, entry.row_length))
                weights = torch.full_like(sizes, recipe.weights[index][own])
                if columns is not None:
                    weights = weights * columns.of(index, entry.name).double()
                sums[:, index, group] += torch.stack(
                    [(weights * sizes).sum(), sizes.sum(), weights.sum(), _count(sizes)]
                )
    weighted, total, plain, count = sums
    means = torch.where(total > 0, weighted / total, plain / count)
    return tuple(tuple(round(value, _DECIMALS) for value in row) for row in means.tolist())


def _squared_norms(matrix: Tensor) -> Tensor:
    """Return the squared norm of every column of ``(rows, columns)``, ``(columns,)`` float64."""
    rows, width = matrix.shape
    total = torch.zeros(width, dtype=torch.float64)
    step = max(1, _PIECE_ELEMENTS // max(width, 1))
    for begin in range(0, rows, step):
        total += matrix[begin : begin + step].double().square().sum(dim=0)
    return total


def _count(columns: Tensor) -> Tensor:
    return torch.tensor(float(columns.numel()), dtype=torch.float64)
