"""A job's lm-eval tasks before any model: what is refused and how, and what is said of them."""

import re
import shutil
from pathlib import Path

import pytest

from configs.evaluation import Objective, SplitSizes
from evaluators.harness_suite import build_manifest, describe_tasks
from tests.unit.evaluators.own_tasks import SCORER_FAILURES, add_task, refusal, with_tasks


@pytest.mark.slow
def test_suite_names_nearest_tasks_when_unknown_and_members_of_group(settings) -> None:
    text = refusal(["tiny_txt", "gsm8k_cott", "mmlu_stem"], settings)
    assert "objectives.skill.tiny_txt: there is no such task; did you mean `tiny_text`" in text
    assert re.search(r"objectives.skill.gsm8k_cott: .* did you mean .*`gsm8k_cot`", text)
    assert re.search(r"mmlu_stem: is a group of tasks; name its tasks one by one \(`mmlu_", text)


def test_suite_lists_choices_when_metric_is_missing_or_unknown(settings) -> None:
    specs: list[object] = [
        "tiny_choice",
        {"task": "tiny_text", "metric": "vowel"},
        {"task": "tiny_match", "metric": "exact_match,digit"},
        {"task": "tiny_likelihood", "metric": "bleu"},
    ]
    text = refusal(specs, settings)
    assert (
        "objectives.skill.tiny_choice.metric: has several metrics, choose one of `acc,none`, "
        "`acc_norm,none`" in text
    )
    assert "tiny_text.metric: there is no `vowel`; did you mean `vowels`? There is" in text
    assert (
        "tiny_match.metric: there is no filter `digit`, did you mean `digits`? There is "
        "`exact_match,digits`, `exact_match,whole`" in text
    )
    assert (
        "tiny_likelihood.metric: there is no `bleu`; there is `acc,none`, `perplexity,none`" in text
    )


def test_suite_asks_for_filter_when_there_are_several(settings) -> None:
    text = refusal([{"task": "tiny_match", "metric": "exact_match"}], settings)
    assert "has several filters; choose one of `exact_match,digits`" in text


def test_suite_refuses_metric_that_is_no_mean(settings) -> None:
    text = refusal([{"task": "tiny_f1", "metric": "f1"}], settings)
    assert "`f1` is not a mean over items but `f1_score` of all of them" in text


def test_suite_says_sizes_when_items_are_too_few(settings) -> None:
    sizes = settings.model_copy(update={"splits": SplitSizes(search=8, select=8, report=16)})
    text = refusal(["tiny_shots"], sizes)
    assert "has 30 distinct items, but the splits ask for 8 + 8 + 16 = 32" in text


def test_suite_names_missing_data_file_and_where_it_looked(settings, tmp_path) -> None:
    text = refusal(["tiny_shots"], settings.model_copy(update={"data_dir": str(tmp_path)}))
    assert f"its data file {tmp_path}/items/text.jsonl does not exist" in text
    assert "looked up in `evaluation.data_dir`" in text


def test_suite_names_missing_include_path(settings, tmp_path) -> None:
    missing = settings.model_copy(
        update={"include_path": [*settings.include_path, str(tmp_path / "none")]}
    )
    text = refusal(["tiny_shots"], missing)
    assert f"evaluation.include_path: `{tmp_path}/none` is not a directory" in text


def test_suite_names_missing_column(settings, own_tasks) -> None:
    add_task(
        own_tasks, "tiny_bad", "tiny_shots", {"doc_to_text: prompt": 'doc_to_text: "{{query}}"'}
    )
    text = refusal(["tiny_bad"], with_tasks(settings, own_tasks))
    assert re.search(
        r"tiny_bad: /.*/items/shots.jsonl, line 1 \(and 29 more lines\): there is no column "
        r"`query`, which `doc_to_text: {{query}}` wants; it has `prompt`, `answer`, `long`",
        text,
    )


def test_suite_refuses_sampling_and_unknown_generation_settings(settings, own_tasks) -> None:
    add_task(own_tasks, "tiny_sampled", "tiny_shots", {"do_sample: false": "do_sample: true"})
    add_task(own_tasks, "tiny_beams", "tiny_shots", {"do_sample: false": "num_beams: 4"})
    text = refusal(["tiny_sampled", "tiny_beams"], with_tasks(settings, own_tasks))
    assert "tiny_sampled.generation_kwargs: draws samples" in text
    assert "tiny_beams.generation_kwargs: `num_beams` is not supported" in text


def test_suite_refuses_generated_code_unless_allowed(settings, own_tasks) -> None:
    add_task(own_tasks, "tiny_code", "tiny_shots", {"test_split": "unsafe_code: true\ntest_split"})
    own = with_tasks(settings, own_tasks)
    assert "tiny_code: runs generated code; set `evaluation.allow_code_execution: true`" in refusal(
        ["tiny_code"], own
    )
    allowed = own.model_copy(update={"allow_code_execution": True})
    assert build_manifest({"skill": Objective(tasks=["tiny_code"])}, allowed).tasks == (
        "tiny_code",
    )


def test_suite_refuses_fewshot_examples_among_scored_items(settings, own_tasks) -> None:
    add_task(own_tasks, "tiny_leak", "tiny_shots", {"items/shots.jsonl": "items/text.jsonl"})
    text = refusal(["tiny_leak"], with_tasks(settings, own_tasks))
    assert "tiny_leak: draws its 2 few-shot examples from the items that are scored (24" in text


def test_suite_refuses_fewshot_count_that_stock_would_ignore(settings) -> None:
    spec = {"task": "tiny_match", "metric": "exact_match,whole", "num_fewshot": 3}
    assert "num_fewshot: the task fixes it to 0, which lm-eval never overrides (got 3)" in refusal(
        [spec], settings
    )


def test_suite_finds_relative_data_files_from_any_working_directory(
    objectives, settings, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build_manifest(objectives, settings).tasks == (
        "tiny_text",
        "tiny_match",
        "tiny_shots",
        "tiny_choice",
        "tiny_likelihood",
        "tiny_rolling",
        "tiny_mutual",
        "tiny_long",
    )


def test_description_says_metric_budget_and_direction(settings) -> None:
    objectives = {
        "long": Objective(tasks=[{"task": "tiny_text", "metric": "length"}]),
        "choice": Objective(tasks=[{"task": "tiny_choice", "metric": "acc", "num_fewshot": 0}]),
    }
    length, choice = describe_tasks(objectives, settings)
    assert (length.objective, length.metric, length.higher_is_better) == (
        "long",
        "length,none",
        False,
    )
    assert (length.max_new_tokens, length.num_items, length.num_fewshot) == (16, 30, 0)
    assert (choice.output_type, choice.max_new_tokens) == ("multiple_choice", 0)


def test_definition_changes_with_scorer_and_fewshot_but_not_with_place(
    settings, own_tasks, tmp_path
) -> None:
    def definition(directory: Path, **spec: object) -> str:
        objectives = {"o": Objective(tasks=[{"task": "tiny_shots", **spec}])}
        return build_manifest(objectives, with_tasks(settings, directory)).task_hashes["tiny_shots"]

    first = definition(own_tasks)
    moved = Path(shutil.copytree(own_tasks, tmp_path / "moved"))
    assert definition(moved) == first
    assert definition(own_tasks, num_fewshot=1) != first
    scoring = moved / "scoring.py"
    scoring.write_text(scoring.read_text().replace("aeiou1234", "aeiou12345"))
    assert definition(moved) != first


def test_suite_refuses_scorer_that_gives_no_number(settings) -> None:
    text = refusal([{"task": "tiny_lottery", "metric": "text"}], settings)
    assert "tiny_lottery.metric: text,none of its first item is a str, not a number" in text


@pytest.mark.parametrize(("scorer", "message"), SCORER_FAILURES)
def test_suite_refuses_scorer_that_fails_on_a_reference_answer(
    scorer, message, settings, own_tasks
) -> None:
    (own_tasks / "bad.py").write_text(f"def bad(doc, results):\n    return {scorer}\n")
    add_task(own_tasks, "tiny_bad", "tiny_shots", {"scoring.vowels": "bad.bad"})
    text = refusal(["tiny_bad"], with_tasks(settings, own_tasks))
    assert message.replace("ITEM", "its first item") in text
