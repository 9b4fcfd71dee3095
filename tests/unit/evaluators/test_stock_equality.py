"""The stock ``lm_eval`` command is the reference: equal texts and scores, item for item.

Our side evaluates a live model whose weights were swapped twice, in batches of another size than
the stock command's. Float32 on the CPU; log-likelihoods within 1e-3.
"""

import shutil
from pathlib import Path

import pytest

from evaluators.harness import HarnessEvaluator
from tests.unit.evaluators.stock_command import (
    assert_equal_to_stock,
    evaluate_after_swaps,
    run_stock,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


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
    compare_with_stock(
        HarnessEvaluator(chosen, chatting),
        chatting_directories,
        load,
        tmp_path,
        options=("--apply_chat_template",),
    )


def compare_with_stock(
    evaluator: HarnessEvaluator,
    directories: list[Path],
    load,
    tmp_path: Path,
    options: tuple[str, ...] = (),
) -> None:
    """Evaluate each checkpoint in the model of the last, and the last one with the command."""
    ours = evaluate_after_swaps(evaluator, directories, load)
    suite = evaluator.suite
    stock = run_stock(
        directories[-1],
        suite.stock_samples(evaluator.manifest.items("report")),
        tmp_path / "out",
        include_path=suite.settings.include_path[0],
        cwd=suite.settings.data_dir,
        options=options,
    )
    assert_equal_to_stock(evaluator, ours, stock, min_texts=10)
