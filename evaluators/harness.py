"""lm-eval as an evaluator of live models: its tasks and scores, none of its repeated work.

``describe_tasks`` and ``build_manifest`` need no model and import no torch. ``HarnessEvaluator``
scores a live model whose weights change between calls; its reference is the stock ``lm_eval``
command on the exported checkpoint (equal texts and scores in float32 on the CPU). Of the package
only ``harness_data``, ``_index``, ``_metrics``, ``_requests``, ``_scoring`` and ``_tasks`` import
lm-eval.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from configs.errors import ConfigError, EvaluationError, Problem
from configs.evaluation import SPLITS, EvaluationSettings, Objective, SplitName
from evaluators.evaluator import Evaluation, LiveModel, TaskDescription
from evaluators.harness_board import Board
from evaluators.harness_scoring import ItemScorer, ScoringPool
from evaluators.harness_tasks import LoadedTask, load_tasks
from evaluators.manifest import Manifest, item_id, split_items
from evaluators.rng_guard import preserved_rng_state
from evaluators.sandbox import close_shared_sandboxes, select_sandbox
from evaluators.scores import Items

if TYPE_CHECKING:
    from evaluators.harness_requests import Encoder, FrozenItem
    from evaluators.runner import ItemRunner


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
                problems.append(Problem(self._path(task.name), str(error)))
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

    def prompt_problems(self, live: LiveModel) -> list[Problem]:
        """Build all requests for a model, and say which cannot be, the first of every task.

        Answers longer than the model sees, budgets that leave no room for a prompt.

        Args:
            live: As for ``HarnessEvaluator``; its weights are not looked at.

        Raises:
            EvaluationError: No request can be built for this model.
        """
        # Imported here because it imports torch, which describing tasks does without.
        from evaluators.harness_requests import Encoder, freeze_split  # noqa: PLC0415 - imports torch

        encoder = Encoder(live, apply_chat_template=self.settings.apply_chat_template)
        found: dict[str, Problem] = {}
        for split in SPLITS:
            for name, ids in self.manifest.items(split).items():
                try:
                    with preserved_rng_state():
                        freeze_split(self.tasks[name], ids, encoder)
                except EvaluationError as error:
                    found.setdefault(name, Problem(self._path(name), error.message))
        return list(found.values())

    def _path(self, task: str) -> str:
        return f"objectives.{self._objective_of[task]}.{task}"

    def _check_fewshot(
        self, task: LoadedTask, parts: Mapping[SplitName, Sequence[str]]
    ) -> Iterator[Problem]:
        pool = task.fewshot_pool()
        if len(pool) < task.num_fewshot:
            yield Problem(
                f"{self._path(task.name)}.num_fewshot",
                f"asks for {task.num_fewshot} examples, but there are {len(pool)} to draw from",
            )
        scored = {item for ids in parts.values() for item in ids}
        shared = [doc for doc in pool if item_id(doc) in scored]
        if shared:
            yield Problem(
                self._path(task.name),
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
        # Imported here because it imports torch, which `mergefront check` does without.
        from evaluators.harness_requests import Encoder  # noqa: PLC0415 - imports torch

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
        from evaluators.harness_requests import freeze_split  # noqa: PLC0415 - imports torch

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
        from evaluators.runner import ItemRunner  # noqa: PLC0415 - imports torch

        encoder = self._encode_with(live)
        if self._runner is None or not self._runner.serves(live):
            if self._runner is not None:
                self._runner.close()
            self._runner = ItemRunner(live, self.suite.settings, encoder.max_length)
        return self._runner
