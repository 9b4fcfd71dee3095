"""The lm-eval tasks of a job, loaded and split into items: all that needs no model and no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from configs.errors import ConfigError, Problem
from configs.evaluation import SPLITS, EvaluationSettings, Objective, SplitName
from evaluators.evaluator import TaskDescription
from evaluators.harness_tasks import LoadedTask, load_tasks
from evaluators.manifest import Manifest, item_id, split_items
from evaluators.rng_guard import preserved_rng_state
from evaluators.scores import Items


class Suite:
    """The loaded lm-eval tasks of a job, and their manifest; ``evaluators.suite`` has all of it.

    Args:
        objectives: The job's objectives.
        settings: The job's evaluation settings.

    Raises:
        ConfigError: Everything that is wrong with tasks, metrics, data and splits.
    """

    def __init__(self, objectives: Mapping[str, Objective], settings: EvaluationSettings) -> None:
        self.settings = settings
        self._objective_of = {
            spec.task: name
            for name, objective in objectives.items()
            for spec in objective.lm_eval_tasks
        }
        with preserved_rng_state():
            loaded, problems = load_tasks(objectives, settings)
        self.tasks = {task.name: task for task in loaded}
        splits: dict[SplitName, dict[str, tuple[str, ...]]] = {split: {} for split in SPLITS}
        for task in loaded:
            try:
                parts = split_items(task.indices, settings.splits)
            except ValueError as error:
                problems.append(Problem(self.path_of(task.name), str(error)))
                continue
            problems.extend(self._check_fewshot(task, parts))
            for split in SPLITS:
                splits[split][task.name] = parts[split]
        if problems:
            raise ConfigError("the objectives cannot be evaluated", problems)
        self.manifest = Manifest(splits, {task.name: task.definition for task in loaded})

    def describe(self) -> list[TaskDescription]:
        """Describe the tasks, in the order of the job."""
        return [
            TaskDescription(
                objective=self._objective_of[task.name],
                task=task.name,
                metric=str(task.key),
                output_type=task.output_type,
                num_items=len(task.indices),
                num_fewshot=task.num_fewshot,
                max_new_tokens=task.max_new_tokens,
                higher_is_better=task.key.sign > 0,
            )
            for task in self.tasks.values()
        ]

    def stock_samples(self, items: Items) -> dict[str, list[int]]:
        """Return task -> positions of items, ascending: what ``lm_eval --samples`` takes.

        The stock command scores the same items with the same few-shot examples when it is
        given all items of one split.
        """
        return {
            task: sorted(self.tasks[task].indices[item] for item in ids)
            for task, ids in items.items()
        }

    def path_of(self, task: str) -> str:
        """Return where a job names a task, for problems with it."""
        return f"objectives.{self._objective_of[task]}.{task}"

    def _check_fewshot(
        self, task: LoadedTask, parts: Mapping[SplitName, Sequence[str]]
    ) -> Iterator[Problem]:
        pool = task.fewshot_pool()
        if len(pool) < task.num_fewshot:
            yield Problem(
                f"{self.path_of(task.name)}.num_fewshot",
                f"asks for {task.num_fewshot} examples, but there are {len(pool)} to draw from",
            )
        scored = {item for ids in parts.values() for item in ids}
        shared = [doc for doc in pool if item_id(doc) in scored]
        if shared:
            yield Problem(
                self.path_of(task.name),
                f"draws its {task.num_fewshot} few-shot examples from the items that are scored "
                f"({len(shared)} in common); set `num_fewshot: 0`, or use a task with a "
                "`fewshot_split` of its own",
            )


def describe_tasks(
    objectives: Mapping[str, Objective], settings: EvaluationSettings
) -> list[TaskDescription]:
    """Describe the tasks of a job without loading a model.

    Raises:
        ConfigError: Everything that is wrong with tasks, metrics, data and splits.
    """
    return Suite(objectives, settings).describe()


def build_manifest(objectives: Mapping[str, Objective], settings: EvaluationSettings) -> Manifest:
    """Choose the items of a job without loading a model.

    Raises:
        ConfigError: Everything that is wrong with tasks, metrics, data and splits.
    """
    return Suite(objectives, settings).manifest
