"""lm-eval's tasks, found, checked and described before any model is loaded.

Everything that can be wrong with a task, its metric, its data or its splits is found here, in
one pass, without importing torch. Start at :func:`load_tasks`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from configs.errors import Problem
from configs.schema import EvaluationSettings, Objective, TaskSpec
from evaluators.code_eval import sandboxed_code_eval
from evaluators.manifest import item_id

_SUPPORTED = ("generate_until", "multiple_choice", "loglikelihood", "loglikelihood_rolling")
_MEANS: tuple[object, ...] = (mean, np.mean)
# Keywords of `generate` that change nothing when the most likely token is always taken.
_HARMLESS = frozenset({"until", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"})
_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_BUDGET = 256

log = logging.getLogger(__name__)


class TaskProblemError(Exception):
    """Carries what is wrong with one task to the place that lists all problems."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


@dataclass(frozen=True, slots=True)
class MetricKey:
    """A metric as lm-eval prints it, and its direction.

    ``sign`` is 1 where higher is better and -1 where lower is better, by which every item's
    value is multiplied.
    """

    metric: str
    filter: str
    sign: int

    def __str__(self) -> str:
        return f"{self.metric},{self.filter}"


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """One task of the job.

    Attributes:
        name: lm-eval's name.
        task: lm-eval's object, its few-shot count set.
        key: What is scored.
        indices: Item id -> position of the item's first copy among the task's documents.
        definition: Hash of all that fixes what a score means, data files excepted.
    """

    name: str
    task: Task
    key: MetricKey
    indices: Mapping[str, int]
    definition: str

    @property
    def output_type(self) -> str:
        """``generate_until``, ``multiple_choice``, ``loglikelihood`` or ``..._rolling``."""
        return str(self.task.OUTPUT_TYPE)

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
    specs = [
        (f"objectives.{name}.{spec.task}", spec)
        for name, objective in objectives.items()
        for spec in objective.lm_eval_tasks
    ]
    manager = _task_manager({spec.task for _, spec in specs}, settings)
    tasks = []
    for path, spec in specs:
        try:
            with _quiet_progress():
                tasks.append(_load_task(manager, spec, settings))
        except TaskProblemError as problem:
            problems.append(Problem(f"{path}.{problem.key}".rstrip("."), problem.message))
    return tasks, problems


def _task_manager(names: set[str], settings: EvaluationSettings) -> TaskManager:
    """Index the job's own tasks (2 ms), and lm-eval's (7 to 9 s) only where those are wanted."""
    if settings.include_path:
        own = TaskManager(include_path=list(settings.include_path), include_defaults=False)
        if names <= own.task_index.keys():
            return own
    return TaskManager(include_path=list(settings.include_path) or None)


def _load_task(manager: TaskManager, spec: TaskSpec, settings: EvaluationSettings) -> LoadedTask:
    config = _task_config(manager, spec.task, settings)
    try:
        task = manager.load([config])["tasks"][spec.task]
        documents = list(task.eval_docs)
    except Exception as error:  # a task is code of others: anything may come
        raise TaskProblemError("", f"lm-eval cannot load it: {_cause(error)}") from error
    _check_kind(task)
    _set_fewshot(task, spec)
    key = _metric_key(task, spec)
    indices: dict[str, int] = {}
    for position, document in enumerate(documents):
        indices.setdefault(item_id(document), position)
    return LoadedTask(spec.task, task, key, indices, _definition(task, config))


def _task_config(manager: TaskManager, name: str, settings: EvaluationSettings) -> dict[str, Any]:
    """Read a task's YAML, its includes merged and its data files found."""
    entry = manager.task_index.get(name)
    if entry is None:
        raise TaskProblemError("", f"there is no such task{_did_you_mean(name, manager)}")
    if entry.kind not in (Kind.TASK, Kind.PY_TASK) or entry.yaml_path is None:
        members = sorted(entry.tags or manager.match_tasks([f"{name}_*"]))
        shown = ", ".join(f"`{member}`" for member in members[:4]) + ", ..." * (len(members) > 4)
        raise TaskProblemError("", f"is a group of tasks; name its tasks one by one ({shown})")
    try:
        with sandboxed_code_eval():
            config: dict[str, Any] = load_yaml(entry.yaml_path, resolve_func=True)
    except Exception as error:
        raise TaskProblemError("", f"cannot read {entry.yaml_path}: {_cause(error)}") from error
    if config.get("unsafe_code") and not settings.allow_code_execution:
        raise TaskProblemError(
            "",
            "runs generated code; set `evaluation.allow_code_execution: true` if it may, in the "
            "sandbox",
        )
    if settings.data_dir is not None and "data_files" in (config.get("dataset_kwargs") or {}):
        config["dataset_kwargs"] = {
            **config["dataset_kwargs"],
            "data_files": _resolved(config["dataset_kwargs"]["data_files"], settings.data_dir),
        }
    _check_data_files((config.get("dataset_kwargs") or {}).get("data_files"), settings)
    return config


def _resolved(data_files: object, directory: str) -> object:
    """Make the relative local paths of a ``data_files`` value absolute, whatever its shape."""
    if isinstance(data_files, dict):
        return {split: _resolved(files, directory) for split, files in data_files.items()}
    if isinstance(data_files, list):
        return [_resolved(files, directory) for files in data_files]
    if "://" in str(data_files):
        return data_files
    return str((Path(directory) / str(data_files)).resolve())


def _check_data_files(data_files: object, settings: EvaluationSettings) -> None:
    for path in _flat(data_files):
        if "://" in path or any(sign in path for sign in "*?[") or Path(path).is_file():
            continue
        where = "`evaluation.data_dir`" if settings.data_dir else "the working directory"
        raise TaskProblemError(
            "",
            f"its data file {path} does not exist; relative paths are looked up in {where}",
        )


def _flat(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _flat(part)
    elif value is not None:
        yield str(value)


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


def _set_fewshot(task: Task, spec: TaskSpec) -> None:
    own = task.config.num_fewshot
    if spec.num_fewshot is not None and spec.num_fewshot != own:
        if own == 0:
            raise TaskProblemError(
                "num_fewshot",
                f"the task fixes it to 0, which lm-eval never overrides (got {spec.num_fewshot})",
            )
        task.set_config("num_fewshot", spec.num_fewshot)
    elif own is None:
        task.set_config("num_fewshot", 0)


def _metric_key(task: Task, spec: TaskSpec) -> MetricKey:
    """Choose metric and filter, or say what there is."""
    aggregations = _aggregations(task)
    usable = {name: function for name, function in aggregations.items() if function in _MEANS}
    filters = [ensemble.name for ensemble in task._filters]
    metric, _, filter_name = (spec.metric or "").partition(",")
    choices = [f"{name},{filter_}" for name in usable for filter_ in filters]
    listed = ", ".join(f"`{choice}`" for choice in choices) or "none"
    if not metric:
        if len(choices) == 1:
            metric = next(iter(usable))
        else:
            raise TaskProblemError("metric", f"has several metrics, choose one of {listed}")
    if metric not in aggregations:
        near = difflib.get_close_matches(metric, list(aggregations), n=1)
        hint = f"did you mean `{near[0]}`? There is {listed}" if near else f"there is {listed}"
        raise TaskProblemError("metric", f"there is no `{metric}`; {hint}")
    if metric not in usable:
        raise TaskProblemError(
            "metric",
            f"`{metric}` is not a mean over items but {_name_of(aggregations[metric])} of all of "
            f"them, so it has no score per item; use one of {listed}",
        )
    if not filter_name and len(filters) == 1:
        filter_name = filters[0]
    if filter_name not in filters:
        named = ", ".join(f"`{metric},{filter_}`" for filter_ in filters)
        what = f"there is no filter `{filter_name}`" if filter_name else "has several filters"
        raise TaskProblemError("metric", f"{what}; choose one of {named}")
    higher = task.higher_is_better().get(metric, True)
    return MetricKey(metric, filter_name, 1 if higher else -1)


def _aggregations(task: Task) -> dict[str, Callable[..., object]]:
    """Return metric -> aggregation, with `pass@k` for the functions that report it."""
    found: dict[str, Callable[..., object]] = dict(task.aggregation())
    for entry in task.config.metric_list or []:
        name = entry["metric"] if isinstance(entry["metric"], str) else entry["metric"].__name__
        if name in found and "k" in entry:
            counts = entry["k"] if isinstance(entry["k"], list) else [entry["k"]]
            function = found.pop(name)
            found.update({f"pass@{k}": function for k in counts})
    return found


def _definition(task: Task, config: Mapping[str, Any]) -> str:
    """Hash what fixes a task's prompts and scores: 16 hexadecimal digits.

    A function counts by the source of its whole module. Where the data files are does not
    count: items carry the hash of their own content.
    """
    content = {key: value for key, value in config.items() if key != "metadata"}
    arguments = content.get("dataset_kwargs") or {}
    content["dataset_kwargs"] = {k: v for k, v in arguments.items() if k != "data_files"}
    content["num_fewshot"] = task.config.num_fewshot
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


def _did_you_mean(name: str, manager: TaskManager) -> str:
    near = difflib.get_close_matches(name, manager.all_subtasks, n=3)
    if near:
        return "; did you mean " + " or ".join(f"`{match}`" for match in near) + "?"
    return "; add the directory of its YAML to `evaluation.include_path`"


def _name_of(function: object) -> str:
    return f"`{getattr(function, '__name__', type(function).__name__)}`"


def _cause(error: BaseException) -> str:
    """Say an error in one line; its type matters where the text is a bare key."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


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
