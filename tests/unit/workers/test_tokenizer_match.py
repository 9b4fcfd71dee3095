"""Tokenizers compared by what they do to text, not by how their files are spelled."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import CorruptCheckpointError
from workers.tokenizer_match import TokenizerMatch, match_tokenizers


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
