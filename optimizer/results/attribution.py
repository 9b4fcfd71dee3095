"""What in the chosen merge matters: each checkpoint left out, each drop ratio set to zero.

Every variant is scored on the report items and compared with the chosen merge item by item. With
task vectors the weights of the others stay as they are, so that a difference is what the left-out
task vector adds; weights of whole models must keep their sum, so there the others are scaled up.
Variants are candidates of origin ``attribution:...``: not proposals of the search, which neither
counts them nor learns from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from configs.recipe import MergeRecipe
from optimizer.archive.archive import Archive
from optimizer.candidate import ATTRIBUTION, Candidate
from optimizer.results.verdict import ALPHA, Comparison, compare, holm
from optimizer.scalarize import preferred_mean
from optimizer.space import SearchSpace
from workers.methods import get_method

Kind = Literal["without", "undropped"]


@dataclass(frozen=True, slots=True)
class Variant:
    """The chosen merge with one thing taken away.

    ``kind`` says what: the ``checkpoint``, or its drop ratios (those of all where None).
    """

    kind: Kind
    checkpoint: str | None
    recipe: MergeRecipe

    @property
    def label(self) -> str:
        """What it is, in words."""
        if self.kind == "without":
            return f"without {self.checkpoint}"
        return "no drops" if self.checkpoint is None else f"no drops of {self.checkpoint}"


@dataclass(frozen=True, slots=True)
class Effect:
    """What one thing does for the chosen merge: chosen minus variant, on the report items.

    ``alone`` is the preferred mean of the checkpoint by itself, where it was scored.
    ``adjusted`` is the p-value after Holm's correction for the number of variants of its kind.
    """

    variant: Variant
    candidate: int
    gap: Comparison
    adjusted: float
    alone: float | None

    @property
    def helps(self) -> bool:
        """Whether the chosen merge is significantly better with it."""
        return self.gap.mean.mean > 0 and self.adjusted <= ALPHA

    @property
    def hurts(self) -> bool:
        """Whether the chosen merge is significantly worse with it."""
        return self.gap.mean.mean < 0 and self.adjusted <= ALPHA


@dataclass(frozen=True, slots=True)
class Attribution:
    """The effects of checkpoints and drop ratios on the chosen merge.

    ``num_checkpoints`` are in the pool, of which ``effective`` take part by their weights;
    ``unused`` have weight zero. ``num_variants`` can be made by taking something away; ``effects``
    is empty where none of them was scored yet.
    """

    num_checkpoints: int
    effective: float
    unused: tuple[str, ...]
    num_variants: int
    effects: tuple[Effect, ...]

    def of(self, kind: Kind) -> list[Effect]:
        """Return the effects of one kind."""
        return [effect for effect in self.effects if effect.variant.kind == kind]

    @property
    def sentences(self) -> list[str]:
        """What the effects say, one sentence each."""
        said = []
        if left_out := self.of("without"):
            said.append(_checkpoints_sentence(left_out))
            if bad := _bad_that_helps(left_out):
                said.append(bad)
        if undropped := self.of("undropped"):
            said.append(_drops_sentence(undropped))
        return said


def variants_of(recipe: MergeRecipe) -> list[Variant]:
    """Return what can be taken away from a merge, each different recipe once.

    Checkpoints of weight zero are not in it already, and their drop ratios change nothing.
    """
    names = [source.name for source in recipe.checkpoints]
    used = [index for index, row in enumerate(recipe.weights) if any(row)]
    found = [
        Variant("without", names[index], _without(recipe, index))
        for index in used
        if len(used) > 1 or _has_origin(recipe)
    ]
    dropping = [index for index in used if any(recipe.drop_ratios[index])]
    if dropping:
        found.append(Variant("undropped", None, _undropped(recipe, dropping)))
    if len(dropping) > 1:
        found += [
            Variant("undropped", names[index], _undropped(recipe, [index])) for index in dropping
        ]
    return found


def record_variants(archive: Archive, space: SearchSpace, chosen: int) -> list[int]:
    """Record the variants of the chosen merge as candidates; return those to be scored.

    A variant that was proposed before, as a baseline say, is not recorded again.

    Args:
        archive: Open for writing.
        space: Of its job.
        chosen: The chosen candidate.
    """
    known: dict[str, int] = {}
    for candidate in archive.candidates():
        known.setdefault(candidate.recipe.recipe_id, candidate.index)
    indices = []
    for variant in variants_of(archive.candidate(chosen).recipe):
        recipe = variant.recipe
        if recipe.recipe_id not in known:
            index = len(archive.candidates())
            genotype = space.genotype_of(recipe)
            seen = len(archive.seeds()) + len(archive.observations())
            origin = f"{ATTRIBUTION}{variant.label}"
            archive.record_proposal(Candidate(index, genotype, recipe, origin, seen))
            known[recipe.recipe_id] = index
        indices.append(known[recipe.recipe_id])
    return indices


def attribution(archive: Archive) -> Attribution | None:
    """Read the effects from an archive; None before the chosen merge has report scores."""
    chosen = archive.choice()
    scores = archive.scores("report")
    if chosen is None or chosen not in scores:
        return None
    recipe = archive.candidate(chosen).recipe
    scored = {
        candidate.recipe.recipe_id: candidate.index
        for candidate in archive.candidates()
        if candidate.index in scores
    }
    variants = variants_of(recipe)
    found = [
        (variant, scored[variant.recipe.recipe_id])
        for variant in variants
        if variant.recipe.recipe_id in scored
    ]
    alone = {
        candidate.origin.removeprefix("baseline:checkpoint "): preferred_mean(
            scores[candidate.index], archive.job.preference
        )
        for candidate in archive.candidates()
        if candidate.origin.startswith("baseline:checkpoint ") and candidate.index in scores
    }
    return Attribution(
        num_checkpoints=len(recipe.checkpoints),
        effective=recipe.effective_checkpoints,
        unused=tuple(
            source.name
            for source, row in zip(recipe.checkpoints, recipe.weights, strict=True)
            if not any(row)
        ),
        num_variants=len(variants),
        effects=_effects(archive, chosen, found, alone),
    )


def _effects(
    archive: Archive,
    chosen: int,
    variants: Sequence[tuple[Variant, int]],
    alone: dict[str, float],
) -> tuple[Effect, ...]:
    job = archive.job
    ours = archive.task_scores(chosen, "report")
    gaps = {
        index: compare(
            job.objectives,
            job.preference,
            ours,
            archive.task_scores(index, "report"),
            test_objectives=False,
        )
        for _, index in variants
    }
    effects = []
    kinds: tuple[Kind, ...] = ("without", "undropped")
    for kind in kinds:
        own = [(variant, index) for variant, index in variants if variant.kind == kind]
        adjusted = holm({index: gaps[index].p_value for _, index in own})
        effects += [
            Effect(
                variant,
                index,
                gaps[index],
                adjusted[index],
                alone.get(variant.checkpoint or "") if kind == "without" else None,
            )
            for variant, index in own
        ]
    return tuple(effects)


def _without(recipe: MergeRecipe, left_out: int) -> MergeRecipe:
    groups = range(len(recipe.groups))
    factors = [1.0 for _ in groups]
    if not _has_origin(recipe):
        factors = [_scale_up([row[group] for row in recipe.weights], left_out) for group in groups]
    weights = tuple(
        tuple(
            0.0 if index == left_out else weight * factor
            for weight, factor in zip(row, factors, strict=True)
        )
        for index, row in enumerate(recipe.weights)
    )
    drops = tuple(
        tuple(0.0 for _ in row) if index == left_out else row
        for index, row in enumerate(recipe.drop_ratios)
    )
    return recipe.model_copy(update={"weights": weights, "drop_ratios": drops})


def _has_origin(recipe: MergeRecipe) -> bool:
    """Whether something is left of a merge without checkpoints: a base that deltas are added to."""
    return get_method(recipe.method).needs_base


def _scale_up(weights: Sequence[float], left_out: int) -> float:
    """Return what the other weights are multiplied by so that the sum stays; 1 where it cannot."""
    rest = sum(weight for index, weight in enumerate(weights) if index != left_out)
    return sum(weights) / rest if rest else 1.0


def _undropped(recipe: MergeRecipe, indices: Sequence[int]) -> MergeRecipe:
    drops = tuple(
        tuple(0.0 for _ in row) if index in indices else row
        for index, row in enumerate(recipe.drop_ratios)
    )
    return recipe.model_copy(update={"drop_ratios": drops})


def _checkpoints_sentence(effects: Sequence[Effect]) -> str:
    parts = []
    for verb, names in (
        ("help", [effect.variant.checkpoint or "" for effect in effects if effect.helps]),
        ("hurt", [effect.variant.checkpoint or "" for effect in effects if effect.hurts]),
    ):
        if names:
            parts.append(f"{', '.join(names)} {verb}{'s' if len(names) == 1 else ''}")
    rest = [e.variant.checkpoint or "" for e in effects if not (e.helps or e.hurts)]
    if rest:
        parts.append(f"without {' or '.join(rest)} nothing changes that these items show")
    return f"Left out one by one: {'; '.join(parts)}."


def _bad_that_helps(effects: Sequence[Effect]) -> str:
    """Say so where the checkpoint that is worst by itself helps the merge."""
    known = [effect for effect in effects if effect.alone is not None]
    if len(known) < 2:
        return ""
    worst = min(known, key=lambda effect: effect.alone or 0.0)
    if not worst.helps:
        return ""
    return (
        f"{worst.variant.checkpoint} helps although it is the worst of them by itself "
        f"(mean {worst.alone:.3f})."
    )


def _drops_sentence(effects: Sequence[Effect]) -> str:
    together = next(effect for effect in effects if effect.variant.checkpoint is None)
    numbers = f"{together.gap.mean.mean:+.3f} ± {together.gap.mean.stderr:.3f}"
    if together.helps:
        text = f"Dropping helped: {numbers} against the same merge without drops"
    elif together.hurts:
        text = f"Dropping hurt: {numbers} against the same merge without drops"
    else:
        text = f"Dropping made no difference that these items show: {numbers} against none"
    mattered = [e.variant.checkpoint for e in effects if e.variant.checkpoint and e.helps]
    return text + (f"; the drops of {', '.join(mattered)} did." if mattered else ".")
