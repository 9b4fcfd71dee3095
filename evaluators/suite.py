"""All that a job scores: lm-eval tasks and Python scorers behind one suite.

lm-eval is imported only for jobs that have tasks of it, and torch not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from configs.errors import ConfigError, Problem
from configs.evaluation import SPLITS, EvaluationSettings, Objective, SplitName
from evaluators.evaluator import TaskDescription
from evaluators.manifest import Manifest, split_items
from evaluators.scorer_suite import load_scorers

if TYPE_CHECKING:
    from evaluators.harness_suite import Suite


class JobSuite:
    """The loaded tasks and scorers of a job, and its manifest.

    Args:
        objectives: The job's objectives.
        settings: The job's evaluation settings.

    Attributes:
        lm_eval: The part that lm-eval scores; None where there is none.
        scorers: The part that Python functions score, by name.
        manifest: The items of every split, tasks and scorers in the order of the job.

    Raises:
        ConfigError: Everything that is wrong with tasks, scorers, data and splits.
    """

    def __init__(self, objectives: Mapping[str, Objective], settings: EvaluationSettings) -> None:
        self._names = [spec.task for part in objectives.values() for spec in part.tasks]
        problems: list[Problem] = []
        self.lm_eval: Suite | None = None
        if any(part.lm_eval_tasks for part in objectives.values()):
            from evaluators.harness_suite import Suite

            try:
                self.lm_eval = Suite(objectives, settings)
            except ConfigError as error:
                problems += error.problems
        loaded, found = load_scorers(objectives, settings)
        problems += found
        self.scorers = {scorer.spec.task: scorer for scorer in loaded}
        parts: dict[str, Mapping[SplitName, tuple[str, ...]]] = {}
        for name, scorer in self.scorers.items():
            try:
                parts[name] = split_items(scorer.items, settings.splits)
            except ValueError as error:
                problems.append(Problem(f"{scorer.path}.items", str(error)))
        if problems:
            raise ConfigError("the objectives cannot be evaluated", problems)
        self.manifest = self._manifest(parts)

    def _manifest(self, parts: Mapping[str, Mapping[SplitName, tuple[str, ...]]]) -> Manifest:
        inner = Manifest({}, {}) if self.lm_eval is None else self.lm_eval.manifest
        hashes = dict(inner.task_hashes)
        hashes |= {name: scorer.definition for name, scorer in self.scorers.items()}
        splits: dict[SplitName, dict[str, tuple[str, ...]]] = {}
        for split in SPLITS:
            items = {name: part[split] for name, part in parts.items()}
            items |= dict(inner.splits.get(split, {}))
            splits[split] = {name: items[name] for name in self._names}
        return Manifest(splits, {name: hashes[name] for name in self._names})

    def describe(self) -> list[TaskDescription]:
        """Describe tasks and scorers, in the order of the job."""
        found = [] if self.lm_eval is None else self.lm_eval.describe()
        found += [scorer.describe() for scorer in self.scorers.values()]
        return sorted(found, key=lambda description: self._names.index(description.task))
