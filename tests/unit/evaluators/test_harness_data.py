"""Stock tasks on local files: which file is read, and what is said of a file that will not do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.evaluation import EvaluationSettings, Objective, SplitSizes
from evaluators.harness_data import dataset_folder
from evaluators.harness_suite import Suite

MATCH = "exact_match,flexible-extract"


def question(number: int) -> dict[str, object]:
    return {"question": f"What is {number} + 1?", "answer": f"It is.\n#### {number + 1}"}


def choice(number: int) -> dict[str, object]:
    choices = {"text": ["yes", "no"], "label": ["A", "B"]}
    return {"id": str(number), "question": f"{number}?", "choices": choices, "answerKey": "B"}


def instruction(number: int) -> dict[str, object]:
    return {
        "key": number,
        "prompt": f"Write {number} without commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path) -> Write:
    """Write items as JSONL below the data directory."""

    def to(name: str, make: Callable[[int], object], numbers: range = range(20)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(make(number)) + "\n" for number in numbers))
        return path

    return to


@pytest.fixture
def suite(tmp_path) -> Callable[..., Suite]:
    """Load tasks on the data directory."""

    def load(*specs: object, include_path: tuple[str, ...] = ()) -> Suite:
        settings = EvaluationSettings(
            data_dir=str(tmp_path),
            include_path=list(include_path),
            splits=SplitSizes(search=4, select=2, report=4),
        )
        return Suite({"o": Objective(tasks=list(specs))}, settings)

    return load


@pytest.fixture
def refusal(suite) -> Callable[..., str]:
    def refuse(*specs: object, **options: object) -> str:
        with pytest.raises(ConfigError) as caught:
            suite(*specs, **options)
        return str(caught.value)

    return refuse


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("openai/gsm8k", "gsm8k"),
        ("openai/openai_humaneval", "humaneval"),
        ("google/IFEval", "ifeval"),
        ("google-research-datasets/mbpp", "mbpp"),
        ("EleutherAI/hendrycks_math", "hendrycks_math"),
        ("piqa", "piqa"),
    ],
)
def test_folder_is_the_name_of_the_dataset_without_its_owner(dataset, folder) -> None:
    assert dataset_folder(dataset) == folder


def test_stock_task_reads_local_files_and_is_the_stock_task_otherwise(suite, write) -> None:
    write("gsm8k/test.jsonl", question)
    write("gsm8k/train.jsonl", question, range(100, 130))
    task = suite({"task": "gsm8k", "metric": MATCH}).tasks["gsm8k"]
    assert [doc["question"] for doc in task.task.eval_docs][:2] == [
        "What is 0 + 1?",
        "What is 1 + 1?",
    ]
    assert len(task.fewshot_pool()) == 30
    assert (task.num_fewshot, task.max_new_tokens) == (5, 256)
    assert task.task.config.generation_kwargs["until"] == ["Question:", "</s>", "<|im_end|>"]


def test_definition_does_not_depend_on_where_the_items_are(suite, write, tmp_path) -> None:
    write("gsm8k/test.jsonl", question)
    write("gsm8k/train.jsonl", question, range(100, 130))
    first = suite({"task": "gsm8k", "metric": MATCH}).manifest
    (tmp_path / "gsm8k").rename(tmp_path / "moved")
    (tmp_path / "gsm8k" / "main").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "moved" / f"{split}.jsonl").rename(tmp_path / f"gsm8k/main/{split}.jsonl")
    assert suite({"task": "gsm8k", "metric": MATCH}).manifest == first


def test_examples_file_is_not_needed_without_examples(suite, write, caplog) -> None:
    write("gsm8k/test.jsonl", question)
    spec = {"task": "gsm8k", "metric": MATCH, "num_fewshot": 0}
    assert suite(spec).tasks["gsm8k"].fewshot_pool() == []
    # lm-eval says what it makes of examples, of which there are none.
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["ai2_arc/ARC-Easy/test.jsonl", "ai2_arc/ARC-Easy_test.jsonl"])
def test_part_of_a_dataset_has_its_own_file(suite, write, name) -> None:
    write(name, choice)
    assert len(suite({"task": "arc_easy", "metric": "acc"}).tasks["arc_easy"].indices) == 20


def test_part_of_a_dataset_is_not_read_from_the_file_of_another(refusal, write, tmp_path) -> None:
    write("ai2_arc/ARC-Challenge/test.jsonl", choice)
    write("ai2_arc/test.jsonl", choice)
    text = refusal({"task": "arc_easy", "metric": "acc"})
    assert f"its data file {tmp_path}/ai2_arc/ARC-Easy/test.jsonl does not exist" in text
    assert "`evaluation.data_dir` has the folder of `allenai/ai2_arc`" in text


def test_missing_file_of_examples_is_named(refusal, write, tmp_path) -> None:
    write("gsm8k/test.jsonl", question)
    text = refusal({"task": "gsm8k", "metric": MATCH})
    assert f"o.gsm8k: its data file {tmp_path}/gsm8k/train.jsonl does not exist" in text
    assert "so its splits (test, train) are read there" in text


def test_folder_that_is_missing_is_named_when_the_hub_does_not_answer(refusal, tmp_path) -> None:
    text = refusal({"task": "gsm8k", "metric": MATCH})
    assert f"nor has `evaluation.data_dir` its items ({tmp_path}/gsm8k does not exist)" in text


def test_column_that_a_template_wants_is_named_with_its_file(refusal, write) -> None:
    path = write("gsm8k/test.jsonl", lambda n: {"query": f"{n}?", "answer": "#### 1"})
    text = refusal({"task": "gsm8k", "metric": MATCH, "num_fewshot": 0})
    assert (
        f"o.gsm8k: {path}, line 1 (and 19 more lines): there is no column `question`, which "
        "`doc_to_text: Question: {{question}} Answer:` wants; it has `query`, `answer`" in text
    )


def test_column_named_by_the_task_is_not_taken_for_the_prompt_itself(refusal, write) -> None:
    path = write(
        "ifeval/train.jsonl", lambda n: {**instruction(n), "prompt": None, "text": f"Write {n}"}
    )
    text = refusal({"task": "ifeval", "metric": "prompt_level_strict_acc"})
    assert f"{path}, line 1 (and 19 more lines): no `prompt`" in text
    path.write_text(path.read_text().replace('"prompt"', '"request"'))
    text = refusal({"task": "ifeval", "metric": "prompt_level_strict_acc"})
    assert "there is no column `prompt`, which `doc_to_text: prompt` wants; it has `key`" in text


def test_column_that_the_scorer_wants_is_found_before_any_model(refusal, write) -> None:
    write("ifeval/train.jsonl", lambda n: {"key": n, "prompt": f"Write {n}."})
    text = refusal({"task": "ifeval", "metric": "prompt_level_strict_acc"})
    assert "o.ifeval: its scorer fails on the first item: KeyError: 'instruction_id_list'" in text
    assert "train.jsonl has the columns `key`, `prompt`" in text


def test_one_line_without_a_value_is_named(refusal, write) -> None:
    path = write("gsm8k/test.jsonl", question)
    lines = path.read_text().splitlines()
    lines[6] = json.dumps({"answer": "#### 3"})
    path.write_text("\n".join(lines))
    text = refusal({"task": "gsm8k", "metric": MATCH, "num_fewshot": 0})
    assert f"{path}, line 7: no `question`, which `doc_to_text: Question:" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: there are no items"),
        ("\n\n", "is empty: there are no items"),
        ('{"question": "1", "answer": "2"}\n{"question": "1, \n', "line 2 is not JSON: "),
        ('{"question": "1", "answer": "2"}\n[1, 2]\n', "line 2 is a list; each line is one object"),
        (b'{"question": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_file_that_is_no_jsonl_is_named_with_its_line(refusal, write, content, message) -> None:
    path = write("gsm8k/test.jsonl", question)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refusal({"task": "gsm8k", "metric": MATCH, "num_fewshot": 0})
    assert f"o.gsm8k: {path}" in text
    assert message in text


def test_problems_of_all_files_and_tasks_come_at_once(refusal, write) -> None:
    test = write("gsm8k/test.jsonl", lambda n: {"query": "1?", "answer": "#### 1"})
    train = write("gsm8k/train.jsonl", lambda n: {"question": "1?"})
    write("ifeval/train.jsonl", instruction)
    text = refusal({"task": "gsm8k", "metric": MATCH}, {"task": "ifeval", "metric": "prompt_level"})
    assert f"o.gsm8k: {test}, line 1" in text
    assert f"o.gsm8k: {train}, line 1" in text
    assert "there is no column `answer`" in text
    assert "o.ifeval.metric: there is no `prompt_level`; did you mean `prompt_level_" in text


def test_file_that_a_function_reads_is_described_when_that_fails(refusal, write) -> None:
    path = write("hellaswag/validation.jsonl", lambda n: {"ctx": "a", "endings": ["b"]})
    text = refusal({"task": "hellaswag", "metric": "acc"})
    assert "o.hellaswag: lm-eval cannot load it: KeyError" in text
    assert f"; {path} has the columns `ctx`, `endings`" in text


def test_split_that_no_data_file_has_is_named(refusal, write, tmp_path) -> None:
    write("items/train.jsonl", question)
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
        "dataset_kwargs: {data_files: {train: items/train.jsonl}}\n"
        "doc_to_text: question\ndoc_to_target: answer\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    text = refusal("own", include_path=(str(tmp_path),))
    assert "o.own: reads split `test`, but its data_files have only `train`" in text


def test_more_examples_than_there_are_is_refused(refusal, write) -> None:
    write("gsm8k/test.jsonl", question)
    write("gsm8k/train.jsonl", question, range(100, 104))
    text = refusal({"task": "gsm8k", "metric": MATCH})
    assert "o.gsm8k.num_fewshot: asks for 5 examples, but there are 4 to draw from" in text


def test_examples_that_are_scored_are_refused(refusal, write) -> None:
    write("gsm8k/test.jsonl", question)
    write("gsm8k/train.jsonl", question)
    text = refusal({"task": "gsm8k", "metric": MATCH})
    assert "draws its 5 few-shot examples from the items that are scored (10 in common)" in text


def test_token_limit_of_the_job_replaces_the_tasks_own(suite, refusal, write) -> None:
    write("gsm8k/test.jsonl", question)
    write("ai2_arc/ARC-Easy/test.jsonl", choice)
    spec = {"task": "gsm8k", "metric": MATCH, "num_fewshot": 0}
    own, limited = suite(spec), suite({**spec, "max_new_tokens": 17})
    assert limited.describe()[0].max_new_tokens == 17
    assert limited.tasks["gsm8k"].task.config.generation_kwargs["max_gen_toks"] == 17
    assert limited.manifest.task_hashes != own.manifest.task_hashes
    text = refusal({"task": "arc_easy", "metric": "acc", "max_new_tokens": 17})
    assert "arc_easy.max_new_tokens: nothing is generated by a task of type" in text
