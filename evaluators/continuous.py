"""Generation by ``transformers``' continuous batching, behind the interface of backends.

A finished row's place is taken by the next prompt in the same step. With a flash attention
kernel on a GPU that keeps the device full; on the CPU it is slower than static batches (see
``scripts/bench/results``).

Its loop runs in a thread of its own over a paged cache. Two things need care. Pages of prompts
that begin alike are shared by default, and a manager that lives on keeps them: after a swap of
weights it continues prompts from the keys and values of the old ones, without a word. Sharing is
off here, and a manager lives no longer than a call. And the loop knows end-of-text tokens only:
stop strings are watched here, and rows that have reached one are cancelled.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import ContinuousBatchingConfig

from configs.errors import EvaluationError
from evaluators.backend import OnText, Prompt, ignore_text
from evaluators.batches import BatchSize, is_out_of_memory, limits_for
from evaluators.decoding import Row, end_ids
from evaluators.generation import text_of
from evaluators.stop_strings import StopStrings

if TYPE_CHECKING:
    from evaluators.evaluator import LiveModel

_PAGE_TOKENS = 32
log = logging.getLogger(__name__)

# How often the loop is asked whether it still runs, while it gives nothing.
_POLL_S = 1.0


class _Loop(Protocol):
    """What is asked of transformers' manager, whose class is private."""

    def is_running(self) -> bool: ...


class ContinuousBatches:
    """The continuous batches of ``transformers``, without sharing between prompts.

    Args:
        live: The model, in evaluation mode, and its tokenizer. The tokens that end a text are
            those of the model's ``generation_config``.
        batch_size: Rows per forward pass, >= 1, or ``auto``.
    """

    def __init__(self, live: LiveModel, *, batch_size: BatchSize) -> None:
        self._live = live
        self._rows = limits_for(live.model, batch_size).rows
        # Pages of a batch, known once a batch of fewer rows than allowed was too much.
        self._pages: int | None = None
        self._failure: EvaluationError | None = None

    def generate(self, prompts: Sequence[Prompt], on_text: OnText = ignore_text) -> list[str]:
        """See ``evaluators.backend.GenerationBackend``; texts are told as rows end.

        Raises:
            EvaluationError: A logit is not finite, a prompt has a repetition penalty, or the
                loop failed.
        """
        if any(prompt.repetition_penalty != 1.0 for prompt in prompts):
            raise EvaluationError(
                "continuous batches know no repetition penalty; remove `repetition_penalty` from "
                "the task and generation_config.json, or set `evaluation.backend: static`"
            )
        watchers = {
            stops: StopStrings(self._live.tokenizer, stops)
            for stops in {prompt.stops for prompt in prompts}
        }
        pending = [
            Row(index, prompt, watchers[prompt.stops]) for index, prompt in enumerate(prompts)
        ]
        texts = [""] * len(prompts)

        def tell(row: Row) -> None:
            texts[row.index] = text_of(self._live.tokenizer, row.generated, row.watcher)
            on_text(row.index, texts[row.index])
            row.told = True

        while pending:
            if not self._fits(pending, tell):
                torch.cuda.empty_cache()
                self._shrink(pending)
                log.warning(
                    "out of memory in continuous batches; going on with %d rows",
                    self._rows_for(pending),
                )
            pending = [row for row in pending if not row.told]
            for row in pending:
                row.restart()
        return texts

    def weights_changed(self) -> None:
        """Do nothing: a manager and its cache live no longer than one call of ``generate``."""

    def close(self) -> None:
        """Do nothing: no thread outlives a call of ``generate``."""

    def _fits(self, rows: Sequence[Row], tell: Callable[[Row], None]) -> bool:
        """Continue rows to their ends; return False where the memory did not suffice."""
        try:
            for row in self._as_they_end(rows):
                tell(row)
        except torch.OutOfMemoryError:
            if self._rows_for(rows) == 1:
                raise
            return False
        return True

    def _rows_for(self, pending: Sequence[Row]) -> int:
        """Return how many of some rows may be in a batch at once."""
        rows = min(self._rows, len(pending))
        return rows if self._pages is None else max(1, min(rows, self._pages // _pages(pending)))

    def _shrink(self, pending: Sequence[Row]) -> None:
        """Halve what was too much: rows, or the pages of a batch that had fewer than allowed."""
        rows = self._rows_for(pending)
        if rows == self._rows:
            self._rows = max(1, rows // 2)
        else:
            self._pages = rows * _pages(pending) // 2

    def _as_they_end(self, rows: Sequence[Row]) -> Iterator[Row]:
        ends = end_ids(self._live.model)
        going = {f"row-{row.index}": row for row in rows}
        with self._manager(rows) as manager:
            for name, row in going.items():
                manager.add_request(
                    list(row.prompt.token_ids),
                    request_id=name,
                    max_new_tokens=row.prompt.max_new_tokens,
                    # Tells every token as it comes, not only the last: stop strings need that.
                    streaming=True,
                    eos_token_id=sorted(ends),
                )
            while going:
                output = manager.get_result(timeout=_POLL_S)
                if output is None:
                    self._check(manager)
                elif output.error is not None:
                    raise self._cause_of(output.error)
                elif output.request_id in going and (
                    _advance(going[output.request_id], output.generated_tokens, ends)
                    or output.is_finished()
                ):
                    if not output.is_finished():
                        manager.cancel_request(output.request_id)
                    yield going.pop(output.request_id)

    @contextmanager
    def _manager(self, pending: Sequence[Row]) -> Iterator[Any]:
        """Run a manager for some rows; it and its cache are gone afterwards."""
        model = self._live.model
        rows = self._rows_for(pending)
        config = ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            max_requests_per_batch=rows,
            # On a GPU the cache takes what memory is free; the host's is shared with others.
            num_blocks=None if model.device.type == "cuda" else rows * _pages(pending),
            max_batch_tokens=None if model.device.type == "cuda" else max(256, rows),
            allow_block_sharing=False,
        )
        generation = copy.deepcopy(model.generation_config)
        generation.do_sample = False
        self._failure = None
        untyped: Any = model
        head = untyped.get_output_embeddings()
        hook = head.register_forward_hook(self._check_logits)
        start = untyped.init_continuous_batching
        with _quiet(), torch.no_grad():
            manager = start(generation_config=generation, continuous_batching_config=config)
            manager.start()
            try:
                yield manager
            finally:
                manager.stop(block=True, hard_stop=True)
                manager.destroy()
                hook.remove()

    def _check_logits(self, _module: object, _inputs: object, logits: torch.Tensor) -> None:
        if torch.isfinite(logits.sum()):
            return
        self._failure = EvaluationError(
            "logits are not finite in a batch: the weights of this candidate are broken"
        )
        raise self._failure

    def _cause_of(self, message: str) -> Exception:
        """Return what ended the loop, which tells its requests a text only."""
        if self._failure is not None:
            return self._failure
        if is_out_of_memory(RuntimeError(message)):
            return torch.OutOfMemoryError(message)
        return EvaluationError(f"continuous batching failed: {message}")

    def _check(self, manager: _Loop) -> None:
        if not manager.is_running():
            raise self._failure or EvaluationError("the loop of continuous batching ended early")


def _pages(rows: Sequence[Row]) -> int:
    """Return the pages that the widest of some rows can come to take."""
    return -(-max(row.width for row in rows) // _PAGE_TOKENS) + 1


def _advance(row: Row, generated: Sequence[int], ends: frozenset[int]) -> bool:
    """Take the tokens that are new to a row; return whether it has ended."""
    return any(not row.accept(int(token), ends) for token in generated[len(row.generated) :])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loop's log of an error away: it is raised here as well."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, level)
        yield
