"""A job file to begin with: from the checkpoints, the tasks and the hardware that are there.

:func:`draft_job` looks at all three and chooses; :func:`render_draft` writes the file with a
comment on every choice. What it writes passes ``mergefront check``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from configs.errors import ConfigError, Problem
from configs.evaluation import SplitSizes
from configs.load import job_of
from configs.schema import JobConfig
from optimizer.preflight.estimate import RUNTIME_BYTES, format_bytes
from optimizer.templates import environment
from workers.hardware import Hardware, find_hardware

# Metrics and examples of tasks that have several; of others the only metric is taken.
KNOWN_TASKS: Mapping[str, Mapping[str, object]] = {
    "gsm8k": {"metric": "exact_match,flexible-extract", "num_fewshot": 5},
    "humaneval": {"metric": "pass@1"},
    "ifeval": {"metric": "prompt_level_strict_acc"},
    "mbpp": {"metric": "pass_at_1", "num_fewshot": 3},
}
# Parameters above which a forward pass on the CPU is slow, and profits from threads.
_SMALL = 200_000_000
_MOST_WORKERS = 8
# Shares of a task's items where it has too few: search, select, report.
_SHARES = (0.3, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person says.

    Attributes:
        name: Of the search.
        base: Directory or hub id; None merges checkpoints of different runs.
        checkpoints: Name -> directory or hub id.
        objectives: Pairs of an objective's name and a task, with its metric after a colon where
            it has several.
        archive: What records the search.
        data_dir: Where tasks find their items; None is the hub.
        include_path: Directories with task YAMLs.
        runs_code: Whether generated code may be run in the sandbox.
    """

    name: str
    base: str | None
    checkpoints: Mapping[str, str]
    objectives: Sequence[tuple[str, str]]
    archive: str
    data_dir: str | None = None
    include_path: Sequence[str] = ()
    runs_code: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A job, and why it is as it is.

    Attributes:
        job: Validated; its paths are absolute.
        content: As it is written, with the paths that were given.
        num_parameters: Of each model.
        model_bytes: Of a merged one.
        items: Task -> items that it has.
        wanted: Items that a task should have.
        hardware: Of this machine.
    """

    job: JobConfig
    content: Mapping[str, object]
    num_parameters: int
    model_bytes: int
    items: Mapping[str, int]
    wanted: SplitSizes
    hardware: Hardware


def draft_job(wishes: Wishes, hardware: Hardware | None = None) -> Draft:
    """Choose everything that a job needs.

    Args:
        wishes: What a person says.
        hardware: What to run on; None looks at this machine.

    Raises:
        ConfigError: Names, tasks or their items cannot be used.
        CheckpointError: Models are missing, damaged or do not fit together.
    """
    from workers.compat import check_compatible
    from workers.sources import resolve_sources

    machine = find_hardware() if hardware is None else hardware
    job = job_of(_content(wishes, {"search": 1, "select": 1, "report": 1}))
    sources = resolve_sources(job.models, with_digests=False)
    pool = check_compatible(sources, job.merge, headers_only=True)
    items = _count_items(job)
    on_gpu = bool(machine.gpus)
    is_slow = not on_gpu and pool.num_parameters > _SMALL
    wanted = SplitSizes(search=24, select=32, report=96) if is_slow else SplitSizes()
    content = _content(wishes, _splits(wanted, items)) | {
        "budget": {
            "evaluations": (60 if is_slow else 96) + 8 * max(0, len(wishes.checkpoints) - 3)
        },
        "workers": _workers(machine, pool.num_parameters, pool.bytes_written),
    }
    return Draft(
        job=job_of(content),
        content=content,
        num_parameters=pool.num_parameters,
        model_bytes=pool.bytes_written,
        items=items,
        wanted=wanted,
        hardware=machine,
    )


def render_draft(draft: Draft) -> str:
    """Write a job file with comments."""
    templates = environment("optimizer.preflight")
    templates.filters["yaml"] = _scalar
    gpus = [f"{gpu.name} with {format_bytes(gpu.memory_bytes)}" for gpu in draft.hardware.gpus]
    return templates.get_template("draft.yaml.j2").render(
        content=draft.content,
        few_items={n: c for n, c in draft.items.items() if c < draft.wanted.total},
        model=f"{draft.num_parameters / 1e9:.3g} G parameters, {format_bytes(draft.model_bytes)}",
        machine=", ".join(
            [f"{draft.hardware.cores} cores", format_bytes(draft.hardware.memory_bytes), *gpus]
        ),
    )


def _content(wishes: Wishes, splits: Mapping[str, int]) -> dict[str, object]:
    models: dict[str, object] = {"checkpoints": dict(wishes.checkpoints)}
    merge: dict[str, object] = {"method": "linear", "parametrization": "simplex"}
    if wishes.base is not None:
        models = {"base": wishes.base, **models}
        merge = {
            "method": "dare_linear",
            "weight": {"low": 0.0, "high": 1.5},
            "drop_ratio": {"low": 0.0, "high": 0.9},
        }
    evaluation: dict[str, object] = {}
    if wishes.include_path:
        evaluation["include_path"] = list(wishes.include_path)
    if wishes.data_dir is not None:
        evaluation["data_dir"] = wishes.data_dir
    if wishes.runs_code:
        evaluation["allow_code_execution"] = True
    evaluation["splits"] = dict(splits)
    return {
        "name": wishes.name,
        "seed": 0,
        "models": models,
        "merge": merge,
        "objectives": _objectives(wishes.objectives),
        "evaluation": evaluation,
        "archive": wishes.archive,
    }


def _objectives(pairs: Sequence[tuple[str, str]]) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for name, text in pairs:
        task, colon, metric = text.partition(":")
        entry: dict[str, object] = {"task": task, **KNOWN_TASKS.get(task, {})}
        if colon:
            entry["metric"] = metric
        found.setdefault(name, []).append(entry)
    return found


def _count_items(job: JobConfig) -> dict[str, int]:
    """Return task -> distinct items, of tasks that can be loaded.

    Raises:
        ConfigError: One cannot.
    """
    from evaluators.suite import JobSuite

    suite = JobSuite(job.objectives, job.evaluation)
    counts = {name: len(set(scorer.items)) for name, scorer in suite.scorers.items()}
    if suite.lm_eval is not None:
        counts |= {name: len(task.indices) for name, task in suite.lm_eval.tasks.items()}
    return counts


def _splits(wanted: SplitSizes, items: Mapping[str, int]) -> dict[str, int]:
    """Return sizes that every task has items for.

    Raises:
        ConfigError: A task has so few that splits of them say nothing.
    """
    task, fewest = min(items.items(), key=lambda item: item[1])
    sizes = {"search": wanted.search, "select": wanted.select, "report": wanted.report}
    if sum(sizes.values()) > fewest:
        # Never more than where there are plenty: few items are no reason for a longer search.
        parts = zip(sizes.items(), _SHARES, strict=True)
        sizes = {name: min(size, math.floor(share * fewest)) for (name, size), share in parts}
    if min(sizes.values()) < 1:
        raise ConfigError(
            "a job cannot be drafted",
            [Problem("objectives", f"task `{task}` has {fewest} items; search, select and report "
                     "need some each")],
        )  # fmt: skip
    return sizes


def _workers(machine: Hardware, num_parameters: int, model_bytes: int) -> dict[str, object]:
    """Return as many workers as fit, at the most one per GPU or core."""
    if machine.gpus:
        smallest = min(gpu.memory_bytes for gpu in machine.gpus)
        # A third more than the model, for what a forward pass needs.
        needed = math.ceil(1.33 * model_bytes / smallest)
        gpus = max(1, min(needed, len(machine.gpus)))
        cores = max(1, machine.cores // max(1, len(machine.gpus) // gpus))
        return {"device": "cuda", "gpus": gpus, "cpus": cores, "threads": cores}
    room = int(0.7 * machine.free_bytes / (1.33 * model_bytes + RUNTIME_BYTES))
    wanted = machine.cores if num_parameters <= _SMALL else 1
    count = max(1, min(wanted, room, _MOST_WORKERS))
    return {"count": count, "threads": max(1, machine.cores // count)}


def _scalar(value: object) -> str:
    """Write a value of YAML on one line."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[\w./][\w./@+-]*", value) and yaml.safe_load(value) == value
        # A word that YAML takes for something else (`no`, `1`) is quoted.
        style = None if plain else '"'
        return (
            yaml.safe_dump(value, default_style=style, width=10_000, allow_unicode=True)
            .removesuffix("\n")
            .removesuffix("\n...")
        )
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()
