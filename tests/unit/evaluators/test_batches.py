"""Batch sizes: how much is taken, and what happens when memory does not suffice for it."""

import random

import pytest
import torch

from evaluators import decoding
from evaluators.backend import Prompt
from evaluators.batches import (
    BatchLimits,
    cache_bytes_per_token,
    is_out_of_memory,
    limits_for,
    run_in_batches,
)
from evaluators.generation import StaticBatches
from evaluators.loglikelihood import Continuation, loglikelihoods


@pytest.fixture
def prompts() -> list[Prompt]:
    rng = random.Random(3)
    return [
        Prompt(
            tuple(rng.randrange(2, 320) for _ in range(rng.randint(1, 40))),
            rng.choice((5, 12)),
            ("\n", "he"),
        )
        for _ in range(40)
    ]


class Memory:
    """A forward hook that behaves like a device with room for so many rows."""

    def __init__(self, model, rows: int, error: Exception | None = None) -> None:
        self.rows = rows
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.seen: list[int] = []
        self.after = 0
        model.model.register_forward_pre_hook(self._check, with_kwargs=True)

    def _check(self, _module, _args, kwargs) -> None:
        rows = kwargs["input_ids"].shape[0]
        self.seen.append(rows)
        self.after -= 1
        if rows > self.rows and self.after < 0:
            raise self.error


def padded(sizes) -> int:
    """Bytes of a batch whose items take what the largest of them takes."""
    return len(sizes) * max(sizes)


def test_batch_takes_what_rows_and_memory_allow_and_one_item_always() -> None:
    limits = BatchLimits(rows=4, memory_bytes=100, prefill_tokens=1)
    for sizes, count in (
        ([10] * 9, 4),
        ([10, 10, 40, 10], 2),
        ([30, 40, 10], 2),
        ([50, 50], 2),
        ([500, 1], 1),
        ([1], 1),
    ):
        assert limits.take(sizes, padded) == count
    assert BatchLimits(4, None, 1).take([10**12] * 3, padded) == 3


def test_batch_of_fewer_rows_than_allowed_that_fails_lowers_the_bytes_and_not_the_rows() -> None:
    limits = BatchLimits(rows=16, memory_bytes=None, prefill_tokens=8)
    batches: list[list[int]] = []

    def run(batch: list[int]) -> None:
        batches.append(batch)
        if padded(batch) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def run_all(sizes: list[int]) -> list[int]:
        batches.clear()
        done: set[int] = set()
        run_in_batches(limits, sizes, bytes_of=padded, run=run, is_done=done.__contains__)
        return [len(batch) for batch in batches]

    assert run_all([10] * 16 + [90] * 4) == [16, 4, 2, 2]
    assert limits == BatchLimits(16, 180, 4)
    assert run_all([10] * 18 + [90] * 4) == [16, 2, 2, 2]
    limits.memory_bytes = None
    assert run_all([20] * 16) == [16, 8, 8]
    assert limits.rows == 8


def test_estimate_of_a_batch_of_mixed_lengths_holds_the_logits_that_are_computed(
    live,
) -> None:
    # As in real models, logits take more than what is around a layer.
    live.model.resize_token_embeddings(4096, mean_resizing=False)
    rng = random.Random(5)
    items = [
        Continuation(tuple(rng.randrange(2, 320) for _ in range(length)), (7,))
        for length in range(4, 84, 2)
    ]
    expected = loglikelihoods(live.model, items, batch_size=1, max_length=96)
    computed: list[tuple[int, int]] = []
    live.model.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: computed.append((logits.shape[0], logits.numel() * 4))
    )
    limits = BatchLimits(rows=64, memory_bytes=4_000_000, prefill_tokens=1)
    found = loglikelihoods(live.model, items, batch_size="auto", max_length=96, limits=limits)
    assert [item.log_probability for item in found] == pytest.approx(
        [item.log_probability for item in expected], abs=1e-4
    )
    assert max(taken for _, taken in computed) <= 4_000_000
    assert max(rows for rows, _ in computed) > 5
    # All of one length: as many rows as before.
    computed.clear()
    alike = [Continuation((*range(2, 20), 30 + n), (7,)) for n in range(40)]
    loglikelihoods(live.model, alike, batch_size="auto", max_length=96, limits=limits)
    assert [rows for rows, _ in computed] == [40]


def test_automatic_size_is_the_share_of_free_memory_in_rows(live, monkeypatch) -> None:
    limits = limits_for(live.model, "auto")
    assert cache_bytes_per_token(live.model) == 2 * 2 * 2 * 8 * 4
    assert limits.rows == 128
    assert limits.memory_bytes is not None
    assert limits.memory_bytes > 10_000_000
    assert limits_for(live.model, 7) == BatchLimits(7, None, limits.prefill_tokens)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_texts_are_the_same_when_memory_runs_out(live, prompts, error) -> None:
    assert is_out_of_memory(error)
    expected = StaticBatches(live, batch_size=8).generate(prompts)
    memory = Memory(live.model, rows=7, error=error)
    told: list[int] = []
    texts = StaticBatches(live, batch_size=32).generate(
        prompts, lambda index, _text: told.append(index)
    )
    assert texts == expected
    assert sorted(told) == list(range(len(prompts)))
    assert max(memory.seen) > 7


def test_size_that_worked_is_remembered_by_the_next_call(live, prompts) -> None:
    backend = StaticBatches(live, batch_size="auto")
    memory = Memory(live.model, rows=7)
    backend.generate(prompts)
    memory.seen.clear()
    backend.generate(prompts)
    assert max(memory.seen) <= 7


def test_rows_that_ended_are_kept_when_memory_runs_out_later(live, prompts) -> None:
    expected = StaticBatches(live, batch_size=8).generate(prompts)
    memory = Memory(live.model, rows=7)
    memory.after = 12
    told: list[int] = []
    texts = StaticBatches(live, batch_size=32).generate(
        prompts, lambda index, _text: told.append(index)
    )
    assert texts == expected
    assert sorted(told) == list(range(len(prompts)))


def test_rows_that_end_in_the_step_in_which_memory_runs_out_are_told(
    live, prompts, monkeypatch
) -> None:
    expected = StaticBatches(live, batch_size=8).generate(prompts)
    keep = decoding._Stepper.keep
    failed: list[int] = []

    def failing(stepper, order: list[int]) -> None:
        if len(order) < len(stepper.rows) and len(failed) < 2:
            failed.append(len(stepper.rows) - len(order))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        keep(stepper, order)

    monkeypatch.setattr(decoding._Stepper, "keep", failing)
    told: list[int] = []
    texts = StaticBatches(live, batch_size=32).generate(
        prompts, lambda index, _text: told.append(index)
    )
    assert len(failed) == 2
    assert texts == expected
    assert sorted(told) == list(range(len(prompts)))


def test_likelihoods_are_the_same_when_memory_runs_out(live) -> None:
    rng = random.Random(4)
    items = [
        Continuation(tuple(rng.randrange(2, 320) for _ in range(9)), (rng.randrange(2, 320),))
        for _ in range(30)
    ]
    expected = loglikelihoods(live.model, items, batch_size=5, max_length=96)
    memory = Memory(live.model, rows=5)
    limits = limits_for(live.model, "auto")
    found = loglikelihoods(live.model, items, batch_size="auto", max_length=96, limits=limits)
    assert [item.log_probability for item in found] == pytest.approx(
        [item.log_probability for item in expected], abs=1e-4
    )
    assert max(memory.seen) == 30
    memory.seen.clear()
    loglikelihoods(live.model, items, batch_size="auto", max_length=96, limits=limits)
    assert max(memory.seen) <= 5
    assert limits.rows == 128


def test_single_row_that_does_not_fit_fails(live, prompts) -> None:
    Memory(live.model, rows=0)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        StaticBatches(live, batch_size=8).generate(prompts)


def test_other_errors_are_not_tried_again() -> None:
    calls: list[int] = []

    def run(batch: list[int]) -> None:
        calls.append(len(batch))
        raise RuntimeError("shapes differ")

    limits = BatchLimits(8, None, 1)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run_in_batches(limits, [1] * 8, bytes_of=int, run=run, is_done=bool)
    assert calls == [8]
    assert limits.rows == 8
