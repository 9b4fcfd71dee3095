import numpy as np
import pytest

from evaluators.scores import ObjectiveScore
from optimizer.candidate import Candidate, Observation
from optimizer.validation import choose_preferred, validation_candidates

EQUAL = {"code": 0.5, "math": 0.5}


@pytest.fixture
def observe(make_job, make_space):
    space = make_space(make_job())
    recipe = space.recipe([[0.5]] * 3)

    def build(*points):
        return [
            Observation(
                Candidate(i, np.zeros(6), recipe, "strategy:x", 0),
                point
                and {n: ObjectiveScore(v, 0.0, 64) for n, v in zip(EQUAL, point, strict=True)},
            )
            for i, point in enumerate(points)
        ]

    return build


def test_half_are_the_best_means_and_the_rest_spread_over_the_front(observe):
    observations = observe(
        (0.60, 0.60), (0.59, 0.60), (0.10, 0.90), (0.90, 0.10), (0.58, 0.58), None, (0.3, 0.3)
    )
    # 1 is dominated, but its mean is the second best; 2 and 3 are the ends of the front.
    assert validation_candidates(observations, EQUAL, 4) == [0, 1, 2, 3]
    assert validation_candidates(observations, EQUAL, 2) in ([0, 2], [0, 3])


def test_follows_the_preference(observe):
    observations = observe((0.60, 0.60), (0.10, 0.90), (0.90, 0.10))
    assert validation_candidates(observations, {"code": 1.0, "math": 0.0}, 1) == [2]


def test_nothing_scored_gives_nothing(observe):
    assert validation_candidates(observe(None, None), EQUAL, 4) == []
    assert choose_preferred({}, EQUAL) is None


def test_choice_takes_the_best_mean_and_the_earliest_of_equals(observe):
    scores = {
        seen.candidate.index: seen.scores for seen in observe((0.2, 0.4), (0.5, 0.5), (0.6, 0.4))
    }
    assert choose_preferred(scores, EQUAL) == 1
    assert choose_preferred(scores, {"code": 1.0, "math": 0.0}) == 2
