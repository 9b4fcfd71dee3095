"""Whatever is in a file, its header is either right or refused."""

import json
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from workers.shard_header import read_header

GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3, dtype=torch.bfloat16)})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def read(content: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        path.write_bytes(content)
        return {entry.name: (entry.dtype, entry.shape) for entry in read_header(path)}


def test_good_file_is_read() -> None:
    assert read(GOOD) == {"a": ("float32", (2, 3)), "b": ("bfloat16", (3,))}


@settings(deadline=None)  # machines differ
@given(st.integers(0, len(GOOD) - 1))
def test_every_shortened_file_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="copy it again"):
        read(GOOD[:length])


@settings(deadline=None)  # machines differ
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_changed_byte_is_refused_or_harmless(position: int, value: int) -> None:
    changed = bytearray(GOOD)
    changed[position] = value
    try:
        entries = read(bytes(changed))
    except ValueError as error:
        assert "copy it again" in str(error)  # noqa: PT017 - it need not be raised
    else:
        # Other names and shapes can say the same bytes.
        assert len(entries) <= 2


@settings(deadline=None)  # machines differ
@given(json_values | st.dictionaries(st.text(max_size=5), json_values))
def test_any_json_in_place_of_a_header_is_refused_or_read(content: object) -> None:
    text = json.dumps(content).encode()
    try:
        entries = read(struct.pack("<Q", len(text)) + text)
    except ValueError as error:
        assert "copy it again" in str(error)  # noqa: PT017 - it need not be raised
    else:
        assert entries == {} or content
