"""What a worker would do first, done before one starts: what raises, raises here.

Prompts of lm-eval's tasks are built without weights. A job's own scorers are tried on a few items:
a model of up to :data:`WHOLE_BYTES` whole, a larger one with its first layers only, on the CPU in
either case.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from configs.errors import CheckpointError, ConfigError, EvaluationError, Problem
from configs.schema import JobConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from evaluators.evaluator import LiveModel
    from evaluators.scorer_suite import LoadedScorer
    from evaluators.suite import JobSuite
    from workers.compat import PoolReport
    from workers.sources import Sources

NUM_ITEMS = 16
"""Items per scorer, or a few more where items have different keys."""

WHOLE_BYTES = 1_000_000_000
"""Size up to which a model is loaded whole: a second or two to load, and some to score."""

NUM_LAYERS = 2
"""Layers that are left of a larger model."""


def try_prompts(job: JobConfig, sources: "Sources", suite: "JobSuite") -> None:
    """Build the prompts of all items of lm-eval's tasks, as workers will for every candidate.

    Args:
        job: The job.
        sources: Config and tokenizer are those of the base, or of the first checkpoint.
        suite: The loaded tasks.

    Raises:
        ConfigError: Every task with an item that cannot be asked of this model.
        CheckpointError: The config or the tokenizer cannot be loaded.
        EvaluationError: The tokenizer lacks a chat template that the job asks for, or the model's
            generation settings ask for what is not implemented.
    """
    if suite.lm_eval is None:
        return
    from evaluators.harness import prompt_problems
    from workers.job import WorkerSpec, load_skeleton

    live = load_skeleton(WorkerSpec(job, sources, suite.manifest))
    if problems := prompt_problems(suite.lm_eval, live):
        raise ConfigError("the tasks cannot be asked of these models", problems)


def try_scorers(
    job: JobConfig, sources: "Sources", suite: "JobSuite", pool: "PoolReport"
) -> list[str]:
    """Score a few items with the base model, by every scorer of the job that allows it.

    Args:
        job: The job; scorers with ``dry_run: false`` are left out.
        sources: The base, or the first checkpoint, is tried.
        suite: The loaded scorers, and their items.
        pool: Says how large the model is, and which dtype merges have. Where only headers were
            read, nothing is tried.

    Returns:
        Warnings: what could not be tried.

    Raises:
        ConfigError: Every scorer that raises or does not return a finite number per item.
        CheckpointError: The model or its tokenizer cannot be loaded.
    """
    tried = [scorer for scorer in suite.scorers.values() if scorer.spec.dry_run]
    if not tried:
        return []
    if pool.headers_only:
        return ["no scorer was tried: --headers-only reads no weights"]
    live, shown = _load(job, sources, suite, pool)
    if live is None:
        return [f"no scorer was tried: {shown}; the first worker will show whether they work"]
    problems = [
        Problem(scorer.path, f"{found} (tried on {shown}; `dry_run: false` skips this)")
        for scorer in tried
        if (found := _problem_of(job, suite, scorer, live))
    ]
    if problems:
        raise ConfigError("the job's own scorers do not work", problems)
    return []


def _problem_of(
    job: JobConfig, suite: "JobSuite", scorer: "LoadedScorer", live: "LiveModel"
) -> str:
    from evaluators.python_scorer import ScorerEvaluator

    evaluator = ScorerEvaluator([scorer], batch_size=job.evaluation.batch_size)
    task = scorer.spec.task
    try:
        evaluator.evaluate(live, {task: _some_items(scorer, suite.manifest.items("search")[task])})
    except (EvaluationError, RuntimeError) as error:  # out of memory, too
        return str(error)
    return ""


def _some_items(scorer: "LoadedScorer", ids: Sequence[str]) -> list[str]:
    """Return the first items, and the first of every set of keys: a key may lack in a few."""
    chosen = dict.fromkeys(ids[:NUM_ITEMS])
    seen = {frozenset(scorer.items[item]) for item in chosen}
    for item in scorer.items:
        keys = frozenset(scorer.items[item])
        if keys not in seen:
            seen.add(keys)
            chosen[item] = None
    return list(chosen)


def _load(
    job: JobConfig, sources: "Sources", suite: "JobSuite", pool: "PoolReport"
) -> tuple["LiveModel | None", str]:
    """Load the base, or its first layers; returns it and what to call it, or why there is none."""
    from workers.job import WorkerSpec, load_live_model

    workers = job.workers.model_copy(update={"device": "cpu", "gpus": 0.0, "residency": "auto"})
    spec = WorkerSpec(job.model_copy(update={"workers": workers}), sources, suite.manifest)
    name = f"`{sources.reference.name}`"
    if pool.bytes_written <= WHOLE_BYTES:
        return load_live_model(spec, pool.dtype), name
    config, layers = _cut_config(sources)
    if config is None:
        return None, f"{name} is large, and its config does not say how many layers it has"
    try:
        with _quiet_loading():
            live = load_live_model(spec, pool.dtype, config=config)
    except (CheckpointError, RuntimeError, AttributeError) as error:
        return None, f"{name} cannot be loaded with fewer layers: {error}"
    return live, f"the first {NUM_LAYERS} of {layers} layers of {name}"


def _cut_config(sources: "Sources") -> tuple["PreTrainedConfig | None", int]:
    """Return the config of a model with its first layers only, and how many there are in all."""
    from transformers import AutoConfig

    directory = sources.reference.directory
    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{directory}: its config cannot be read: {error}", path=str(directory)
        ) from error
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return None, 0
    # What is said per layer, such as `layer_types`, must stay as long as there are layers.
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, key, value[:NUM_LAYERS])
    text.num_hidden_layers = min(layers, NUM_LAYERS)
    return config, layers


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hide the list of weights that are left out on purpose."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)
