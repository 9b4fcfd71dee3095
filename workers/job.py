"""One evaluation from recipe to outcome: the model stays, its weights change (D6).

A worker builds one ``JobRunner`` and calls ``run`` for every candidate. There is no Ray in here:
``workers.pool.LocalPool`` runs it in this process, ``workers.ray_pool.RayPool`` in several.
Torch and transformers are imported only when a runner is built.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import CheckpointError
from configs.schema import DtypeName, JobConfig
from configs.worker_settings import WorkerSettings
from workers.outcome import Completed, EvaluationRequest, Failed, Outcome, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from evaluators.evaluator import Evaluation, LiveModel
    from evaluators.manifest import Manifest
    from workers.pool import EvaluationRunner
    from workers.sources import Sources

logger = logging.getLogger(__name__)

# Processes that score beside a GPU: fewer wait for slow programs, more take memory for little.
_LEAST_SCORING = 2
_MOST_SCORING = 8


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything that a worker is made from; picklable, and the same for all workers.

    The manifest says which items belong to a split, so a request only has to name the split.
    ``search`` is the id of the search in logs; empty where there is none.
    """

    job: JobConfig
    sources: "Sources"
    manifest: "Manifest"
    search: str = ""


RunnerFactory = Callable[[WorkerSpec, str], "EvaluationRunner"]
"""Builds what runs in a worker from its spec and the worker's name, inside the worker's process.

Anything that can be pickled by name: ``JobRunner`` for a search, something light for a test.
"""


class JobRunner:
    """Holds one live model and scores one candidate after another in it.

    Loads the model skeleton, tokenizer, tasks and requests once. The model is that of the base,
    or of the first checkpoint where the job has no base; what a recipe merges is overwritten
    for every candidate, whole, so a candidate never sees anything of the one before it. Only
    where a request brings the recipe that the model holds already, the next block of a race, is
    there nothing to write.

    Args:
        spec: Job, resolved checkpoints and item manifest.
        worker: Name of this worker, for outcomes.

    Raises:
        CheckpointError: The model or its tokenizer cannot be loaded.
        ConfigError: A task of the job cannot be built here, or the checkpoints cannot be kept
            where ``workers.residency`` says.
        EvaluationError: A task is not the one that the manifest was made from.
    """

    def __init__(self, spec: WorkerSpec, worker: str) -> None:
        import torch

        from evaluators.job_evaluator import JobEvaluator
        from workers.materialize import Materializer

        torch.set_num_threads(spec.job.workers.threads)
        self.worker = worker
        self._spec = spec
        self._live = load_live_model(spec, spec.job.merge.dtype)
        workers = spec.job.workers
        self._materializer = Materializer(
            spec.sources, residency=workers.residency, gpu_share=min(workers.gpus, 1)
        )
        self._materializer.place(self._live.model)
        evaluator = JobEvaluator(
            spec.job.objectives,
            spec.job.evaluation,
            spec.manifest,
            scoring_processes=scoring_processes(spec.job.workers),
        )
        evaluator.prepare(self._live, "search")
        self._evaluator = evaluator
        self._is_loaded = True
        # Id of the recipe whose tensors the model holds, and their digest.
        self._held: tuple[str, str] | None = None

    def run(self, request: EvaluationRequest, attempt: int = 1) -> Outcome:
        """Materialize a recipe, score it on its split or block, and say what came of it.

        Never raises for the candidate's own failure: whatever goes wrong between recipe and
        scores is a ``Failed`` outcome with its stage, class and message.

        Args:
            request: Candidate, split, recipe, and the items if not all of the split.
            attempt: Counts from 1; copied into the outcome.
        """
        clock = _Clock()
        stage = Stage.MATERIALIZE
        try:
            weights_digest = self._materialize(request, clock)
            stage = Stage.EVALUATE
            evaluation = self._evaluate(request, clock)
        except Exception as error:  # noqa: BLE001 - failure is data (D9)
            failure = failure_of(
                error, request, attempt, worker=self.worker, stage=stage, seconds=clock.seconds
            )
        else:
            self._held = request.recipe.recipe_id, weights_digest
            return Completed(
                key=request.key,
                attempt=attempt,
                worker=self.worker,
                weights_digest=weights_digest,
                task_scores=evaluation.task_scores,
                texts=evaluation.texts,
                companions=evaluation.companions,
                seconds=clock.seconds,
            )
        self._held = None
        # Only here, after the except clause, is the traceback gone that kept tensors alive.
        _release_device_memory()
        return failure

    def _materialize(self, request: EvaluationRequest, clock: "_Clock") -> str:
        recipe = request.recipe
        if self._held is not None and self._held[0] == recipe.recipe_id:
            return self._held[1]
        self._held = None
        with clock.measure("materialize"):
            if not self._is_loaded or dtype_name(self._live) != recipe.dtype:
                self._load_in(recipe.dtype)
            self._materializer.into(self._live.model, recipe)
        with clock.measure("digest"):
            return self._materializer.digest_of(self._live.model)

    def _load_in(self, dtype: DtypeName) -> None:
        """Load the model in another data type; the one before is gone by then."""
        self._evaluator.release()
        self._materializer.release()
        if self._is_loaded:
            self._is_loaded = False
            del self._live.model
        self._live.model = load_live_model(self._spec, dtype).model
        self._is_loaded = True

    def close(self) -> None:
        """End the processes that score, and their sandboxes; a later run starts them again."""
        self._evaluator.close()

    def _evaluate(self, request: EvaluationRequest, clock: "_Clock") -> "Evaluation":
        items, beside = request.items, request.companions
        if items is None:
            items = self._spec.manifest.items(request.key.split)
        if request.key.signal == "companions":
            items, beside = {}, items
        with clock.measure("evaluate"):
            evaluation = self._evaluator.evaluate(self._live, items, beside)
        # The evaluator knows better than a clock around it where the time went.
        if evaluation.seconds:
            del clock.seconds["evaluate"]
            clock.seconds.update(evaluation.seconds)
        return evaluation


def scoring_processes(settings: WorkerSettings) -> int:
    """Return how many processes score beside a worker's model."""
    if settings.scoring_processes is not None:
        return settings.scoring_processes
    if settings.device != "cuda":
        return 0
    # One core feeds the accelerator; the others that are reserved would have nothing to do.
    return min(_MOST_SCORING, max(_LEAST_SCORING, int(settings.cpus) - 1))


class _Clock:
    """Wall seconds by stage; a stage that fails is measured too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - start


def failure_of(
    error: BaseException,
    request: EvaluationRequest,
    attempt: int,
    *,
    worker: str,
    stage: Stage,
    seconds: Mapping[str, float] | None = None,
) -> Failed:
    """Turn what a candidate raised into its outcome, and log where it came from."""
    logger.warning(
        "candidate %d failed on %s at %s (attempt %d, worker %s)",
        request.key.candidate,
        request.key.split,
        stage,
        attempt,
        worker,
        exc_info=error,
        extra={
            "candidate": request.key.candidate,
            "split": request.key.split,
            "attempt": attempt,
            "worker": worker,
        },
    )
    return Failed(
        key=request.key,
        attempt=attempt,
        worker=worker,
        stage=stage,
        error_class=type(error).__name__,
        message=str(error) or "no message",
        seconds=dict(seconds or {}),
    )


def load_live_model(
    spec: WorkerSpec, dtype: DtypeName | None, *, config: "PreTrainedConfig | None" = None
) -> "LiveModel":
    """Load the model and tokenizer that recipes are written into.

    The class is the one that config.json names: a causal language model, or an encoder. Where
    the job merges vocabularies of different lengths, the model is resized, and tokenizer and
    generation settings are those that an export has.

    Args:
        spec: Names the device, and the directory: that of the base or the first checkpoint.
        dtype: Data type of all parameters; None is the one that the checkpoint declares.
        config: What to build instead of what ``config.json`` says, such as fewer layers.

    Returns:
        The model in eval mode, without gradients, on the job's device or spread over its GPUs.

    Raises:
        CheckpointError: Transformers cannot load the model or the tokenizer.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from evaluators.evaluator import LiveModel
    from workers.architecture import architecture_of, model_class
    from workers.checkpoint import CheckpointReader
    from workers.vocabulary import companion, decide_vocabulary, fit_live_model

    disable_progress_bar()
    directory = spec.sources.reference.directory
    vocabulary = decide_vocabulary(spec.sources, spec.job.models.vocabulary)
    home = companion(spec.sources, vocabulary).directory
    with CheckpointReader(directory) as reader:
        content = reader.config
    workers = spec.job.workers
    # Of several GPUs each gets some of the layers, by accelerate.
    spread = {"device_map": "auto"} if workers.device == "cuda" and workers.gpus > 1 else {}
    try:
        model: PreTrainedModel = model_class(content).from_pretrained(
            directory,
            **spread,
            **({} if config is None else {"config": config}),
            dtype="auto" if dtype is None else getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
        tokenizer = _load_tokenizer(home)
    except (OSError, ValueError, KeyError) as error:
        kind = architecture_of(content) or "a causal language model"
        raise _loading_error(directory, kind, error) from error
    if vocabulary is not None:
        fit_live_model(model, directory, home, vocabulary)
    if not spread:
        torch.nn.Module.to(model, torch.device(workers.device))
    model.requires_grad_(requires_grad=False)
    model.train(mode=False)
    return LiveModel(model=model, tokenizer=tokenizer)


def _load_tokenizer(home: "Path") -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        home, trust_remote_code=False, local_files_only=True
    )
    return tokenizer


def _loading_error(directory: "Path", kind: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{directory}: cannot be loaded as {kind}: {error}. Check config.json and the tokenizer "
        "files there",
        directory=str(directory),
    )


def load_skeleton(spec: WorkerSpec) -> "LiveModel":
    """Load what :func:`load_live_model` does, but for the weights: of a causal model, in no time.

    Args:
        spec: As for :func:`load_live_model`.

    Returns:
        A model whose parameters have shapes and no values, with its config and generation
        settings, and the tokenizer.

    Raises:
        CheckpointError: Transformers cannot load the config or the tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from evaluators.evaluator import LiveModel
    from workers.vocabulary import companion, decide_vocabulary

    directory = spec.sources.reference.directory
    vocabulary = decide_vocabulary(spec.sources, spec.job.models.vocabulary)
    home = companion(spec.sources, vocabulary).directory
    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        if (home / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(home)
        tokenizer = _load_tokenizer(home)
    except (OSError, ValueError, KeyError) as error:
        raise _loading_error(directory, "a causal language model", error) from error
    model.train(mode=False)
    return LiveModel(model=model, tokenizer=tokenizer)


def dtype_name(live: "LiveModel") -> str:
    """Name of the data type of a live model's parameters, as recipes spell it."""
    return str(live.model.dtype).removeprefix("torch.")


def _release_device_memory() -> None:
    import torch

    # Does nothing where CUDA was never used.
    torch.cuda.empty_cache()
