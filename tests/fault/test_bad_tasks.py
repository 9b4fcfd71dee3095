"""Tasks, metrics and items that will not do end a command with one clear message, and no Ray."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.refused_commands import mergefront, refused

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.mark.slow  # lm-eval indexes all its tasks to say which one is near
def test_unknown_task_is_named_with_the_nearest(write_job):
    path = write_job(lambda job: job["objectives"]["text"]["tasks"][0].update(task="tiny_txt"))
    refused(mergefront("run", path), 2, "objectives.text.tiny_txt", "tiny_text")


def test_unknown_metric_is_named_with_those_there_are(start, write_job):
    path = write_job(lambda job: job["objectives"]["choice"]["tasks"][0].update(metric="accc"))
    refused(start(path), 2, "objectives.choice.tiny_choice", "`accc`", "did you mean `acc`")


def test_more_items_than_a_task_has_are_refused(start, write_job):
    path = write_job(lambda job: job["evaluation"]["splits"].update(report=500))
    refused(start(path), 2, "objectives.text.tiny_text", "24 distinct items", "512")


@pytest.fixture
def own_data(job, tmp_path) -> Path:
    """A copy of the job's tasks and their items, to be broken."""
    return Path(shutil.copytree(job.evaluation.data_dir, tmp_path / "tasks"))


def on(directory: Path, **evaluation: object) -> Callable[[dict], object]:
    """Let a job read its tasks and items from a directory."""
    here = {"include_path": [str(directory)], "data_dir": str(directory), **evaluation}
    return lambda job: job["evaluation"].update(here)


def test_broken_line_of_a_data_file_is_named(start, write_job, own_data):
    items = own_data / "items.jsonl"
    lines = items.read_text().splitlines()
    items.write_text("\n".join([*lines[:4], lines[4][:-5], *lines[5:]]))
    refused(start(write_job(on(own_data))), 2, "objectives.text.tiny_text", f"{items}, line 5 is")


def test_column_that_is_missing_is_named_with_file_and_template(start, write_job, own_data):
    items = own_data / "items.jsonl"
    items.write_text(items.read_text().replace('"prompt"', '"question"'))
    message = refused(start(write_job(on(own_data))), 2, f"{items}, line 1 (and 23 more lines)")
    assert "no column `prompt`, which `doc_to_text: prompt` wants; it has `question`" in message
    assert "objectives.text.tiny_text" in message
    assert "objectives.choice.tiny_choice" in message


def test_split_without_items_is_refused(start, write_job, own_data):
    items = own_data / "items.jsonl"
    items.write_text("")
    refused(start(write_job(on(own_data))), 2, f"objectives.text.tiny_text: {items} is empty")


def test_split_that_its_function_empties_is_refused(start, write_job, own_data):
    (own_data / "drop.py").write_text("def all_of(docs):\n    return docs.select([])\n")
    task = own_data / "tiny_text.yaml"
    task.write_text(task.read_text() + "process_docs: !function drop.all_of\n")
    refused(start(write_job(on(own_data))), 2, "objectives.text.tiny_text", "split `test`")


def test_examples_among_scored_items_are_refused(start, write_job, own_data):
    task = own_data / "tiny_text.yaml"
    task.write_text(task.read_text() + "fewshot_split: test\nnum_fewshot: 2\n")
    message = refused(start(write_job(on(own_data))), 2, "objectives.text.tiny_text")
    assert "draws its 2 few-shot examples from the items that are scored (16 in common)" in message


def test_scorer_that_raises_is_refused(start, write_job, own_data):
    (own_data / "bad.py").write_text("def score(doc, results):\n    return doc['solution']\n")
    task = own_data / "tiny_text.yaml"
    task.write_text(task.read_text() + "process_results: !function bad.score\n")
    refused(start(write_job(on(own_data))), 2, "its scorer fails", "KeyError: 'solution'")


def test_answer_longer_than_the_model_sees_is_refused(start, write_job, own_data):
    items = own_data / "items.jsonl"
    items.write_text(items.read_text().replace('"grey"', f'"{"grey" * 200}"'))
    message = refused(start(write_job(on(own_data))), 2, "objectives.choice.tiny_choice: ")
    assert "an answer of 801 tokens after a context of " in message
    assert "an answer at most 512" in message


def test_budget_that_leaves_no_room_for_a_prompt_is_refused(start, write_job):
    path = write_job(lambda job: job["objectives"]["text"]["tasks"][0].update(max_new_tokens=600))
    expected = "asks for 600 new tokens, but the model sees only 512 tokens"
    refused(start(path), 2, "objectives.text.tiny_text: ", expected)


def test_chat_template_that_is_not_there_is_refused(start, write_job):
    path = write_job(lambda job: job["evaluation"].update(apply_chat_template=True))
    refused(start(path), 5, "`evaluation.apply_chat_template` is true", "has no chat template")


def test_missing_data_of_a_stock_task_is_named_before_anything_is_fetched(
    start, write_job, own_data
):
    (own_data / "gsm8k").mkdir()

    def score_gsm8k(job: dict) -> None:
        on(own_data)(job)
        job["objectives"]["text"]["tasks"][0] = {"task": "gsm8k", "metric": "exact_matches"}

    expected = f"its data file {own_data}/gsm8k/test.jsonl does not exist"
    refused(start(write_job(score_gsm8k)), 2, "objectives.text.gsm8k", expected)


def test_problems_of_tasks_come_at_once(start, write_job, own_data):
    items = own_data / "items.jsonl"
    (own_data / "tiny_text.yaml").write_text(
        (own_data / "tiny_text.yaml").read_text().replace("items.jsonl", "gone.jsonl")
    )

    def break_more(job: dict) -> None:
        on(own_data)(job)
        job["objectives"]["choice"]["tasks"][0].update(metric="acc,nonee", max_new_tokens=3)

    message = refused(start(write_job(break_more)), 2, "gone.jsonl does not exist")
    assert "tiny_choice.metric: there is no filter `nonee`, did you mean `none`?" in message
    assert "tiny_choice.max_new_tokens: nothing is generated" in message
    assert items.is_file()
