"""Tokenizers compared by what they do to text, not by how their files are spelled."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import CorruptCheckpointError
from workers.tokenizer_match import (
    TokenizerMatch,
    conflicts_among,
    has_tokenizer,
    match_tokenizers,
    token_ids,
)


def bpe(**changes: Any) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2},
        "merges": ["a b"],
        **changes.pop("model", {}),
    }
    token = {"id": 3, "content": "<s>", "special": True}
    return {"added_tokens": [token], "normalizer": None, "model": model, **changes}


def match(tmp_path: Path, here: object, there: object) -> TokenizerMatch:
    for name, content in (("here", here), ("there", there)):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    return match_tokenizers(tmp_path / "here", tmp_path / "there")


@pytest.mark.parametrize(
    "other",
    [
        bpe(),
        bpe(model={"merges": [["a", "b"]]}),
        bpe(added_tokens=[{"id": 3, "content": "<s>", "special": False}]),
        bpe(added_tokens=[], model={"vocab": {"<s>": 3, "a": 0, "b": 1, "ab": 2}}),
        bpe(padding={"length": 8}, truncation=None, version="2.0"),
    ],
    ids=["same", "merges as pairs", "not special", "added token in the vocabulary", "padding"],
)
def test_spelling_does_not_matter(tmp_path: Path, other: dict[str, Any]) -> None:
    assert match(tmp_path, bpe(), other) == TokenizerMatch()


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (
            bpe(model={"vocab": {"a": 1, "b": 0, "ab": 2}}),
            "2 of 4 tokens differ, e.g. 'a' has id 1",
        ),
        (bpe(model={"vocab": {"a": 0, "b": 1, "ab": 2, "c": 4}}), "'c' has id 4, expected none"),
        (bpe(added_tokens=[]), "'<s>' has id none, expected 3"),
        (bpe(model={"merges": []}), "merges differ (1 and 0 of them)"),
    ],
    ids=["ids", "new token", "lost token", "merges"],
)
def test_tokens_that_differ_are_a_difference(
    tmp_path: Path, other: dict[str, Any], difference: str
) -> None:
    assert difference in (match(tmp_path, bpe(), other).difference or "")


def test_unigram_scores_that_differ_are_a_difference(tmp_path: Path) -> None:
    def unigram(score: float) -> dict[str, Any]:
        return {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", score]]}}

    match_result = match(tmp_path, unigram(-2.0), unigram(-3.0))
    assert match_result.difference == "the same tokens have other scores"


def test_other_normalizer_is_a_warning(tmp_path: Path) -> None:
    result = match(tmp_path, bpe(), bpe(normalizer={"type": "NFC"}))
    assert result.difference is None
    assert result.warning == "its tokenizer has the same tokens but another normalizer"


def test_files_without_json_are_compared_byte_by_byte(tmp_path: Path) -> None:
    for name, content in (("here", b"x"), ("same", b"x"), ("other", b"y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(content)
    assert match_tokenizers(tmp_path / "here", tmp_path / "same") == TokenizerMatch()
    other = match_tokenizers(tmp_path / "here", tmp_path / "other")
    assert other.difference == "tokenizer.model differ"


ADDED = {"added_tokens.json": {"<pad>": 32000}}
DECODER = {"tokenizer_config.json": {"added_tokens_decoder": {"32000": {"content": "[PAD]"}}}}


@pytest.mark.parametrize(
    ("there", "difference"),
    [
        ({"added_tokens.json": {"<pad>": 32000, "<x>": 32001}}, None),
        ({}, None),
        ({"added_tokens.json": {"[PAD]": 32000}}, "id 32000 is '[PAD]' here and '<pad>' in the"),
        ({"added_tokens.json": {"<pad>": 32001}}, "'<pad>' has id 32001 here and 32000 in the ref"),
        (DECODER, "id 32000 is '[PAD]' here and '<pad>' in the reference"),
    ],
    ids=["one more", "none", "other token", "other id", "in its config"],
)
def test_tokens_added_beside_a_vocabulary_must_not_contradict_each_other(
    tmp_path: Path, there: dict[str, object], difference: str | None
) -> None:
    for name, files in (("here", ADDED), ("there", there)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(b"x")
        for file, content in files.items():
            (tmp_path / name / file).write_text(json.dumps(content))
    found = match_tokenizers(tmp_path / "here", tmp_path / "there").difference
    assert found == difference if difference is None else difference in str(found)


def test_added_tokens_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    (tmp_path / "added_tokens.json").write_text("[1")
    with pytest.raises(CorruptCheckpointError, match=r"added_tokens\.json: its added tokens"):
        match_tokenizers(tmp_path, tmp_path)


def test_layouts_that_cannot_be_compared_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "vocab.txt").write_text("a")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tokenizer.model").write_text("a")
    result = match_tokenizers(tmp_path / "here", tmp_path / "there")
    assert "(vocab.txt) cannot be compared with tokenizer.model" in (result.warning or "")


def test_absent_tokenizers_are_a_warning(tmp_path: Path) -> None:
    assert "has no tokenizer" in (match(tmp_path, bpe(), None).warning or "")


@pytest.mark.parametrize("content", [[], {}, {"model": None}, {"model": {"vocab": [1]}}])
def test_damaged_tokenizer_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"there/tokenizer\.json: not readable"):
        match(tmp_path, bpe(), content)


def match_shared(tmp_path: Path, here: object, there: object, below: int = 99) -> TokenizerMatch:
    for name, content in (("here", here), ("there", there)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    return match_tokenizers(tmp_path / "here", tmp_path / "there", shared_below=below)


@pytest.mark.parametrize(
    "other",
    [
        bpe(model={"vocab": {"a": 0, "b": 1, "ab": 2, "c": 4}}),
        bpe(added_tokens=[]),
        bpe(model={"vocab": {"a": 0, "b": 1, "ab": 2, "aba": 4}, "merges": ["a b", "ab a"]}),
    ],
    ids=["new token", "lost token", "new merge"],
)
def test_what_only_one_has_is_no_difference_of_what_is_shared(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    assert match_shared(tmp_path, bpe(), other) == TokenizerMatch()


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (bpe(model={"vocab": {"a": 1, "b": 0, "ab": 2}}), "'b' has id 0 here and 1 in the ref"),
        (bpe(added_tokens=[{"id": 3, "content": "<x>"}]), "id 3 is '<x>' here and '<s>' in the"),
        (bpe(model={"merges": ["b a"]}), "the merges that both have differ"),
    ],
    ids=["ids", "token of an id", "merges"],
)
def test_what_is_shared_must_agree(tmp_path: Path, other: dict[str, Any], difference: str) -> None:
    assert difference in str(match_shared(tmp_path, bpe(), other).difference)


def test_ids_beyond_the_rows_do_not_count(tmp_path: Path) -> None:
    other = bpe(added_tokens=[{"id": 3, "content": "<x>"}])
    assert match_shared(tmp_path, bpe(), other, below=3) == TokenizerMatch()


def test_scores_of_shared_pieces_must_agree(tmp_path: Path) -> None:
    here, there = (
        bpe(model={"type": "Unigram", "vocab": [["a", -1.0], ["b", score]], "merges": []})
        for score in (-2.0, -3.0)
    )
    found = match_shared(tmp_path, here, there)
    assert found.difference == "the same tokens have other scores"


def test_later_models_are_compared_with_all_before_them() -> None:
    vocabularies = {"one": {"a": 0}, "two": {"a": 0, "x": 1}, "three": {"a": 0, "y": 1}}
    assert conflicts_among(vocabularies, below=9) == {"three": "id 1 is 'y' here and 'x' in `two`"}
    assert conflicts_among(vocabularies, below=1) == {}
    assert conflicts_among({"alias": {"a": 0, "b": 0}}, below=9) == {}


def test_token_ids_are_read_from_every_layout_that_is_text(tmp_path: Path) -> None:
    for name in ("json", "words", "pairs", "binary"):
        (tmp_path / name).mkdir()
    (tmp_path / "json" / "tokenizer.json").write_text(json.dumps(bpe()))
    # A line separator of Unicode is a token of some vocabularies.
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n\u2028\nc\n", encoding="utf-8")
    (tmp_path / "pairs" / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "pairs" / "added_tokens.json").write_text('{"<s>": 2}')
    (tmp_path / "pairs" / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "binary" / "tokenizer.model").write_bytes(b"\x00")
    assert token_ids(tmp_path / "json") == {"a": 0, "b": 1, "ab": 2, "<s>": 3}
    assert token_ids(tmp_path / "words") == {"[PAD]": 0, "\u2028": 1, "c": 2}
    assert token_ids(tmp_path / "pairs") == {"a": 0, "b": 1, "<s>": 2}
    assert token_ids(tmp_path / "binary") is None
    assert has_tokenizer(tmp_path / "binary")
    (tmp_path / "pairs" / "vocab.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="its vocabulary is not readable"):
        token_ids(tmp_path / "pairs")
