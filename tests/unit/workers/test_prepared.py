"""What is prepared for one recipe and serves the next gives the bits of a fresh merge."""

import random
import threading
import time
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests.small_models import live_model, recipe_of, saved_tensors
from workers import compiled, materialize, source_pool
from workers.digest import weights_digest
from workers.materialize import Materializer
from workers.source_pool import SourcePool
from workers.sources import Sources

METHODS = {"linear": False, "task_arithmetic": False, "dare_linear": True, "ties": True}


@pytest.fixture
def goes_on(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each merge but the first could go on with what was prepared."""
    answers: list[bool] = []
    real = SourcePool.go_on_with
    monkeypatch.setattr(
        SourcePool,
        "go_on_with",
        lambda self, recipe: answers.append(real(self, recipe)) or answers[-1],
    )
    return answers


@pytest.fixture
def small_graphs_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's part is the same; what is compiled has tests of its own."""
    monkeypatch.setattr(compiled, "_SMALLEST_CHUNK", 2**40)


def digest_of(model: PreTrainedModel) -> str:
    return weights_digest(saved_tensors(model).items())


def fresh_digest(sources: Sources, recipe, dtype: str = "float32") -> str:
    model = live_model(sources, dtype)
    Materializer(sources, backend="eager").into(model, recipe)
    return digest_of(model)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_recipe_after_recipe_has_the_bits_of_a_fresh_merge(
    pools: Callable[..., Sources],
    method: str,
    goes_on: list[bool],
    small_graphs_never: None,
) -> None:
    sources, draw = pools(), random.Random(1)
    model, materializer = live_model(sources), Materializer(sources, backend="compiled")
    for _ in range(12):
        weights = [0.0 if draw.random() < 0.1 else draw.random() for _ in range(3)]
        drops = [draw.choice([0.0, draw.random()]) if METHODS[method] else 0.0 for _ in range(3)]
        recipe = recipe_of(
            sources, weights, drop_ratios=drops, method=method, mask_seed=draw.choice([0] * 5 + [1])
        )
        materializer.into(model, recipe)
        assert digest_of(model) == fresh_digest(sources, recipe)
    assert not all(goes_on)
    assert any(goes_on) == (method != "ties")


def test_same_structure_goes_on_and_another_does_not(
    pools: Callable[..., Sources], goes_on: list[bool], small_graphs_never: None
) -> None:
    sources = pools()
    model, materializer = live_model(sources), Materializer(sources, backend="compiled")
    for weights, drops in (
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]),
        ([0.9, -0.1, 2.0], [0.3, 0.0, 0.9]),
        ([0.9, 0.0, 2.0], [0.3, 0.0, 0.9]),
        ([0.9, 0.0, 1.0], [0.0, 0.0, 0.0]),
        ([0.8, 0.0, 1.0], [0.0, 0.0, 0.0]),
    ):
        recipe = recipe_of(sources, weights, drop_ratios=drops)
        materializer.into(model, recipe)
        assert digest_of(model) == fresh_digest(sources, recipe)
    assert goes_on == [True, False, False, True]


def test_model_whose_memory_was_replaced_is_found_again(
    pools: Callable[..., Sources], small_graphs_never: None
) -> None:
    sources = pools()
    model, materializer = live_model(sources), Materializer(sources, backend="compiled")
    materializer.into(model, recipe_of(sources, [0.5] * 3))
    weight = model.model.norm.weight
    kept = weight.data
    weight.data = torch.zeros_like(kept)
    recipe = recipe_of(sources, [0.25] * 3)
    materializer.into(model, recipe)
    assert digest_of(model) == fresh_digest(sources, recipe)
    other = live_model(sources)
    materializer.into(other, recipe_of(sources, [0.125] * 3))
    assert digest_of(other) != digest_of(model) == fresh_digest(sources, recipe)


def test_model_of_a_wider_dtype_takes_recipe_after_recipe(
    pools: Callable[..., Sources], small_graphs_never: None
) -> None:
    sources = pools("bfloat16")
    model = live_model(sources, "float32")
    materializer = Materializer(sources, backend="compiled")
    for weight in (0.5, 0.25, 0.75):
        recipe = recipe_of(sources, [weight] * 3, dtype="bfloat16")
        materializer.into(model, recipe)
        assert materializer.digest_of(model) == fresh_digest(sources, recipe, "bfloat16")


@pytest.fixture
def two_threads():
    """As large models are merged; the other tests of workers have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_thread_that_begins_with_a_recipe_last_does_not_undo_what_others_prepared(
    pools: Callable[..., Sources], small_graphs_never: None, two_threads: None, monkeypatch
) -> None:
    class SlowPlan(source_pool.RecipePlan):
        def __init__(self, recipe) -> None:
            super().__init__(recipe)
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.1)

    monkeypatch.setattr(source_pool, "RecipePlan", SlowPlan)
    monkeypatch.setattr(materialize, "_SMALL_ELEMENTS", 2**12)
    sources = pools("bfloat16")
    for _ in range(5):
        model = live_model(sources, "bfloat16")
        # The largest is merged through a buffer, by a thread, while others are prepared.
        model.model.embed_tokens.float()
        model.tie_weights()
        materializer = Materializer(sources, backend="compiled")
        for weight in (0.5, 0.25, 0.125):
            recipe = recipe_of(sources, [weight] * 3, dtype="bfloat16")
            materializer.into(model, recipe)
            assert materializer.digest_of(model) == fresh_digest(sources, recipe, "bfloat16")


@pytest.mark.parametrize("method", METHODS)
def test_threads_give_the_bits_of_one(
    pools: Callable[..., Sources],
    method: str,
    small_graphs_never: None,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(materialize, "_SMALL_ELEMENTS", 2**10)
    sources = pools()
    model, materializer = live_model(sources), Materializer(sources, backend="compiled")
    recipes = [
        recipe_of(
            sources,
            [weight, 0.3, -0.2],
            drop_ratios=[0.5, 0.0, 0.25] if METHODS[method] else [0.0] * 3,
            method=method,
        )
        for weight in (0.5, 0.25, 0.5)
    ]
    digests = []
    for recipe in recipes:
        materializer.into(model, recipe)
        digests.append(digest_of(model))
        assert digests[-1] == fresh_digest(sources, recipe)
    assert digests[0] == digests[2] != digests[1]


def test_after_a_merge_that_failed_everything_is_prepared_anew(
    pools: Callable[..., Sources], goes_on: list[bool], small_graphs_never: None, monkeypatch
) -> None:
    sources = pools()
    model, materializer = live_model(sources), Materializer(sources, backend="compiled")
    materializer.into(model, recipe_of(sources, [0.5] * 3))
    with monkeypatch.context() as patch:
        patch.setattr(SourcePool, "prepare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            materializer.into(model, recipe_of(sources, [0.5, 0.0, 0.5]))
    recipe = recipe_of(sources, [0.25] * 3)
    materializer.into(model, recipe)
    assert digest_of(model) == fresh_digest(sources, recipe)
