"""The lm-eval adapter: what is refused and how, and what an evaluation must not depend on."""

import dataclasses
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, EvaluationError, SandboxUnavailableError
from configs.evaluation import EvaluationSettings, Objective, SplitSizes
from evaluators.evaluator import LiveModel
from evaluators.harness import HarnessEvaluator, Suite, build_manifest, describe_tasks
from evaluators.manifest import item_id
from evaluators.rng_guard import seed_scorer, seed_torch


@pytest.fixture(scope="module")
def evaluator(objectives, settings) -> HarnessEvaluator:
    return HarnessEvaluator(objectives, settings)


def refusal(specs: list[object], settings: EvaluationSettings) -> str:
    with pytest.raises(ConfigError) as caught:
        build_manifest({"skill": Objective(tasks=specs)}, settings)
    return str(caught.value)


def add_task(directory: Path, name: str, old: str, changes: dict[str, str]) -> Path:
    """Copy the task directory, with one more task made from another by replacing text."""
    text = (directory / f"{old}.yaml").read_text().replace(f"task: {old}", f"task: {name}")
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (directory / f"{name}.yaml").write_text(text)
    return directory


@pytest.fixture
def own_tasks(task_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(task_directory, tmp_path / "tasks"))


def with_tasks(settings: EvaluationSettings, directory: Path) -> EvaluationSettings:
    return settings.model_copy(
        update={"include_path": [str(directory)], "data_dir": str(directory)}
    )


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


def test_evaluator_refuses_manifest_of_another_task_definition(objectives, settings) -> None:
    manifest = build_manifest(objectives, settings)
    changed = dataclasses.replace(
        manifest, task_hashes={**manifest.task_hashes, "tiny_text": "0" * 16}
    )
    with pytest.raises(EvaluationError, match="definition of `tiny_text` changed"):
        HarnessEvaluator(objectives, settings, changed)


def test_evaluator_refuses_items_that_left_the_data(settings, own_tasks, live) -> None:
    objectives = {"o": Objective(tasks=["tiny_shots"])}
    own = with_tasks(settings, own_tasks)
    manifest = build_manifest(objectives, own)
    data = own_tasks / "items" / "shots.jsonl"
    data.write_text(data.read_text().replace("red", "pink"))
    evaluator = HarnessEvaluator(objectives, own, manifest)
    with pytest.raises(EvaluationError, match=r"`tiny_shots` has no item .* its data changed"):
        evaluator.evaluate(live, manifest.items("search"))


def test_evaluation_forgets_previous_weights(evaluator, live, model_directories) -> None:
    items = evaluator.manifest.items("search")
    first = evaluator.evaluate(live, items)
    live.swap(model_directories[1])
    second = evaluator.evaluate(live, items)
    assert second.texts["tiny_text"] != first.texts["tiny_text"]
    live.swap(model_directories[0])
    again = evaluator.evaluate(live, items)
    assert again.texts == first.texts
    for task, scores in first.task_scores.items():
        np.testing.assert_array_equal(again.task_scores[task].values, scores.values)


def test_subset_equals_full_evaluation_restricted(evaluator, live) -> None:
    items = evaluator.manifest.items("report")
    full = evaluator.evaluate(live, items)
    part = evaluator.evaluate(live, {task: ids[3:8][::-1] for task, ids in items.items()})
    for task, scores in part.task_scores.items():
        assert scores.item_ids == items[task][3:8][::-1]
        expected = full.task_scores[task].values[3:8][::-1]
        np.testing.assert_allclose(scores.values, expected, rtol=0, atol=1e-5)
    for task, texts in part.texts.items():
        assert texts == full.texts[task][3:8][::-1]


def test_fewshot_examples_do_not_depend_on_what_was_evaluated_before(settings, live) -> None:
    objectives = {"o": Objective(tasks=["tiny_shots"])}
    first, second = HarnessEvaluator(objectives, settings), HarnessEvaluator(objectives, settings)
    report = first.manifest.items("report")
    first.evaluate(live, first.manifest.items("search"))
    assert first.evaluate(live, report).texts == second.evaluate(live, report).texts


def test_evaluation_returns_texts_of_generation_tasks_and_seconds(evaluator, live) -> None:
    result = evaluator.evaluate(live, evaluator.manifest.items("search"))
    assert set(result.texts) == {"tiny_text", "tiny_match", "tiny_shots", "tiny_long"}
    assert all(len(texts) == 8 for texts in result.texts.values())
    assert not any("\n" in text or "the" in text for text in result.texts["tiny_text"])
    assert set(result.seconds) == {"prepare", "forward", "score"}
    assert result.seconds["forward"] > 0


def test_lower_is_better_metric_is_negated(settings, live) -> None:
    objectives = {"o": Objective(tasks=[{"task": "tiny_text", "metric": "length"}])}
    evaluator = HarnessEvaluator(objectives, settings)
    result = evaluator.evaluate(live, evaluator.manifest.items("search"))
    lengths = [len(text) for text in result.texts["tiny_text"]]
    assert max(lengths) > 0
    assert result.task_scores["tiny_text"].values.tolist() == [-length for length in lengths]


def global_states() -> list[object]:
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what is claimed
    return [random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist()]


def test_evaluation_leaves_global_random_states_alone(settings, live) -> None:
    objectives = {"o": Objective(tasks=[{"task": "tiny_lottery", "metric": "drawn"}])}
    random.seed(3)
    before = global_states()
    evaluator = HarnessEvaluator(objectives, settings)
    evaluator.evaluate(live, evaluator.manifest.items("search"))
    assert global_states() == before


def test_random_scorer_depends_on_item_alone(settings, live) -> None:
    objectives = {"o": Objective(tasks=[{"task": "tiny_lottery", "metric": "drawn"}])}
    evaluator = HarnessEvaluator(objectives, settings)
    ids = evaluator.manifest.items("search")["tiny_lottery"]
    full = evaluator.evaluate(live, {"tiny_lottery": ids}).task_scores["tiny_lottery"].values
    random.seed(99)
    part = evaluator.evaluate(live, {"tiny_lottery": ids[5:]}).task_scores["tiny_lottery"].values
    assert len(set(full)) == len(ids)
    assert part.tolist() == full[5:].tolist()


def test_scorer_that_changes_its_document_does_not_change_the_next_evaluation(
    settings, live
) -> None:
    objectives = {"o": Objective(tasks=[{"task": "tiny_lottery", "metric": "drawn"}])}
    evaluator = HarnessEvaluator(objectives, settings)
    items = evaluator.manifest.items("search")
    first = evaluator.evaluate(live, items).task_scores["tiny_lottery"].values
    second = evaluator.evaluate(live, items).task_scores["tiny_lottery"].values
    assert first.tolist() == second.tolist()


def test_suite_refuses_scorer_that_gives_no_number(settings) -> None:
    text = refusal([{"task": "tiny_lottery", "metric": "text"}], settings)
    assert "tiny_lottery.metric: text,none of its first item is a str, not a number" in text


SCORER_FAILURES = [
    ("{'vowels': float('nan')}", r"vowels,none of ITEM is nan"),
    ("{'vowels': '1'}", r"vowels,none of ITEM is a str, not a number"),
    ("{'other': 1}", r"vowels,none of ITEM is missing; the scorer gave other"),
    ("1 / 0", r"ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("scorer", "message"), SCORER_FAILURES)
def test_suite_refuses_scorer_that_fails_on_a_reference_answer(
    scorer, message, settings, own_tasks
) -> None:
    (own_tasks / "bad.py").write_text(f"def bad(doc, results):\n    return {scorer}\n")
    add_task(own_tasks, "tiny_bad", "tiny_shots", {"scoring.vowels": "bad.bad"})
    text = refusal(["tiny_bad"], with_tasks(settings, own_tasks))
    assert message.replace("ITEM", "its first item") in text


@pytest.mark.parametrize(("scorer", "message"), SCORER_FAILURES)
def test_evaluation_names_item_when_scorer_fails(
    scorer, message, settings, own_tasks, live
) -> None:
    code = f"""
def bad(doc, results):
    return {{"vowels": 1}} if results[0] == doc["answer"] else {scorer}
"""
    (own_tasks / "bad.py").write_text(code)
    add_task(own_tasks, "tiny_bad", "tiny_shots", {"scoring.vowels": "bad.bad"})
    message = message.replace("ITEM", r"item `\w+`")
    evaluator = HarnessEvaluator(
        {"o": Objective(tasks=["tiny_bad"])}, with_tasks(settings, own_tasks)
    )
    with pytest.raises(EvaluationError, match=message):
        evaluator.evaluate(live, evaluator.manifest.items("search"))


def test_evaluation_keeps_the_error_of_a_missing_sandbox(settings, own_tasks, live) -> None:
    (own_tasks / "bad.py").write_text(
        "from configs.errors import SandboxUnavailableError\n"
        "def bad(doc, results):\n    raise SandboxUnavailableError('no bwrap here')\n"
    )
    add_task(own_tasks, "tiny_bad", "tiny_shots", {"scoring.vowels": "bad.bad"})
    evaluator = HarnessEvaluator(
        {"o": Objective(tasks=["tiny_bad"])}, with_tasks(settings, own_tasks)
    )
    with pytest.raises(SandboxUnavailableError, match="no bwrap here"):
        evaluator.evaluate(live, evaluator.manifest.items("search"))


def test_evaluation_scores_in_the_sandbox_of_its_job(settings, own_tasks, live) -> None:
    (own_tasks / "which.py").write_text(
        "from evaluators.sandbox import shared_sandbox\n"
        "def which(doc, results):\n"
        "    return {'vowels': float(shared_sandbox().kind == 'weak')}\n"
    )
    add_task(own_tasks, "tiny_which", "tiny_shots", {"scoring.vowels": "which.which"})
    for kind, score in (("weak", 1.0), ("strict", 0.0)):
        chosen = with_tasks(settings, own_tasks).model_copy(update={"sandbox": kind})
        evaluator = HarnessEvaluator({"o": Objective(tasks=["tiny_which"])}, chosen)
        found = evaluator.evaluate(live, evaluator.manifest.items("search"))
        assert set(found.task_scores["tiny_which"].values) == {score}


def test_evaluation_fails_when_weights_are_not_finite(evaluator, live) -> None:
    with torch.no_grad():
        live.model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    for task in ("tiny_text", "tiny_choice"):
        ids = evaluator.manifest.items("search")[task]
        with pytest.raises(EvaluationError, match="logits are not finite for"):
            evaluator.evaluate(live, {task: ids})


def test_evaluation_refuses_unknown_item_empty_task_and_training_mode(evaluator, live) -> None:
    with pytest.raises(ValueError, match="task `tiny_text` has no items to score"):
        evaluator.evaluate(live, {"tiny_text": []})
    with pytest.raises(
        EvaluationError, match="item `abc` of task `tiny_text` is not in the manifest"
    ):
        evaluator.evaluate(live, {"tiny_text": ["abc"]})
    live.model.train()
    with pytest.raises(ValueError, match=r"call `model.eval\(\)` once"):
        evaluator.evaluate(live, evaluator.manifest.items("search"))


def test_evaluation_refuses_generation_settings_it_does_not_implement(evaluator, live) -> None:
    live.model.generation_config.no_repeat_ngram_size = 3
    with pytest.raises(EvaluationError, match="generation_config sets no_repeat_ngram_size=3"):
        evaluator.evaluate(live, evaluator.manifest.items("search"))


def test_evaluation_refuses_chat_template_when_tokenizer_has_none(settings, live) -> None:
    chatting = settings.model_copy(update={"apply_chat_template": True})
    evaluator = HarnessEvaluator({"o": Objective(tasks=["tiny_shots"])}, chatting)
    with pytest.raises(EvaluationError, match="the tokenizer has no chat template"):
        evaluator.evaluate(live, evaluator.manifest.items("search"))


def test_evaluation_refuses_budget_beyond_the_model(settings, own_tasks, live) -> None:
    add_task(own_tasks, "tiny_long", "tiny_shots", {"max_gen_toks: 16": "max_gen_toks: 96"})
    evaluator = HarnessEvaluator(
        {"o": Objective(tasks=["tiny_long"])}, with_tasks(settings, own_tasks)
    )
    with pytest.raises(EvaluationError, match="asks for 96 new tokens, but the model sees only 96"):
        evaluator.evaluate(live, evaluator.manifest.items("search"))


def test_evaluation_follows_the_live_tokenizer(evaluator, live, tokenizer_factory) -> None:
    items = {"tiny_text": evaluator.manifest.items("search")["tiny_text"]}
    first = evaluator.evaluate(live, items)
    other = LiveModel(live.model, tokenizer_factory())
    assert evaluator.evaluate(other, items).texts == first.texts


def test_stock_samples_are_ascending_positions_of_the_items(objectives, settings) -> None:
    suite = Suite(objectives, settings)
    items = suite.manifest.items("search")
    samples = suite.stock_samples(items)
    for task, positions in samples.items():
        assert positions == sorted(positions)
        assert {suite.tasks[task].indices[item] for item in items[task]} == set(positions)


DRAWING = """
import random
import numpy as np
import torch

def draw(dataset):
    luck = lambda: f"{random.random()} {np.random.random()} {torch.rand(()).item()}"
    rows = [{**row, "prompt": f"{row['prompt']} {luck()}"} for row in dataset]
    return dataset.from_list(rows)
"""


@pytest.fixture
def drawing(settings, own_tasks) -> EvaluationSettings:
    """Settings that find two tasks whose documents hold random numbers."""
    (own_tasks / "drawing.py").write_text(DRAWING)
    for name in ("tiny_drawn", "tiny_other"):
        line = "output_type: generate_until"
        changes = {line: f"{line}\nprocess_docs: !function drawing.draw"}
        add_task(own_tasks, name, "tiny_shots", changes | {"num_fewshot: 2": "num_fewshot: 0"})
    return with_tasks(settings, own_tasks)


def test_items_of_a_task_that_draws_them_are_the_same_whoever_drew_before(drawing) -> None:
    found = []
    for seed, names in ((0, ["tiny_drawn"]), (1, ["tiny_other", "tiny_drawn"])):
        seed_scorer(str(seed))
        seed_torch(str(seed))
        suite = Suite({"o": Objective(tasks=names)}, drawing)
        found.append(suite.manifest.items("search")["tiny_drawn"])
    assert found[0] == found[1]


def test_task_that_draws_its_items_is_asked_and_scored_on_those_of_the_manifest(
    drawing, live
) -> None:
    evaluator = HarnessEvaluator({"o": Objective(tasks=["tiny_drawn"])}, drawing)
    items = evaluator.manifest.items("search")
    loaded = evaluator.suite.tasks["tiny_drawn"]
    for item in items["tiny_drawn"]:
        document = loaded.documents[loaded.indices[item]]
        assert item_id(document) == item
        assert evaluator._frozen_item(live, "tiny_drawn", item).doc == document
