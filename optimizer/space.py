"""The search space: from a point of the unit cube to a merge recipe and back.

Genes come in two runs, weights before drop ratios; within a run, checkpoint by checkpoint and
group by group; a global scale, where the job has one, is the last. The parametrizations are those
of ``configs.schema.Merge`` (D3).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from configs.errors import ConfigError, Problem
from configs.groups import compile_groups
from configs.recipe import Group, MergeRecipe, Source, Vocabulary
from configs.schema import Bounds, DtypeName, JobConfig
from evaluators.scores import FloatArray
from workers.methods import get_method
from workers.sources import ResolvedSource, Sources

# softmax weights span a factor of e^(2 * 4) = 3000: the smallest checkpoint can all but vanish.
_SOFTMAX_RANGE = 4.0

# Methods that are task arithmetic where nothing is dropped.
_PLAIN_METHODS = frozenset({"dare_linear", "della_linear", "task_arithmetic"})

Matrix = Sequence[Sequence[float]]


class SearchSpace:
    """Decodes genotypes, ``(size,)`` float64 arrays in [0, 1]^size, to recipes.

    Args:
        job: The job whose merge section says method, parametrization and bounds.
        sources: The resolved checkpoints; their digests enter every recipe.
        dtype: Data type of merged tensors where the job does not say.
        vocabulary: Of the merged tables of tokens; None where all models have equal shapes.

    Raises:
        ConfigError: The method does not exist, does not have the job's options, or does not fit
            the number of checkpoints or the lack of a base.
    """

    def __init__(
        self,
        job: JobConfig,
        sources: Sources,
        *,
        dtype: DtypeName = "float32",
        vocabulary: Vocabulary | None = None,
    ) -> None:
        check_method(job)
        self._merge = job.merge
        self._vocabulary = vocabulary
        self._base = None if sources.base is None else _source(sources.base)
        self._checkpoints = tuple(_source(checkpoint) for checkpoint in sources.checkpoints)
        self._groups = tuple(
            Group(name=name, patterns=patterns)
            for name, patterns in compile_groups(job.merge.groups).items()
        )
        self._patterns = [group.patterns for group in self._groups]
        self._dtype: DtypeName = job.merge.dtype or dtype
        method = get_method(job.merge.method)
        self.method = method.name
        self.has_drops = method.uses_drop_ratios
        self.drop_kind = method.drop
        self._scale = job.merge.scale
        self.uses_task_vectors = method.needs_base

    @property
    def shape(self) -> tuple[int, int]:
        """(checkpoints, groups)."""
        return len(self._checkpoints), len(self._groups)

    @property
    def num_weights(self) -> int:
        """Number of weight genes: checkpoints * groups."""
        return self.shape[0] * self.shape[1]

    @property
    def size(self) -> int:
        """Number of genes."""
        return self.num_weights * (2 if self.has_drops else 1) + self.has_scale

    @property
    def has_scale(self) -> bool:
        """Whether the last gene is a scale of all weights."""
        return self._scale is not None

    @property
    def scales(self) -> bool:
        """Whether the sum of the weights can differ from one."""
        free = self._merge.parametrization == "free" and self.uses_task_vectors
        return free or self.has_scale

    @property
    def has_base(self) -> bool:
        """Whether the job names what the checkpoints were fine-tuned from."""
        return self._base is not None

    @property
    def plain_method(self) -> str:
        """The method of merges that are weights only: the job's own where it can be."""
        if not self.has_base:
            return "linear"
        return self.method if self.method in _PLAIN_METHODS else "task_arithmetic"

    @property
    def names(self) -> tuple[str, ...]:
        """One stable name per gene, e.g. ``math.weight`` or ``math/attention.drop_ratio``."""
        kinds = ("weight", "drop_ratio") if self.has_drops else ("weight",)
        names = tuple(
            f"{checkpoint.name}{'' if self.shape[1] == 1 else '/' + group.name}.{kind}"
            for kind in kinds
            for checkpoint in self._checkpoints
            for group in self._groups
        )
        return (*names, "scale") if self.has_scale else names

    def decode(self, genotype: FloatArray) -> MergeRecipe:
        """Return the recipe of a genotype.

        Raises:
            ValueError: Not a ``(size,)`` array, or a gene outside [0, 1] (NaN included).
        """
        if genotype.shape != (self.size,):
            raise ValueError(f"genotype must have shape ({self.size},), found {genotype.shape}")
        if not ((genotype >= 0) & (genotype <= 1)).all():
            raise ValueError(f"genes must be in [0, 1], found {genotype.tolist()}")
        weights, drops = self.parameters(genotype[None])
        return self.recipe(weights[0].tolist(), drops[0].tolist())

    def parameters(self, genotypes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Decode many genotypes at once, without making recipes.

        Args:
            genotypes: ``(n, size)``, each gene in [0, 1]; not checked.

        Returns:
            Weights and drop ratios, both ``(n, checkpoints, groups)``.
        """
        shape = (len(genotypes), *self.shape)
        weights = self._weights_of(genotypes[:, : self.num_weights].reshape(shape))
        if self._scale is not None:
            weights = weights * _scale(genotypes[:, -1], self._scale)[:, None, None]
        drops = np.zeros(shape)
        if self.has_drops:
            genes = genotypes[:, self.num_weights : 2 * self.num_weights]
            drops = _scale(genes.reshape(shape), self._merge.drop_ratio)
        return weights, drops

    def recipe(
        self,
        weights: Matrix,
        drop_ratios: Matrix | None = None,
        *,
        method: str | None = None,
        options: Mapping[str, float] | None = None,
    ) -> MergeRecipe:
        """Build a recipe of this job's sources, inside the bounds or not.

        Args:
            weights: (checkpoints, groups).
            drop_ratios: (checkpoints, groups), each in [0, 1); None drops nothing.
            method: None is the job's.
            options: Of the method; None is the job's, or the defaults of another method.
        """
        drops = drop_ratios if drop_ratios is not None else np.zeros(self.shape).tolist()
        name = method or self._merge.method
        if options is None:
            options = self._merge.options if name == self._merge.method else {}
        return MergeRecipe(
            method=name,
            options=get_method(name).complete_options(options),
            vocabulary=self._vocabulary,
            base=self._base,
            checkpoints=self._checkpoints,
            groups=self._groups,
            weights=tuple(tuple(row) for row in weights),
            drop_ratios=tuple(tuple(row) for row in drops),
            dtype=self._dtype,
            mask_seed=self._merge.mask_seed,
        )

    def encode(self, weights: Matrix, drop_ratios: Matrix | None = None) -> FloatArray:
        """Return the genotype nearest to given weights and drop ratios, clipped to the cube."""
        array = np.asarray(weights, dtype=np.float64).reshape(1, *self.shape)
        drops = np.zeros(self.shape) if drop_ratios is None else np.asarray(drop_ratios)
        genotype: FloatArray = self.encode_all(array, drops.reshape(array.shape))[0]
        return genotype

    def encode_all(self, weights: FloatArray, drop_ratios: FloatArray) -> FloatArray:
        """Encode many merges at once: both ``(n, checkpoints, groups)`` -> ``(n, size)``."""
        count = len(weights)
        totals = weights.sum(axis=1).mean(axis=1)
        if self._scale is not None:
            weights = weights / np.where(totals > 0, totals, 1.0)[:, None, None]
        if self._merge.parametrization == "softmax":
            logits = np.log(np.maximum(weights, 1e-12))
            middle = (logits.max(axis=1, keepdims=True) + logits.min(axis=1, keepdims=True)) / 2
            genes = 0.5 + (logits - middle) / (2 * _SOFTMAX_RANGE)
        elif self._merge.parametrization == "simplex":
            genes = weights
        else:
            genes = _unscale(weights, self._merge.weight)
        runs = [genes.reshape(count, -1)]
        if self.has_drops:
            runs.append(_unscale(drop_ratios, self._merge.drop_ratio).reshape(count, -1))
        if self._scale is not None:
            runs.append(_unscale(totals[:, None], self._scale))
        clipped: FloatArray = np.clip(np.concatenate(runs, axis=1), 0.0, 1.0)
        return clipped

    def genotype_of(self, recipe: MergeRecipe) -> FloatArray:
        """Return the genotype nearest to any recipe of this job's checkpoints, in their order.

        Where it has other groups, each checkpoint gets the mean of its weights, and no drops.
        """
        if self._has_groups_of(recipe):
            return self.encode(recipe.weights, recipe.drop_ratios)
        means = np.mean(recipe.weights, axis=1)
        return self.encode(np.repeat(means[:, None], self.shape[1], axis=1).tolist())

    def is_of_method(self, recipe: MergeRecipe) -> bool:
        """Say whether a recipe is of the job's method and groups, inside the bounds or not."""
        return recipe.method == self.method and self._has_groups_of(recipe)

    def _has_groups_of(self, recipe: MergeRecipe) -> bool:
        return [group.patterns for group in recipe.groups] == self._patterns

    def contains(self, recipe: MergeRecipe) -> bool:
        """Say whether a recipe can be reached: encoding and decoding it changes nothing much."""
        options = get_method(self._merge.method).complete_options(self._merge.options)
        if not self.is_of_method(recipe) or recipe.options != options:
            return False
        back = self.decode(self.encode(recipe.weights, recipe.drop_ratios))
        return np.allclose(back.weights, recipe.weights, atol=1e-6) and np.allclose(
            back.drop_ratios, recipe.drop_ratios, atol=1e-6
        )

    def _weights_of(self, genes: FloatArray) -> FloatArray:
        """Map ``(n, checkpoints, groups)`` genes to weights."""
        if self._merge.parametrization == "softmax":
            logits = (genes - 0.5) * (2 * _SOFTMAX_RANGE)
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            softmax: FloatArray = exponentials / exponentials.sum(axis=1, keepdims=True)
            return softmax
        if self._merge.parametrization == "simplex":
            return np.swapaxes(project_to_simplex(np.swapaxes(genes, 1, 2)), 1, 2)
        return _scale(genes, self._merge.weight)


def check_method(job: JobConfig) -> None:
    """Check that the job's method exists, and fits its options and models.

    Raises:
        ConfigError: With every problem.
    """
    method = get_method(job.merge.method)
    problems: list[Problem] = []
    try:
        method.complete_options(job.merge.options)
    except ConfigError as error:
        problems += error.problems
    if method.takes_columns:
        problems.append(
            Problem(
                "merge.method",
                f"`{method.name}` has a coefficient per input column, which no search finds; learn "
                "it (`mergefront learn`), name the result in `baselines`, and search with another "
                "method",
            )
        )
    if method.needs_base and job.models.base is None:
        problems.append(
            Problem("merge.method", f"`{method.name}` needs models.base; without one use `linear`")
        )
    if method.num_checkpoints not in (None, len(job.models.checkpoints)):
        problems.append(
            Problem(
                "models.checkpoints",
                f"`{method.name}` merges {method.num_checkpoints} checkpoints, found "
                f"{len(job.models.checkpoints)}",
            )
        )
    if job.merge.scale is not None and not method.needs_base:
        problems.append(
            Problem(
                "merge.scale",
                f"`{method.name}` averages checkpoints, whose weights must sum to one; take the "
                "scale out, or name models.base and a method of task vectors",
            )
        )
    if problems:
        raise ConfigError(f"method `{method.name}` cannot be used like this", problems)


def project_to_simplex(point: FloatArray) -> FloatArray:
    """Return the nearest point of the probability simplex, which can have zeros.

    Euclidean projection by sorting (Held, Wolfe, Crowder 1974; Duchi et al. 2008, fig. 1).

    Args:
        point: ``(..., n)`` float64: one point, or many along the axes before the last.

    Returns:
        Float64 of the same shape, non-negative, summing to one along the last axis.
    """
    descending = -np.sort(-point, axis=-1)
    excess = (np.cumsum(descending, axis=-1) - 1.0) / np.arange(1, point.shape[-1] + 1)
    last = np.count_nonzero(descending > excess, axis=-1) - 1
    threshold = np.take_along_axis(excess, last[..., None], axis=-1)
    projected: FloatArray = np.maximum(point - threshold, 0.0)
    return projected


def _source(resolved: ResolvedSource) -> Source:
    return Source(name=resolved.name, digest=resolved.digest)


def _scale(genes: FloatArray, bounds: Bounds) -> FloatArray:
    # The clip undoes a last-bit overshoot of the product, which would leave the bounds.
    scaled: FloatArray = np.clip(
        bounds.low + genes * (bounds.high - bounds.low), bounds.low, bounds.high
    )
    return scaled


def _unscale(values: FloatArray, bounds: Bounds) -> FloatArray:
    width = bounds.high - bounds.low
    return (values - bounds.low) / width if width else np.full_like(values, 0.5)
