from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.mergekit import mergekit_of, read_mergekit
from configs.mergekit_form import METHODS, value_of

LINEAR = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}


def reasons(content: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        mergekit_of(content)
    return {problem.path: problem.message for problem in caught.value.problems}


def weight_of(setting: object, tensor: str = "model.layers.0.mlp.up.weight", at: float = 0.0):
    models = [{"model": "a", "parameters": {"weight": setting}}]
    config = mergekit_of({"merge_method": "linear", "models": models})
    return value_of(config.models[0].parameters["weight"], tensor, at)


@pytest.mark.parametrize(
    ("setting", "at", "value"),
    [
        (0.3, 0.5, 0.3),
        ("1e-3", 0.5, 0.001),  # YAML 1.1 reads it as text
        (True, 0.0, 1.0),
        ([0.0, 1.0], 0.25, 0.25),
        ([0.0, 1.0, 0.0], 0.5, 1.0),
        ([0.0, 1.0, 0.0], 0.75, 0.5),
        ([0.2, 0.7], 1.0, 0.7),
        ([0.2], 1.0, 0.2),
        ([{"filter": "mlp", "value": [0, 1]}, {"value": 7}], 0.5, 0.5),
        ([{"filter": "attn", "value": 2}, {"filter": "*", "value": 7}], 0.5, 7),
        ([{"filter": "up", "value": 2}, {"filter": "mlp", "value": 7}], 0.5, 2),
        ([{"filter": "attn", "value": 2}], 0.5, None),
    ],
)
def test_a_setting_says_a_value_for_a_tensor(setting, at, value):
    assert weight_of(setting, at=at) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"filter": "mlp", "value": 1}, "write a list of `- filter"),
        ([{"filter": "mlp"}], "needs `value`"),
        ([1.0, {"value": 2}], "needs `value`"),
        ("much", "must be a number or a list of numbers"),
        ([], "must be a number or a list of numbers"),
    ],
)
def test_a_setting_of_another_form_is_refused(setting, message):
    models = [{"model": "a", "parameters": {"weight": setting}}]
    found = reasons({"merge_method": "linear", "models": models})
    assert message in found["models[0].parameters.weight"]


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"merge_method": "passthrough"}, "merge_method", "no `passthrough` here; use linear"),
        ({"models": None}, "", "either `models` or `slices`; found none"),
        ({"modules": {"text": {}}}, "modules", "several modules are not read"),
        ({"merge_method": "ties"}, "base_model", "`ties` needs a base model"),
        ({"models": [{"model": "a"}, {"model": "a"}]}, "models[1].model", "`a` is named twice"),
        ({"models": [{"model": "a+lora"}]}, "models[0].model", "merge the LoRA adapter `lora`"),
        ({"merge_method": "slerp", "base_model": "a"}, "models", "one other model, found 0"),
        ({"dtype": "int8"}, "dtype", "must be float32, bfloat16 or float16"),
        ({"tokenizer_source": "union"}, "tokenizer_source", "vocabularies are not united"),
        ({"tokenizer": {"source": "a"}}, "tokenizer", "tokens cannot be mapped"),
        ({"chat_template": "chatml"}, "chat_template", "that of the base is kept"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_reason(change, path, message):
    assert message in reasons(LINEAR | change)[path]


def sliced(*parts: tuple[list[tuple[str, list[int]]], dict[str, object]]) -> dict[str, object]:
    return {
        "merge_method": "linear",
        "slices": [
            {"sources": [{"model": m, "layer_range": r} for m, r in sources], **more}
            for sources, more in parts
        ],
    }


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (
            sliced(([("a", [0, 2]), ("b", [2, 4])], {})),
            "slices[0].sources", "different places cannot be merged into one (found 0-2, 2-4)",
        ),
        (
            sliced(([("a", [0, 2])], {}), ([("a", [1, 4])], {})),
            "slices[1].sources[0].layer_range", "begins at 2, found 1-4",
        ),
        (
            sliced(([("a", [0, 2])], {"residual_weight": 0.5})),
            "slices[0].residual_weight", "no counterpart",
        ),
        (
            sliced(([("a", [0, 2])], {}), ([("a", [2, 4])], {"base_model": "b"})),
            "slices[1].base_model", "one base",
        ),
        (
            sliced(([("a", [0, 2])], {})) | {"merge_method": "ties", "base_model": "b"},
            "slices[0].sources", "the base `b` must be one of them",
        ),
    ],
)  # fmt: skip
def test_slices_that_are_no_merge_of_whole_models_are_refused(content, path, message):
    assert message in reasons(content)[path]


def test_all_reasons_come_at_once_with_their_lines(tmp_path):
    path = tmp_path / "frankenstein.yml"
    path.write_text(
        "slices:\n"
        "  - sources:\n"
        "    - {model: a, layer_range: [0, 24]}\n"
        "  - sources:\n"
        "    - {model: b, layer_range: [8, 32]}\n"
        "merge_method: passthrough\n"
        "tokenizer_source: union\n"
        "dtype: int8\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_mergekit(Path(path))
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert set(found) == {
        "merge_method", "slices[1].sources[0].layer_range", "tokenizer_source", "dtype",
    }  # fmt: skip
    assert "(line 6)" in found["merge_method"]
    assert "(line 5)" in found["slices[1].sources[0].layer_range"]
    assert "for 4 reasons" in caught.value.message


def test_an_empty_file_is_called_what_it_should_be(tmp_path):
    (tmp_path / "x.yml").touch()
    with pytest.raises(ConfigError, match="not a mergekit configuration"):
        read_mergekit(tmp_path / "x.yml")


def test_every_method_is_one_of_ours():
    from workers.methods import get_method

    for name, form in METHODS.items():
        method = get_method(name)
        assert method.drop == form.drops
        assert method.needs_base == (form.needs_base and name != "slerp")
