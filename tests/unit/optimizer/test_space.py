import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.space import project_to_simplex

GROUPS = {"attention": [r".*self_attn.*"], "rest": [r"(?!.*self_attn).*"]}
genes = arrays(np.float64, (12,), elements=st.floats(0, 1))
fixtures_are_factories = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def space_of(make_job, make_space):
    def build(**merge):
        return make_space(make_job(merge=merge))

    return build


@given(genotype=genes)
@fixtures_are_factories
def test_free_decode_then_encode_returns_the_genotype(space_of, genotype):
    space = space_of(groups=GROUPS, weight={"low": -0.5, "high": 2.0})
    recipe = space.decode(genotype)
    assert space.encode(recipe.weights, recipe.drop_ratios) == pytest.approx(genotype, abs=1e-12)
    assert space.contains(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("parametrization", ["simplex", "softmax"])
@given(genotype=genes)
@fixtures_are_factories
def test_weights_sum_to_one_per_group_and_survive_a_round_trip(space_of, parametrization, genotype):
    space = space_of(groups=GROUPS, parametrization=parametrization)
    recipe = space.decode(genotype)
    weights = np.array(recipe.weights)
    assert weights.sum(axis=0) == pytest.approx([1, 1])
    assert (weights >= 0).all()
    if parametrization == "softmax":
        assert (weights > 0).all()
    again = space.decode(space.encode(recipe.weights, recipe.drop_ratios))
    assert np.array(again.weights) == pytest.approx(weights, abs=1e-9)


def test_simplex_can_reach_zero(space_of):
    space = space_of(parametrization="simplex")
    weights = np.array(space.decode(np.array([1.0, 0.4, 0.0, 0, 0, 0])).weights)[:, 0]
    assert weights == pytest.approx([0.8, 0.2, 0.0])
    assert weights[2] == 0.0


@given(arrays(np.float64, (5,), elements=st.floats(-3, 3)))
def test_projection_is_the_nearest_point_of_the_simplex(point):
    nearest = project_to_simplex(point)
    rng = np.random.default_rng(0)
    others = rng.dirichlet(np.full(5, 0.3), size=200)
    assert ((nearest - point) ** 2).sum() <= ((others - point) ** 2).sum(axis=1).min() + 1e-9


def test_bounds_are_reached_exactly_and_never_left(space_of):
    space = space_of(weight={"low": 0.1, "high": 0.7}, drop_ratio={"low": 0.0, "high": 0.3})
    top = space.decode(np.ones(space.size))
    bottom = space.decode(np.zeros(space.size))
    assert {w for row in top.weights for w in row} == {0.7}
    assert {d for row in top.drop_ratios for d in row} == {0.3}
    assert {w for row in bottom.weights for w in row} == {0.1}


def test_names_say_checkpoint_group_and_kind(space_of):
    assert space_of().names == (
        "instruct.weight", "code.weight", "math.weight",
        "instruct.drop_ratio", "code.drop_ratio", "math.drop_ratio",
    )  # fmt: skip
    assert space_of(groups=GROUPS).names[:2] == (
        "instruct/attention.weight",
        "instruct/rest.weight",
    )


def test_methods_without_drops_have_no_drop_genes(space_of):
    space = space_of(method="task_arithmetic")
    assert space.size == 3
    assert space.decode(np.full(3, 0.5)).drop_ratios == ((0.0,),) * 3


def test_recipe_outside_the_bounds_is_made_but_not_contained(space_of):
    space = space_of(weight={"low": 0.0, "high": 1.0})
    recipe = space.recipe([[1.2]] * 3)
    assert recipe.weights == ((1.2,),) * 3
    assert not space.contains(recipe)


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (np.zeros(5), r"shape \(6,\), found \(5,\)"),
        (np.full(6, 1.5), r"in \[0, 1\]"),
        (np.array([0, 0, 0, 0, 0, np.nan]), r"in \[0, 1\]"),
    ],
)
def test_decode_refuses_what_is_no_genotype(space_of, genotype, message):
    with pytest.raises(ValueError, match=message):
        space_of().decode(genotype)


def test_recipes_of_other_options_are_outside_the_space(space_of):
    space = space_of(method="ties", options={"scale": 0.5})
    weights, drops = [[1.0]] * 3, [[0.8]] * 3
    assert space.contains(space.recipe(weights, drops))
    assert not space.contains(space.recipe(weights, drops, options={"scale": 1.0}))
    assert not space.contains(space.recipe(weights, drops, method="dare_ties"))
