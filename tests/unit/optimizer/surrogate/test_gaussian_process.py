import numpy as np
import pytest

from optimizer.surrogate.gaussian_process import (
    GaussianProcess,
    Samples,
    _negative_log_posterior,
    fit_hyperparameters,
)
from optimizer.surrogate.kernel import (
    Features,
    Prior,
    Similarities,
    kernel_diagonal,
    kernel_matrix,
)
from optimizer.surrogate.path import KernelProduct


def make_features(rng: np.random.Generator, n: int, *, groups: int = 1, companion: bool = False):
    shape = (n, 3, groups)
    smooth = rng.normal(size=n) if companion else None
    return Features(rng.random(shape), rng.random(shape), smooth)


@pytest.fixture(params=[(1, False), (2, False), (1, True), (2, True)], ids=str)
def samples(request) -> Samples:
    groups, companion = request.param
    rng = np.random.default_rng(0)
    features = make_features(rng, 30, groups=groups, companion=companion)
    values = features.weights.sum(axis=(1, 2)) ** 2 - features.spread.mean(axis=(1, 2))
    return Samples(features, values + 0.1 * rng.normal(size=30), np.full(30, 0.01))


def some_logs(samples: Samples) -> np.ndarray:
    return Prior.of(samples.features).means + 0.2


def test_kernel_is_symmetric_with_the_stated_diagonal_and_positive(samples):
    logs = some_logs(samples)
    matrix = kernel_matrix(Similarities(samples.features, samples.features), logs)
    assert matrix == pytest.approx(matrix.T)
    assert np.diag(matrix) == pytest.approx(kernel_diagonal(samples.features, logs))
    assert np.linalg.eigvalsh(matrix).min() > -1e-9


def test_gradient_of_the_fit_equals_finite_differences(samples):
    prior = Prior.of(samples.features)
    similarities = Similarities(samples.features, samples.features)
    logs = prior.means + 0.3

    def loss(at):
        return _negative_log_posterior(at, similarities, samples.values, samples.noise, prior)

    step = 1e-2  # correlations are in single precision
    numeric = [
        (loss(logs + step * unit)[0] - loss(logs - step * unit)[0]) / (2 * step)
        for unit in np.eye(logs.size)
    ]
    assert loss(logs)[1] == pytest.approx(numeric, rel=2e-3, abs=2e-3)


def test_posterior_equals_the_textbook_formula(samples):
    logs = some_logs(samples)
    process = GaussianProcess(samples, logs)
    query = samples.features.take([0, 3, 7])
    cross = Similarities(query, samples.features)
    prior = kernel_matrix(Similarities(samples.features, samples.features), logs)
    prior += np.diag(samples.noise * np.exp(logs[-1]))
    between = kernel_matrix(cross, logs)
    level = np.average(samples.values, weights=1 / (samples.noise + 0.1))
    mean = level + between @ np.linalg.solve(prior, samples.values - level)
    variance = kernel_diagonal(query, logs) - np.einsum(
        "ij,ij->i", between, np.linalg.solve(prior, between.T).T
    )
    found = process.mean_and_variance(query, cross)
    assert found[0] == pytest.approx(mean, abs=1e-5)
    assert found[1] == pytest.approx(variance, abs=1e-4)
    assert process.mean(cross) == pytest.approx(found[0])


def test_kernel_times_a_vector_needs_no_matrix(samples):
    logs = some_logs(samples)
    known, query = samples.features.take(slice(0, 20)), samples.features.take(slice(15, 30))
    vector = np.random.default_rng(1).normal(size=20)
    product = kernel_matrix(Similarities(query, known), logs) @ vector
    assert KernelProduct(known, logs, vector)(query) == pytest.approx(product, abs=1e-4)


def test_fit_finds_a_likelier_place_than_where_it_starts(samples):
    prior = Prior.of(samples.features)
    similarities = Similarities(samples.features, samples.features)
    centred = samples.values - samples.values.mean()

    def loss(logs):
        return _negative_log_posterior(logs, similarities, centred, samples.noise, prior)[0]

    fitted = fit_hyperparameters(samples)
    assert loss(fitted) < loss(prior.means) - 1.0
    assert np.array_equal(fitted, fit_hyperparameters(samples))


@pytest.mark.slow
@pytest.mark.parametrize("with_pending", [False, True])
def test_drawn_functions_have_the_moments_of_the_posterior(samples, with_pending):
    logs = some_logs(samples)
    known = samples.take(list(range(12)))
    process = GaussianProcess(known, logs)
    query = samples.features.take([13, 14, 20])
    mean, variance = process.mean_and_variance(query, Similarities(query, known.features))
    pending = query.take([0]) if with_pending else None
    drawn = np.array(
        [process.path(np.random.default_rng(k), pending, noise=1e-4)(query) for k in range(300)]
    )
    tolerance = 5 * np.sqrt(variance / len(drawn)) + 1e-3
    assert (np.abs(drawn.mean(axis=0) - mean) < tolerance).all()
    ratio = drawn.std(axis=0) / np.sqrt(variance)
    if with_pending:
        assert ratio[0] < 0.1
    else:
        assert ratio == pytest.approx(np.ones(3), abs=0.25)


def test_a_path_of_no_spread_is_the_mean(samples):
    process = GaussianProcess(samples, some_logs(samples))
    query = samples.features.take([1, 2])
    path = process.path(np.random.default_rng(0), spread=0.0)
    mean = process.mean(Similarities(query, samples.features))
    # In single precision, of a sum of large numbers.
    assert path(query) == pytest.approx(mean, abs=1e-4)
    known = process.mean(Similarities(samples.features, samples.features))
    assert process.known_mean() == pytest.approx(known, abs=1e-4)


def test_equal_merges_with_different_values_are_averaged():
    rng = np.random.default_rng(0)
    features = make_features(rng, 1).take([0] * 40)
    values = rng.normal(size=40)
    process = GaussianProcess(Samples(features, values, np.ones(40)), Prior.of(features).means)
    mean = process.mean(Similarities(features.take([0]), features))
    assert mean[0] == pytest.approx(values.mean(), abs=0.02)


@pytest.mark.parametrize("broken", ["values", "noise"])
def test_nan_is_refused(samples, broken):
    arrays = {"values": samples.values.copy(), "noise": samples.noise.copy()}
    arrays[broken][4] = np.nan
    with pytest.raises(ValueError, match="finite values only"):
        GaussianProcess(Samples(samples.features, **arrays), some_logs(samples))
