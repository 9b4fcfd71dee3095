"""lm-eval's tasks, found, checked and described before any model is loaded.

Everything that can be wrong with a task, its metric, its data or its splits is found here, in
one pass, without importing torch. Start at :func:`load_tasks`; what a task may ask for is in
``evaluators.harness_checks``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml
from lm_eval.api.task import Task
from lm_eval.tasks._yaml_loader import load_yaml

from configs.errors import Problem
from configs.evaluation import EvaluationSettings, Objective, TaskSpec
from evaluators.code_eval import sandboxed_code_eval
from evaluators.harness_checks import (
    BUDGETS,
    all_of,
    check_fewshot_count,
    check_kind,
    set_budget,
    try_scorer,
)
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
from evaluators.rng_guard import preserved_rng_state, seed_task
from evaluators.sandbox import select_sandbox

_DEFAULT_BUDGET = 256


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """One task of the job.

    Attributes:
        name: lm-eval's name.
        task: lm-eval's object, its few-shot count set.
        key: What is scored.
        documents: What is scored. Kept, since lm-eval calls ``process_docs`` whenever it is asked
            for them, and one that draws random numbers would answer something else.
        indices: Item id -> position of the item's first copy among the documents.
        definition: Hash of all that fixes what a score means, data files excepted.
        stock: A YAML that gives the stock command this task with the job's examples, budget and
            data: it includes the task's own.
        reference: How the likelihood of reference answers is scored; None where it is not.
    """

    name: str
    task: Task
    key: MetricKey
    documents: Sequence[Mapping[str, object]]
    indices: Mapping[str, int]
    definition: str
    stock: str
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
        given = [kwargs[name] for name in BUDGETS if kwargs.get(name) is not None]
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
    """Load the tasks of all objectives, in their order, and list everything that is wrong.

    Tasks that run programs may do so as soon as their functions are imported, so the sandbox of
    this process is that of ``settings`` from here on.
    """
    select_sandbox(settings.sandbox)
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
    path = files.find(spec.task)
    stock = _task_config(path, settings)
    num_fewshot = _num_fewshot(stock, spec)
    config = with_local_data(stock, settings.data_dir, num_fewshot=num_fewshot)
    has_data_dir = settings.data_dir is not None
    if found := file_problems(config, num_fewshot=num_fewshot, has_data_dir=has_data_dir):
        raise TaskProblemError("", found[0], [("", text) for text in found[1:]])
    task, documents = _build(files, config, spec.task, settings, num_fewshot=num_fewshot)
    task.set_config("num_fewshot", num_fewshot)
    reference, key = all_of(
        lambda: set_budget(task, spec),
        lambda: check_kind(task),
        lambda: check_fewshot_count(stock, spec),
        result=lambda: _what_counts(task, spec, documents),
    )
    indices: dict[str, int] = {}
    for position, document in enumerate(documents):
        indices.setdefault(item_id(document), position)
    definition = _definition(task, stock, spec)
    loaded = LoadedTask(
        *(spec.task, task, key, documents, indices, definition),
        stock=_stock_yaml(path, task, spec, {**dict.fromkeys(stock), **config}, stock),
        reference=reference,
    )
    if reference is None or not reference.is_objective:
        try_scorer(spec.task, task, key, documents[0], columns_of(config))
    return loaded


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


def _build(
    files: TaskFiles,
    config: Mapping[str, Any],
    name: str,
    settings: EvaluationSettings,
    *,
    num_fewshot: int,
) -> tuple[Task, Sequence[Mapping[str, object]]]:
    """Let lm-eval build a task, and return it with the documents that are scored."""
    try:
        # A copy, since lm-eval takes away what it has read.
        built = {**config, "dataset_kwargs": dict(config.get("dataset_kwargs") or {})}
        if config.get("num_fewshot"):
            # Else it warns of examples that nobody asks for.
            built["num_fewshot"] = num_fewshot
        with preserved_rng_state():
            seed_task()
            task = files.manager.load([built])["tasks"][name]
            documents = task.eval_docs
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


def _stock_yaml(
    path: Path, task: Task, spec: TaskSpec, config: Mapping[str, Any], stock: Mapping[str, Any]
) -> str:
    """Write a task as the job has it: ``path`` included, and what differs from it."""
    changed = {key: value for key, value in config.items() if value != stock.get(key)}
    changed["num_fewshot"] = task.config.num_fewshot
    if spec.max_new_tokens is not None:
        changed["generation_kwargs"] = dict(task.config.generation_kwargs or {})
    return yaml.safe_dump({"include": str(path.resolve()), "task": spec.task, **changed})


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
