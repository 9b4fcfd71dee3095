"""Stock tasks by their names, on real items: equal to the stock command's, whole, repeatable.

The stock command reads the same local files through YAMLs that include the stock ones. Ours is
asked after the weights were swapped from A to B and back to A.

Stock IFEval is not repeatable: its checkers draw letters, sections and keywords from the global
generator, and its language detection is unseeded. So the command scores here with the seeds that
ours sets before each item (``evaluators.rng_guard.seed_scorer``, ``DetectorFactory.seed = 0``);
all else of it is stock. Programs run in the sandbox on both sides.
"""

import json
import time
from pathlib import Path

import lm_eval
import numpy as np
import pytest

from configs.schema import EvaluationSettings, Objective, SplitSizes
from evaluators.harness import HarnessEvaluator
from evaluators.tasks import zoo
from scripts.zoo.item import SKILLS
from scripts.zoo.items import held_out_items
from tests.unit.evaluators.stock_command import (
    assert_equal_to_stock,
    evaluate_after_swaps,
    run_stock,
)

STOCK = Path(lm_eval.__file__).parent / "tasks"
BUDGET = 24
METRICS = {
    "gsm8k": "exact_match,flexible-extract",
    "humaneval": "pass@1",
    "mbpp": "pass_at_1",
    "ifeval": "inst_level_strict_acc",
}
MADE_UP = {
    "arc_easy": "acc_norm",
    "lambada_openai": "perplexity",
    "wikitext": "word_perplexity",
}
YAMLS = {
    "gsm8k": ("gsm8k/gsm8k.yaml", {"train": "gsm8k/train.jsonl", "test": "gsm8k/test.jsonl"}),
    "humaneval": ("humaneval/humaneval.yaml", {"test": "humaneval/test.jsonl"}),
    "mbpp": ("mbpp/mbpp.yaml", {"test": "mbpp/test.jsonl"}),
    "ifeval": ("ifeval/ifeval.yaml", {"train": "ifeval/train.jsonl"}),
    "arc_easy": ("arc/arc_easy.yaml", {"test": "ai2_arc/ARC-Easy/test.jsonl"}),
    "lambada_openai": ("lambada/lambada_openai.yaml", {"test": "lambada_openai/test.jsonl"}),
    "wikitext": (
        "wikitext/wikitext.yaml",
        {"test": "wikitext_document_level/wikitext-2-raw-v1/test.jsonl"},
    ),
}
SEEDED = """
import langdetect
from evaluators.manifest import item_id
from evaluators.rng_guard import seed_scorer
from lm_eval.tasks.ifeval import utils

langdetect.DetectorFactory.seed = 0

def process_results(doc, results):
    seed_scorer(item_id(doc))
    return utils.process_results(doc, results)
"""


@pytest.fixture
def local_data(data_dir, tmp_path) -> Path:
    """The benchmarks' files, and made-up items of three more stock tasks."""
    root = tmp_path / "data"
    root.mkdir()
    for name in METRICS:
        (root / name).symlink_to(data_dir / name)
    words = "red blue green the sun moon star rain snow wind fire ice cat dog fox owl".split()
    rng = np.random.default_rng(0)
    rows: dict[str, list[dict]] = {name: [] for name in MADE_UP}
    for number in range(20):
        text = " ".join(rng.choice(words, 40))
        choices = {"text": text.split()[:3], "label": ["A", "B", "C"]}
        rows["arc_easy"].append(
            {
                "id": str(number),
                "question": text,
                "choices": choices,
                "answerKey": "ABC"[number % 3],
            }
        )
        rows["lambada_openai"].append({"text": text})
        rows["wikitext"].append(
            {"page": f" = {words[number % 16]} = \n {text * (1 + number % 3)} . \n"}
        )
    for name, made in rows.items():
        path = root / next(iter(YAMLS[name][1].values()))
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return root


@pytest.fixture
def stock_yamls(tmp_path) -> Path:
    """YAMLs with which the stock command reads the same files."""
    directory = tmp_path / "yamls"
    directory.mkdir()
    (directory / "seeded.py").write_text(SEEDED)
    for name, (yaml, files) in YAMLS.items():
        extra = "process_results: !function seeded.process_results\n" if name == "ifeval" else ""
        # lm-eval loads the examples' split even for no examples.
        extra += "" if name == "gsm8k" else "training_split: null\nvalidation_split: null\n"
        (directory / f"{name}.yaml").write_text(
            f"include: {STOCK / yaml}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs: {{data_files: {json.dumps(files)}}}\n{extra}"
        )
    return directory


def evaluator_of(
    metrics: dict[str, str], data: Path | str, sizes: SplitSizes, **limits: int
) -> HarnessEvaluator:
    objectives = {
        name: Objective(
            tasks=[{"task": name, "metric": metric, **(limits if name in METRICS else {})}]
        )
        for name, metric in metrics.items()
    }
    settings = EvaluationSettings(
        data_dir=str(data), splits=sizes, batch_size=4, allow_code_execution=True
    )
    return HarnessEvaluator(objectives, settings)


@pytest.mark.slow
def test_stock_tasks_equal_the_stock_command_after_weights_were_swapped_twice(
    local_data, stock_yamls, load, write_checkpoint, tmp_path
) -> None:
    sizes = SplitSizes(search=2, select=1, report=6)
    evaluator = evaluator_of(METRICS | MADE_UP, local_data, sizes, max_new_tokens=BUDGET)
    a, b = (write_checkpoint(tmp_path / name, n, max_positions=8192) for n, name in enumerate("ab"))
    ours = evaluate_after_swaps(evaluator, [a, b, a], load)
    stock = run_stock(
        a,
        evaluator.suite.stock_samples(evaluator.manifest.items("report")),
        tmp_path / "out",
        include_path=stock_yamls,
        cwd=local_data,
        options=["--gen_kwargs", f"max_gen_toks={BUDGET}", "--confirm_run_unsafe_code"],
    )
    assert_equal_to_stock(evaluator, ours, stock, min_texts=12)
    assert ours.task_scores["ifeval"].values.any()
    assert ours.task_scores["ifeval"].weights is not None
    assert ours.task_scores["wikitext"].weights is not None
