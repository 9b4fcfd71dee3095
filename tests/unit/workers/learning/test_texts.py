"""Texts from files, and batches of them."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import TinyPool
from workers.learning.texts import encode_texts, endless, make_batches, pad, read_texts


def test_plain_lines_and_json_lines_are_read(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text('one\n\n{"text": "two"}\n')
    assert read_texts(plain) == ["one", '{"text": "two"}']
    lines.write_text('{"text": "one", "prompt": "no"}\n\n{"prompt": "two", "answer": 3}\n')
    assert read_texts(lines) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"answer": 1}\nno\n[]\n{"text": 3}\n',
            "line 2, 3, 4 and 1 more",
        ),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": ""}\n', "line 1"),
    ],
)
def test_bad_files_say_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt cannot be read: No such file"):
        read_texts(tmp_path / "none.txt")


def test_long_texts_keep_their_end_and_empty_ones_go(tiny_pool: TinyPool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_pool.base)
    found = encode_texts(tokenizer, ["abcdef", "", "xy"], max_tokens=3, is_causal=True)
    assert [tokenizer.decode(ids) for ids in found] == ["def", "xy"]
    found = encode_texts(tokenizer, ["abcdef"], max_tokens=3, is_causal=False)
    assert [tokenizer.decode(ids) for ids in found] == ["abc"]


def test_batches_hold_every_text_once_and_follow_the_seed() -> None:
    texts = [(n,) * (n + 1) for n in range(7)]

    def batches(seed: int) -> list[list[list[int]]]:
        draw = torch.Generator().manual_seed(seed)
        made = make_batches(texts, batch_size=3, pad_id=99, generator=draw)
        return [batch.token_ids.tolist() for batch in made]

    assert batches(0) == batches(0) != batches(1)
    held = [tuple(t for t in row if t != 99) for batch in batches(0) for row in batch]
    assert sorted(held) == texts
    assert [len(batch) for batch in batches(0)] == [3, 3, 1]


def test_padding_is_on_the_right_and_masked() -> None:
    batch = pad([(1, 2, 3), (4,)], 9)
    assert batch.token_ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]


def test_every_time_around_is_a_new_order_of_all() -> None:
    order = endless(5, torch.Generator().manual_seed(0))
    rounds = [list(islice(order, 5)) for _ in range(4)]
    assert all(sorted(one) == list(range(5)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
