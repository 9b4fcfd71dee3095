"""Likelihoods of reference answers: by hand, across weights, in blocks, and what is refused."""

import json
import math
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, EvaluationError
from configs.evaluation import Objective
from evaluators.backend import Prompt
from evaluators.blocks import partition, union
from evaluators.generation import StaticBatches
from evaluators.harness import HarnessEvaluator
from evaluators.harness_suite import build_manifest, describe_tasks
from evaluators.loglikelihood import loglikelihoods

BITS = "target_bits_per_byte"


def objective(**spec):
    return {"skill": Objective.model_validate({"tasks": [spec]})}


def by_hand(live, context: str, text: str) -> float:
    """Log-probability of a text after a context, from one forward pass of its own."""
    before = live.tokenizer.encode(context)
    ids = live.tokenizer.encode(context + text)
    assert ids[: len(before)] == before
    with torch.no_grad():
        log_probabilities = live.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(
        float(log_probabilities[position - 1, ids[position]])
        for position in range(len(before), len(ids))
    )


def items_of(evaluator, split="search"):
    ((task, frozen),) = [
        (task, items) for (task, name), items in evaluator._frozen.items() if name == split
    ]
    return [frozen[item] for item in evaluator.manifest.items(split)[task]]


def test_companion_is_the_models_log_softmax_of_the_target(live, settings) -> None:
    evaluator = HarnessEvaluator(objective(task="tiny_shots", companion=True), settings)
    found = evaluator.evaluate(live, evaluator.manifest.items("search"))
    plain = HarnessEvaluator(objective(task="tiny_shots"), settings)
    alone = plain.evaluate(live, plain.manifest.items("search"))

    values = found.companions["tiny_shots"].values
    assert found.companions["tiny_shots"].item_ids == found.task_scores["tiny_shots"].item_ids
    for item, value in zip(items_of(evaluator), values, strict=True):
        context = item.requests[0].instance.args[0]
        assert context.count("\n\n") == 2, "two examples stand before the prompt"
        answer = " " + item.doc["answer"]
        expected = by_hand(live, context, answer) / (math.log(2) * len(answer.encode()))
        assert value == pytest.approx(expected, rel=1e-5)
    assert (values < 0).all()
    # Beside the score, and without any effect on it.
    assert found.texts == alone.texts
    assert alone.companions == {}
    np.testing.assert_array_equal(
        found.task_scores["tiny_shots"].values, alone.task_scores["tiny_shots"].values
    )


def test_target_as_metric_is_the_companion_and_generates_nothing(
    live, settings, monkeypatch
) -> None:
    companion = HarnessEvaluator(objective(task="tiny_shots", companion=True), settings)
    beside = companion.evaluate(live, companion.manifest.items("search"))

    def generate(_self: StaticBatches, prompts: Sequence[Prompt], _on_text: object) -> None:
        assert not prompts

    monkeypatch.setattr(StaticBatches, "generate", generate)
    for metric in (BITS, "target_loglikelihood"):
        specs = objective(task="tiny_shots", metric=metric)
        evaluator = HarnessEvaluator(specs, settings)
        found = evaluator.evaluate(live, evaluator.manifest.items("search"))
        assert (found.texts, found.companions) == ({}, {})
        values = found.task_scores["tiny_shots"].values
        if metric == BITS:
            np.testing.assert_allclose(values, beside.companions["tiny_shots"].values, rtol=1e-6)
        else:
            first = items_of(evaluator)[0]
            expected = by_hand(live, first.target.instance.args[0], " " + first.doc["answer"])
            assert values[0] == pytest.approx(expected, rel=1e-5)
        (described,) = describe_tasks(specs, settings)
        assert described.metric == f"{metric},none"
        assert described.higher_is_better is (metric != BITS)
        assert (described.output_type, described.max_new_tokens) == ("loglikelihood", 0)


def test_companion_of_multiple_choice_is_the_right_choice_and_costs_no_pass(live, settings) -> None:
    rows = []
    live.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    spent = []
    for companion in (False, True):
        specs = objective(task="tiny_choice", metric="acc", companion=companion)
        evaluator = HarnessEvaluator(specs, settings)
        rows.clear()
        found = evaluator.evaluate(live, evaluator.manifest.items("search"))
        spent.append(sum(rows))
    assert spent[0] == spent[1] > 0
    for item, value in zip(
        items_of(evaluator), found.companions["tiny_choice"].values, strict=True
    ):
        chosen = item.requests[item.doc["gold"]]
        (expected,) = loglikelihoods(live.model, chosen.windows, batch_size=1, max_length=64)
        assert value == pytest.approx(expected.log_probability, rel=1e-5)


def test_companion_is_unaffected_by_weights_that_came_between(
    live, settings, model_directories
) -> None:
    evaluator = HarnessEvaluator(objective(task="tiny_shots", companion=True), settings)
    items = evaluator.manifest.items("search")
    first = evaluator.evaluate(live, items).companions["tiny_shots"].values
    live.swap(model_directories[1])
    other = evaluator.evaluate(live, items).companions["tiny_shots"].values
    live.swap(model_directories[0])
    again = evaluator.evaluate(live, items).companions["tiny_shots"].values
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(first, again)


def test_companions_are_asked_for_alone_and_the_rest_with_the_scores(
    live, settings, monkeypatch
) -> None:
    evaluator = HarnessEvaluator(objective(task="tiny_shots", companion=True), settings)
    split = evaluator.manifest.items("search")
    whole = evaluator.evaluate(live, split)
    first, rest = partition(split, (1, 1))
    with monkeypatch.context() as patched:

        def generate(_self: StaticBatches, prompts: Sequence[Prompt], _on_text: object) -> None:
            assert not prompts

        patched.setattr(StaticBatches, "generate", generate)
        alone = evaluator.evaluate(live, {}, first)
    assert (alone.task_scores, alone.texts) == ({}, {})
    later = evaluator.evaluate(live, split, rest)
    assert later.companions["tiny_shots"].item_ids == rest["tiny_shots"]
    assert later.texts == whole.texts
    np.testing.assert_array_equal(
        later.task_scores["tiny_shots"].values, whole.task_scores["tiny_shots"].values
    )
    found = union([alone.companions, later.companions], split)["tiny_shots"]
    np.testing.assert_allclose(found.values, whole.companions["tiny_shots"].values, rtol=1e-5)
    assert evaluator.evaluate(live, split, {}).companions == {}


def test_companion_of_a_block_is_that_of_the_whole(live, settings) -> None:
    evaluator = HarnessEvaluator(objective(task="tiny_shots", companion=True), settings)
    split = evaluator.manifest.items("search")
    whole = evaluator.evaluate(live, split).companions["tiny_shots"]
    parts = [
        evaluator.evaluate(live, block).companions["tiny_shots"]
        for block in partition(split, (1, 2))
    ]
    assert sum((part.item_ids for part in parts), ()) == whole.item_ids
    joined = np.concatenate([part.values for part in parts])
    np.testing.assert_allclose(joined, whole.values, rtol=1e-6)


def test_companion_fails_when_weights_are_broken(live, settings) -> None:
    evaluator = HarnessEvaluator(objective(task="tiny_shots", metric=BITS), settings)
    with torch.no_grad():
        live.model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(EvaluationError, match="logits are not finite"):
        evaluator.evaluate(live, evaluator.manifest.items("search"))


@pytest.fixture
def own(task_directory, settings, tmp_path):
    """Copies the tasks and adds one; returns the settings that find it."""

    def add(name: str, text: str):
        directory = tmp_path / "tasks"
        shutil.copytree(task_directory, directory, dirs_exist_ok=True)
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{text}")
        return settings.model_copy(
            update={
                "include_path": [str(directory)],
                "data_dir": str(directory),
                "allow_code_execution": True,
            }
        )

    return add


def test_column_takes_the_place_of_targets_that_are_tests(live, own) -> None:
    settings = own("tiny_code", "include: tiny_shots.yaml\nnum_fewshot: 0\nunsafe_code: true\n"
                   'doc_to_text: "{{prompt}}\\n"\n')  # fmt: skip
    with pytest.raises(ConfigError, match=r"holds the tests of a program.*target: canonical"):
        build_manifest(objective(task="tiny_code", companion=True), settings)
    specs = objective(task="tiny_code", companion=True, target="prompt")
    evaluator = HarnessEvaluator(specs, settings)
    found = evaluator.evaluate(live, evaluator.manifest.items("select"))
    for item, value in zip(
        items_of(evaluator, "select"), found.companions["tiny_code"].values, strict=True
    ):
        # The prompt ends a line, so no delimiter comes between; the line's end is scored too.
        text = item.doc["prompt"]
        assert item.target.instance.args == (f"{text}\n", text)
        assert item.target_bytes == 1 + len(text)
        bits = by_hand(live, text, f"\n{text}") / math.log(2)
        assert value == pytest.approx(bits / (1 + len(text)), rel=1e-5)


def test_answer_longer_than_the_model_sees_is_refused(live, settings) -> None:
    specs = objective(task="tiny_shots", metric=BITS, target="long")
    evaluator = HarnessEvaluator(specs, settings)
    with pytest.raises(EvaluationError, match=r"an answer of \d+ tokens .* at most 96"):
        evaluator.evaluate(live, evaluator.manifest.items("select"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"task": "tiny_rolling", "companion": True}, "scores whole texts, which is a likelihood"),
        ({"task": "tiny_rolling", "metric": BITS}, "scores whole texts"),
        (
            {"task": "tiny_shots", "metric": BITS, "companion": True},
            r"tiny_shots\.companion: the task is scored by `target_bits_per_byte` already",
        ),
        (
            {"task": "tiny_shots", "target": "answer"},
            r"tiny_shots\.target: is only used with `companion: true` or one of the metrics",
        ),
        (
            {"task": "tiny_shots", "companion": True, "target": "solution"},
            r"tiny_shots\.target: there is no column `solution`; there is `prompt`, `answer`",
        ),
        (
            {"task": "tiny_choice", "metric": "acc", "companion": True, "target": "gold"},
            r"target: column `gold` must hold text in every item, found \d",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_in_the_check(settings, spec, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build_manifest(objective(**spec), settings)


def test_task_without_reference_answers_is_refused(own) -> None:
    # As ifeval has it.
    settings = own("tiny_rules", "include: tiny_shots.yaml\ndoc_to_target: 0\nnum_fewshot: 0\n")
    message = "tiny_rules: has no reference answers: its doc_to_target is 0, not a text"
    with pytest.raises(ConfigError, match=message):
        build_manifest(objective(task="tiny_rules", companion=True), settings)
    assert build_manifest(objective(task="tiny_rules"), settings)


def test_item_without_reference_answer_is_refused(own, tmp_path) -> None:
    settings = own("tiny_gap", "include: tiny_shots.yaml\nnum_fewshot: 0\n")
    path = tmp_path / "tasks" / "items" / "shots.jsonl"
    lines = path.read_text().splitlines()
    lines[11] = json.dumps({**json.loads(lines[11]), "answer": " "})
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="has an item without a reference answer"):
        build_manifest(objective(task="tiny_gap", companion=True), settings)
