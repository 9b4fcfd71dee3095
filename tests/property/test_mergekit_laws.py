"""A recipe that was written for mergekit and read again is the same recipe."""

import re

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from configs.mergekit import mergekit_of
from configs.mergekit_form import METHODS, RECIPE_KEY
from configs.recipe import Group, MergeRecipe, Source
from optimizer.publish.mergekit_export import filtered, mergekit_yaml
from optimizer.publish.mergekit_import import Imported, import_recipe
from optimizer.publish.recipe_match import is_same_merge
from workers.layers import Layout
from workers.methods import get_method

LAYERS = 11  # two digits: `.1.` is a part of `.11.` without its dots
NAMES = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "norm.weight",  # part of other names
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(LAYERS)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
)
LAYOUT = Layout.of(NAMES, {LAYERS})
BASE = Source(name="base", digest="b" * 64)
CHECKPOINTS = tuple(Source(name=name, digest=name * 32) for name in ("c1", "c2", "c3"))
SPELLED = {source.digest: f"org/{source.name}" for source in (BASE, *CHECKPOINTS)}
MODELS = {SPELLED[source.digest]: source for source in (BASE, *CHECKPOINTS)}

weights = st.floats(-2, 2) | st.sampled_from([0.0, 0.5, 1.0])
drop_ratios = {
    "none": st.just(0.0),
    "trim": st.floats(0, 0.99) | st.just(0.9),
    "random": st.floats(0, 0.99) | st.just(0.1),
    "ranked": st.floats(0.2, 0.8) | st.just(0.0),
}
options = {
    "normalize": st.sampled_from([0.0, 1.0]),
    "scale": st.floats(-10, 10) | st.just(1.0),
    "epsilon": st.floats(0, 0.39),
}


@st.composite
def groupings(draw) -> tuple[Group, ...]:
    """Any partition of the tensors: by layer, by kind, or without any order."""
    key = draw(
        st.sampled_from(
            [
                lambda name: "",
                lambda name: name.split(".")[-2],
                lambda name: (re.findall(r"\d+", name) or [""])[0],
                lambda name: len(name) % 3,
            ]
        )
        | st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3)).map(
            lambda chosen: lambda name: chosen.get(name, 0)
        )
    )
    members: dict[object, list[str]] = {}
    for name in NAMES:
        members.setdefault(key(name), []).append(re.escape(name))
    return tuple(
        Group(name=f"g{index}", patterns=tuple(patterns))
        for index, patterns in enumerate(members.values())
    )


@st.composite
def recipes(draw) -> MergeRecipe:
    name = draw(st.sampled_from(sorted(METHODS)))
    method, groups = get_method(name), draw(groupings())
    count = method.num_checkpoints or draw(st.integers(1, 3))
    checkpoints = tuple(draw(st.permutations(CHECKPOINTS)))[:count]
    bases = {"linear": [None, BASE, checkpoints[0]], "slerp": [None, checkpoints[0]]}
    base = draw(st.sampled_from(bases.get(name, [BASE])))
    table = st.lists(
        st.lists(weights, min_size=len(groups), max_size=len(groups)),
        min_size=count, max_size=count,
    )  # fmt: skip
    drops = draw(
        st.lists(
            st.lists(drop_ratios[method.drop], min_size=len(groups), max_size=len(groups)),
            min_size=count, max_size=count,
        )
    )  # fmt: skip
    recipe = MergeRecipe(
        method=name,
        base=base,
        checkpoints=checkpoints,
        groups=groups,
        weights=tuple(map(tuple, draw(table))),
        drop_ratios=tuple(map(tuple, drops)),
        options={option.name: draw(options[option.name]) for option in method.options},
        dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        mask_seed=draw(st.integers(0, 2**63 - 1)),
    )
    if name == "slerp":
        assume(all(abs(sum(column)) > 0.01 for column in zip(*recipe.weights, strict=True)))
    if name == "linear" and base == checkpoints[0]:
        assume(any(recipe.weights[0]))
    return recipe


def read(content: dict[str, object]) -> Imported:
    return import_recipe(mergekit_of(content), MODELS, LAYOUT, dtype="float32")


@pytest.mark.slow
@given(recipes())
def test_a_recipe_comes_back_from_mergekits_language_as_it_was(recipe):
    found = read(yaml.safe_load(mergekit_yaml(recipe, LAYOUT, SPELLED)))
    assert found.recipe == recipe
    assert not any("ignored" in note for note in found.notes)


@pytest.mark.slow
@given(recipes())
def test_what_mergekit_reads_alone_says_the_same_merge(recipe):
    content = yaml.safe_load(mergekit_yaml(recipe, LAYOUT, SPELLED))
    del content[RECIPE_KEY]
    found = read(content).recipe
    assert is_same_merge(recipe, found, NAMES, MODELS.values())
    for name in NAMES:
        theirs, ours = found.group_of(name), recipe.group_of(name)
        for source, row in zip(recipe.checkpoints, recipe.weights, strict=True):
            if recipe.method != "slerp" and row[ours]:
                index = [other.digest for other in found.checkpoints].index(source.digest)
                assert found.weights[index][theirs] == row[ours]


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([1.0, 2.0, 3.0])))
def test_filters_say_any_number_for_any_tensor(chosen):
    values = {name: chosen.get(name, 0.0) for name in NAMES}
    written = filtered(values)
    entries = written if isinstance(written, list) else [{"value": written}]
    for name, value in values.items():
        fitting = (e["value"] for e in entries if e.get("filter", "") in name)
        assert next(fitting) == value
