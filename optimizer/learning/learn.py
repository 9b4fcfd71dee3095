"""Learning a merge that was planned, and its recipe."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import WorkerError
from configs.recipe import Group, MergeRecipe
from evaluators.manifest import Manifest
from optimizer.learning.plan import LearningPlan
from workers.checkpoint import CheckpointReader
from workers.layers import Layout
from workers.learning.adamerging import AdaMergingSettings
from workers.learning.dam import DamSettings
from workers.learning.descent import OnStep, reproducible
from workers.shard_header import TensorEntry
from workers.vocabulary import open_readers

if TYPE_CHECKING:
    from torch import Tensor

    from workers.learning.merged_model import LearnableMerge

_EVERYTHING = (Group(name="all", patterns=(".*",)),)


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned.

    Attributes:
        recipe: The merge; without the name of its column coefficients, where it has some.
        columns: Tensor name -> coefficients ``(checkpoints, columns)`` float32; None where the
            recipe is all there is.
        losses: Name -> value at every step, in nats; ``loss`` is their sum.
        seconds: Wall time, loading included.
    """

    recipe: MergeRecipe
    columns: "Mapping[str, Tensor] | None"
    losses: Mapping[str, Sequence[float]]
    seconds: float


def learn_merge(plan: LearningPlan, *, on_step: OnStep = lambda _: None) -> Learned:
    """Learn a merge on this machine, in this process.

    The same plan gives the same bits on the same machine. On a GPU some operations of torch have
    no reproducible form; torch warns of them.

    Args:
        plan: From :func:`optimizer.learning.plan.plan_learning`.
        on_step: Told of every step; what it raises ends the learning.

    Raises:
        CheckpointError: The model cannot be loaded, or takes other tensors.
        EvaluationError: A loss is not finite.
        WorkerError: Memory ran out.
    """
    import torch

    start = time.perf_counter()
    try:
        with reproducible(plan.job.workers.threads):
            if isinstance(plan.settings, DamSettings):
                recipe, columns, record = _dam(plan, plan.settings, on_step)
            else:
                recipe, columns, record = _adamerging(plan, plan.settings, on_step)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise WorkerError(
            f"memory ran out while learning ({reason}); lower --batch-size or --max-tokens"
        ) from error
    losses = {name: [step[name] for step in record] for name in record[0]}
    return Learned(recipe, columns, losses, time.perf_counter() - start)


_Found = tuple[MergeRecipe, "Mapping[str, Tensor] | None", Sequence[Mapping[str, float]]]


def _dam(plan: LearningPlan, settings: DamSettings, on_step: OnStep) -> _Found:
    from workers.learning.dam import dam_coefficients, learn_dam

    names = [source.name for source in plan.sources.checkpoints]
    coefficients = dam_coefficients(_entries(plan), len(names), settings)
    with _opened(plan, coefficients, adds_to_base=False) as merge:
        record = learn_dam(
            merge,
            {name: plan.texts.by_checkpoint[name] for name in names},
            settings,
            pad_id=plan.texts.pad_id,
            on_step=on_step,
        )
    recipe = _recipe(plan, "dam", _EVERYTHING, [[1.0] for _ in names])
    return recipe, {name: one.detach() for name, one in coefficients.items()}, record


def _adamerging(plan: LearningPlan, settings: AdaMergingSettings, on_step: OnStep) -> _Found:
    from workers.learning.adamerging import (
        adamerging_coefficients,
        adamerging_groups,
        learn_adamerging,
        recipe_groups,
    )

    with CheckpointReader(plan.sources.reference.directory) as reader:
        layout = Layout.read(reader)
    groups = adamerging_groups(layout, settings.granularity)
    count = len(plan.sources.checkpoints)
    leaves, by_name = adamerging_coefficients(groups, count, settings)
    with _opened(plan, by_name, adds_to_base=True) as merge:
        record = learn_adamerging(
            merge,
            plan.texts.by_origin,
            settings,
            pad_id=plan.texts.pad_id,
            max_length=plan.texts.max_length,
            on_step=on_step,
        )
    by_group = [[float(weight) for weight in one.detach()[:, 0]] for one in leaves]
    weights = [list(row) for row in zip(*by_group, strict=True)]
    method = plan.space.plain_method
    if settings.granularity == "layer":
        return _recipe(plan, method, recipe_groups(layout, groups), weights), None, record
    # In the groups of the job, all alike, so that a search can go on from there.
    rows = [row * plan.space.shape[1] for row in weights]
    return plan.space.recipe(rows, method=method, options={}), None, record


def _entries(plan: LearningPlan) -> list[TensorEntry]:
    """Return the tensors of the merge, by the headers."""
    with ExitStack() as stack:
        readers = open_readers(plan.sources, plan.pool.vocabulary)
        for reader in readers.values():
            stack.enter_context(reader)
        return list(readers[plan.sources.reference.name].entries.values())


def _opened(
    plan: LearningPlan, coefficients: "Mapping[str, Tensor]", *, adds_to_base: bool
) -> "LearnableMerge":
    """Load the live model, in float32, and make it the merge that is learned."""
    from workers.job import WorkerSpec, load_live_model
    from workers.learning.merged_model import LearnableMerge

    spec = WorkerSpec(plan.job, plan.sources, Manifest({}, {}))
    return LearnableMerge(
        load_live_model(spec, "float32").model,
        plan.sources,
        coefficients,
        adds_to_base=adds_to_base,
        vocabulary=plan.pool.vocabulary,
    )


def _recipe(
    plan: LearningPlan,
    method: str,
    groups: tuple[Group, ...],
    weights: Sequence[Sequence[float]],
) -> MergeRecipe:
    """Return a recipe of the job's models with groups of its own, nothing dropped."""
    ones = [[1.0] * plan.space.shape[1] for _ in weights]
    content = plan.space.recipe(ones, method=method, options={}).model_dump()
    drops = [[0.0] * len(groups) for _ in weights]
    return MergeRecipe.model_validate(
        content | {"groups": groups, "weights": weights, "drop_ratios": drops}
    )
