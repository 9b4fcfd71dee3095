"""Tasks are found by their names without lm-eval's index, and are those that the index has."""

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from evaluators import harness_index
from evaluators.harness_index import TaskFiles, stock_task_files


@pytest.fixture
def _no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make lm-eval's index of all its tasks fail, as it would be missed only by its 7 seconds."""

    def small(**arguments: object) -> TaskManager:
        assert arguments.get("include_defaults") is False, "lm-eval indexed all its tasks"
        return TaskManager(**arguments)

    monkeypatch.setattr(harness_index, "TaskManager", small)


@pytest.mark.usefixtures("_no_index")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gsm8k", "gsm8k/gsm8k.yaml"),
        ("gsm8k_cot", "gsm8k/gsm8k-cot.yaml"),
        ("humaneval", "humaneval/humaneval.yaml"),
        ("mbpp_instruct", "mbpp/mbpp_instruct.yaml"),
        ("ifeval", "ifeval/ifeval.yaml"),
        ("arc_challenge", "arc/arc_challenge.yaml"),
        ("mmlu_anatomy", "mmlu/default/mmlu_anatomy.yaml"),
        ("minerva_math_algebra", "minerva_math/minerva_math_algebra.yaml"),
    ],
)
def test_stock_task_is_found_without_the_index(name, file) -> None:
    assert TaskFiles([]).find(name) == harness_index.STOCK_TASKS / file


@pytest.mark.usefixtures("_no_index")
def test_own_task_wins_over_a_stock_one(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("task: gsm8k\ninclude: other.yaml\n")
    (tmp_path / "other.yaml").write_text("dataset_path: json\n")
    assert TaskFiles([str(tmp_path)]).find("gsm8k") == tmp_path / "mine.yaml"


@pytest.mark.slow
def test_every_stock_name_leads_to_the_file_that_lm_eval_takes() -> None:
    index = TaskManager().task_index
    expected = {
        name: entry.yaml_path
        for name, entry in index.items()
        if entry.kind in (Kind.TASK, Kind.PY_TASK)
    }
    assert len(expected) > 10_000
    assert dict(stock_task_files()) == expected
