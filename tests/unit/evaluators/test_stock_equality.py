"""The stock ``lm_eval`` command is the reference: equal texts and scores, item for item.

Our side evaluates a live model whose weights were swapped twice, in batches of another size than
the stock command's. Float32 on the CPU; log-likelihoods within 1e-3.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest

from configs.schema import EvaluationSettings, Objective, SplitSizes
from evaluators.harness import HarnessEvaluator

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def run_stock(
    directory: Path, settings: EvaluationSettings, samples: dict[str, list[int]], out: Path
) -> dict[str, dict[int, dict]]:
    """Run the command on an exported checkpoint; return task -> position -> logged sample."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={directory},dtype=float32", "--batch_size", "5"]
    command += ["--tasks", ",".join(samples), "--include_path", settings.include_path[0]]
    command += ["--samples", json.dumps(samples), "--log_samples", "--output_path", str(out)]
    command += ["--apply_chat_template"] if settings.apply_chat_template else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command,
        cwd=settings.data_dir,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, dict[int, dict]] = {}
    for task in samples:
        (path,) = out.rglob(f"samples_{task}_*.jsonl")
        found[task] = {}
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            found[task].setdefault(sample["doc_id"], {})[sample["filter"]] = sample
    return found


@pytest.fixture
def chatting_directories(model_directories: list[Path], tmp_path: Path) -> list[Path]:
    """The checkpoints, the last one with a chat template."""
    directory = Path(shutil.copytree(model_directories[-1], tmp_path / "model"))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return [*model_directories[:-1], directory]


@pytest.mark.slow
def test_evaluation_equals_stock_command_after_two_weight_swaps(
    objectives, settings, model_directories, load, tmp_path
) -> None:
    compare_with_stock(HarnessEvaluator(objectives, settings), model_directories, load, tmp_path)


@pytest.mark.slow
def test_evaluation_equals_stock_command_with_chat_template(
    objectives, settings, chatting_directories, load, tmp_path
) -> None:
    chosen = {name: objectives[name] for name in ("text", "shots", "choice")}
    chatting = settings.model_copy(update={"apply_chat_template": True})
    compare_with_stock(HarnessEvaluator(chosen, chatting), chatting_directories, load, tmp_path)


@pytest.mark.slow
def test_evaluation_equals_stock_command_on_real_items_with_fewshot(
    load, write_checkpoint, tmp_path
) -> None:
    if "MERGEFRONT_DATA" not in os.environ:
        pytest.skip("MERGEFRONT_DATA does not name a directory with gsm8k/*.jsonl")
    data = os.environ["MERGEFRONT_DATA"]
    stock = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_gsm8k.yaml").write_text(
        f"""
include: {stock}
task: local_gsm8k
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{train: gsm8k/train.jsonl, test: gsm8k/test.jsonl}}}}
generation_kwargs: {{until: ["Question:", "</s>"], do_sample: false, max_gen_toks: 12}}
"""
    )
    settings = EvaluationSettings(
        include_path=[str(tmp_path / "tasks")],
        data_dir=data,
        splits=SplitSizes(search=4, select=1, report=6),
        batch_size=4,
    )
    tasks = [{"task": "local_gsm8k", "metric": "exact_match,flexible-extract"}]
    evaluator = HarnessEvaluator({"math": Objective(tasks=tasks)}, settings)
    directories = [
        write_checkpoint(tmp_path / f"model{seed}", seed, max_positions=4096) for seed in range(2)
    ]
    compare_with_stock(evaluator, directories, load, tmp_path, min_texts=3)


def compare_with_stock(
    evaluator: HarnessEvaluator,
    directories: list[Path],
    load,
    tmp_path: Path,
    *,
    min_texts: int = 10,
) -> None:
    """Evaluate each checkpoint in the model of the last, and the last one with the command."""
    items = evaluator.manifest.items("report")
    live = load(directories[-1])
    for directory in directories:
        live.swap(directory)
        ours = evaluator.evaluate(live, items)
    suite = evaluator.suite
    samples = suite.stock_samples(items)
    stock = run_stock(directories[-1], suite.settings, samples, tmp_path / "out")
    texts: set[str] = set()
    for name, ids in items.items():
        task = suite.tasks[name]
        assert sorted(stock[name]) == samples[name]
        for index, item in enumerate(ids):
            theirs = stock[name][task.indices[item]][task.key.filter]
            value = ours.task_scores[name].values[index]
            assert value == pytest.approx(task.key.sign * theirs[task.key.metric], abs=1e-5)
            if name in ours.texts:
                assert ours.texts[name][index] == theirs["resps"][0][0]
                texts.add(ours.texts[name][index])
    assert len(texts) >= min_texts
