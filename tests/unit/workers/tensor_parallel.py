"""One rank of a model sharded over processes; run by ``test_tensor_parallel``.

    python tensor_parallel.py MODE RANK WORLD_SIZE DIRECTORY MODELS_JSON RECIPES_JSON

Prints one JSON object.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from transformers import LlamaForCausalLM

from configs.recipe import MergeRecipe
from configs.schema import Models
from workers.column_coefficients import recall_coefficients
from workers.materialize import Materializer
from workers.sources import Sources, resolve_sources

COLUMN_WISE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens")
ROW_WISE = ("o_proj", "down_proj")


def shard(model: nn.Module, mesh) -> None:
    """As transformers' own plan for Llama does; 259 rows of the embedding do not divide by two."""
    for name, module in model.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            kind = name.rpartition(".")[2]
            placement = Replicate()
            if kind in COLUMN_WISE or kind == "rows":
                placement = Shard(0)
            elif kind in ROW_WISE or kind == "columns":
                placement = Shard(1)
            part = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [placement]))
            setattr(module, key, part)
    if hasattr(model, "tie_weights"):
        model.lm_head.weight = model.model.embed_tokens.weight


def merge_in_turn(
    mode: str, sources: Sources, recipes: list[MergeRecipe], rank: int
) -> dict[str, object]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if mode == "tp_plan":
        model = LlamaForCausalLM.from_pretrained(
            sources.reference.directory, dtype=torch.float32, tp_plan="auto"
        )
    else:
        model = LlamaForCausalLM.from_pretrained(sources.reference.directory, dtype=torch.float32)
        shard(model, mesh)
    sharded = [
        name
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, DTensor) and tensor.to_local().numel() < tensor.numel()
    ]
    materializer = Materializer(sources, backend="eager")
    digests = []
    for recipe in recipes:
        materializer.into(model, recipe)
        digests.append(materializer.digest_of(model))
    return {"rank": rank, "digests": digests, "sharded": sorted(sharded)}


class TwoMatrices(nn.Module):
    """One matrix that ranks share by rows, one by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(2**12, 2**12, bias=False, dtype=torch.bfloat16)
        self.columns = nn.Linear(2**23, 2, bias=False, dtype=torch.bfloat16)


def pages_read(sources: Sources, recipes: list[MergeRecipe], rank: int) -> dict[str, object]:
    model = TwoMatrices()
    shard(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    materializer = Materializer(sources, backend="eager")
    read = []
    for recipe in recipes:
        materializer.into(model, recipe)
        read.append(
            {source.name: resident_bytes(source.directory) for source in sources.everything}
        )
    return {"rank": rank, "read": read}


def resident_bytes(directory: Path) -> int:
    """What of a checkpoint's file is mapped and was touched."""
    resident, is_wanted = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_wanted = line.endswith(str(directory / "model.safetensors"))
        elif is_wanted and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


def main() -> None:
    mode, rank, world_size, directory, models, recipes = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=int(rank),
        world_size=int(world_size),
    )
    sources = resolve_sources(Models.model_validate_json(models))
    wanted = [MergeRecipe.model_validate(recipe) for recipe in json.loads(recipes)]
    columns = [recipe.coefficients for recipe in wanted if recipe.coefficients is not None]
    sources = replace(sources, coefficients=tuple(map(recall_coefficients, columns)))
    if mode == "pages":
        found = pages_read(sources, wanted, int(rank))
    else:
        found = merge_in_turn(mode, sources, wanted, int(rank))
    print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
