"""The rules that the strategies' modules state, on cases that are worked out by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from configs.schema import JobConfig
from evaluators.scores import ObjectiveScore
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace
from optimizer.strategies.cma import Evolution
from optimizer.strategies.nsga2 import ORIGIN, Nsga2Strategy

MakeJob = Callable[..., JobConfig]
MakeSpace = Callable[[JobConfig], SearchSpace]


def test_first_mean_of_cma_moves_to_the_weighted_mean_of_the_better_half() -> None:
    evolution = Evolution(np.zeros(2), sigma=0.5, population_size=4)
    points = [np.array(point) for point in ([0.4, 0.0], [9.0, 9.0], [0.0, 0.8], [-9.0, 3.0])]
    evolution.update(points, np.array([2.0, 3.0, 1.0, 4.0]))
    # w' = log 2.5 - log 1 = 0.9163 and log 2.5 - log 2 = 0.2231; of their sum 0.8042 and 0.1958.
    # The best is (0, 0.8), the second (0.4, 0); what is behind does not count.
    mean, _ = evolution.affine()
    assert mean == pytest.approx([0.1958 * 0.4, 0.8042 * 0.8], abs=1e-4)


def test_cma_knows_ranks_only() -> None:
    points = [np.array([x, x * x]) for x in (0.1, 0.2, 0.3, 0.4)]
    means = []
    for fitness in ([1.0, 2.0, 3.0, 4.0], [-7.0, 0.0, 0.1, 1e6]):
        evolution = Evolution(np.zeros(2), sigma=0.5, population_size=4)
        evolution.update(points, np.array(fitness))
        means.append(evolution.affine())
    assert means[0][0].tolist() == means[1][0].tolist()
    assert means[0][1].tolist() == means[1][1].tolist()


def test_cma_draws_from_its_mean_with_its_step() -> None:
    evolution = Evolution(np.array([0.2, 0.6]), sigma=0.5, population_size=4)
    normal = np.random.default_rng(3).standard_normal(2)
    # C is the identity before the first update; pycma stretches it by up to 1e-4.
    drawn = evolution.sample(np.random.default_rng(3))
    assert drawn == pytest.approx(np.array([0.2, 0.6]) + 0.5 * normal, rel=1e-3)


def test_covariance_of_cma_after_one_population() -> None:
    evolution = Evolution(np.zeros(2), sigma=1.0, population_size=4)
    points = [np.array(point) for point in ([2.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [-2.0, 0.0])]
    evolution.update(points, np.array([1.0, 2.0, 3.0, 4.0]))
    _, matrix = evolution.affine()
    covariance = matrix @ matrix.T / evolution.sigma**2
    # pycma's rates here: c_1 = 0.1080, c_mu = 0.0452, c_c = 0.6341; its weights are 0.804, 0.196,
    # -0.550, -1.418, whose sum is -0.968. What lies across the step only shrinks:
    # 1 - c_1 + 0.968 c_mu = 0.936.
    assert covariance[1, 1] == pytest.approx(0.9358, abs=1e-3)
    # Along it, mu_eff = 1.460 and p_c = sqrt(0.634 * 1.366 * 1.460) * 2 = 2.249, and negative
    # weights count w n / |y|^2 = w / 2: 0.936 + c_1 p_c^2 + c_mu (4 - 1.968 / 2 * 4) = 1.485.
    assert covariance[0, 0] == pytest.approx(1.485, abs=1e-3)
    assert covariance[0, 1] == pytest.approx(0.0, abs=1e-9)


Points = Sequence[tuple[float, float]]


def told(make_job: MakeJob, make_space: MakeSpace, points: Points) -> Nsga2Strategy:
    """Tell half of some points as a first population and half as a second one."""
    objectives = {"code": "zoo_code", "math": "zoo_math"}
    job = make_job(
        objectives=objectives,
        search={"strategy": "nsga2", "population_size": len(points) // 2},
    )
    space = make_space(job)
    strategy = Nsga2Strategy(job, space)
    for index, point in enumerate(points):
        genotype = np.full(space.size, index / len(points))
        candidate = Candidate(index, genotype, space.decode(genotype), ORIGIN, seen=index)
        scores = {
            name: ObjectiveScore(value, 0.0, 8)
            for name, value in zip(objectives, point, strict=True)
        }
        strategy.tell(Observation(candidate, scores))
    return strategy


def survivors(strategy: Nsga2Strategy) -> dict[tuple[float, float], tuple[int, float]]:
    """Return scores -> rank and crowding, the sum over objectives as in the paper."""
    population = strategy._population
    return {
        (-float(member.F[0]), -float(member.F[1])): (
            int(member.get("rank")),
            2 * float(member.get("crowding")),
        )
        for member in population
    }


def test_least_crowded_of_one_rank_survive(make_job: MakeJob, make_space: MakeSpace) -> None:
    # The first five are one rank, of which four have room; the others are dominated.
    points = [
        (0.0, 1.0), (1.0, 0.0), (0.5, 0.6), (0.6, 0.5),
        (0.2, 0.9), (0.1, 0.1), (0.1, 0.2), (0.2, 0.1),
    ]  # fmt: skip
    found = survivors(told(make_job, make_space, points))
    # Both ranges are 1. By code the order is 0, 0.2, 0.5, 0.6, 1:
    # (0.2, 0.9): (0.5 - 0) + (1 - 0.6) = 0.9;   (0.6, 0.5): (1 - 0.5) + (0.6 - 0) = 1.1;
    # (0.5, 0.6): (0.6 - 0.2) + (0.9 - 0.5) = 0.8, the most crowded.
    assert set(found) == {(0.0, 1.0), (1.0, 0.0), (0.6, 0.5), (0.2, 0.9)}
    assert found[0.6, 0.5] == (0, pytest.approx(1.1))
    assert found[0.2, 0.9] == (0, pytest.approx(0.9))
    assert found[0.0, 1.0] == found[1.0, 0.0] == (0, np.inf)


def test_smaller_ranks_survive_whole(make_job: MakeJob, make_space: MakeSpace) -> None:
    # Rank 0: (1, 0.5) and (0.5, 1). Rank 1: (0.9, 0.1), (0.4, 0.4), (0.1, 0.9), of which two have
    # room, its ends. Behind them nothing has.
    points = [
        (1.0, 0.5), (0.4, 0.4), (0.05, 0.05), (0.02, 0.02),
        (0.5, 1.0), (0.9, 0.1), (0.1, 0.9), (0.01, 0.01),
    ]  # fmt: skip
    found = survivors(told(make_job, make_space, points))
    assert {point: rank for point, (rank, _) in found.items()} == {
        (1.0, 0.5): 0,
        (0.5, 1.0): 0,
        (0.9, 0.1): 1,
        (0.1, 0.9): 1,
    }
