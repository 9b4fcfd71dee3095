"""The merges that a job names as baselines: read, compared with the job, made ready to be scored.

Start at :func:`resolve_baselines`. They may lie outside of the search space: learned merges with a
number per column, other methods, other groups. Of each that does, its plain weights are a second
baseline, which the strategy learns from.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from configs.errors import ConfigError, MergefrontError, Problem
from configs.recipe import MergeRecipe, Source, Vocabulary
from configs.schema import JobConfig
from optimizer.baselines import Baseline, label_of
from optimizer.recorded_recipe import read_json, recorded_recipe
from optimizer.space import SearchSpace
from workers.checkpoint import CheckpointReader
from workers.column_coefficients import (
    check_coefficients,
    coefficients_of,
    recall_coefficients,
    recipe_path,
)
from workers.methods import get_method
from workers.plan import RecipePlan
from workers.projection import project_weights
from workers.sources import ResolvedSource, Sources

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

AS_WEIGHTS = ", as weights"
"""What is added to the name of a baseline for its plain weights."""


@dataclass(frozen=True, slots=True)
class GivenBaselines:
    """What a job's ``baselines`` come to.

    Attributes:
        baselines: Each, followed by its plain weights where it is outside of the search space.
        coefficients: The files of theirs, and of those that an archive has of earlier runs.
    """

    baselines: tuple[Baseline, ...] = ()
    coefficients: tuple[ResolvedSource, ...] = ()


def resolve_baselines(
    job: JobConfig,
    sources: Sources,
    space: SearchSpace,
    *,
    archive: "Archive | None" = None,
    headers_only: bool = False,
) -> GivenBaselines:
    """Read the baselines of a job, and compare them with it.

    Args:
        job: Names them.
        sources: Its resolved pool.
        space: Its search space.
        archive: The record to go on with.
        headers_only: Read no tensor, so that digests are not known either: whether they are of the
            job's checkpoints stays open.

    Raises:
        ConfigError: Some cannot be used; lists every problem of each.
        CheckpointError: Coefficients that the archive's merges need are gone.
    """
    candidates = [] if archive is None else archive.candidates()
    recorded = {label_of(each): each.recipe for each in candidates if each.is_baseline}
    reading = _Reading(sources, space, recorded, headers_only=headers_only)
    found = [reading.read(name, place) for name, place in job.baselines.items()]
    if reading.problems:
        raise ConfigError("some baselines of the job cannot be used", reading.problems)
    coefficients = reading.coefficients
    for recipe in [candidate.recipe for candidate in candidates]:
        # The job may not name them any more.
        if recipe.coefficients is not None and recipe.coefficients.digest not in coefficients:
            coefficients[recipe.coefficients.digest] = recall_coefficients(recipe.coefficients)
    pool = replace(sources, coefficients=tuple(coefficients.values()))
    baselines = [baseline for baseline in found if baseline is not None]
    if not headers_only:
        baselines = [
            each for one in baselines for each in _with_weights(one, pool, space, recorded)
        ]
    return GivenBaselines(tuple(baselines), pool.coefficients)


class _Reading:
    """Reads baselines, one after another, and notes all that is wrong with them.

    Args:
        sources: The job's pool.
        space: Its search space.
        recorded: Label -> recipe of the baselines that an archive has.
        headers_only: As for :func:`resolve_baselines`.

    Attributes:
        problems: What is wrong.
        coefficients: Digest -> file of those that were read.
    """

    def __init__(
        self,
        sources: Sources,
        space: SearchSpace,
        recorded: Mapping[str, MergeRecipe],
        *,
        headers_only: bool,
    ) -> None:
        self._sources = sources
        self._space = space
        self._recorded = recorded
        self._headers_only = headers_only
        self.problems: list[Problem] = []
        self.coefficients: dict[str, ResolvedSource] = {}

    def read(self, name: str, place: str) -> Baseline | None:
        """Return a baseline as the job scores it; None where something is wrong with it."""
        before = self._recorded.get(name)
        if before is not None and not recipe_path(place).exists():
            # It was scored: what is recorded is all that is needed.
            return Baseline(name, before, is_given=True)
        wrong: list[str] = []
        try:
            recipe = read_baseline(place)
            wrong += _differences(recipe, self._space, self._headers_only)
            if not wrong:
                recipe = self._ready(recipe, name, place)
        except ConfigError as error:
            wrong += map(str, error.problems)
        except MergefrontError as error:
            wrong.append(error.message.replace("\n", "\n  "))
        else:
            if not wrong and before is not None and before.recipe_id != recipe.recipe_id:
                wrong.append(f"{place}: another merge was scored under this name; use another one")
            if not wrong:
                return Baseline(name, recipe, is_given=True)
        self.problems += [Problem(f"baselines.{name}", text) for text in wrong]
        return None

    def _ready(self, recipe: MergeRecipe, name: str, place: str) -> MergeRecipe:
        """Return a recipe as the job scores it; check that it can be merged.

        Raises:
            MergefrontError: It cannot.
        """
        recipe = _as_job_has_it(name, recipe, self._space)
        with CheckpointReader(self._sources.reference.directory) as reader:
            _check_recipe(recipe, [e.name for e in reader.entries.values() if e.is_floating])
        pool = self._sources
        if recipe.coefficients is not None:
            found = coefficients_of(recipe.coefficients, recipe_path(place))
            self.coefficients[found.digest] = found
            pool = replace(pool, coefficients=(found,))
        if not self._headers_only:
            check_coefficients(recipe, pool)
        return recipe


def read_baseline(place: str) -> MergeRecipe:
    """Read the recipe of a baseline: a directory with a ``recipe.json``, or such a file.

    Raises:
        ConfigError: There is none, or it cannot be used.
    """
    path = recipe_path(place)
    content = read_json(path)
    if content is None:
        raise ConfigError.single(
            str(path), "is no recipe in JSON; `mergefront recipe FILE --out recipe.json` makes one"
        )
    return recorded_recipe(path, content).recipe


def _differences(recipe: MergeRecipe, space: SearchSpace, headers_only: bool) -> Iterator[str]:
    """Say in what a recipe is not of the job's models."""
    job = space.recipe([[0.0] * space.shape[1]] * space.shape[0])
    if len(recipe.checkpoints) != len(job.checkpoints):
        yield (
            f"merges {_listed(recipe.checkpoints)}; the job's checkpoints are "
            f"{_listed(job.checkpoints)}, and all must be there, in their order"
        )
    elif not headers_only:
        for number, (here, there) in enumerate(
            zip(recipe.checkpoints, job.checkpoints, strict=True), start=1
        ):
            if here.digest != there.digest:
                yield (
                    f"its checkpoint {number} is {_listed([here])}, that of the job is "
                    f"{_listed([there])}; use a merge of the job's checkpoints in their order"
                )
    if recipe.base is not None and not headers_only:
        if job.base is None:
            yield f"its base is {_listed([recipe.base])}, and the job has none; name it there"
        elif recipe.base.digest != job.base.digest:
            yield f"its base is {_listed([recipe.base])}, that of the job {_listed([job.base])}"
    if not headers_only and _tables(recipe.vocabulary) != _tables(job.vocabulary):
        yield (
            "its tables of tokens have other lengths than those that the job merges "
            "(`models.vocabulary`); learn it again with this job"
        )


def _tables(vocabulary: Vocabulary | None) -> object:
    return vocabulary and (vocabulary.policy, vocabulary.rows, vocabulary.tables)


def _listed(sources: Sequence[Source]) -> str:
    return ", ".join(f"`{source.name}` ({source.digest[:12] or 'no digest'})" for source in sources)


def _as_job_has_it(name: str, recipe: MergeRecipe, space: SearchSpace) -> MergeRecipe:
    """Return a recipe in the job's data type, as all that is compared, and with its names."""
    job = space.recipe([[0.0] * space.shape[1]] * space.shape[0])
    columns = recipe.coefficients
    return recipe.model_copy(
        update={
            "dtype": job.dtype,
            "checkpoints": job.checkpoints,
            "base": None if recipe.base is None else job.base,
            "vocabulary": job.vocabulary,
            "options": get_method(recipe.method).complete_options(recipe.options),
            "coefficients": columns and columns.model_copy(update={"name": name}),
        }
    )


def _check_recipe(recipe: MergeRecipe, names: Iterable[str]) -> None:
    """Refuse weights, drops, models and groups that do not fit the method or the tensors."""
    if get_method(recipe.method).needs_base and recipe.base is None:
        raise ConfigError.single("base", f"`{recipe.method}` needs a base, the recipe names none")
    try:
        plan = RecipePlan(recipe)
        for name in names:
            plan.tensor(name)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError.single("recipe", str(error)) from error


def _with_weights(
    baseline: Baseline, sources: Sources, space: SearchSpace, recorded: Mapping[str, MergeRecipe]
) -> Iterator[Baseline]:
    """Yield a baseline, and its plain weights where the search cannot reach it."""
    recipe = baseline.recipe
    if space.contains(recipe):
        yield baseline
        return
    label = baseline.label + AS_WEIGHTS
    plain = recorded.get(label)
    if plain is None:
        groups = space.recipe([[0.0] * space.shape[1]] * space.shape[0]).groups
        weights = project_weights(recipe, sources, groups)
        plain = space.recipe(weights, method=space.plain_method)
    genotype = space.encode(plain.weights)
    yield replace(baseline, genotype=genotype)
    yield Baseline(label, plain, is_given=True, genotype=genotype)
