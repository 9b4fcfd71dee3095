"""Scoring in processes of its own: the scores of one process, whatever their number."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from configs.errors import ConfigError, EvaluationError
from configs.evaluation import EvaluationSettings, Objective
from evaluators import sandbox
from evaluators.harness import HarnessEvaluator
from evaluators.harness_scoring import ItemScorer, ScoringPool, Weighted
from evaluators.harness_suite import Suite
from evaluators.runner import ItemRunner

LOTTERY = {"luck": Objective(tasks=[{"task": "tiny_lottery", "metric": "drawn"}])}

# Like the stock tasks that run programs: the first one runs when the functions are imported.
TESTED_AT_IMPORT = """
import evaluate

metric = evaluate.load("code_eval")
RIGHT, WRONG = "x = 1", "x = 2"
PASSED = metric.compute(references=["assert x == 1"] * 2, predictions=[[RIGHT], [WRONG]], k=[1])[0]

def drawn(doc, results):
    found = metric.compute(references=["assert x == 1"], predictions=[[results[0]]], k=[1])[0]
    return {"drawn": found["pass@1"] + PASSED["pass@1"], "text": results[0]}
"""


@pytest.fixture(scope="module")
def suite(settings) -> Suite:
    return Suite(LOTTERY, settings)


def pool_of(suite: Suite, processes: int) -> ScoringPool:
    definitions = {task.name: task.definition for task in suite.tasks.values()}
    return ScoringPool(LOTTERY, suite.settings, definitions, processes=processes)


def score(
    pool: ScoringPool, item: str, text: str = "text", *, task: str = "tiny_lottery"
) -> Weighted | None:
    future = pool.submit(task, item, (text,))
    return None if future is None else pool.result(future)


def scoring_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def kill_scoring_process() -> None:
    """Kill the only one and wait for its end, which is left to the pool to collect.

    Whoever waits for it as a parent takes its exit status, and the pool would wait for ever.
    """
    (child,) = scoring_processes()
    child.kill()
    end = time.monotonic() + 10
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "a killed process goes on"
            time.sleep(0.01)


def test_score_of_a_random_scorer_depends_on_the_item_alone(suite) -> None:
    items = list(suite.tasks["tiny_lottery"].indices)[:6]
    scorer = ItemScorer(suite.tasks)
    scores = {item: scorer.score("tiny_lottery", item, ("text",)) for item in items}
    again = {item: scorer.score("tiny_lottery", item, ("text",)) for item in reversed(items)}
    assert again == scores
    assert len(set(scores.values())) == len(items)


@pytest.mark.slow
def test_scores_are_equal_whatever_the_number_of_processes(objectives, settings, live) -> None:
    chosen = {**{name: objectives[name] for name in ("match", "choice", "rolling")}, **LOTTERY}
    alone = HarnessEvaluator(chosen, settings)
    pooled = HarnessEvaluator(chosen, settings, scoring_processes=2)
    items = alone.manifest.items("report")
    expected = alone.evaluate(live, items)
    for _ in range(2):
        found = pooled.evaluate(live, items)
        assert found.texts == expected.texts
        for task, scores in expected.task_scores.items():
            assert found.task_scores[task].item_ids == scores.item_ids
            assert found.task_scores[task].values.tolist() == scores.values.tolist()
    pooled.close()
    assert not scoring_processes()


@pytest.mark.slow
def test_pool_names_the_item_that_cannot_be_scored(settings) -> None:
    broken = {"luck": Objective(tasks=[{"task": "tiny_lottery", "metric": "fussy"}])}
    suite = Suite(broken, settings)
    definitions = {task.name: task.definition for task in suite.tasks.values()}
    pool = ScoringPool(broken, settings, definitions, processes=1)
    item = next(iter(suite.tasks["tiny_lottery"].indices))
    with pytest.raises(EvaluationError, match=f"item `{item}` is a str, not a number"):
        score(pool, item, "a word")
    pool.close()


@pytest.mark.slow
def test_pool_gives_no_score_when_a_process_died_and_works_again(suite, caplog) -> None:
    pool = pool_of(suite, 1)
    item = next(iter(suite.tasks["tiny_lottery"].indices))
    expected = score(pool, item)
    kill_scoring_process()
    assert score(pool, item) is None
    assert (
        score(pool, item)
        == expected
        == ItemScorer(suite.tasks).score("tiny_lottery", item, ("text",))
    )
    assert "a scoring process died" in caplog.text
    pool.close()


@pytest.mark.slow
def test_evaluation_has_its_scores_when_a_scoring_process_dies_in_it(
    settings, live, monkeypatch, caplog
) -> None:
    evaluator = HarnessEvaluator(LOTTERY, settings, scoring_processes=1)
    items = evaluator.manifest.items("report")
    expected = HarnessEvaluator(LOTTERY, settings).evaluate(live, items)
    evaluator.prepare(live, "report")
    submit = ScoringPool.submit
    asked: list[str] = []

    def killing(pool, task, item, responses):
        future = submit(pool, task, item, responses)
        asked.append(item)
        if len(asked) == 3:
            kill_scoring_process()
        return future

    monkeypatch.setattr(ScoringPool, "submit", killing)
    for _ in range(2):
        found = evaluator.evaluate(live, items)
        for task, scores in expected.task_scores.items():
            assert found.task_scores[task].values.tolist() == scores.values.tolist()
    assert caplog.text.count("a scoring process died") == 1
    evaluator.close()


@pytest.mark.slow
def test_preparing_says_why_scoring_processes_cannot_load_the_tasks(settings, live) -> None:
    evaluator = HarnessEvaluator(LOTTERY, settings, scoring_processes=2)
    definitions = {"tiny_lottery": "another"}
    evaluator._pool = ScoringPool(LOTTERY, settings, definitions, processes=2)
    message = "a scoring process cannot load the tasks: the tasks' definitions are others there"
    with pytest.raises(EvaluationError, match=message):
        evaluator.prepare(live, "search")
    assert not scoring_processes()


@pytest.mark.slow
def test_evaluation_that_fails_leaves_nothing_to_score(settings, live, monkeypatch) -> None:
    evaluator = HarnessEvaluator(LOTTERY, settings, scoring_processes=1)
    submit = ScoringPool.submit
    futures = []

    def keeping(*arguments):
        futures.append(submit(*arguments))
        return futures[-1]

    def failing(_runner, units, on_unit) -> None:
        for index in range(len(units)):
            on_unit(index, ("text",))
        raise EvaluationError("logits are not finite")

    monkeypatch.setattr(ScoringPool, "submit", keeping)
    monkeypatch.setattr(ItemRunner, "run", failing)
    with pytest.raises(EvaluationError, match="not finite"):
        evaluator.evaluate(live, evaluator.manifest.items("report"))
    assert len(futures) == 12
    # All but those that are on their way to the process, which is starting still.
    assert sum(future.cancelled() for future in futures) >= 9
    evaluator.close()


PARENT = """
import sys, time
from configs.evaluation import EvaluationSettings, Objective
from evaluators.harness_scoring import ScoringPool
if __name__ == "__main__":
    settings = EvaluationSettings.model_validate_json(sys.argv[1])
    objectives = {"luck": Objective(tasks=[{"task": "tiny_lottery", "metric": "drawn"}])}
    pool = ScoringPool(objectives, settings, {"tiny_lottery": sys.argv[2]}, processes=2)
    pool.result(pool.submit("tiny_lottery", sys.argv[3], ("text",)))
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_processes_end_with_a_parent_that_is_killed(suite, tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    task = suite.tasks["tiny_lottery"]
    item = next(iter(task.indices))
    command = [sys.executable, script, suite.settings.model_dump_json(), task.definition, item]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
    _, left = psutil.wait_procs(children, timeout=10)
    assert not left


@pytest.fixture
def without_bubblewrap(tmp_path, monkeypatch) -> Iterator[None]:
    """A machine without `bwrap`, for this process and those that it starts."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(sandbox._selected, "kind", "strict")
    monkeypatch.setattr(sandbox, "_shared", {})
    yield
    for used in sandbox._shared.values():
        used.close()


def weak(settings: EvaluationSettings, **changes: object) -> EvaluationSettings:
    return settings.model_copy(update={"sandbox": "weak", "allow_code_execution": True, **changes})


@pytest.mark.slow
@pytest.mark.usefixtures("without_bubblewrap")
def test_task_that_runs_programs_at_import_works_where_only_the_weak_sandbox_is(
    settings, task_directory, tmp_path
) -> None:
    directory = shutil.copytree(task_directory, tmp_path / "tasks")
    (directory / "code.py").write_text(TESTED_AT_IMPORT)
    text = (directory / "tiny_lottery.yaml").read_text()
    (directory / "tiny_lottery.yaml").write_text(text.replace("scoring.lottery", "code.drawn"))
    paths = {"include_path": [str(directory)], "data_dir": str(directory)}
    suite = Suite(LOTTERY, weak(settings, **paths))
    item = next(iter(suite.tasks["tiny_lottery"].indices))
    scorer, pool = ItemScorer(suite.tasks), pool_of(suite, 1)
    for program, expected in (("x = 1", 1.5), ("x = 3", 0.5)):
        assert scorer.score("tiny_lottery", item, (program,)) == (expected, 1.0)
        assert score(pool, item, program) == (expected, 1.0)
    pool.close()
    # Another file, so that lm-eval imports it anew.
    (directory / "code.py").write_text(f"{TESTED_AT_IMPORT}# again\n")
    with pytest.raises(ConfigError, match="`bwrap` is not on the PATH"):
        Suite(LOTTERY, settings.model_copy(update=paths))


@pytest.mark.slow
@pytest.mark.usefixtures("without_bubblewrap")
def test_stock_tasks_that_run_programs_are_scored_in_processes_without_bubblewrap(
    settings, data_dir
) -> None:
    chosen = weak(settings, data_dir=str(data_dir))
    code = {"code": Objective(tasks=["humaneval", {"task": "mbpp", "metric": "pass_at_1"}])}
    suite = Suite(code, chosen)
    definitions = {task.name: task.definition for task in suite.tasks.values()}
    pool = ScoringPool(code, chosen, definitions, processes=1)
    item, position = next(iter(suite.tasks["humaneval"].indices.items()))
    solution = suite.tasks["humaneval"].task.eval_docs[position]["canonical_solution"]
    wrong = "    return None\n"
    for text, expected in ((solution, 1.0), (wrong, 0.0)):
        assert score(pool, item, text, task="humaneval") == (expected, 1.0)
    pool.close()
