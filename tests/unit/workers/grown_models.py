"""Models with longer tables of tokens than the tiny ones that they are copies of."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

ROWS = 259
"""Of the tiny models."""

Grow = Callable[..., Path]
"""Takes the source, and what :func:`grow_model` does; returns the copy's directory."""


def grow_model(
    directory: Path,
    source: Path,
    *,
    rows: int = ROWS,
    tokens: tuple[str, ...] = (),
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Copy a model with more rows, tokens of its own, another dtype, or a head of its own."""
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)
    model.resize_token_embeddings(rows, mean_resizing=False)
    # Rows of two models must differ, or a test could not tell whose they are.
    draw = torch.Generator().manual_seed(sum(directory.name.encode()))
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.data[ROWS:] = torch.randn(rows - ROWS, 32, generator=draw)
    model.to(dtype).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(directory)
