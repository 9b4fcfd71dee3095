import pytest
import yaml

from configs.errors import ConfigError
from configs.mergekit import mergekit_of
from configs.mergekit_form import RECIPE_KEY
from configs.recipe import Source
from optimizer.publish.mergekit_columns import drop_ratio_of
from optimizer.publish.mergekit_export import mergekit_yaml
from optimizer.publish.mergekit_import import Imported, import_recipe
from workers.layers import Layout

NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.{part}.weight" for n in range(4) for part in ("self_attn.q", "mlp.up")),
    "model.norm.weight",
)
LAYOUT = Layout.of(NAMES, {4})
SOURCES = {name: Source(name=name, digest=name * 64) for name in ("a", "b", "c")}


def read(method: str, models: dict[str, object], **more: object) -> Imported:
    """Read a configuration that names each model with its parameters."""
    listed = [{"model": name, "parameters": own} for name, own in models.items()]
    content = {"merge_method": method, "models": listed, **more}
    return import_recipe(mergekit_of(content), SOURCES, LAYOUT, dtype="float32")


def reasons(method: str, models: dict[str, object], **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(method, models, **more)
    return caught.value.message


def weights(found: Imported, tensor: str) -> list[float]:
    return [row[found.recipe.group_of(tensor)] for row in found.recipe.weights]


def test_linear_weights_are_divided_by_their_sum():
    found = read("linear", {"a": {"weight": 3}, "b": {"weight": 1}})
    assert weights(found, NAMES[0]) == [0.75, 0.25]
    assert found.recipe.base is None
    assert [group.patterns for group in found.recipe.groups] == [(".*",)]
    plain = read("linear", {"a": {"weight": 3}, "b": {}}, parameters={"normalize": 0, "weight": 2})
    assert weights(plain, NAMES[0]) == [3, 2]
    assert found.notes == plain.notes == ()


def test_a_base_of_linear_has_a_weight_or_only_lends_its_tokenizer():
    found = read("linear", {"a": {"weight": 1}, "b": {"weight": 0}}, base_model="b")
    assert [source.name for source in found.recipe.checkpoints] == ["a"]
    assert found.recipe.base.digest == SOURCES["b"].digest
    both = read("linear", {"a": {"weight": 1}, "b": {"weight": 1}}, base_model="b")
    assert [source.name for source in both.recipe.checkpoints] == ["a", "b"]
    assert "`weight` of `b` is not given" in reasons("linear", {"a": {"weight": 1}}, base_model="b")


def test_gradients_and_filters_become_groups():
    gradient = [{"filter": "self_attn", "value": [0.0, 0.3]}, {"filter": "mlp", "value": 0.5}]
    found = read(
        "task_arithmetic", {"a": {"weight": gradient}, "b": {"weight": [1.0, 2.0, 1.0]}},
        base_model="c", parameters={"weight": 9},
    )  # fmt: skip
    for layer in range(4):
        assert weights(found, f"model.layers.{layer}.self_attn.q.weight") == [
            pytest.approx(0.1 * layer), pytest.approx(1 + min(layer, 3 - layer) * 2 / 3),
        ]  # fmt: skip
        assert weights(found, f"model.layers.{layer}.mlp.up.weight")[0] == 0.5
    # Outside of the layers a list means its first value, on both ends; no filter fits: global.
    assert weights(found, "model.embed_tokens.weight") == [9, 1]
    assert weights(found, "model.norm.weight") == [9, 1]
    assert [s.name for s in found.recipe.checkpoints] == ["a", "b"]


def test_slices_have_their_own_parameters():
    slices = [
        {
            "sources": [
                {"model": "a", "layer_range": layers, "parameters": {"weight": weight}},
                {"model": "c", "layer_range": layers},
            ],
            "parameters": {"density": density},
        }
        for layers, weight, density in (([0, 1], [0.1, 0.2], 1.0), ([1, 4], [0.2, 0.4], 0.5))
    ]
    content = {"merge_method": "ties", "base_model": "c", "slices": slices}
    found = import_recipe(mergekit_of(content), SOURCES, LAYOUT, dtype="float32")
    # One layer alone is at the end of a gradient; what precedes the layers is at its beginning.
    expected = {
        "model.embed_tokens.weight": (0.1, 0.0), "model.layers.0.mlp.up.weight": (0.2, 0.0),
        "model.layers.1.mlp.up.weight": (0.2, 0.5), "model.layers.2.mlp.up.weight": (0.3, 0.5),
        "model.layers.3.mlp.up.weight": (0.4, 0.5), "model.norm.weight": (0.2, 0.5),
    }  # fmt: skip
    for tensor, (weight, drop) in expected.items():
        assert weights(found, tensor) == [pytest.approx(weight)]
        assert found.recipe.drop_ratios[0][found.recipe.group_of(tensor)] == drop
    short = {"merge_method": "ties", "base_model": "c", "slices": slices[:1]}
    with pytest.raises(ConfigError, match="must hold all 4 layers of the models, they end at 1"):
        import_recipe(mergekit_of(short), SOURCES, LAYOUT, dtype="float32")


def test_task_arithmetic_takes_lambda_and_normalize_into_its_weights():
    found = read(
        "task_arithmetic", {"a": {"weight": 3}, "b": {"weight": 1}},
        base_model="c", parameters={"lambda": 2, "normalize": True},
    )  # fmt: skip
    assert weights(found, NAMES[0]) == [1.5, 0.5]
    # A sum of zero is not divided by.
    found = read(
        "task_arithmetic", {"a": {"weight": 1}, "b": {"weight": -1}},
        base_model="c", parameters={"normalize": True},
    )  # fmt: skip
    assert weights(found, NAMES[0]) == [1, -1]


@pytest.mark.parametrize(
    ("method", "normalize"), [("ties", 1.0), ("dare_ties", 0.0), ("della", 1.0)]
)
def test_electing_methods_have_mergekits_defaults(method, normalize):
    found = read(
        method, {"a": {"weight": 0.5, "density": 0.9, "epsilon": 0.05}, "b": {"weight": 1}},
        base_model="c", parameters={"lambda": 0.7},
    )  # fmt: skip
    assert found.recipe.options["normalize"] == normalize
    assert found.recipe.options["scale"] == 0.7
    assert found.recipe.drop_ratios == ((0.1,), (0.0,))
    # Only densities say that two epsilons are one: that of `b`, the default, means nothing.
    assert found.recipe.options.get("epsilon", 0.1) == 0.1


def test_dare_without_rescaling_shrinks_the_weights():
    models = {"a": {"weight": 0.5, "density": 0.75}}
    plain = read("dare_linear", models, base_model="c", parameters={"rescale": False})
    assert weights(plain, NAMES[0]) == [0.375]
    rescaled = read("dare_linear", models, base_model="c")
    assert weights(rescaled, NAMES[0]) == [0.5]
    assert any("L1 norm" in note for note in rescaled.notes)


def test_slerp_begins_at_the_base():
    found = read("slerp", {"a": {}, "b": {}}, base_model="b", parameters={"t": [0.25, 0.75]})
    assert [source.name for source in found.recipe.checkpoints] == ["b", "a"]
    assert weights(found, "model.layers.3.mlp.up.weight") == [0.25, 0.75]
    assert weights(found, "model.norm.weight") == [0.75, 0.25]
    assert "`t` is not given" in reasons("slerp", {"a": {}, "b": {}}, base_model="b")


@pytest.mark.parametrize(
    ("method", "own", "common", "message"),
    [
        ("ties", {}, {}, "`weight` of `a` is not given"),
        ("ties", {"density": 0}, {"weight": 1}, "density of `a` must be above 0, found 0"),
        ("ties", {"density": 0.5}, {"weight": 1, "rescale": True}, "trimmed task vectors"),
        ("della", {"density": 0.5}, {"weight": 1, "rescale": False}, "always rescaled"),
        ("della", {"density": 0.9}, {"weight": 1}, "between 0 and 1, found 0.9 +/- 0.15"),
        (
            "dare_ties", {"density": 0.5}, {"weight": 1, "rescale": False, "normalize": True},
            "together with `normalize: true`",
        ),
        ("ties", {}, {"weight": 1, "lambda": [0, 1]}, "must be the same for all tensors"),
        ("ties", {}, {"weight": 1, "lambda": 11}, "must be between -10 and 10, found 11"),
    ],
)  # fmt: skip
def test_what_no_recipe_says_is_refused(method, own, common, message):
    assert message in reasons(method, {"a": own}, base_model="c", parameters=common)


def test_weights_of_linear_that_cancel_are_refused_with_the_tensors():
    gradient = {"a": {"weight": [1.0, -1.0, 1.0, 1.0]}, "b": {"weight": 1.0}}
    text = reasons("linear", gradient)
    assert "the weights sum to zero" in text
    assert "for 2 of 10 tensors, e.g. `model.layers.1.mlp.up.weight`" in text


def test_differences_and_what_is_ignored_are_told():
    found = read(
        "ties", {"a": {"weight": 1, "wieght": 2}}, base_model="c", dtype="bfloat16",
        out_dtype="float16", tokenizer_source="base", merge_name="x",
    )  # fmt: skip
    assert found.recipe.dtype == "float16"
    text = "\n".join(found.notes)
    for part in (
        "rounds every step",
        "keep all their rows",
        "`wieght` means nothing",
        "`merge_name`",
    ):
        assert part in text


@pytest.mark.parametrize(("density", "drop"), [(0.9, 0.1), (0.3, 0.7), (1.0, 0.0), (1.5, 0.0)])
def test_densities_are_subtracted_in_decimal(density, drop):
    assert drop_ratio_of(density) == drop


def exported(found: Imported) -> dict[str, object]:
    spelled = {source.digest: name for name, source in SOURCES.items()}
    return yaml.safe_load(mergekit_yaml(found.recipe, LAYOUT, spelled))


def test_an_exported_file_that_was_edited_counts_as_it_stands():
    content = exported(read("ties", {"a": {"weight": 0.5, "density": 0.5}}, base_model="c"))
    seeded = content | {RECIPE_KEY: {"recipe": content[RECIPE_KEY]["recipe"] | {"mask_seed": 7}}}
    kept = import_recipe(mergekit_of(seeded), SOURCES, LAYOUT, dtype="float32")
    assert kept.recipe.mask_seed == 7
    seeded["models"][0]["parameters"]["weight"] = 0.6
    edited = import_recipe(mergekit_of(seeded), SOURCES, LAYOUT, dtype="float32")
    assert weights(edited, NAMES[0]) == [0.6]
    assert any("that recipe is ignored" in note for note in edited.notes)


def test_a_recipe_of_models_that_are_not_named_is_not_taken_back():
    content = exported(read("linear", {"a": {"weight": 1}, "b": {"weight": 1}}))
    content[RECIPE_KEY]["recipe"]["checkpoints"][0]["digest"] = "other"
    found = import_recipe(mergekit_of(content), SOURCES, LAYOUT, dtype="float32")
    assert found.recipe.checkpoints[0].digest == SOURCES["a"].digest


def test_a_base_that_slerp_has_no_place_for_is_left_out_and_told():
    recipe = read("slerp", {"a": {}, "b": {}}, base_model="b", parameters={"t": 0.25}).recipe
    on_base = type(recipe).model_validate(recipe.model_dump() | {"base": SOURCES["c"]})
    spelled = {source.digest: name for name, source in SOURCES.items()}
    text = mergekit_yaml(on_base, LAYOUT, spelled)
    assert "# The tokenizer is that of `b`, not of the base." in text
    found = import_recipe(mergekit_of(yaml.safe_load(text)), SOURCES, LAYOUT, dtype="float32")
    assert found.recipe == recipe
    assert found.notes == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "third_party"}, "mergekit has no `third_party`"),
        (
            {
                "vocabulary": {
                    "policy": "pad",
                    "rows": 9,
                    "source": SOURCES["a"].model_dump(),
                    "tables": [
                        {"digest": source.digest, "rows": 9, "tokens": 9}
                        for source in SOURCES.values()
                    ],
                }
            },
            "mergekit joins tables of tokens",
        ),
        ({"checkpoints": (SOURCES["a"], SOURCES["a"])}, "takes each model once, `a`"),
        ({"checkpoints": (SOURCES["a"], SOURCES["c"])}, "the base is one of the checkpoints"),
        ({"base": Source(name="base", digest="gone")}, "no directory is known for digest gone"),
        ({"options": {"epsilon": 0.4}, "method": "della_linear"}, "needs p +/- 0.2"),
    ],
)
def test_what_mergekit_cannot_be_told_is_refused(change, message):
    models = {"a": {"weight": 1, "density": 0.9}, "b": {"weight": 1}}
    recipe = read("dare_linear", models, base_model="c").recipe
    changed = type(recipe).model_validate(recipe.model_dump() | change)
    spelled = {source.digest: name for name, source in SOURCES.items()}
    with pytest.raises(ConfigError) as caught:
        mergekit_yaml(changed, LAYOUT, spelled)
    assert message in caught.value.message
