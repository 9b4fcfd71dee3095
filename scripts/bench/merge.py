"""Compare merging with the memory bus, export with ``cp``, and both with mergekit.

    python -m scripts.bench.merge --json
    MERGEFRONT_MERGEKIT=.mergekit/bin/mergekit-yaml python -m scripts.bench.merge --json

On a base and three checkpoints of 341 M bfloat16 parameters, made here, in the page cache. In place
is into a live model, tensor by tensor, host work included, one candidate after another of the same
search: bytes of all sources read once and of the result written once, per second, in GB/s (1e9
bytes), beside a plain copy of one checkpoint (read and written) in the same rounds. In every round
each is done twice and timed the second time, merges with other weights. ``*_share`` is the median
over rounds of the ratio to that round's copy; ``*_tensor_gbps`` and ``*_tensor_share`` are the same
for one tensor of 64 M elements. ``ties_first_s`` is a TIES merge that has to find its thresholds,
``ties_other_drop_s`` one at another drop ratio, whose histograms are known. mergekit is measured as
a whole process, in the same bytes. Compiling is measured in processes of their own: ``compile_s``
with an empty cache on disk, ``compile_cached_s`` with a full one.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from configs.recipe import MergeRecipe
from scripts.bench.export import (
    SMALL,
    Shapes,
    make_checkpoints,
    make_recipe,
    measure_export,
    num_elements,
)
from scripts.bench.printing import print_report
from workers.checkpoint_writer import DEFAULT_SHARD_BYTES
from workers.kernels import merge_flat
from workers.materialize import Materializer
from workers.methods import get_method
from workers.plan import MergeTerm, TensorMerge
from workers.sources import Sources
from workers.statistics import StatisticsCache

METHODS = ("linear", "dare_linear", "ties", "dare_ties")
KEYS = dict(zip(METHODS, ("linear", "dare", "ties", "dare_ties"), strict=True))
MERGEKIT = ("linear", "dare_linear")
ROUNDS = 7
TENSOR_ELEMENTS = 2**26
FULL_ROUNDS = 15

# Merges one small tensor by every method, as a process that has compiled nothing does.
COMPILE = """
import time, torch
from workers.kernels import merge_flat
from workers.plan import MergeTerm, TensorMerge
from workers.methods import get_method
base = torch.zeros(2**16, dtype=torch.bfloat16)
start = time.perf_counter()
for name in {methods}:
    method = get_method(name)
    drop = 0.5 if method.uses_drop_ratios else 0.0
    terms = tuple(MergeTerm(0.5, drop, str(i)) for i in range(3))
    plan = TensorMerge(method, "t", terms, method.complete_options({{}}))
    out = torch.empty_like(base)
    merge_flat(plan, out, base if method.needs_base else None, [base] * 3, backend="compiled")
print(time.perf_counter() - start)
"""


def live_model() -> LlamaForCausalLM:
    """Build the model that is merged into; its weights are whatever the memory holds."""
    config = LlamaConfig(
        vocab_size=SMALL.vocabulary,
        hidden_size=SMALL.hidden,
        intermediate_size=SMALL.intermediate,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    torch.nn.Module.to(model, torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    return model


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def recipe_for(method: str, sources: Sources, drop_ratio: float = 0.5) -> MergeRecipe:
    """Weigh three checkpoints alike."""
    recipe = make_recipe(sources, method)
    if any(drop for row in recipe.drop_ratios for drop in row):
        drops = tuple((drop_ratio,) for _ in recipe.checkpoints)
        recipe = recipe.model_copy(update={"drop_ratios": drops})
    return recipe


def measure_in_place(sources: Sources, rounds: int) -> dict[str, float]:
    """Merge into a live model by every method, in turn with a copy."""
    model, result_bytes = live_model(), 2 * num_elements(SMALL.shapes())
    flat = torch.zeros(result_bytes // 2, dtype=torch.bfloat16)
    target = torch.zeros_like(flat)
    materializer = Materializer(sources)
    report: dict[str, float] = {}
    work: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(flat)}
    moved = {"copy": 2 * result_bytes}
    for method in METHODS:
        recipe = recipe_for(method, sources)
        before = recipe.model_copy(update={"weights": ((0.5,), (0.4,), (0.1,))})
        first = seconds_of(partial(materializer.into, model, recipe))
        if method == "ties":
            report["ties_first_s"] = first
            other = recipe_for(method, sources, 0.6)
            report["ties_other_drop_s"] = seconds_of(partial(materializer.into, model, other))
        work[KEYS[method]] = partial(_next_candidate, materializer, model, cycle((before, recipe)))
        num_sources = len(sources.checkpoints) + (recipe.method != "linear")
        moved[KEYS[method]] = (num_sources + 1) * result_bytes
    for name, rates in run_in_turn(work, moved, rounds).items():
        report |= {f"{name}_{kind}": value for kind, value in rates.items()}
    materializer.close()
    return report


def _next_candidate(
    materializer: Materializer, model: LlamaForCausalLM, recipes: Iterator[MergeRecipe]
) -> None:
    materializer.into(model, next(recipes))


def measure_one_tensor(rounds: int) -> dict[str, float]:
    """Merge one large tensor by every method, in turn with a copy."""
    draw = torch.Generator().manual_seed(0)
    base = torch.empty(TENSOR_ELEMENTS, dtype=torch.bfloat16).normal_(0, 0.05, generator=draw)
    tuned = [base + torch.empty_like(base).normal_(0, 0.003, generator=draw) for _ in range(3)]
    out, cache = torch.zeros_like(base), StatisticsCache()
    work: dict[str, Callable[[], object]] = {"copy": partial(out.copy_, base)}
    moved = {"copy": 2 * base.nbytes}
    for name in METHODS:
        method = get_method(name)
        drop = 0.5 if method.uses_drop_ratios else 0.0
        terms = tuple(MergeTerm(1 / 3, drop, str(index)) for index in range(3))
        plan = TensorMerge(method, "tensor", terms, method.complete_options({}))
        needed = base if method.needs_base else None
        merge = partial(merge_flat, plan, out, needed, tuned, backend="compiled", statistics=cache)
        merge()
        work[KEYS[name]] = merge
        moved[KEYS[name]] = (4 + method.needs_base) * base.nbytes
    return {
        f"{name}_tensor_{kind}": value
        for name, rates in run_in_turn(work, moved, rounds).items()
        for kind, value in rates.items()
    }


def run_in_turn(
    work: dict[str, Callable[[], object]], moved: dict[str, int], rounds: int
) -> dict[str, dict[str, float]]:
    """Do everything twice per round; medians of the rates and of their ratios to the copy."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, merge in work.items():
            merge()
            rates[name].append(moved[name] / seconds_of(merge) / 1e9)
    return {
        name: {
            "gbps": statistics.median(found),
            "share": statistics.median(
                rate / copy for rate, copy in zip(found, rates["copy"], strict=True)
            ),
        }
        for name, found in rates.items()
    }


def measure_compiling() -> dict[str, float | None]:
    """Time what compiling costs a process, with and without torch's cache on the disk."""
    code = COMPILE.format(methods=METHODS)
    report: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-") as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        for key in ("compile_s", "compile_cached_s"):
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            report[key] = float(done.stdout) if done.returncode == 0 else None
    return report


def measure_mergekit(root: Path, sources: Sources) -> dict[str, float | None]:
    """Run mergekit as a process of its own, where it is installed."""
    named = os.environ.get("MERGEFRONT_MERGEKIT", "mergekit-yaml")
    program = shutil.which(named)
    report: dict[str, float | None] = dict.fromkeys(
        (f"mergekit_{method}_gbps" for method in MERGEKIT), None
    )
    if program is None:
        return report
    for source in sources.everything:
        live_model().config.save_pretrained(source.directory)
    moved = 2 * num_elements(SMALL.shapes())
    for method in MERGEKIT:
        job = {
            "merge_method": method,
            "models": [
                {"model": str(c.directory), "parameters": {"weight": 1 / 3, "density": 0.5}}
                for c in sources.checkpoints
            ],
            "dtype": "bfloat16",
        }
        if sources.base and method != "linear":
            job["base_model"] = str(sources.base.directory)
        (root / "job.yaml").write_text(yaml.safe_dump(job))
        command = [program, root / "job.yaml", root / "mergekit", "--no-copy-tokenizer"]
        seconds = seconds_of(partial(subprocess.run, command, check=True, capture_output=True))
        shutil.rmtree(root / "mergekit")
        num_sources = len(sources.checkpoints) + (method != "linear")
        report[f"mergekit_{method}_gbps"] = (num_sources + 1) * moved / seconds / 1e9
    return report


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.add_argument("--full", action="store_true", help="more rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dir", type=Path, help="where checkpoints are made, about 4 GB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes: Shapes = SMALL.shapes()
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-", dir=options.dir) as directory:
        root = Path(directory)
        sources = make_checkpoints(root, shapes)
        report: dict[str, object] = {
            "elements": num_elements(shapes),
            "threads": options.threads,
            **measure_in_place(sources, FULL_ROUNDS if options.full else ROUNDS),
            **measure_one_tensor(FULL_ROUNDS if options.full else ROUNDS),
            **measure_compiling(),
            **measure_mergekit(root, sources),
        }
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-", dir=options.dir) as directory:
        exported = measure_export(
            Path(directory), method="dare_linear", shard_bytes=DEFAULT_SHARD_BYTES
        )
    for key in ("export_gbps", "cp_gbps", "export_peak_anon_mib"):
        report[key] = exported[key]
    print_report(report, as_json=options.json)


if __name__ == "__main__":
    main()
