"""The header of a safetensors file: what it promises, checked against the file.

Nothing is loaded. Format: https://github.com/huggingface/safetensors.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Safetensors dtype -> (name in torch, bytes per element), for what a checkpoint to merge may hold.
DTYPES: dict[str, tuple[str, int]] = {
    "F32": ("float32", 4),
    "BF16": ("bfloat16", 2),
    "F16": ("float16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
}
SAFETENSORS_DTYPES = {name: code for code, (name, _) in DTYPES.items()}
FLOATING = frozenset({"float32", "bfloat16", "float16"})

# What the format knows besides; bits per element, to check sizes before the dtype is refused.
REFUSED_BITS = {
    "F64": 64,
    "C64": 64,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
# The format's own limit on a header.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint: name, dtype as torch names it, shape, shard, size in bytes.

    ``begin`` says where its bytes are in the shard, of a tensor that was found in one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    size_bytes: int
    begin: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def row_length(self) -> int:
        """Elements per output unit, the first axis: of a vector, all of them; at least 1."""
        return max(1, math.prod(self.shape[1:]) if len(self.shape) > 1 else self.numel)

    @property
    def is_floating(self) -> bool:
        """Whether it is merged; other tensors (counters, masks) are copied from the base."""
        return self.dtype in FLOATING


def read_header(path: Path) -> list[TensorEntry]:
    """Read one shard's header and check it against the file.

    Raises:
        ValueError: What is wrong with the file, and what to do.
    """
    if not path.is_file():
        raise ValueError("named by the index but missing; copy it there")
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        header_bytes = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= header_bytes <= _MAX_HEADER_BYTES:
            raise ValueError(f"no safetensors header in its {file_bytes} bytes; copy it again")
        text = file.read(header_bytes)
    if len(text) < header_bytes:
        raise ValueError(_size_message(8 + header_bytes, file_bytes))
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        spans = [_parse_entry(path.name, 8 + header_bytes, *item) for item in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"header is damaged ({error}); copy it again") from error
    position = 0
    for entry, begin, end in sorted(spans, key=lambda span: span[1:]):
        # The format allows neither holes nor overlaps.
        if begin != position or end - begin != entry.size_bytes:
            raise ValueError(
                f"header lies: `{entry.name}` {entry.dtype} {entry.shape} needs "
                f"{entry.size_bytes} bytes from {position}, header says {begin} to {end}; "
                "copy it again"
            )
        position = end
    if (promised := 8 + header_bytes + position) != file_bytes:
        raise ValueError(_size_message(promised, file_bytes))
    return [entry for entry, _, _ in spans]


def _size_message(promised: int, found: int) -> str:
    promised_text, found_text = (f"{size:,}".replace(",", " ") for size in (promised, found))
    return f"header promises {promised_text} bytes, file has {found_text}; copy it again"


def _parse_entry(
    shard: str, data: int, name: str, value: Mapping[str, object]
) -> tuple[TensorEntry, int, int]:
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if (
        not isinstance(code, str)
        or not isinstance(shape, list)
        or not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(number) is int and number >= 0 for number in (*shape, *offsets))
    ):
        raise ValueError(f"entry of `{name}`")
    if code in DTYPES:
        dtype, bits = DTYPES[code][0], 8 * DTYPES[code][1]
    elif code in REFUSED_BITS:
        dtype, bits = code, REFUSED_BITS[code]
    else:
        raise ValueError(f"`{name}` has the unknown dtype {code}")
    size_bytes = math.prod(shape) * bits // 8
    begin, end = offsets
    return TensorEntry(name, dtype, tuple(shape), shard, size_bytes, data + begin), begin, end
