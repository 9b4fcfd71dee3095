"""Greedy generation: the texts of ``transformers``' ``generate`` row by row, whatever the batch."""

import random

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from configs.errors import EvaluationError
from evaluators import batches
from evaluators.backend import Prompt
from evaluators.evaluator import LiveModel
from evaluators.generation import StaticBatches
from evaluators.stop_strings import StopStrings

STOPS = ("\n", "he", "<|end|>")


def make_prompts(count: int, budgets: tuple[int, ...] = (12,)) -> list[Prompt]:
    rng = random.Random(1)
    return [
        Prompt(
            tuple(rng.randrange(2, 320) for _ in range(rng.randint(1, 20))),
            rng.choice(budgets),
            STOPS,
        )
        for _ in range(count)
    ]


def generate(model, tokenizer, prompts: list[Prompt], *, batch_size: int) -> list[str]:
    """Continue prompts by a backend that has seen nothing before."""
    backend = StaticBatches(LiveModel(model, tokenizer), batch_size=batch_size)
    return backend.generate(prompts)


def reference(model, tokenizer, prompt: Prompt) -> str:
    """Generate one row alone with transformers, and cut it as lm-eval does."""
    ids = torch.tensor([prompt.token_ids])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=prompt.max_new_tokens,
        do_sample=False,
        pad_token_id=1,
        repetition_penalty=prompt.repetition_penalty,
    )
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    for stop in prompt.stops:
        text = text.split(stop)[0]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_texts_equal_row_by_row_generation_in_any_batch(live, batch_size) -> None:
    prompts = make_prompts(24, budgets=(1, 7, 16))
    texts = generate(live.model, live.tokenizer, prompts, batch_size=batch_size)
    assert texts == [reference(live.model, live.tokenizer, prompt) for prompt in prompts]
    assert len(set(texts)) > 12


@pytest.mark.slow
@pytest.mark.parametrize("prefill_tokens", [1, 30, 90])
def test_texts_equal_row_by_row_generation_when_prompts_are_read_in_chunks(
    live, monkeypatch, prefill_tokens
) -> None:
    monkeypatch.setattr(batches, "_PREFILL_TOKENS", {"cpu": prefill_tokens})
    passes: list[tuple[int, int]] = []
    forward = live.model.model.forward

    def counting(*args, **kwargs):
        passes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    prompts = make_prompts(24, budgets=(7, 50))
    expected = [reference(live.model, live.tokenizer, prompt) for prompt in prompts]
    monkeypatch.setattr(live.model.model, "forward", counting)
    assert generate(live.model, live.tokenizer, prompts, batch_size=24) == expected
    reading = passes[: passes.index((24, 1)) if (24, 1) in passes else None]
    assert sum(rows for rows, _ in reading[:24]) >= 24
    assert all(rows * tokens <= prefill_tokens for rows, tokens in reading if rows > 1 < tokens)


def test_columns_leave_with_the_last_row_that_needs_them(live, monkeypatch) -> None:
    long = Prompt(tuple(range(2, 60)), 2)
    short = [Prompt((5 + n, 9), 12) for n in range(3)]
    widths: list[int] = []
    forward = live.model.model.forward

    def watching(*args, **kwargs):
        result = forward(*args, **kwargs)
        widths.append(kwargs["past_key_values"].get_seq_length())
        return result

    expected = [reference(live.model, live.tokenizer, prompt) for prompt in (long, *short)]
    monkeypatch.setattr(live.model.model, "forward", watching)
    assert generate(live.model, live.tokenizer, [long, *short], batch_size=4) == expected
    assert max(widths) >= 58
    assert min(widths[2:]) < 10


@pytest.mark.slow
def test_texts_equal_row_by_row_generation_when_the_cache_has_to_grow(live) -> None:
    prompts = [Prompt(prompt.token_ids[:10], 80) for prompt in make_prompts(5)]
    texts = generate(live.model, live.tokenizer, prompts, batch_size=3)
    assert texts == [reference(live.model, live.tokenizer, prompt) for prompt in prompts]
    assert max(len(live.tokenizer.encode(text)) for text in texts) > 60


def test_texts_equal_row_by_row_generation_with_repetition_penalty(live) -> None:
    prompts = [
        Prompt(prompt.token_ids, 12, (), repetition_penalty=2.0) for prompt in make_prompts(6)
    ]
    # Without padding, which transformers would penalize as a token.
    texts = [generate(live.model, live.tokenizer, [p], batch_size=1)[0] for p in prompts]
    assert texts == [reference(live.model, live.tokenizer, prompt) for prompt in prompts]
    assert generate(live.model, live.tokenizer, prompts, batch_size=6) == texts


def test_texts_equal_row_by_row_generation_with_sliding_windows(live) -> None:
    config = MistralConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.4,
    )
    model = MistralForCausalLM(config).eval()
    prompts = make_prompts(12, budgets=(10, 16))
    texts = generate(model, live.tokenizer, prompts, batch_size=12)
    assert texts == [reference(model, live.tokenizer, prompt) for prompt in prompts]


def test_rows_end_at_end_of_text_stop_string_or_budget(live, monkeypatch) -> None:
    prompts = make_prompts(16, budgets=(16,))
    widths: list[int] = []
    forward = live.model.model.forward

    def counting(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape[0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(live.model.model, "forward", counting)
    texts = generate(live.model, live.tokenizer, prompts, batch_size=16)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 16
    assert widths[-1] < 16
    assert sum(widths) < 16 * len(widths)
    assert len(texts) == 16


def test_generation_of_nothing_is_empty(live) -> None:
    assert generate(live.model, live.tokenizer, [], batch_size=4) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_generation_fails_and_says_where_when_logits_are_not_finite(live, value) -> None:
    with torch.no_grad():
        live.model.model.norm.weight[0] = value
    with pytest.raises(EvaluationError, match="not finite for 3 of 3 prompts at generated token 1"):
        generate(live.model, live.tokenizer, make_prompts(3), batch_size=4)


def test_stop_string_is_found_across_tokens_and_inside_one(live) -> None:
    watcher = StopStrings(live.tokenizer, ["moon st", "e"])
    for text, found in (("red moon st", True), ("moon", False), ("the", True), ("st", False)):
        ids = live.tokenizer.encode(text)
        assert watcher.found_in(ids) is found
        assert not found or watcher.ended_by(ids[-1])


def test_stop_string_may_be_a_special_token(live) -> None:
    watcher = StopStrings(live.tokenizer, ["<|pad|>"])
    assert watcher.ended_by(1)
    assert watcher.found_in([5, 1])
    assert not watcher.ended_by(live.tokenizer.encode("dog")[-1])


def test_stop_string_of_several_bytes_is_found_when_its_last_byte_comes(live) -> None:
    watcher = StopStrings(live.tokenizer, ["é"])
    first, last = live.tokenizer.encode("é")
    assert watcher.ended_by(last)
    assert watcher.found_in([7, first, last])
    assert not watcher.found_in([7, first])


def test_text_is_cut_at_every_stop_string_in_turn(live) -> None:
    watcher = StopStrings(live.tokenizer, ["\n", "", "b"])
    assert watcher.cut("a b\nc\nb") == "a "
    assert watcher.cut("a\n\nc") == "a"
    assert watcher.cut("a") == "a"
    assert StopStrings(live.tokenizer, []).cut("a\nb") == "a\nb"
