"""Merges under evaluation in blocks: the solution of the whole, the same bits however kept."""

import numpy as np
import pytest

from optimizer.surrogate.kernel import Features, Prior, Similarities, kernel_matrix
from optimizer.surrogate.linalg import factor_of
from optimizer.surrogate.narrowing import BLOCK, Narrowing

NOISE = 0.05


def make_features(rng: np.random.Generator, n: int) -> Features:
    return Features(rng.random((n, 3, 1)), rng.random((n, 3, 1)))


def make_narrowing(rng: np.random.Generator) -> tuple[Features, Narrowing]:
    known = make_features(rng, 40)
    logs = Prior.of(known).means
    covariance = kernel_matrix(Similarities(known, known), logs) + NOISE * np.eye(40)
    return known, Narrowing(known, factor_of(covariance), logs)


@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_solution_is_that_of_the_whole_system(count):
    rng = np.random.default_rng(3)
    known, narrowing = make_narrowing(rng)
    pending = make_features(rng, count)
    right = rng.normal(size=40 + count)
    logs, everything = Prior.of(known).means, known.followed_by(pending)
    whole = kernel_matrix(Similarities(everything, everything), logs)
    whole += NOISE * np.eye(40 + count)
    narrowed = narrowing.by(pending, NOISE)
    # The jitter is another one by block, and correlations are in single precision.
    assert narrowed.solve(right[:40], right[40:]) == pytest.approx(
        np.linalg.solve(whole, right), abs=2e-2
    )
    assert narrowed.expected(right[:40]) == pytest.approx(whole[40:, :40] @ right[:40])


def test_kept_blocks_change_no_bit():
    rng = np.random.default_rng(4)
    _, growing = make_narrowing(np.random.default_rng(5))
    pending, right = make_features(rng, 3 * BLOCK), rng.normal(size=40 + 3 * BLOCK)
    for count in [*range(BLOCK - 2, 3 * BLOCK, 37), 2 * BLOCK, 3 * BLOCK]:
        _, fresh = make_narrowing(np.random.default_rng(5))
        some = pending.take(slice(0, count))
        found = [
            narrowing.by(some, NOISE).solve(right[:40], right[40 : 40 + count])
            for narrowing in (growing, fresh)
        ]
        assert found[0].tobytes() == found[1].tobytes()


def test_other_merges_and_another_noise_are_computed_anew():
    rng = np.random.default_rng(6)
    _, narrowing = make_narrowing(np.random.default_rng(5))
    first, second = (make_features(rng, 2 * BLOCK) for _ in range(2))
    right = rng.normal(size=40 + 2 * BLOCK)
    for pending, noise in ((first, NOISE), (second, NOISE), (second, 2 * NOISE), (first, NOISE)):
        _, fresh = make_narrowing(np.random.default_rng(5))
        found = [
            each.by(pending, noise).solve(right[:40], right[40:]) for each in (narrowing, fresh)
        ]
        assert found[0].tobytes() == found[1].tobytes()
    assert len(narrowing._kept) == 2


def test_merges_with_other_guesses_of_companions_are_computed_anew():
    rng = np.random.default_rng(7)
    known = make_features(rng, 40).with_companion(rng.normal(size=40))
    logs = Prior.of(known).means
    factor = factor_of(kernel_matrix(Similarities(known, known), logs) + NOISE * np.eye(40))
    narrowing = Narrowing(known, factor, logs)
    merges, right = make_features(rng, 2 * BLOCK), rng.normal(size=40 + 2 * BLOCK)
    solved = set()
    for _ in range(2):
        pending = merges.with_companion(rng.normal(size=2 * BLOCK))
        found = [
            each.by(pending, NOISE).solve(right[:40], right[40:]).tobytes()
            for each in (narrowing, Narrowing(known, factor, logs))
        ]
        assert found[0] == found[1]
        solved.add(found[0])
    assert len(solved) == 2
