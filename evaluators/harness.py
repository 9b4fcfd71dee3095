"""lm-eval as an evaluator of live models: its tasks and scores, none of its repeated work.

``HarnessEvaluator`` scores a live model whose weights change between calls; its reference is the
stock ``lm_eval`` command on the exported checkpoint (equal texts and scores in float32 on the
CPU). What needs no model is in ``harness_suite``, which imports no torch. Of the package only
``harness_checks``, ``_data``, ``_index``, ``_metrics``, ``_requests``, ``_scoring`` and ``_tasks``
import lm-eval.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from configs.errors import EvaluationError, Problem
from configs.evaluation import SPLITS, EvaluationSettings, Objective, SplitName
from evaluators.evaluator import Evaluation, LiveModel
from evaluators.harness_board import Board
from evaluators.harness_requests import Encoder, FrozenItem, freeze_split
from evaluators.harness_scoring import ItemScorer, ScoringPool
from evaluators.harness_suite import Suite
from evaluators.manifest import Manifest
from evaluators.rng_guard import preserved_rng_state
from evaluators.runner import ItemRunner
from evaluators.sandbox import close_shared_sandboxes, select_sandbox
from evaluators.scores import Items


def prompt_problems(suite: Suite, live: LiveModel) -> list[Problem]:
    """Build all requests for a model, and say which cannot be, the first of every task.

    Answers longer than the model sees, budgets that leave no room for a prompt.

    Args:
        suite: The tasks of a job.
        live: As for ``HarnessEvaluator``; its weights are not looked at.

    Raises:
        EvaluationError: No request can be built for this model.
    """
    encoder = Encoder(live, apply_chat_template=suite.settings.apply_chat_template)
    found: dict[str, Problem] = {}
    for split in SPLITS:
        for name, ids in suite.manifest.items(split).items():
            try:
                with preserved_rng_state():
                    freeze_split(suite.tasks[name], ids, encoder)
            except EvaluationError as error:
                found.setdefault(name, Problem(suite.path_of(name), error.message))
    return list(found.values())


def prompt_tokens(
    suite: Suite, live: LiveModel, split: SplitName
) -> dict[str, list[tuple[int, ...]]]:
    """Return what the model reads of the items of a split, without their reference answers.

    Of a text that is scored as a whole (``loglikelihood_rolling``), that is the text.

    Args:
        suite: The tasks of a job.
        live: As for ``HarnessEvaluator``; its weights are not looked at.
        split: Whose items.

    Returns:
        Task -> tokens of every item, in the order of the manifest; few-shot examples included.

    Raises:
        EvaluationError: No request can be built for this model.
    """
    encoder = Encoder(live, apply_chat_template=suite.settings.apply_chat_template)
    found = {}
    for name, ids in suite.manifest.items(split).items():
        with preserved_rng_state():
            frozen = freeze_split(suite.tasks[name], ids, encoder)
        found[name] = [frozen[item].all_requests[0].read_tokens for item in ids]
    return found


class HarnessEvaluator:
    """Scores a live model on lm-eval tasks; requests are built once and reused.

    The model must be in evaluation mode, and its ``generation_config`` must be that of the
    checkpoint that will be exported: it says which tokens end a text.

    Args:
        objectives: The job's objectives.
        settings: The job's evaluation settings.
        manifest: The items that may be asked for; None makes one.
        scoring_processes: Processes that score while the model goes on; 0 scores here, after it.

    Raises:
        ConfigError: Everything that is wrong with tasks, metrics, data and splits.
        EvaluationError: A task is not the one that the manifest was made from.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        settings: EvaluationSettings,
        manifest: Manifest | None = None,
        *,
        scoring_processes: int = 0,
    ) -> None:
        self.suite = Suite(objectives, settings)
        self.manifest = manifest or self.suite.manifest
        for name, definition in self.manifest.task_hashes.items():
            if name not in self.suite.tasks or self.suite.tasks[name].definition != definition:
                raise EvaluationError(
                    f"the definition of `{name}` changed since the job was checked: scores would "
                    "not be comparable; restore the task's YAML and Python, or start a new search"
                )
        self._split_of = {
            (task, item): split
            for split in SPLITS
            for task, ids in self.manifest.items(split).items()
            for item in ids
        }
        self._encoder: Encoder | None = None
        self._frozen: dict[tuple[str, SplitName], dict[str, FrozenItem]] = {}
        self._runner: ItemRunner | None = None
        self._scorer = ItemScorer(self.suite.tasks)
        self._pool: ScoringPool | None = None
        if scoring_processes:
            definitions = {task.name: task.definition for task in self.suite.tasks.values()}
            self._pool = ScoringPool(objectives, settings, definitions, processes=scoring_processes)

    def prepare(self, live: LiveModel, split: SplitName) -> None:
        """Build the requests of a split now rather than at its first evaluation.

        Raises:
            EvaluationError: The scoring processes cannot load the tasks, or a prompt cannot be
                built.
        """
        if self._pool is not None:
            self._pool.start()
        with preserved_rng_state():
            self._frozen_items(live, self.manifest.items(split))
        if self._pool is not None:
            self._pool.check()

    def evaluate(
        self, live: LiveModel, items: Items, companions: Items | None = None
    ) -> Evaluation:
        """Score the model as it is now; see ``evaluators.evaluator.Evaluator``.

        The seconds are those of ``prepare`` (building requests, at the first use of a split),
        ``forward`` (the model, and the scoring that goes on beside it) and ``score`` (filters and
        metrics that are left).

        Raises:
            EvaluationError: An item is unknown, the logits are not finite, a scorer fails or
                its score is not a finite number.
            ValueError: The model is in training mode, or a task has no items.
        """
        if live.model.training:
            raise ValueError("the live model is in training mode; call `model.eval()` once")
        if empty := [task for task, ids in items.items() if not ids]:
            raise ValueError(f"task `{empty[0]}` has no items to score; leave it out instead")
        select_sandbox(self.suite.settings.sandbox)
        clock = [time.perf_counter()]
        with preserved_rng_state():
            frozen = self._frozen_items(live, items)
            beside = frozen if companions is None else self._frozen_items(live, companions)
            clock.append(time.perf_counter())
            board = Board(self.suite.tasks, frozen, beside, self._pool)
            try:
                self._run_with(live).run(board.requests, board.accept)
                clock.append(time.perf_counter())
                board.finish(self._scorer)
            except BaseException:
                board.cancel()
                raise
            clock.append(time.perf_counter())
        stages = ("prepare", "forward", "score")
        seconds = {stage: clock[i + 1] - clock[i] for i, stage in enumerate(stages)}
        return Evaluation(board.task_scores(), board.texts(), seconds, board.companions())

    def release(self) -> None:
        """Let go of the live model; the next evaluation may bring another."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def close(self) -> None:
        """End the scoring processes and sandboxes, and release what generation holds.

        A later evaluation starts them again.
        """
        if self._pool is not None:
            self._pool.close()
        self.release()
        close_shared_sandboxes()

    def _encode_with(self, live: LiveModel) -> Encoder:
        """Return the encoder of a live model; another tokenizer makes all requests anew."""
        if self._encoder is None or not self._encoder.serves(live):
            self._encoder = Encoder(
                live, apply_chat_template=self.suite.settings.apply_chat_template
            )
            self._frozen.clear()
        return self._encoder

    def _frozen_items(self, live: LiveModel, items: Items) -> dict[str, list[FrozenItem]]:
        """Return the frozen requests of items, building those of their splits where needed."""
        return {
            task: [self._frozen_item(live, task, item) for item in ids]
            for task, ids in items.items()
        }

    def _frozen_item(self, live: LiveModel, task: str, item: str) -> FrozenItem:
        split = self._split_of.get((task, item))
        if split is None:
            raise EvaluationError(
                f"item `{item}` of task `{task}` is not in the manifest of this job"
            )
        encoder = self._encode_with(live)
        if (task, split) not in self._frozen:
            self._frozen[task, split] = freeze_split(
                self.suite.tasks[task],
                self.manifest.items(split)[task],
                encoder,
            )
        return self._frozen[task, split][item]

    def _run_with(self, live: LiveModel) -> ItemRunner:
        """Return the runner of a live model; another model makes a new one."""
        encoder = self._encode_with(live)
        if self._runner is None or not self._runner.serves(live):
            if self._runner is not None:
                self._runner.close()
            self._runner = ItemRunner(live, self.suite.settings, encoder.max_length)
        return self._runner
