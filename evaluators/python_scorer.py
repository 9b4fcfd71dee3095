"""A user's own Python functions as an evaluator of live models, beside lm-eval's tasks.

:class:`Scorer` is the contract of such a function, ``evaluators.contributions`` helps with scores
that are no means over items, such as correlations. Imports no lm-eval.
"""

from __future__ import annotations

import copy
import logging
import math
import time
import traceback
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from configs.errors import EvaluationError
from evaluators.evaluator import Evaluation, LiveModel
from evaluators.rng_guard import preserved_rng_state, seed_scorer, seed_torch
from evaluators.scorer_suite import LoadedScorer
from evaluators.scores import FloatArray, Items, TaskScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evaluators.manifest import Manifest

# What `auto` begins with.
_MOST_ROWS = 128

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """Scores a model on items: what ``scorer: file.py:function`` of a job file names.

    Equal weights and items must give equal scores, whatever was scored before. Python's, numpy's
    and torch's global generators are seeded before every call and restored after it.
    """

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: list[dict[str, Any]],
        *,
        batch_size: int,
        # Values of JSON, each as the scorer declares it; a union of all would fit no declaration.
        **options: Any,
    ) -> Sequence[float]:
        """Return one score per item.

        Args:
            model: The merged model, of the class that ``config.json`` names, in evaluation mode,
                on ``model.device``, under ``torch.inference_mode``. To be read, not changed: the
                next candidate's weights are written into it.
            tokenizer: That of the model, a copy of this scorer's own.
            items: ``n >= 1`` objects of the items file, copies, all of those that are scored
                together: those of one split, or in the dry run a few.
            batch_size: ``evaluation.batch_size``: rows per forward pass, >= 1. A scorer that runs
                out of the accelerator's memory is called again with half of it, down to 1.
            **options: The scorer's ``options`` in the job file.

        Returns:
            ``n`` finite numbers aligned with ``items``, of any unit, *higher is better*: a
            sequence, a numpy array or a tensor of shape ``(n,)``. Their mean is the score, and
            their spread says how sure it is. A score may depend on the other items (as a
            contribution to a correlation does); then it means something only beside those.

        Raises:
            Exception: Anything; the candidate is recorded as failed, with the message.
        """
        ...


class ScorerEvaluator:
    """Scores a live model with Python functions.

    Args:
        scorers: From ``evaluators.scorer_suite.load_scorers``.
        batch_size: Rows per forward pass, >= 1; scorers are told. Halved where memory runs out,
            which ``auto`` finds out from 128 down.
        manifest: The items that may be asked for; None allows all items of the files.

    Raises:
        EvaluationError: A scorer is not the one that the manifest was made from.
    """

    def __init__(
        self,
        scorers: Iterable[LoadedScorer],
        *,
        batch_size: int | Literal["auto"],
        manifest: Manifest | None = None,
    ) -> None:
        self.scorers = {scorer.spec.task: scorer for scorer in scorers}
        self._batch_size = _MOST_ROWS if batch_size == "auto" else batch_size
        self._tokenizers: dict[str, tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]] = {}
        for name, definition in ({} if manifest is None else manifest.task_hashes).items():
            if name not in self.scorers or self.scorers[name].definition != definition:
                raise EvaluationError(
                    f"the definition of `{name}` changed since the job was checked: scores would "
                    "not be comparable; restore the scorer's module, or start a new search"
                )

    def evaluate(self, live: LiveModel, items: Items) -> Evaluation:
        """Score the model as it is now; see ``evaluators.evaluator.Evaluator``.

        The seconds are those of ``scorer``, the functions themselves.

        Raises:
            EvaluationError: An item is unknown, or a scorer fails or does not return one finite
                number per item.
            ValueError: The model is in training mode, or a scorer has no items.
        """
        if live.model.training:
            raise ValueError("the live model is in training mode; call `model.eval()` once")
        if empty := [task for task, ids in items.items() if not ids]:
            raise ValueError(f"scorer `{empty[0]}` has no items to score; leave it out instead")
        start = time.perf_counter()
        with preserved_rng_state():
            scores = {task: self._score(live, task, ids) for task, ids in items.items()}
        return Evaluation(scores, {}, {"scorer": time.perf_counter() - start})

    def _score(self, live: LiveModel, task: str, ids: Sequence[str]) -> TaskScores:
        scorer = self.scorers[task]
        if unknown := [item for item in ids if item not in scorer.items]:
            raise EvaluationError(
                f"item `{unknown[0]}` of scorer `{task}` is not in {scorer.spec.items}"
            )
        result = self._within_memory(live, scorer, ids)
        where = f"scorer `{task}` ({scorer.spec.metric})"
        if live.model.training:
            live.model.train(mode=False)
            raise EvaluationError(f"{where} left the model in training mode; call `model.eval()`")
        return TaskScores(task, tuple(ids), _scores_of(result, len(ids), where))

    def _within_memory(self, live: LiveModel, scorer: LoadedScorer, ids: Sequence[str]) -> object:
        """Call a scorer, with half the batch size again and again while memory runs out.

        What was found to fit is kept for the candidates that follow.
        """
        while True:
            try:
                return self._call(live, scorer, ids)
            except torch.OutOfMemoryError:
                if self._batch_size == 1:
                    raise
                self._batch_size //= 2
            # After the except clause, when no traceback keeps tensors alive any more.
            torch.cuda.empty_cache()
            logger.warning(
                "scorer `%s` ran out of memory; trying %d rows per forward pass",
                scorer.spec.task,
                self._batch_size,
            )

    def _call(self, live: LiveModel, scorer: LoadedScorer, ids: Sequence[str]) -> object:
        seed_scorer(scorer.definition)
        seed_torch(scorer.definition)
        try:
            with torch.inference_mode():
                return scorer.function(
                    live.model,
                    self._tokenizer_of(live, scorer.spec.task),
                    # A scorer may change what it is given; the next candidate must not see that.
                    [copy.deepcopy(scorer.items[item]) for item in ids],
                    batch_size=self._batch_size,
                    **copy.deepcopy(scorer.spec.options),
                )
        except (EvaluationError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # the worker knows what these mean
        except Exception as error:
            raise EvaluationError(
                f"scorer `{scorer.spec.task}` ({scorer.spec.metric}) raised "
                f"{type(error).__name__}: {error}{_line_of(error, scorer)}"
            ) from error

    def _tokenizer_of(self, live: LiveModel, task: str) -> PreTrainedTokenizerBase:
        """Return a scorer's own copy: what it sets, such as a padding side, is nobody else's."""
        known = self._tokenizers.get(task)
        if known is None or known[0] is not live.tokenizer:
            known = self._tokenizers[task] = (live.tokenizer, copy.deepcopy(live.tokenizer))
        return known[1]


def _scores_of(result: object, count: int, where: str) -> FloatArray:
    """Read what a scorer returned as a ``(count,)`` float64 array of finite numbers."""
    values = _values_of(result)
    if values is None:
        raise EvaluationError(
            f"{where} returned a {type(result).__name__}; return one number per item, "
            f"{count} in all"
        )
    if len(values) != count:
        raise EvaluationError(f"{where} returned {len(values)} scores for {count} items")
    for index, value in enumerate(values):
        if not isinstance(value, Real | np.bool_):
            raise EvaluationError(
                f"{where} returned a {type(value).__name__} as the score of item {index} of "
                f"{count}, not a number"
            )
    scores = np.array([_as_float(value) for value in values], dtype=np.float64)
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise EvaluationError(
            f"{where} returned {scores[index]} as the score of item {index} of {count}; "
            "scores must be finite"
        )
    return scores


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def _values_of(result: object) -> list[Any] | None:
    """Return the entries of a sequence, an array or a tensor; None for anything else."""
    if isinstance(result, torch.Tensor):
        return result.detach().cpu().tolist() if result.ndim == 1 else None
    if isinstance(result, np.ndarray):
        return result.tolist() if result.ndim == 1 else None
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        return [
            value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
            for value in result
        ]
    return None


def _line_of(error: BaseException, scorer: LoadedScorer) -> str:
    """Say where in the scorer's file an error came from; empty where none of it took part."""
    file = Path(scorer.spec.module).name if scorer.spec.is_file else ""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file]
    return f" ({file} line {frames[-1].lineno})" if frames else ""
