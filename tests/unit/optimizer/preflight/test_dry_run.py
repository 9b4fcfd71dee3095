"""Scorers are tried before a worker starts: on the base, or on the first layers of a large one."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import ConfigError, MergefrontError
from configs.schema import JobConfig
from optimizer.preflight import dry_run
from optimizer.preflight.preflight import prepare

ITEMS = [{"text": f"the {n}"} for n in range(60)]
CALLED = "def f(model, tokenizer, items, *, batch_size, **options):\n    "
COUNTING = """with open(options["log"], "a") as log:
        layers, tensors = model.config.num_hidden_layers, len(list(model.parameters()))
        print(len(items), layers, tensors, file=log)
    return [0.0] * len(items)"""


@pytest.fixture
def make_job(tiny_job, tmp_path) -> Callable[..., JobConfig]:
    """A job of one scorer with this body, beside what is given."""
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))

    def make(body: str, *others: object, **spec: object) -> JobConfig:
        (tmp_path / "metrics.py").write_text(CALLED + body)
        entry = {"scorer": f"{tmp_path}/metrics.py:f", "items": f"{tmp_path}/items.jsonl"}
        return tiny_job(objectives={"skill": [entry | spec, *others]})

    return make


@pytest.fixture
def tried(make_job, tmp_path) -> Callable[..., list[list[str]]]:
    """Prepare a job whose scorer writes down with what it was called."""

    def try_once(**options: bool) -> list[list[str]]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        prepare(make_job(COUNTING, options={"log": str(log)}), **options)
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    return try_once


def refusal(job: JobConfig) -> str:
    with pytest.raises(MergefrontError) as caught:
        prepare(job)
    assert isinstance(caught.value, ConfigError)
    return caught.value.message


def test_scorer_is_tried_once_on_some_items_of_the_whole_base(tried) -> None:
    ((items, layers, _),) = tried()
    # The search split has 8.
    assert (items, layers) == ("8", "2")


def test_item_with_other_keys_is_tried_too(tried, tmp_path) -> None:
    odd = [*ITEMS, {"text": "a", "note": 1}, {"note": 2}, {"note": 3}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, odd)))
    ((items, *_),) = tried()
    assert int(items) == 10


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [item['score'] for item in items]", "raised KeyError: 'score' (metrics.py line 2"),
        ("return [float('nan')] * len(items)", "returned nan as the score of item 0 of 8"),
        ("return [1.0]", "returned 1 scores for 8 items"),
        ("return model.encode(items)", "AttributeError: 'LlamaForCausalLM' object has no"),
    ],
)
def test_scorer_that_fails_is_refused_before_a_worker_starts(make_job, body, message) -> None:
    text = refusal(make_job(body))
    assert "objectives.skill.f: scorer `f` (metrics.py:f)" in text
    assert message in text
    assert "(tried on `base`; `dry_run: false` skips this)" in text


def test_every_scorer_that_fails_is_told_of(make_job) -> None:
    first = make_job("return options['which']", name="a", options={"which": 1})
    (entry,) = first.objectives["skill"].scorers
    second = entry.model_copy(update={"name": "b"}).model_dump()
    text = refusal(make_job("return 1", second, "tiny_choice", name="a"))
    assert "objectives.skill.a:" in text
    assert "objectives.skill.b:" in text


def test_scorer_may_be_left_untried(make_job) -> None:
    assert prepare(make_job("raise ValueError", dry_run=False)).warnings == ()


def test_headers_only_tries_nothing_and_says_so(tried, make_job) -> None:
    assert tried(headers_only=True) == []
    prepared = prepare(make_job("raise ValueError"), headers_only=True)
    assert any("no scorer was tried" in warning for warning in prepared.warnings)


def test_large_base_is_tried_with_its_first_layers(tried, make_job, monkeypatch, caplog) -> None:
    ((_, _, whole),) = tried()
    monkeypatch.setattr(dry_run, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(dry_run, "NUM_LAYERS", 1)
    # The library's logger passes nothing on.
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        ((_, layers, cut),) = tried()
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert layers == "1"
    assert int(cut) < int(whole)
    # What is left out on purpose is not complained of.
    assert "layers" not in caplog.text
    assert "tried on the first 1 of 2 layers of `base`" in refusal(make_job("return 1"))


def test_large_base_without_layers_is_a_warning(make_job, monkeypatch, tiny_pool) -> None:
    monkeypatch.setattr(dry_run, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(dry_run, "_cut_config", lambda sources: (None, 0))
    (warning,) = prepare(make_job("raise ValueError")).warnings
    assert "no scorer was tried: `base` is large" in warning


def test_lists_per_layer_are_cut_with_the_layers(tmp_path) -> None:
    from transformers import AutoConfig, Qwen2Config

    from workers.sources import ResolvedSource, Sources

    config = Qwen2Config(num_hidden_layers=6, vocab_size=32, hidden_size=16, num_attention_heads=2)
    assert len(config.layer_types) == 6
    config.save_pretrained(tmp_path)
    sources = Sources(ResolvedSource("base", Path(tmp_path), ""), ())
    cut, layers = dry_run._cut_config(sources)
    assert layers == 6
    assert cut is not None
    assert (cut.num_hidden_layers, len(cut.layer_types)) == (2, 2)
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 6
