"""Threads that all find the compiler broken."""

import logging
from pathlib import Path

import pytest
import torch

from configs.recipe import Group, MergeRecipe, Source
from configs.schema import Models
from tests.conftest import TinyPool
from workers import source_pool
from workers.materialize import Materializer
from workers.sources import resolve_sources


def test_threads_that_fail_at_the_same_time_all_merge_without_a_compiler(
    tiny_pool: TinyPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM

    def broken(*_: object, backend: str, **__: object) -> None:
        if backend == "compiled":
            raise OSError("no compiler")

    monkeypatch.setattr(source_pool, "is_worthwhile", lambda *_: True)
    monkeypatch.setattr(source_pool, "merge_window", broken)
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    assert sources.base is not None
    recipe = MergeRecipe(
        method="task_arithmetic",
        base=Source(name="base", digest=sources.base.digest),
        checkpoints=tuple(Source(name=c.name, digest=c.digest) for c in sources.checkpoints),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=((0.5,),) * 3,
        drop_ratios=((0.0,),) * 3,
        dtype="float32",
    )
    model = AutoModelForCausalLM.from_pretrained(Path(tiny_pool.base))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with caplog.at_level(logging.WARNING):
            Materializer(sources).into(model, recipe)
    finally:
        torch.set_num_threads(before)
    assert sum("merging without a compiler" in text for text in caplog.messages) == 1
