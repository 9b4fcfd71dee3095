"""Compare seconds per candidate with the stock harness, in one process, on the same items.

    python -m scripts.bench.evaluate --json
    MERGEFRONT_DATA=... python -m scripts.bench.evaluate --workload real_20m

For every workload: ``simple_evaluate_s`` is ``lm_eval.simple_evaluate`` called per candidate as
mergekit-evolve does in memory, with one ``HFLM`` around the live model and one ``TaskManager``, and
the tasks loaded by name every time; ``evaluate_s`` is ``lm_eval.evaluate`` on tasks that stay;
``ours_s`` is ours. Medians over candidates, whose weights are swapped into one live model, in turn.
All three have the same batch size, which mergekit-evolve does not set for a live model:
``simple_evaluate_batch1_s`` (``--full``) is with its default of 1. Before, one candidate is
evaluated by ours and stock with logged samples: ``scores_equal`` says that all items' scores, and
then the means of all candidates, are the same; ``texts_equal`` is the share of equal texts.
Scorers are seeded by item in all three, since stock ifeval draws random letters.

``forward_share`` is the time inside the model's forward passes over the whole of a warm evaluation
of ours. ``ours_split`` and ``simple_evaluate_split`` are seconds of building tasks and prompts
(``build``), tokenizing, forward passes and scoring (``score``), and the ``rest`` (decoding, stop
strings, choosing tokens). Ours builds and tokenizes once per search, in ``ours_first_s``.
``ours_pool_s`` is with one scoring process beside the model, ``ours_auto_s`` with batches of
automatic size, ``ours_continuous_s`` (``--full``) with the continuous batches of transformers.

``zoo_64`` and ``zoo_256`` are the three skills of the zoo with so many items each, on its
checkpoints and their mean (1 M parameters). The zoo is made, in minutes, if it is not there.
``real_20m`` is 24 items each of gsm8k (no examples), ifeval and humaneval by their stock
definitions with at most 192 new tokens, on random models of 20 M parameters, whose texts end by
themselves at any length, after 80 tokens on average. It needs ``MERGEFRONT_DATA``, and
``NLTK_DATA`` for ifeval.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

# Before lm-eval is imported: the bars of stock would cost time and a screen.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")

import lm_eval
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evaluators.code_eval import sandboxed_code_eval
from evaluators.evaluator import Evaluation
from evaluators.harness import HarnessEvaluator
from evaluators.harness_scoring import seeded_stock_scorers
from evaluators.rng_guard import preserved_rng_state
from evaluators.scores import Items
from scripts.bench.evaluate_workloads import Workload, real_workload, zoo_workload
from scripts.bench.printing import print_report
from scripts.zoo.build import build_zoo
from scripts.zoo.recipe import Recipe

BATCH_SIZE = 64
# Workload -> candidates that are measured.
ROUNDS = {"zoo_64": 6, "zoo_256": 2, "real_20m": 1}
FULL_FACTOR = 3
WORKLOADS = tuple(ROUNDS)

Results = Mapping[str, Any]


class Stopwatch:
    """Seconds spent in functions, while they are watched."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def watch(self, owner: type, name: str, stage: str) -> Iterator[None]:
        """Add the time of calls of ``owner.name`` to a stage."""
        original = getattr(owner, name)

        @wraps(original)
        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, original)


class Stock:
    """The stock harness around a live model, as mergekit-evolve holds it in memory."""

    def __init__(self, workload: Workload, samples: dict[str, list[int]], batch_size: int) -> None:
        self._samples = samples
        self._manager = TaskManager(
            include_path=list(workload.settings.include_path), include_defaults=False
        )
        self._model = HFLM(
            pretrained=workload.live.model,
            tokenizer=workload.live.tokenizer,
            batch_size=batch_size,
        )
        # The zoo's data files are relative to its directory.
        self._directory = workload.settings.data_dir or "."
        with self._at_home(), sandboxed_code_eval():
            self._loaded = self._manager.load(list(samples))
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(seed=1234)

    def simple_evaluate(self, *, log_samples: bool = False) -> Results:
        """Evaluate with tasks named, and so loaded again."""
        with self._at_home(), preserved_rng_state(), sandboxed_code_eval():
            results: Results = lm_eval.simple_evaluate(
                model=self._model,
                tasks=list(self._samples),
                samples=self._samples,
                task_manager=self._manager,
                log_samples=log_samples,
                confirm_run_unsafe_code=True,
            )
        return results

    def evaluate(self) -> Results:
        """Evaluate with tasks that were loaded before."""
        with self._at_home(), preserved_rng_state():
            results: Results = lm_eval.evaluate(
                lm=self._model,
                task_dict=self._loaded,
                samples=self._samples,
                log_samples=False,
                confirm_run_unsafe_code=True,
            )
        return results

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        before = Path.cwd()
        os.chdir(self._directory)
        try:
            yield
        finally:
            os.chdir(before)


def measure(workload: Workload, *, rounds: int, full: bool) -> dict[str, object]:
    """Measure one workload; see the module."""
    start = time.perf_counter()
    ours = HarnessEvaluator(workload.objectives, workload.settings)
    built = time.perf_counter()
    ours.prepare(workload.live, "search")
    report: dict[str, object] = {
        "ours_first_s": {"build": built - start, "tokenize": time.perf_counter() - built}
    }
    items = ours.manifest.items("search")
    stock = Stock(workload, ours.suite.stock_samples(items), BATCH_SIZE)
    workload.swap(0)
    found = ours.evaluate(workload.live, items)
    split, logged = stock_split(workload, stock)
    report |= compare_items(ours, found, logged) | {"simple_evaluate_split": split}
    ways: dict[str, Callable[[], object]] = {
        "simple_evaluate": stock.simple_evaluate,
        "evaluate": stock.evaluate,
        "ours": lambda: ours.evaluate(workload.live, items),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    forwards: list[float] = []
    outcomes: dict[str, Any] = {}
    for index in range(rounds):
        workload.swap(index + 1)
        for way in sorted(ways, key=lambda way: (list(ways).index(way) + index) % len(ways)):
            watch = Stopwatch()
            with watch.watch(type(workload.live.model), "forward", "forward"):
                started = time.perf_counter()
                outcomes[way] = ways[way]()
                seconds[way].append(time.perf_counter() - started)
            if way == "ours":
                forwards.append(watch.seconds["forward"])
        same = same_means(ours, outcomes)
        report["scores_equal"] = bool(report["scores_equal"]) and same
    report |= {f"{way}_s": statistics.median(found) for way, found in seconds.items()}
    shares = [part / whole for part, whole in zip(forwards, seconds["ours"], strict=True)]
    report["forward_share"] = statistics.median(shares)
    last = outcomes["ours"].seconds
    report["ours_split"] = {
        "build": 0.0,
        "tokenize": last["prepare"],
        "forward": forwards[-1],
        "score": last["score"],
        "rest": seconds["ours"][-1] - last["prepare"] - forwards[-1] - last["score"],
    }
    report["all_s"] = seconds
    report["ours_pool_s"] = seconds_with(workload, items, rounds, scoring_processes=1)
    report["ours_auto_s"] = seconds_with(workload, items, rounds, batch_size="auto")
    if full:
        report["ours_continuous_s"] = seconds_with(workload, items, 1, backend="continuous")
        alone = Stock(workload, ours.suite.stock_samples(items), 1)
        started = time.perf_counter()
        alone.simple_evaluate()
        report["simple_evaluate_batch1_s"] = time.perf_counter() - started
    ours.close()
    return report


def seconds_with(
    workload: Workload,
    items: Items,
    rounds: int,
    *,
    scoring_processes: int = 0,
    **changes: object,
) -> float:
    """Time ours with other settings: the median over candidates."""
    settings = workload.settings.model_copy(update=changes)
    ours = HarnessEvaluator(workload.objectives, settings, scoring_processes=scoring_processes)
    ours.prepare(workload.live, "search")
    if scoring_processes:
        # The processes load their tasks beside the first evaluation of a search.
        ours.evaluate(workload.live, items)
    found = []
    for index in range(rounds):
        workload.swap(index + 1)
        started = time.perf_counter()
        ours.evaluate(workload.live, items)
        found.append(time.perf_counter() - started)
    ours.close()
    return statistics.median(found)


def stock_split(workload: Workload, stock: Stock) -> tuple[dict[str, float], Results]:
    """Evaluate by the stock harness, with samples, and say where its time went."""
    watch = Stopwatch()
    started = time.perf_counter()
    with (
        watch.watch(TaskManager, "load", "build"),
        watch.watch(ConfigurableTask, "build_all_requests", "build"),
        watch.watch(HFLM, "tok_encode", "tokenize"),
        watch.watch(HFLM, "tok_batch_encode", "tokenize"),
        watch.watch(type(workload.live.model), "forward", "forward"),
        watch.watch(ConfigurableTask, "process_results", "score"),
    ):
        results = stock.simple_evaluate(log_samples=True)
    whole = time.perf_counter() - started
    return {**watch.seconds, "rest": whole - sum(watch.seconds.values())}, results


def compare_items(ours: HarnessEvaluator, found: Evaluation, logged: Results) -> dict[str, object]:
    """Compare scores and texts item by item."""
    equal, same_texts, num_texts = True, 0, 0
    for name, scores in found.task_scores.items():
        task = ours.suite.tasks[name]
        stock = {
            sample["doc_id"]: sample
            for sample in logged["samples"][name]
            if sample["filter"] == task.key.filter
        }
        for index, item in enumerate(scores.item_ids):
            sample = stock[task.indices[item]]
            equal &= float(scores.values[index]) == task.key.sign * sample[task.key.metric]
            same_texts += found.texts[name][index] == sample["resps"][0][0]
            num_texts += 1
    return {"scores_equal": equal, "texts_equal": same_texts / num_texts, "items": num_texts}


def same_means(ours: HarnessEvaluator, outcomes: Mapping[str, Any]) -> bool:
    """Whether all three ways gave every task the same mean."""
    for name, scores in outcomes["ours"].task_scores.items():
        key = ours.suite.tasks[name].key
        mean = key.sign * float(scores.values.mean())
        for way in ("simple_evaluate", "evaluate"):
            if abs(outcomes[way]["results"][name][str(key)] - mean) > 1e-9:
                return False
    return True


def make_workload(name: str, zoo: Path, scratch: Path) -> Workload | None:
    """Make a workload; None where its data is not there."""
    if name.startswith("zoo"):
        build_zoo(zoo, Recipe(), seed=0)
        return zoo_workload(zoo, int(name.removeprefix("zoo_")), BATCH_SIZE)
    if "MERGEFRONT_DATA" not in os.environ:
        print("real_20m is left out: MERGEFRONT_DATA names no directory", file=sys.stderr)
        return None
    return real_workload(
        Path(os.environ["MERGEFRONT_DATA"]),
        scratch,
        items=24,
        limit=192,
        end_scale=1.8,
        batch_size=BATCH_SIZE,
    )


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.add_argument("--full", action="store_true", help="more rounds, and batches of one row")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="only these")
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"), help="made if missing")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, object] = {"threads": options.threads, "batch_size": BATCH_SIZE}
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-") as scratch, seeded_stock_scorers():
        for name in options.workload or WORKLOADS:
            workload = make_workload(name, options.zoo.resolve(), Path(scratch))
            rounds = ROUNDS[name] * (FULL_FACTOR if options.full else 1)
            found = workload and measure(workload, rounds=rounds, full=options.full)
            report[name] = found
    print_report(report, as_json=options.json)


if __name__ == "__main__":
    main()
