"""Cosines between checkpoints are those of their task vectors, whole or from samples."""

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from workers.checkpoint import CheckpointReader
from workers.similarity import Similarity, measure_similarity

Tensors = dict[str, torch.Tensor]
SHAPES = {"large.weight": (300, 1000), "small.weight": (50,), "norm.bias": (7,)}


def drawn(seed: int, scale: float = 1.0) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) * scale for name, shape in SHAPES.items()}


def added(left: Tensors, right: Tensors, factor: float = 1.0) -> Tensors:
    return {name: left[name] + factor * right[name] for name in left}


def flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([tensors[name].double().reshape(-1) for name in sorted(tensors)])


@pytest.fixture
def similarity_of(make_checkpoint: Callable[..., Path]) -> Callable[..., Similarity]:
    count = itertools.count()

    def reader(tensors: Tensors) -> CheckpointReader:
        return CheckpointReader(make_checkpoint(f"checkpoint-{next(count)}", tensors))

    def measure(checkpoints: Mapping[str, Tensors], base: Tensors | None = None) -> Similarity:
        readers = {name: reader(tensors) for name, tensors in checkpoints.items()}
        return measure_similarity(None if base is None else reader(base), readers)

    return measure


@pytest.fixture
def family() -> tuple[Tensors, dict[str, Tensors]]:
    base, shared = drawn(0), drawn(1)
    vectors = {
        "a": added(shared, drawn(2), 0.5),
        "b": added(shared, drawn(3), 0.5),
        "c": added(drawn(4), shared, -0.5),
    }
    return base, {name: added(base, vector, 0.01) for name, vector in vectors.items()}


def test_cosines_are_those_of_the_task_vectors(similarity_of, family) -> None:
    base, checkpoints = family
    found = similarity_of(checkpoints, base)
    assert found.names == ("a", "b", "c")
    assert found.of_task_vectors
    assert not found.is_sampled
    deltas = [flat(tensors) - flat(base) for tensors in checkpoints.values()]
    for i, left in enumerate(deltas):
        for j, right in enumerate(deltas):
            expected = torch.cosine_similarity(left, right, dim=0)
            assert found.cosines[i][j] == pytest.approx(float(expected), abs=1e-9)
    assert found.cosines[0][1] > 0.7
    assert found.cosines[0][2] < -0.3


def test_without_a_base_it_is_the_weights_that_are_compared(similarity_of, family) -> None:
    _, checkpoints = family
    found = similarity_of(checkpoints)
    assert not found.of_task_vectors
    expected = torch.cosine_similarity(flat(checkpoints["a"]), flat(checkpoints["b"]), dim=0)
    assert found.cosines[0][1] == pytest.approx(float(expected), abs=1e-12)


def test_pairs_begin_with_the_two_that_are_most_alike(similarity_of, family) -> None:
    base, checkpoints = family
    pairs = similarity_of(checkpoints, base).pairs()
    assert pairs[0][:2] == ("a", "b")
    assert len(pairs) == 3
    assert [cosine for *_, cosine in pairs] == sorted((c for *_, c in pairs), reverse=True)


def test_task_vector_of_a_copy_of_the_base_has_no_direction(similarity_of, family) -> None:
    base, checkpoints = family
    found = similarity_of({**checkpoints, "copy": base}, base)
    assert all(math.isnan(value) for value in found.cosines[3])
    assert {name for pair in found.pairs() for name in pair[:2]} == {"a", "b", "c"}


def test_nan_is_named_and_counts_as_zero(similarity_of, family) -> None:
    base, checkpoints = family
    clean = similarity_of(checkpoints, base).cosines[0][1]
    checkpoints["b"]["large.weight"][3, 5] = torch.nan
    checkpoints["c"]["small.weight"][0] = torch.inf
    base["small.weight"][0] = torch.inf
    found = similarity_of(checkpoints, base)
    assert found.non_finite == {"b": "large.weight", "c": "small.weight"}
    assert found.cosines[0][1] == pytest.approx(clean, abs=0.001)


def test_samples_stand_for_their_tensors(
    similarity_of, family, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, checkpoints = family
    # The small tensor says the opposite, and says it louder.
    for name, sign in (("a", 1), ("b", -1)):
        checkpoints[name]["small.weight"] = base["small.weight"] + sign * 0.3
    exact = similarity_of(checkpoints, base)
    monkeypatch.setattr("workers.delta_stats._WHOLE_ELEMENTS", 0)
    monkeypatch.setattr("workers.delta_stats._RUN_ELEMENTS", 2048)
    sampled, again = (similarity_of(checkpoints, base) for _ in range(2))
    assert sampled.is_sampled
    assert sampled == again
    assert exact.cosines[0][1] < 0.8
    for row, exact_row in zip(sampled.cosines, exact.cosines, strict=True):
        assert row == pytest.approx(exact_row, abs=0.05)
