"""Compare a streaming export with ``cp`` of the same bytes to the same disk.

    python -m scripts.bench.export --json                        # 3 + 1 x 341 M bfloat16
    python -m scripts.bench.export --json --larger-than-memory   # sparse sources

Prints one JSON object. Rates are bytes of the result per second, in GB/s (1e9 bytes), medians over
rounds, until files, directory and its name are on the disk (fsync) for both; what either reads was
read into the page cache before. Whichever comes first in a round comes second in the next, and
before each, the result of the one before is removed and everything synced, untimed.
``export_peak_anon_mib`` is how much the process's own memory (RssAnon) grew at most in two exports
before that, which are watched instead of timed, compiling included.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch
from safetensors.torch import save_file

from configs.recipe import Group, MergeRecipe, Source
from scripts.bench.printing import print_report
from workers.checkpoint import CheckpointReader
from workers.checkpoint_writer import DEFAULT_SHARD_BYTES
from workers.merged_checkpoint import write_checkpoint
from workers.methods import get_method
from workers.sources import ResolvedSource, Sources

ROUNDS = 9
CHECKPOINTS = 3
ANON_BOUND_MIB = 200
"""The own memory of an export may grow by this and two shards."""

LARGE_RESULT_BYTES = 6_600_000_000
# Sources of this share of the machine's memory cannot stay in it.
LARGE_SHARE = 1.1

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama:
    """The sizes that decide a Llama's tensors."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    key_value: int
    """Width of keys and values."""

    def shapes(self) -> Shapes:
        """Return name -> shape of every tensor, output head tied."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for name, rows in (("q", self.hidden), ("k", self.key_value), ("v", self.key_value)):
                shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, self.hidden)
            shapes[f"{prefix}.self_attn.o_proj.weight"] = (self.hidden, self.hidden)
            shapes[f"{prefix}.mlp.gate_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{prefix}.mlp.up_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{prefix}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            shapes[f"{prefix}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{prefix}.post_attention_layernorm.weight"] = (self.hidden,)
        return shapes


SMALL = Llama(32_000, 1024, 2816, 24, 1024)
LARGE = Llama(128_256, 4096, 14_336, 12, 1024)


def num_elements(shapes: Shapes) -> int:
    """Count the elements of a checkpoint."""
    return sum(math.prod(shape) for shape in shapes.values())


def make_checkpoints(root: Path, shapes: Shapes, *, count: int = CHECKPOINTS) -> Sources:
    """Write a base and checkpoints tuned from it: bfloat16, random, deltas of .003."""
    draw = torch.Generator().manual_seed(0)
    base: dict[str, torch.Tensor] = {}
    for name in ("base", *(f"tuned{index}" for index in range(count))):
        tensors = {}
        for tensor, shape in shapes.items():
            noise = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=draw)
            tensors[tensor] = base[tensor] + noise.mul_(0.003) if base else noise.mul_(0.05)
        base = base or tensors
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text('{"model_type": "llama"}')
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    return _sources(root, count)


def make_sparse_checkpoints(root: Path, shapes: Shapes, *, count: int) -> Sources:
    """Write checkpoints of zeros that take no place on the disk, but do in the page cache."""
    for name in ("base", *(f"tuned{index}" for index in range(count))):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text('{"model_type": "llama"}')
        header, end = {}, 0
        for tensor, shape in sorted(shapes.items()):
            begin, end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (root / name / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    return _sources(root, count)


def _sources(root: Path, count: int) -> Sources:
    # Digests name checkpoints here and are not checked: reading everything is not the question.
    def source(name: str) -> ResolvedSource:
        return ResolvedSource(name, root / name, name.encode().hex().ljust(64, "0"))

    return Sources(source("base"), tuple(source(f"tuned{index}") for index in range(count)))


def make_recipe(sources: Sources, method: str = "dare_linear") -> MergeRecipe:
    """Weigh all checkpoints alike, in one group, at a drop ratio of one half where there is one."""
    count, chosen = len(sources.checkpoints), get_method(method)
    return MergeRecipe(
        method=method,
        base=Source(name="base", digest=sources.reference.digest),
        checkpoints=tuple(Source(name=c.name, digest=c.digest) for c in sources.checkpoints),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=((1 / count,),) * count,
        drop_ratios=((0.5 if chosen.uses_drop_ratios else 0.0,),) * count,
        options=chosen.complete_options({}),
        dtype="bfloat16",
    )


class AnonPeak:
    """Watches how much the process's own memory grows; a context manager.

    Attributes:
        grown_mib: Largest growth of RssAnon since the beginning, in MiB.
        least_available_mib: Smallest MemAvailable of the machine, in MiB.
    """

    def __init__(self) -> None:
        self.grown_mib = 0.0
        self.least_available_mib = math.inf
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._before = _status_kib("/proc/self/status", "RssAnon")
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            grown = _status_kib("/proc/self/status", "RssAnon") - self._before
            self.grown_mib = max(self.grown_mib, grown / 1024)
            available = _status_kib("/proc/meminfo", "MemAvailable") / 1024
            self.least_available_mib = min(self.least_available_mib, available)


def _status_kib(path: str, field: str) -> int:
    return int(Path(path).read_text(encoding="ascii").split(f"{field}:")[1].split()[0])


def read_into_page_cache(*directories: Path) -> None:
    """Read all files: some systems give up pages within seconds, and not of both sides alike."""
    memory = bytearray(8 * 2**20)
    for directory in directories:
        for path in directory.iterdir():
            with path.open("rb", buffering=0) as file:
                while file.readinto(memory):
                    pass


def copy_seconds(source: Path, target: Path) -> float:
    """Time ``cp -r`` and an fsync of all that an export syncs; the copy is removed."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in (*target.iterdir(), target, target.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def export_seconds(recipe: MergeRecipe, sources: Sources, target: Path, shard_bytes: int) -> float:
    """Time an export, which ends with everything on the disk; the result stays."""
    os.sync()
    start = time.perf_counter()
    write_checkpoint(recipe, sources, target, max_shard_bytes=shard_bytes)
    return time.perf_counter() - start


def measure_export(root: Path, *, method: str, shard_bytes: int) -> dict[str, object]:
    """Export and copy in turn; returns the numbers of the first lines of this file."""
    shapes = SMALL.shapes()
    sources = make_checkpoints(root, shapes)
    recipe = make_recipe(sources, method)
    result_bytes = 2 * num_elements(shapes)
    exports: list[float] = []
    copies: list[float] = []
    own_cpu_s = 0.0
    with AnonPeak() as peak:
        # Compiles, or reads torch's cache of it.
        first_s = export_seconds(recipe, sources, root / "result", shard_bytes)
        first_mib = peak.grown_mib
    with AnonPeak() as later:
        export_seconds(recipe, sources, root / "again", shard_bytes)
    shutil.rmtree(root / "again")

    def export() -> None:
        nonlocal own_cpu_s
        read_into_page_cache(*(source.directory for source in sources.everything))
        cpu_before_s = time.process_time()
        exports.append(export_seconds(recipe, sources, root / "again", shard_bytes))
        own_cpu_s += time.process_time() - cpu_before_s
        shutil.rmtree(root / "again")

    def copy() -> None:
        read_into_page_cache(root / "result")
        copies.append(copy_seconds(root / "result", root / "copy"))

    for index in range(ROUNDS):
        for measure in (export, copy) if index % 2 else (copy, export):
            measure()
    return {
        "elements": num_elements(shapes),
        "method": method,
        "result_bytes": result_bytes,
        "export_gbps": round(result_bytes / statistics.median(exports) / 1e9, 3),
        "cp_gbps": round(result_bytes / statistics.median(copies) / 1e9, 3),
        "export_s": [round(seconds, 2) for seconds in exports],
        "cp_s": [round(seconds, 2) for seconds in copies],
        "share_of_cp": round(statistics.median(copies) / statistics.median(exports), 3),
        "first_export_s": round(first_s, 2),
        "export_peak_anon_mib": round(max(first_mib, later.grown_mib)),
        "later_peak_anon_mib": round(later.grown_mib),
        "bound_mib": round(2 * min(shard_bytes, result_bytes) / 2**20 + ANON_BOUND_MIB),
        "export_cpu_s": round(own_cpu_s / ROUNDS, 2),
        "load_average": round(os.getloadavg()[0], 1),
    }


def measure_larger_than_memory(root: Path, *, method: str, shard_bytes: int) -> dict[str, object]:
    """Export from sources that do not fit into this machine's memory."""
    shapes = LARGE.shapes()
    result_bytes = 2 * num_elements(shapes)
    total = psutil.virtual_memory().total
    count = max(CHECKPOINTS, math.ceil(LARGE_SHARE * total / result_bytes) - 1)
    sources = make_sparse_checkpoints(root, shapes, count=count)
    with AnonPeak() as peak:
        seconds = export_seconds(
            make_recipe(sources, method), sources, root / "result", shard_bytes
        )
    with CheckpointReader(root / "result") as reader:
        complete = {name: entry.shape for name, entry in reader.entries.items()} == shapes
        zeros = not any(reader.tensor(name)[-1].any() for name in reader.entries)
    return {
        "elements": num_elements(shapes),
        "method": method,
        "checkpoints": count,
        "memory_bytes": total,
        "source_bytes": result_bytes * (count + 1),
        "result_bytes": result_bytes,
        "largest_tensor_bytes": 2 * max(math.prod(shape) for shape in shapes.values()),
        "large_export_s": round(seconds, 1),
        "large_export_gbps": round(result_bytes / seconds / 1e9, 3),
        "export_peak_anon_mib": round(peak.grown_mib),
        "least_available_mib": round(peak.least_available_mib),
        "bound_mib": round(2 * min(shard_bytes, result_bytes) / 2**20 + ANON_BOUND_MIB),
        "complete": complete and zeros,
    }


@contextmanager
def scratch(directory: Path | None) -> Iterator[Path]:
    """Make a directory on the disk in question, and remove it with everything in it."""
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-", dir=directory) as path:
        yield Path(path)


def main() -> None:
    """Run one mode and print its numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--larger-than-memory", action="store_true")
    parser.add_argument("--method", default="dare_linear")
    parser.add_argument("--max-shard-bytes", type=int, default=DEFAULT_SHARD_BYTES)
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: $TMPDIR")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure = measure_larger_than_memory if options.larger_than_memory else measure_export
    with scratch(options.directory) as root:
        report = measure(root, method=options.method, shard_bytes=options.max_shard_bytes)
    report |= {"threads": options.threads, "torch": torch.__version__}
    print_report(report, as_json=options.json)


if __name__ == "__main__":
    main()
