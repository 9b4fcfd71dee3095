"""Stock tasks by their names, on real items: equal to the stock command's, whole, repeatable.

The stock command reads the same local files through YAMLs that include the stock ones. Ours is
asked after the weights were swapped from A to B and back to A.

Stock IFEval is not repeatable: its checkers draw letters, sections and keywords from the global
generator, and its language detection is unseeded. So the command scores here with the seeds that
ours sets before each item (``evaluators.rng_guard.seed_scorer``, ``DetectorFactory.seed = 0``);
all else of it is stock. Programs run in the sandbox on both sides.
"""

import json
from collections.abc import Callable
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch

from configs.evaluation import SPLITS, EvaluationSettings, Objective, SplitSizes
from evaluators.harness import HarnessEvaluator
from evaluators.harness_board import Board
from evaluators.harness_scoring import ItemScorer
from evaluators.rng_guard import preserved_rng_state
from evaluators.scores import TaskScores
from evaluators.tasks.zoo import scoring as zoo_scoring
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
    words = ["red", "blue", "green", "the", "sun", "moon", "star", "rain", "cat", "dog", "fox"]
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
            {"page": f" = {words[number % 11]} = \n {text * (1 + number % 3)} . \n"}
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


def memorize(model: torch.nn.Module, rows: list[list[int]], *, steps: int = 150) -> None:
    """Train a tiny model until it says these rows by heart."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[-100] * (width - len(row))] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        model(input_ids=ids.clamp(min=0), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
def test_zoo_tasks_equal_the_stock_command_where_answers_are_right(
    load, write_checkpoint, tmp_path
) -> None:
    tasks = Path(zoo_scoring.__file__).parent
    (tmp_path / "items").mkdir()
    for skill in SKILLS:
        rows = [json.dumps(item.row()) for item in held_out_items(skill, count=24, seed=0)]
        (tmp_path / "items" / f"zoo_{skill}.jsonl").write_text("\n".join(rows))
    settings = EvaluationSettings(
        include_path=[str(tasks)],
        data_dir=str(tmp_path),
        splits=SplitSizes(search=4, select=2, report=12),
        batch_size=5,
        allow_code_execution=True,
    )
    # Twice the tasks' own limit: the tokens of this model are short.
    objectives = {
        skill: Objective(tasks=[{"task": f"zoo_{skill}", "max_new_tokens": 48}]) for skill in SKILLS
    }
    evaluator = HarnessEvaluator(objectives, settings)
    a, b = (write_checkpoint(tmp_path / name, n, max_positions=256) for n, name in enumerate("ab"))
    live = load(a)
    items = evaluator.manifest.items("report")
    known = [
        task.task.eval_docs[task.indices[item]]
        for name, task in evaluator.suite.tasks.items()
        for item in items[name][::2]
    ]
    encode = live.tokenizer.encode
    memorize(live.model, [encode(d["prompt"]) + encode(d["answer"] + "\n") for d in known])
    live.model.save_pretrained(a)
    ours = evaluate_after_swaps(evaluator, [a, b, a], load)
    stock = run_stock(
        a,
        evaluator.suite.stock_samples(items),
        tmp_path / "out",
        include_path=tasks,
        cwd=tmp_path,
        options=["--gen_kwargs", "max_gen_toks=48"],
    )
    assert_equal_to_stock(evaluator, ours, stock, min_texts=12)
    for scores in ours.task_scores.values():
        assert 0.0 < scores.mean < 1.0


# Answers that keep an instruction of IFEval, whatever its arguments are.
CONFORMING = {
    "punctuation:no_comma": "Yes indeed",
    "change_case:english_lowercase": "the cat sat on the mat and looked at the old dog",
    "change_case:english_capital": "THE CAT SAT ON THE MAT AND LOOKED AT THE OLD DOG",
    "detectable_format:json_format": '{"cat": 1}',
    "detectable_format:title": "<<A title>> and a text",
    "startend:quotation": '"Yes indeed"',
}


def conforming(doc: dict) -> str | None:
    (instruction, *others) = doc["instruction_id_list"]
    return None if others else CONFORMING.get(instruction)


def mbpp_code(doc: dict) -> str | None:
    # The stock task leaves out `test_setup_code`, which one item needs, and one reference
    # solution counts for seconds, near the time limit of a busy machine.
    return None if doc["test_setup_code"] or doc["task_id"] == 123 else doc["code"]


REFERENCES: dict[str, Callable[[dict], str | None]] = {
    "gsm8k": lambda doc: f" {doc['answer']}",
    "humaneval": lambda doc: doc["canonical_solution"],
    "mbpp": mbpp_code,
    "ifeval": conforming,
}


def score_answers(
    evaluator: HarnessEvaluator, live, name: str, answer: Callable[[dict], str | None]
) -> TaskScores:
    """Score given answers in place of generated ones, through filters and scorer of a task.

    Those of all items of the benchmark: every split of the job.
    """
    ids = [item for split in SPLITS for item in evaluator.manifest.items(split)[name]]
    frozen = [
        item
        for item in evaluator._frozen_items(live, {name: ids})[name]
        if answer(item.doc) is not None
    ]
    board = Board(evaluator.suite.tasks, {name: frozen}, {}, pool=None)
    for index, item in enumerate(frozen):
        board.accept(index, (answer(item.doc),))
    with preserved_rng_state():
        board.finish(ItemScorer(evaluator.suite.tasks))
    return board.task_scores()[name]


@pytest.fixture(scope="module")
def whole(data_dir) -> Callable[[str], HarnessEvaluator]:
    """An evaluator of all items of one benchmark, nearly all of them in one split."""
    sizes = {"gsm8k": 1317, "humaneval": 162, "mbpp": 498, "ifeval": 539}

    def make(name: str) -> HarnessEvaluator:
        splits = SplitSizes(search=1, select=1, report=sizes[name])
        return evaluator_of({name: METRICS[name]}, data_dir, splits, max_new_tokens=BUDGET)

    return make


@pytest.fixture
def long_model(load, write_checkpoint, tmp_path):
    """A model that sees the longest prompts whole."""
    return load(write_checkpoint(tmp_path / "model", 0, max_positions=16384))


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_reference_answers_get_full_score_as_from_stock_scorers(name, whole, long_model) -> None:
    evaluator = whole(name)
    scores = score_answers(evaluator, long_model, name, REFERENCES[name])
    assert scores.values.size >= {"gsm8k": 1319, "humaneval": 164, "mbpp": 498, "ifeval": 21}[name]
    assert scores.values.tolist() == [1.0] * scores.values.size
    wrong = score_answers(evaluator, long_model, name, lambda doc: "\n")
    assert wrong.mean < 0.02


@pytest.mark.slow
def test_ifeval_gives_every_item_the_same_score_in_ten_runs(whole, long_model) -> None:
    evaluator = whole("ifeval")

    def answer(doc: dict) -> str:
        return f"{doc['prompt']}\n\n* {doc['prompt'].lower()} *\nP.S. <<eine kleine Katze>>"

    first = score_answers(evaluator, long_model, "ifeval", answer)
    assert first.values.size == 541
    assert 0.1 < first.mean < 0.9
    for _ in range(9):
        again = score_answers(evaluator, long_model, "ifeval", answer)
        assert again.values.tolist() == first.values.tolist()
        assert again.weights.tolist() == first.weights.tolist()
