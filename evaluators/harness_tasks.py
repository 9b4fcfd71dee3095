"""lm-eval's tasks, found, checked and described before any model is loaded.

Everything that can be wrong with a task, its metric, its data or its splits is found here, in
one pass, without importing torch. Start at :func:`load_tasks`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks._yaml_loader import load_yaml

from configs.errors import EvaluationError, Problem, SandboxUnavailableError
from configs.evaluation import EvaluationSettings, Objective, TaskSpec
from evaluators.code_eval import sandboxed_code_eval
from evaluators.harness_data import (
    columns_of,
    file_problems,
    hub_folder,
    scored_split,
    with_local_data,
)
from evaluators.harness_index import TaskFiles
from evaluators.harness_metrics import MEAN, MetricKey, choose_metric
from evaluators.harness_problems import TaskProblemError, cause_of
from evaluators.manifest import item_id
from evaluators.reference import NoReferenceError, Reference, check_references, reference_of

_SUPPORTED = ("generate_until", "multiple_choice", "loglikelihood", "loglikelihood_rolling")
# Keywords of `generate` that change nothing when the most likely token is always taken.
_HARMLESS = frozenset({"until", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"})
_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_BUDGET = 256


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """One task of the job.

    Attributes:
        name: lm-eval's name.
        task: lm-eval's object, its few-shot count set.
        key: What is scored.
        indices: Item id -> position of the item's first copy among the task's documents.
        definition: Hash of all that fixes what a score means, data files excepted.
        reference: How the likelihood of reference answers is scored; None where it is not.
    """

    name: str
    task: Task
    key: MetricKey
    indices: Mapping[str, int]
    definition: str
    reference: Reference | None = None

    @property
    def output_type(self) -> str:
        """``generate_until``, ``multiple_choice``, ``loglikelihood`` or ``..._rolling``.

        What is asked of the model: a task whose references are its score generates nothing.
        """
        if self.reference is not None and self.reference.is_objective:
            return "loglikelihood"
        return str(self.task.OUTPUT_TYPE)

    @property
    def has_companion(self) -> bool:
        """Whether the likelihood of reference answers stands beside the score."""
        return self.reference is not None and not self.reference.is_objective

    @property
    def num_fewshot(self) -> int:
        """Examples in the prompt."""
        return int(self.task.config.num_fewshot or 0)

    @property
    def max_new_tokens(self) -> int:
        """Token budget per item; 0 where nothing is generated."""
        if self.output_type != "generate_until":
            return 0
        kwargs = self.task.config.generation_kwargs or {}
        given = [kwargs[name] for name in _BUDGETS if kwargs.get(name) is not None]
        return int(given[0]) if given else _DEFAULT_BUDGET

    def fewshot_pool(self) -> Sequence[Mapping[str, object]]:
        """Return the documents that examples may be drawn from; empty where none are."""
        sampler = getattr(self.task, "sampler", None)
        if not self.num_fewshot or sampler is None:
            return []
        pool: Sequence[Mapping[str, object]] = sampler.df
        # The only other sampler of lm-eval takes the first documents, one to spare.
        first_only = type(sampler).__name__ == "FirstNSampler"
        return pool[: self.num_fewshot + 1] if first_only else pool


def load_tasks(
    objectives: Mapping[str, Objective], settings: EvaluationSettings
) -> tuple[list[LoadedTask], list[Problem]]:
    """Load the tasks of all objectives, in their order, and list everything that is wrong."""
    problems = [
        Problem(
            "evaluation.include_path",
            f"`{path}` is not a directory; name the directory that holds the task YAMLs",
        )
        for path in settings.include_path
        if not Path(path).is_dir()
    ]
    if settings.data_dir is not None and not Path(settings.data_dir).is_dir():
        problems.append(Problem("evaluation.data_dir", f"`{settings.data_dir}` is not a directory"))
    files = TaskFiles(settings.include_path)
    tasks = []
    for name, objective in objectives.items():
        for spec in objective.lm_eval_tasks:
            try:
                with _quiet_progress():
                    tasks.append(_load_task(files, spec, settings))
            except TaskProblemError as error:
                path = f"objectives.{name}.{spec.task}"
                problems += [
                    Problem(f"{path}.{key}".rstrip("."), message) for key, message in error.problems
                ]
    return tasks, problems


def _load_task(files: TaskFiles, spec: TaskSpec, settings: EvaluationSettings) -> LoadedTask:
    stock = _task_config(files.find(spec.task), settings)
    num_fewshot = _num_fewshot(stock, spec)
    config = with_local_data(stock, settings.data_dir, num_fewshot=num_fewshot)
    has_data_dir = settings.data_dir is not None
    if found := file_problems(config, num_fewshot=num_fewshot, has_data_dir=has_data_dir):
        raise TaskProblemError("", found[0], [("", text) for text in found[1:]])
    task, documents = _build(files, config, spec.task, settings)
    task.set_config("num_fewshot", num_fewshot)
    reference, key = _all_of(
        lambda: _set_budget(task, spec),
        lambda: _check_kind(task),
        lambda: _check_fewshot_count(stock, spec),
        lambda: _what_counts(task, spec, documents),
    )
    indices: dict[str, int] = {}
    for position, document in enumerate(documents):
        indices.setdefault(item_id(document), position)
    loaded = LoadedTask(spec.task, task, key, indices, _definition(task, stock, spec), reference)
    _try_scorer(loaded, documents[0], columns_of(config))
    return loaded


def _all_of(*checks: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the last check gives
    """Run all checks, raise what they found as one, and return what the last one returned."""
    found: list[tuple[str, str]] = []
    result = None
    for check in checks:
        try:
            result = check()
        except TaskProblemError as error:
            found += error.problems
    if found:
        raise TaskProblemError(*found[0], found[1:])
    return result


def _task_config(path: Path, settings: EvaluationSettings) -> dict[str, Any]:
    """Read a task's YAML, its includes merged."""
    try:
        with sandboxed_code_eval():
            config: dict[str, Any] = load_yaml(path, resolve_func=True)
    except ModuleNotFoundError as error:
        raise TaskProblemError("", f"needs a package that is missing: {error}") from error
    except Exception as error:
        raise TaskProblemError("", f"cannot read {path}: {cause_of(error)}") from error
    if config.get("unsafe_code") and not settings.allow_code_execution:
        raise TaskProblemError(
            "",
            "runs generated code; set `evaluation.allow_code_execution: true` if it may, in the "
            "sandbox",
        )
    return config


def _num_fewshot(config: Mapping[str, Any], spec: TaskSpec) -> int:
    own = config.get("num_fewshot")
    return int((own if spec.num_fewshot is None else spec.num_fewshot) or 0)


def _check_fewshot_count(config: Mapping[str, Any], spec: TaskSpec) -> None:
    if spec.num_fewshot and config.get("num_fewshot") == 0:
        raise TaskProblemError(
            "num_fewshot",
            f"the task fixes it to 0, which lm-eval never overrides (got {spec.num_fewshot})",
        )


def _build(
    files: TaskFiles, config: Mapping[str, Any], name: str, settings: EvaluationSettings
) -> tuple[Task, list[Mapping[str, object]]]:
    """Let lm-eval build a task, and return it with the documents that are scored."""
    try:
        # A copy, since lm-eval takes away what it has read.
        built = {**config, "dataset_kwargs": dict(config.get("dataset_kwargs") or {})}
        task = files.manager.load([built])["tasks"][name]
        documents = list(task.eval_docs)
    except Exception as error:  # a task is code of others: anything may come
        hint = columns_of(config)
        folder = hub_folder(config, settings.data_dir) if settings.data_dir else None
        if folder is not None:
            hint = f"; nor has `evaluation.data_dir` its items ({folder} does not exist)"
        if isinstance(error, IndexError):
            hint += f"; are there any items in its split `{scored_split(config)}`?"
        raise TaskProblemError("", f"lm-eval cannot load it: {cause_of(error)}{hint}") from error
    if not documents:
        raise TaskProblemError("", f"its split `{scored_split(config)}` has no items")
    return task, documents


def _check_kind(task: Task) -> None:
    if task.OUTPUT_TYPE not in _SUPPORTED:
        raise TaskProblemError("", f"output type `{task.OUTPUT_TYPE}` is not supported")
    if getattr(task, "MULTIMODAL", False):
        raise TaskProblemError("", "needs images or audio, which are not supported")
    if task.OUTPUT_TYPE != "generate_until":
        return
    kwargs = task.config.generation_kwargs or {}
    if kwargs.get("do_sample") or (
        kwargs.get("do_sample") is None and float(kwargs.get("temperature", 0.0)) > 0
    ):
        raise TaskProblemError(
            "generation_kwargs",
            "draws samples, so equal weights would score differently; set `do_sample: false`",
        )
    unknown = [
        name
        for name, value in kwargs.items()
        if name not in _HARMLESS and name not in _BUDGETS and (name, value) != ("num_beams", 1)
    ]
    if unknown:
        raise TaskProblemError(
            "generation_kwargs",
            f"`{unknown[0]}` is not supported by greedy generation; remove it from the task",
        )


def _what_counts(
    task: Task, spec: TaskSpec, documents: Sequence[Mapping[str, object]]
) -> tuple[Reference | None, MetricKey]:
    """Choose the metric, be it one of the task or the likelihood of its reference answers."""
    reference = _references(task, spec, documents)
    if reference is not None and reference.is_objective:
        return reference, MetricKey(reference.metric, "none", reference.sign, MEAN)
    return reference, choose_metric(task, spec.metric)


def _references(
    task: Task, spec: TaskSpec, documents: Sequence[Mapping[str, object]]
) -> Reference | None:
    """Say how the job wants reference answers scored, once every item is known to have one."""
    try:
        reference = reference_of(spec, str(task.OUTPUT_TYPE))
        if reference is not None:
            check_references(task, reference, documents)
    except NoReferenceError as error:
        raise TaskProblemError(error.key, str(error)) from error
    return reference


def _set_budget(task: Task, spec: TaskSpec) -> None:
    """Replace the task's token budget by the job's, as ``--gen_kwargs max_gen_toks=N`` does."""
    if spec.max_new_tokens is None:
        return
    if task.OUTPUT_TYPE != "generate_until":
        raise TaskProblemError(
            "max_new_tokens", f"nothing is generated by a task of type `{task.OUTPUT_TYPE}`"
        )
    kwargs = task.config.generation_kwargs or {}
    others = {name: value for name, value in kwargs.items() if name not in _BUDGETS}
    task.set_config("generation_kwargs", {**others, "max_gen_toks": spec.max_new_tokens})


def _try_scorer(loaded: LoadedTask, document: Mapping[str, object], columns: str) -> None:
    """Score the reference answer of one item: a scorer that cannot is broken for all of them.

    Tasks that run programs are left out: their references are asserts.
    """
    task, reference = loaded.task, loaded.reference
    if reference is not None and reference.is_objective:
        return
    if task.config.unsafe_code or not isinstance(task, ConfigurableTask):
        return
    try:
        target = task.doc_to_target(copy.deepcopy(document))
        built = task.construct_requests(
            doc=copy.deepcopy(document),
            ctx=[""] * task.multiple_input if task.multiple_input else "",
            metadata=(loaded.name, 0, 1),
            apply_chat_template=False,
            chat_template=None,
        )
        instances = built if isinstance(built, list) else [built]
        for number, instance in enumerate(instances):
            instance.resps = [_reference(instance.request_type, target, number)]
        for ensemble in task._filters:
            if ensemble.name == loaded.key.filter:
                ensemble.apply(instances)
        responses = [instance.filtered_resps[loaded.key.filter] for instance in instances]
        results = task.process_results(copy.deepcopy(document), responses)
        loaded.key.item_score(results, f"{loaded.key} of its first item")
    except SandboxUnavailableError:
        return
    except EvaluationError as error:
        raise TaskProblemError("metric", error.message) from error
    except Exception as error:  # a scorer is code of others: anything may come
        raise TaskProblemError(
            "", f"its scorer fails on the first item: {cause_of(error)}{columns}"
        ) from error


def _reference(request_type: str, target: object, number: int) -> object:
    """Return a response of a perfect model, by the kind of the request."""
    if request_type == "generate_until":
        return str(target[0] if isinstance(target, list) and target else target)
    return -1.0 - number if request_type == "loglikelihood_rolling" else (-1.0 - number, True)


def _definition(task: Task, config: Mapping[str, Any], spec: TaskSpec) -> str:
    """Hash what fixes a task's prompts and scores: 16 hexadecimal digits.

    A function counts by the source of its whole module. Where the data files are does not
    count, nor that they take the place of a dataset of the hub: items carry the hash of their
    own content.
    """
    content = {key: value for key, value in config.items() if key != "metadata"}
    arguments = content.get("dataset_kwargs") or {}
    content["dataset_kwargs"] = {k: v for k, v in arguments.items() if k != "data_files"}
    content["num_fewshot"] = task.config.num_fewshot
    if spec.max_new_tokens is not None:
        content["max_new_tokens"] = spec.max_new_tokens
    text = json.dumps(content, sort_keys=True, default=_source_of)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source_of(value: object) -> str:
    if isinstance(value, functools.partial):
        return repr((_source_of(value.func), value.args, sorted(value.keywords.items())))
    module = inspect.getmodule(value)
    try:
        source = inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        source = ""
    # A plain `str` of a function would hold its address, another one in every process.
    name = getattr(value, "__qualname__", None)
    return f"{name}\n{source}" if name else str(value)


@contextmanager
def _quiet_progress() -> Iterator[None]:
    """Hide the progress bars of `datasets`: these files are small and the screen is ours."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
