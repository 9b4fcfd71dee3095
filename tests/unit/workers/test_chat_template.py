"""The chat template of a directory is the one that transformers would use."""

import json

import pytest

from configs.errors import CorruptCheckpointError
from workers.chat_template import read_chat_template


def test_there_is_none_where_no_file_holds_one(tmp_path) -> None:
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert read_chat_template(tmp_path) is None


@pytest.mark.parametrize(
    "value",
    ["{{ x }}", [{"name": "tool", "template": "t"}, {"name": "default", "template": "{{ x }}"}]],
)
def test_template_in_the_tokenizer_config_is_found(tmp_path, value) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert read_chat_template(tmp_path) == "{{ x }}"


def test_file_of_its_own_comes_first(tmp_path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "newer"}))
    assert read_chat_template(tmp_path) == "newer"
    (tmp_path / "chat_template.jinja").write_text("newest\n")
    assert read_chat_template(tmp_path) == "newest"


def test_what_transformers_saves_is_read_back(tmp_path, tiny_pool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_pool.base)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    assert read_chat_template(tmp_path) == "{{ messages }}"


def test_file_that_cannot_be_read_is_named(tmp_path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match=r"tokenizer_config\.json: not readable"):
        read_chat_template(tmp_path)
