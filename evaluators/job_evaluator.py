"""All that a job scores, scored: lm-eval tasks and Python scorers behind one evaluator.

lm-eval is imported only for jobs that have tasks of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from configs.errors import ConfigError, EvaluationError
from configs.evaluation import EvaluationSettings, Objective, SplitName
from evaluators.evaluator import Evaluation, LiveModel
from evaluators.manifest import Manifest
from evaluators.python_scorer import ScorerEvaluator
from evaluators.scorer_suite import load_scorers
from evaluators.scores import Items

if TYPE_CHECKING:
    from evaluators.harness import HarnessEvaluator


class JobEvaluator:
    """Scores a live model on everything that a job names; an ``Evaluator``.

    Args:
        objectives: The job's objectives.
        settings: The job's evaluation settings.
        manifest: The items that may be asked for.
        scoring_processes: Processes that score lm-eval's items while the model goes on.

    Raises:
        ConfigError: Everything that is wrong with tasks, scorers, data and splits.
        EvaluationError: A task or scorer is not the one that the manifest was made from.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        settings: EvaluationSettings,
        manifest: Manifest,
        *,
        scoring_processes: int = 0,
    ) -> None:
        own = [spec.task for part in objectives.values() for spec in part.scorers]
        others = [spec.task for part in objectives.values() for spec in part.lm_eval_tasks]
        self._manifest = manifest
        loaded, problems = load_scorers(objectives, settings)
        if problems:
            raise ConfigError("the objectives cannot be evaluated", problems)
        self._scorers = ScorerEvaluator(
            loaded, batch_size=settings.batch_size, manifest=manifest.restricted_to(own)
        )
        self._lm_eval: HarnessEvaluator | None = None
        if others:
            from evaluators.harness import HarnessEvaluator

            part = manifest.restricted_to(others)
            self._lm_eval = HarnessEvaluator(
                objectives, settings, part, scoring_processes=scoring_processes
            )

    def prepare(self, live: LiveModel, split: SplitName) -> None:
        """Do now what the first evaluation of a split would have to do."""
        if self._lm_eval is not None:
            self._lm_eval.prepare(live, split)

    def evaluate(
        self, live: LiveModel, items: Items, companions: Items | None = None
    ) -> Evaluation:
        """Score the model as it is now; see ``evaluators.evaluator.Evaluator``."""
        beside = items if companions is None else companions
        named = [*items, *beside]
        if unknown := [task for task in named if task not in self._manifest.task_hashes]:
            raise EvaluationError(f"task `{unknown[0]}` is not in the manifest of this job")
        own = {task: ids for task, ids in items.items() if task in self._scorers.scorers}
        others = {task: ids for task, ids in items.items() if task not in own}
        beside = {task: ids for task, ids in beside.items() if task not in self._scorers.scorers}
        parts = []
        if (others or beside) and self._lm_eval is not None:
            parts.append(self._lm_eval.evaluate(live, others, beside))
        if own:
            parts.append(self._scorers.evaluate(live, own))
        scores = {task: score for part in parts for task, score in part.task_scores.items()}
        return Evaluation(
            {task: scores[task] for task in items},
            {task: texts for part in parts for task, texts in part.texts.items()},
            {stage: spent for part in parts for stage, spent in part.seconds.items()},
            {task: found for part in parts for task, found in part.companions.items()},
        )

    def release(self) -> None:
        """Let go of the live model; the next evaluation may bring another."""
        if self._lm_eval is not None:
            self._lm_eval.release()

    def close(self) -> None:
        """End the scoring processes and sandboxes, and release what generation holds."""
        if self._lm_eval is not None:
            self._lm_eval.close()
