"""Checkpoints of any size that take no disk: headers promise tensors, the files are holes."""

import json
import math
import struct
from pathlib import Path

_SHARD_BYTES = 10 * 10**9

Shapes = dict[str, tuple[int, ...]]


def llama_shapes(
    *, layers: int = 80, hidden: int = 10240, intermediate: int = 31744, vocabulary: int = 131072
) -> Shapes:
    """Return the tensors of a Llama; the default has 100 billion parameters."""
    shapes: Shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        in_layer = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (1024, hidden),
            "self_attn.v_proj": (1024, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": s for name, s in in_layer.items()}
    return shapes


def write_sparse(directory: Path, shapes: Shapes) -> int:
    """Write a bfloat16 checkpoint of zeros, in shards; returns its bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = _SHARD_BYTES
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if size > room and shards[-1]:
            shards.append({})
            room = _SHARD_BYTES
        shards[-1][name] = shape
        room -= size
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(tensors, file_name)
        write_shard(directory / file_name, tensors)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index)
    return sum(2 * math.prod(shape) for shape in shapes.values())


def write_shard(path: Path, tensors: Shapes) -> None:
    """Write one bfloat16 safetensors file of zeros that takes a page on the disk."""
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
