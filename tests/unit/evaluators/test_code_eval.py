from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from evaluators.code_eval import SandboxedCodeEval, pass_at_k, sandboxed_code_eval

ADD = "def add(a, b):\n    return a + b"
SUBTRACT = "def add(a, b):\n    return a - b"
TESTS = "assert add(2, 3) == 5"


def test_code_eval_counts_the_candidates_that_pass():
    scores, results = SandboxedCodeEval().compute(
        references=[TESTS, TESTS], predictions=[[ADD, SUBTRACT], [SUBTRACT, SUBTRACT]], k=[1, 2, 3]
    )
    assert scores == {"pass@1": pytest.approx(0.25), "pass@2": pytest.approx(0.5)}
    assert [record["passed"] for _, record in results[0]] == [True, False]


def test_code_eval_runs_programs_in_the_sandbox_only(tmp_path: Path):
    outside = tmp_path / "written"
    program = f"{ADD}\nopen({str(outside)!r}, 'w').write('x')"
    scores, _ = SandboxedCodeEval().compute(references=[TESTS], predictions=[[program]], k=[1])
    assert scores == {"pass@1": 0.0}
    assert not outside.exists()


@pytest.mark.parametrize(
    ("samples", "correct", "k", "expected"), [(5, 0, 1, 0.0), (5, 5, 1, 1.0), (4, 2, 2, 5 / 6)]
)
def test_pass_at_k_is_the_unbiased_estimate(samples, correct, k, expected):
    assert pass_at_k(samples, correct, k) == pytest.approx(expected)


@pytest.mark.parametrize("task", ["humaneval/humaneval", "mbpp/mbpp"])
def test_stock_code_tasks_load_the_sandboxed_metric_without_a_hub(task):
    path = Path(lm_eval.__file__).parent / "tasks" / f"{task}.yaml"
    with sandboxed_code_eval():
        config = load_yaml(path, resolve_func=True)
    metric = config["metric_list"][0]["metric"]
    options = {"k": [1]} if "humaneval" in task else {}
    scores = metric(references=[TESTS], predictions=[[ADD]], **options)
    assert scores in ({"pass@1": 1.0}, 1.0)


def test_other_metrics_are_loaded_as_before():
    import evaluate

    original = evaluate.load
    with sandboxed_code_eval():
        assert evaluate.load is not original
        assert isinstance(evaluate.load("code_eval"), SandboxedCodeEval)
    assert evaluate.load is original
