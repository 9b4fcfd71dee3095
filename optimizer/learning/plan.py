"""Everything that is checked before a merge is learned, at once and before a model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.errors import CheckpointError, ConfigError
from configs.schema import JobConfig
from optimizer.learning.data import Origin, Texts, assign_data, gather_texts
from optimizer.learning.settings import Settings, settings_of
from optimizer.preflight.checks import Checks
from optimizer.preflight.estimate import format_bytes
from optimizer.preflight.preflight import announce_digests
from optimizer.space import SearchSpace, check_method
from workers.architecture import architecture_of
from workers.checkpoint import CheckpointReader
from workers.checkpoint_writer import refuse_used
from workers.compat import PoolReport, check_compatible
from workers.hardware import find_gpus, find_memory
from workers.learning.predictions import classifies, has_predictions
from workers.sources import Sources, resolve_sources

DEFAULT_MAX_TOKENS = 256
"""Tokens of a text that are learned from; of longer prompts the end."""


@dataclass(frozen=True, slots=True)
class LearningPlan:
    """A merge that can be learned.

    Attributes:
        job: Names the models and objectives.
        settings: What is learned, and how.
        sources: The checkpoints, found.
        pool: What merging them means.
        space: Where the job's recipes are made.
        origins: Checkpoint -> where its texts come from.
        texts: What is learned from.
        out_dir: Where the merge goes.
    """

    job: JobConfig
    settings: Settings
    sources: Sources
    pool: PoolReport
    space: SearchSpace
    origins: Mapping[str, Sequence[Origin]]
    texts: Texts
    out_dir: Path


def plan_learning(
    job: JobConfig,
    method: str,
    out_dir: Path,
    *,
    options: Mapping[str, object],
    data: Sequence[str] = (),
    max_tokens: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> LearningPlan:
    """Check all that can be checked without weights in memory, and gather the texts.

    Args:
        job: The job; its archive is not looked at.
        method: ``dam`` or ``adamerging``.
        out_dir: Must not exist, or be an empty directory.
        options: Of the method; None is not given.
        data: ``CHECKPOINT=OBJECTIVE_OR_FILE`` each.
        max_tokens: Most tokens per text; None is :data:`DEFAULT_MAX_TOKENS`.
        announce: Called with a sentence before something that takes long.

    Raises:
        ConfigError: The job or the command line cannot be used, with every reason.
        CheckpointError: Models are missing, damaged, do not fit together or predict nothing; the
            directory exists.
        EvaluationError: Prompts cannot be built.
    """
    from evaluators.suite import JobSuite

    checks = Checks()
    out_dir = out_dir.expanduser().absolute()
    settings = checks.attempt(lambda: settings_of(method, _seeded(job, options)))
    checks.attempt(lambda: refuse_used(out_dir))
    checks.attempt(lambda: _check_max_tokens(max_tokens))
    origins = checks.attempt(lambda: assign_data(job, data))
    checks.attempt(lambda: _check_device(job))
    checks.attempt(lambda: check_method(job))
    checks.attempt(lambda: _check_base(job, method))
    sources = checks.attempt(lambda: resolve_sources(job.models, with_digests=False))
    if sources is not None:
        announce_digests(sources, announce)
        sources = checks.attempt(lambda: resolve_sources(job.models))
    pool = None
    if sources is not None:
        policy = job.models.vocabulary
        pool = checks.attempt(lambda: check_compatible(sources, job.merge, policy))
        checks.attempt(lambda: _check_architecture(sources, method))
    if pool is not None:
        checks.attempt(partial(_check_memory, job, pool))
    suite = checks.attempt(lambda: JobSuite(job.objectives, job.evaluation))
    if (
        checks.errors
        or sources is None
        or pool is None
        or suite is None
        or settings is None
        or origins is None
    ):
        raise checks.error()
    texts = gather_texts(
        *(job, sources, pool.vocabulary, suite, origins),
        max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
    )
    space = SearchSpace(job, sources, dtype=pool.dtype, vocabulary=pool.vocabulary)
    return LearningPlan(job, settings, sources, pool, space, origins, texts, out_dir)


def _seeded(job: JobConfig, options: Mapping[str, object]) -> dict[str, object]:
    given = {name: value for name, value in options.items() if value is not None}
    return {"seed": job.seed} | given


def _check_max_tokens(max_tokens: int | None) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError.single("--max-tokens", f"must be at least 1, found {max_tokens}")


def _check_device(job: JobConfig) -> None:
    if job.workers.device == "cuda" and not find_gpus():
        raise ConfigError.single(
            "workers.device",
            "is `cuda`, but torch finds no CUDA device here, where merges are learned, also of a "
            "job for a cluster; add `--set workers.device=cpu`, or learn where there is a GPU",
        )


def _check_base(job: JobConfig, method: str) -> None:
    if method == "adamerging" and job.models.base is None:
        raise ConfigError.single(
            "models.base", "`adamerging` learns weights of task vectors; name the base, or take dam"
        )


def _check_architecture(sources: Sources, method: str) -> None:
    directory = sources.reference.directory
    with CheckpointReader(directory) as reader:
        config = reader.config
    if method == "adamerging":
        fits, wanted = classifies(config), "a head that classifies texts"
    else:
        fits, wanted = has_predictions(config), "a head that predicts tokens or classes"
    if not fits:
        raise CheckpointError(
            f"{directory}: `{architecture_of(config)}` gives no predictions that `{method}` could "
            f"learn from; use causal language models, or encoders with {wanted}",
            path=str(directory),
        )


def _check_memory(job: JobConfig, pool: PoolReport) -> None:
    """Refuse a model that does not fit in float32."""
    gpus = find_gpus() if job.workers.device == "cuda" else ()
    room = sum(gpu.memory_bytes for gpu in gpus[: max(1, int(job.workers.gpus))])
    room, where = (room, "GPU memory") if gpus else (find_memory()[0], "memory")
    needed = 4 * pool.num_parameters
    if needed > room:
        raise ConfigError.single(
            "models",
            f"learning holds the merge in float32: {format_bytes(needed)} and more for forward and "
            f"backward passes; there are {format_bytes(room)} of {where}",
        )
