"""The merges that a job names as baselines: read, compared with the job, made ready to be scored.

Start at :func:`resolve_baselines`. They may lie outside of the search space: learned merges with a
number per column, other methods, other groups. Of each that does, its plain weights are a second
baseline, which the strategy learns from.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from configs.errors import ConfigError, MergefrontError, Problem
from configs.recipe import MergeRecipe, Source, Vocabulary
from configs.schema import JobConfig
from optimizer.baselines import Baseline
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
    recorded = {} if archive is None else _recorded(archive)
    found: dict[str, Baseline] = {}
    coefficients = {} if archive is None else _recalled(archive)
    problems: list[Problem] = []
    for name, place in job.baselines.items():
        key = f"baselines.{name}"
        try:
            recipe = read_baseline(place)
        except MergefrontError as error:
            problems += _problems_of(key, error)
            continue
        wrong = [Problem(key, text) for text in _differences(recipe, space, headers_only)]
        if wrong:
            problems += wrong
            continue
        try:
            recipe, kept = _ready(name, place, recipe, sources, space, headers_only)
        except MergefrontError as error:
            problems += _problems_of(key, error)
            continue
        before = recorded.get(name)
        if before is not None and before.recipe_id != recipe.recipe_id:
            problems.append(
                Problem(key, f"{place}: another merge was scored under this name; use another one")
            )
        coefficients |= {each.digest: each for each in kept}
        found[name] = Baseline(name, recipe, is_given=True)
    if problems:
        raise ConfigError("some baselines of the job cannot be used", problems)
    pool = replace(sources, coefficients=tuple(coefficients.values()))
    if headers_only:
        return GivenBaselines(tuple(found.values()), pool.coefficients)
    placed = [each for one in found.values() for each in _with_weights(one, pool, space, recorded)]
    return GivenBaselines(tuple(placed), pool.coefficients)


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


def _recorded(archive: "Archive") -> dict[str, MergeRecipe]:
    """Return name -> recipe of the baselines that were proposed."""
    return {
        candidate.origin.partition(":")[2]: candidate.recipe
        for candidate in archive.candidates()
        if candidate.is_baseline
    }


def _recalled(archive: "Archive") -> dict[str, ResolvedSource]:
    """Find the coefficients of all merges of an archive: the job may not name them any more."""
    wanted = {
        source.digest: source
        for candidate in archive.candidates()
        if (source := candidate.recipe.coefficients) is not None
    }
    return {digest: recall_coefficients(source) for digest, source in wanted.items()}


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


def _ready(
    name: str,
    place: str,
    recipe: MergeRecipe,
    sources: Sources,
    space: SearchSpace,
    headers_only: bool,
) -> tuple[MergeRecipe, tuple[ResolvedSource, ...]]:
    """Return a recipe as the job scores it, and its coefficients; check that it can be merged.

    Raises:
        MergefrontError: It cannot.
    """
    recipe = _as_job_has_it(name, recipe, space)
    with CheckpointReader(sources.reference.directory) as reader:
        _check_recipe(recipe, [e.name for e in reader.entries.values() if e.is_floating])
    kept: tuple[ResolvedSource, ...] = ()
    if recipe.coefficients is not None:
        kept = (coefficients_of(recipe.coefficients, recipe_path(place)),)
    if not headers_only:
        check_coefficients(recipe, replace(sources, coefficients=kept))
    return recipe, kept


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
    baseline: Baseline, sources: Sources, space: SearchSpace, recorded: dict[str, MergeRecipe]
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


def _problems_of(key: str, error: MergefrontError) -> list[Problem]:
    """Return what is wrong with a baseline, under its key of the job."""
    if isinstance(error, ConfigError):
        return [Problem(key, str(problem)) for problem in error.problems]
    return [Problem(key, error.message.replace("\n", "\n  "))]
