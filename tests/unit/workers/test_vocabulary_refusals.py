"""Models with tables of tokens of different lengths: what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from configs.errors import CheckpointError, IncompatibleCheckpointsError
from configs.schema import Merge
from tests.conftest import TinyPool
from tests.small_models import pool_of
from tests.unit.workers.grown_models import Grow
from workers.compat import check_compatible
from workers.vocabulary import decide_vocabulary, open_readers


def test_tokens_that_contradict_each_other_are_refused(tiny_pool: TinyPool, grow: Grow) -> None:
    sources = pool_of(
        tiny_pool.base,
        math=grow(tiny_pool.checkpoints["math"], rows=260, tokens=("<math>",)),
        code=grow(tiny_pool.checkpoints["code"], rows=260, tokens=("<code>",)),
    )
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        decide_vocabulary(sources, "pad")
    assert "code: id 259 is '<code>' here and '<math>' in `math`" in caught.value.message
    # Where the rows are dropped anyway, nothing contradicts.
    assert decide_vocabulary(sources, "intersect") is not None
    check_compatible(sources, Merge(), "intersect")


def test_tokenizer_with_more_tokens_than_rows_is_refused(tiny_pool: TinyPool, grow: Grow) -> None:
    code = grow(tiny_pool.checkpoints["code"], tokens=("<a>", "<b>"))
    sources = pool_of(tiny_pool.base, code=code)
    with pytest.raises(IncompatibleCheckpointsError, match="ids up to 260, its tables have 259"):
        decide_vocabulary(sources, "pad")


def test_tensor_that_is_no_table_of_tokens_is_still_refused(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    code = grow(tiny_pool.checkpoints["code"], rows=262)
    model = LlamaForCausalLM.from_pretrained(code)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(66, 32))
    shutil.rmtree(code)
    model.save_pretrained(code)
    sources = pool_of(tiny_pool.base, code=code)
    with pytest.raises(IncompatibleCheckpointsError, match=r"1 of 20 tensors differ.*up_proj"):
        check_compatible(sources, Merge(), "pad")


def test_recipe_whose_vocabulary_is_of_other_checkpoints_is_refused(
    tiny_pool: TinyPool, grow: Grow, tmp_path: Path
) -> None:
    sources = pool_of(tiny_pool.base, code=grow(tiny_pool.checkpoints["code"], rows=262))
    decided = decide_vocabulary(sources, "pad")
    fewer = replace(sources, checkpoints=())
    with pytest.raises(CheckpointError, match="1 of them are missing here"):
        open_readers(fewer, decided)
