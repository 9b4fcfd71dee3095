"""The lm-eval adapter: what an evaluation says, and what it must not depend on."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from configs.errors import EvaluationError, SandboxUnavailableError
from configs.evaluation import EvaluationSettings, Objective
from evaluators.evaluator import LiveModel
from evaluators.harness import HarnessEvaluator, prompt_tokens
from evaluators.harness_suite import Suite, build_manifest
from evaluators.manifest import item_id
from evaluators.rng_guard import seed_scorer, seed_torch
from tests.unit.evaluators.own_tasks import SCORER_FAILURES, add_task, with_tasks


@pytest.fixture(scope="module")
def evaluator(objectives, settings) -> HarnessEvaluator:
    return HarnessEvaluator(objectives, settings)


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


def test_prompts_hold_no_answers(objectives, settings, live) -> None:
    suite = Suite(objectives, settings)
    found = prompt_tokens(suite, live, "search")
    assert {task: len(texts) for task, texts in found.items()} == dict.fromkeys(suite.tasks, 8)

    def read(task: str) -> list[str]:
        return [live.tokenizer.decode(ids) for ids in found[task]]

    def documents(task: str) -> list[dict[str, object]]:
        loaded = suite.tasks[task]
        ids = suite.manifest.items("search")[task]
        return [loaded.documents[loaded.indices[item]] for item in ids]

    for task in ("tiny_text", "tiny_choice", "tiny_likelihood"):
        assert read(task) == [document["prompt"] for document in documents(task)]
    shots = zip(read("tiny_shots"), documents("tiny_shots"), strict=True)
    assert all(text.endswith(str(document["prompt"])) for text, document in shots)
    # A text that is scored as a whole has no other answer; it begins after the end token.
    rolling = zip(read("tiny_rolling"), documents("tiny_rolling"), strict=True)
    for text, document in rolling:
        assert text.startswith("<|end|>")
        assert str(document["long"]).startswith(text.removeprefix("<|end|>"))


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
