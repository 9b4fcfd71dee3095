"""Threads that all find the compiler broken."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from configs.schema import Models
from tests.conftest import TinyPool
from tests.small_models import recipe_of
from workers import merge_backend, source_pool
from workers.compiled import CompilerError, Step
from workers.materialize import Materializer
from workers.residency import TensorStore
from workers.source_pool import SourcePool
from workers.sources import resolve_sources


def test_threads_that_fail_at_the_same_time_all_merge_without_a_compiler(
    tiny_pool: TinyPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM

    works = source_pool.merge_steps

    def fail() -> None:
        raise CompilerError("no compiler")

    def broken(*what: object, backend: str, **how: object) -> Iterable[Step]:
        return [fail] if backend == "compiled" else works(*what, backend=backend, **how)

    monkeypatch.setattr(merge_backend, "is_worthwhile", lambda *_: True)
    monkeypatch.setattr(source_pool, "merge_steps", broken)
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    recipe = recipe_of(sources, [0.5] * 3, method="task_arithmetic")
    with SourcePool(sources, backend="eager") as eager:
        name = "model.embed_tokens.weight"
        shape = eager.reference.entries[name].shape
        expected = torch.empty(shape)
        eager.merge(recipe, name, expected.view(-1))
    model = AutoModelForCausalLM.from_pretrained(Path(tiny_pool.base))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with caplog.at_level(logging.WARNING):
            Materializer(sources).into(model, recipe)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert sum("merging without a compiler" in text for text in caplog.messages) == 1


def test_file_that_cannot_be_read_is_no_failure_of_the_compiler(
    tiny_pool: TinyPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(*_: object) -> torch.Tensor:
        raise OSError("the disk is gone")

    monkeypatch.setattr(merge_backend, "is_worthwhile", lambda *_: True)
    # TIES reads whole tensors for its thresholds, while it merges.
    monkeypatch.setattr(TensorStore, "read", unreadable)
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    recipe = recipe_of(sources, [0.5] * 3, drop_ratios=[0.5] * 3, method="ties")
    with SourcePool(sources) as pool:
        out = torch.empty(pool.reference.entries["model.norm.weight"].numel)
        with pytest.raises(OSError, match="the disk is gone"):
            pool.merge(recipe, "model.norm.weight", out)
    assert caplog.messages == []
