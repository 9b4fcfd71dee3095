"""What the surrogate's search makes of its belief: asks, promotions, and what it expects."""

import numpy as np
import pytest

from optimizer.candidate import Candidate, Observation
from optimizer.pareto import hypervolume
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.strategies.registry import make_strategy
from optimizer.strategies.surrogate import SurrogateStrategy
from optimizer.surrogate import surrogate
from scripts.bench.landscapes import OBJECTIVES, Landscape


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return Landscape("N8c")


@pytest.fixture
def random(landscape) -> DirichletStrategy:
    job = landscape.job("dirichlet")
    return DirichletStrategy(job, landscape.space(job))


@pytest.fixture
def build(landscape, random):
    """Returns a strategy that was told so many merges, most of them screened only."""

    def build(told: int = 40, **settings) -> SurrogateStrategy:
        job = landscape.job("surrogate_cma", **settings)
        strategy = make_strategy(job, landscape.space(job))
        assert isinstance(strategy, SurrogateStrategy)
        for index in range(told):
            strategy.tell(seen_of(landscape, random.ask(index, []), screened=bool(index % 3)))
        return strategy

    return build


def seen_of(landscape: Landscape, candidate: Candidate, *, screened: bool) -> Observation:
    rng = np.random.default_rng(candidate.index)
    return landscape.observe(candidate, rng, items=0 if screened else 256, previewed=8)


def group_of(
    landscape: Landscape, random: DirichletStrategy, seen: int, first: int = 1000, size: int = 6
) -> tuple[list[Candidate], list[Observation]]:
    """Return merges that were looked at together, and what was seen of them."""
    drawn = [random.ask(first + place, []) for place in range(size)]
    group = [Candidate(c.index, c.genotype, c.recipe, c.origin, seen) for c in drawn]
    return group, [seen_of(landscape, candidate, screened=True) for candidate in group]


@pytest.mark.slow
@pytest.mark.parametrize(("told", "share"), [(9, 0.4), (40, 0.25)])
def test_promoted_is_the_best_of_its_group_by_the_preference(landscape, random, build, told, share):
    """The belief knows the group's companions: the truth of whom it takes is near the best.

    Also where the group completes the first dozen, to which something is fitted.
    """
    strategy = build(told, preference_share=1.0)
    places, lost, spread = set(), [], []
    for first in range(1000, 1120, 6):
        group, seen = group_of(landscape, random, told, first)
        place = strategy.promote(group, seen)
        truth = np.array([landscape.truth(one.recipe).mean() for one in group])
        places.add(place)
        lost.append(truth.max() - truth[place])
        spread.append(truth.max() - truth.mean())
    assert len(places) == 6
    assert np.mean(lost) < share * np.mean(spread)


@pytest.mark.slow
def test_promoted_is_whom_the_front_gains_most_by(landscape, random, build):
    strategy = build(preference_share=0.0, preference={"math": 1.0})
    told = [random.ask(index, []).recipe for index in range(0, 40, 3)]
    front, corner = np.array([landscape.truth(one) for one in told]), np.full(3, 0.05)

    def gain(recipe) -> float:
        truth = landscape.truth(recipe)
        return hypervolume(np.vstack([front, truth]), corner) - hypervolume(front, corner)

    lost, by_preference = [], []
    for first in range(1000, 1120, 6):
        group, seen = group_of(landscape, random, 40, first)
        gains = np.array([gain(one.recipe) for one in group])
        math = [landscape.truth(one.recipe)[OBJECTIVES.index("math")] for one in group]
        lost.append(gains.max() - gains[strategy.promote(group, seen)])
        by_preference.append(gains.max() - gains[int(np.argmax(math))])
    assert np.mean(lost) < 0.6 * np.mean(by_preference)


@pytest.mark.slow
def test_promote_fits_nothing_anew(landscape, random, build, monkeypatch):
    """A freed worker waits for it; asks, which nobody waits for, have fitted everything."""
    strategy = build(told=58)
    pending = [strategy.ask(58, [])]
    for index in range(100, 106):  # beyond the next fit, at 60
        strategy.tell(seen_of(landscape, random.ask(index, []), screened=True))
    fits = []
    fit = surrogate.fit_objective
    monkeypatch.setattr(
        surrogate, "fit_objective", lambda name, known: fits.append(name) or fit(name, known)
    )
    group, seen = group_of(landscape, random, seen=58)
    chosen = strategy.promote(group, seen)
    assert fits == []
    strategy.ask(200, pending)
    assert len(fits) == len(OBJECTIVES)
    # Whoever goes on from the record chooses the same, and has to fit.
    fresh = build(told=58)
    for index in range(100, 106):
        fresh.tell(seen_of(landscape, random.ask(index, []), screened=True))
    assert fresh.promote(group, seen) == chosen
    assert len(fits) > len(OBJECTIVES)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.7])
def test_preference_steers_its_share_of_the_proposals(build, share):
    """A proposal is that of a search which the preference steers always, or never."""
    mixed, always, never = (build(told=14, preference_share=s) for s in (share, 1.0, 0.0))
    steered = []
    for index in range(100, 190):
        asked = mixed.ask(index, [])
        by_preference = asked.same_proposal(always.ask(index, []))
        by_front = asked.same_proposal(never.ask(index, []))
        assert by_preference or by_front
        if by_preference != by_front:
            steered.append(by_preference)
    assert len(steered) > 70
    assert np.mean(steered) == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 70))


def test_what_is_under_evaluation_is_not_asked_for_again(build):
    """Of the same draws others win when the posterior is narrow where much is under evaluation."""
    strategy = build(told=30, preference_share=1.0)
    moved, alike = [], []
    for index in range(100, 112):
        alone = strategy.ask(index, [])
        pending = [
            Candidate(n, alone.genotype, alone.recipe, alone.origin, alone.seen) for n in range(8)
        ]
        beside = strategy.ask(index, pending)
        assert not beside.same_proposal(alone)
        moved.append(np.abs(beside.genotype - alone.genotype).max())
        alike.append(strategy.ask(index, []).same_proposal(alone))
    assert all(alike)
    assert np.median(moved) > 0.02


@pytest.mark.slow
def test_expected_gain_is_a_function_of_what_was_told_and_changes_no_ask(landscape, random, build):
    looked, fresh = build(told=0), build(told=0)
    assert looked.expected_gain() is None
    for index in range(45):
        seen = seen_of(landscape, random.ask(index, []), screened=False)
        looked.tell(seen)
        fresh.tell(seen)
        gain = looked.expected_gain()
        assert (gain is None) == (index + 1 < 12)
        if index > 30:
            assert looked.ask(index, []).same_proposal(fresh.ask(index, []))
    assert fresh.expected_gain() == gain
    assert gain is not None
    assert gain > 0
    other = build(told=0, seed=5)
    for index in range(45):
        other.tell(seen_of(landscape, random.ask(index, []), screened=False))
    assert other.expected_gain() == pytest.approx(gain, rel=2.0)


def test_each_estimate_of_what_is_expected_is_made_once(build, monkeypatch):
    """Also one by which nothing is to be gained."""
    made = []
    monkeypatch.setattr(
        "optimizer.strategies.surrogate.expected_gain", lambda *_: made.append(0.0) or 0.0
    )
    strategy = build(told=45)
    assert strategy.expected_gain() == strategy.expected_gain() == 0.0
    assert len(made) == 3


@pytest.mark.slow
def test_less_is_expected_where_scores_are_noise_or_all_is_found(landscape, random):
    def gain(spread: float) -> float:
        """Scores that are constant but for noise of so many items."""
        job = landscape.job("surrogate_cma")
        strategy = make_strategy(job, landscape.space(job))
        assert isinstance(strategy, SurrogateStrategy)
        for index in range(60):
            seen = seen_of(landscape, random.ask(index, []), screened=False)
            scores = {
                name: score.__class__(0.5 + spread * (score.value - 0.5), score.stderr, score.count)
                for name, score in (seen.scores or {}).items()
            }
            strategy.tell(Observation(seen.candidate, scores))
        found = strategy.expected_gain()
        assert found is not None
        return found

    assert gain(0.0) < 0.1 * gain(1.0)
