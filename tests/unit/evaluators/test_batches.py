"""Batch sizes: how much is taken, and what happens when memory does not suffice for it."""

import random

import pytest
import torch

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


def test_batch_takes_what_rows_and_memory_allow_and_one_item_always() -> None:
    limits = BatchLimits(rows=4, memory_bytes=100, prefill_tokens=1)
    assert limits.take([10] * 9) == 4
    assert limits.take([10, 10, 40, 10]) == 2
    assert limits.take([30, 40, 10]) == 2
    assert limits.take([500, 1]) == 1
    assert limits.take([1]) == 1
    assert BatchLimits(4, None, 1).take([10**12] * 3) == 3


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
    assert limits.rows <= 5


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
