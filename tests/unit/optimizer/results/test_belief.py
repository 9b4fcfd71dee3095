"""What is believed of scored merges, and how wishes are answered from it without a search."""

import json

import numpy as np
import pytest

from configs.errors import ConfigError
from evaluators.scores import ObjectiveScore
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate, Observation
from optimizer.results.belief import (
    believed_candidates,
    chance_of,
    knee_of,
    meets,
    posterior_scores,
)
from optimizer.results.front_view import ScoredCandidate, front_of, front_table, scored_candidates
from optimizer.results.select import choose, ranked
from optimizer.validation import validation_candidates
from tests.fault import scripted_search
from tests.unit.optimizer.cli.test_cli import mergefront

NAMES = ("instruct", "code", "math")
EQUAL = dict.fromkeys(NAMES, 1 / 3)
ITEMS = 64


def truth(weights) -> np.ndarray:
    """Each objective likes more of its own checkpoint and less of the others."""
    w = np.asarray(weights)
    return 1 / (1 + np.exp(-(2.5 * w - 1.2 * (w.sum() - w) - 0.5)))


@pytest.fixture
def observe(make_job, make_space):
    space = make_space(make_job())

    def observe(count: int, seed: int = 0):
        """Noisy scores of random merges; returns space, observations, true scores."""
        rng = np.random.default_rng(seed)
        seen, true = [], []
        for index in range(count):
            weights = rng.uniform(0, 1.2, size=3)
            recipe = space.recipe([[w] for w in weights.tolist()])
            true.append(truth(weights))
            values = rng.binomial(ITEMS, true[-1]) / ITEMS
            scores = {
                name: ObjectiveScore(float(v), float(np.sqrt(v * (1 - v) / (ITEMS - 1))), ITEMS)
                for name, v in zip(NAMES, values, strict=True)
            }
            genotype = space.encode(recipe.weights)
            candidate = Candidate(index, genotype, recipe, "strategy:x", index)
            seen.append(Observation(candidate, scores))
        return space, seen, np.array(true)

    return observe


def matrix(scores) -> np.ndarray:
    return np.array([[score[name].value for name in NAMES] for score in scores])


def test_posterior_is_nearer_to_the_truth_than_raw_scores(observe):
    space, seen, true = observe(60)
    found = posterior_scores(seen, space, NAMES)
    raw = matrix([s.scores for s in seen])
    believed = matrix([found[s.candidate.index] for s in seen])
    assert np.abs(believed - true).mean() < 0.7 * np.abs(raw - true).mean()
    errors = np.array([[found[i][n].stderr for n in NAMES] for i in range(60)])
    within = np.abs(believed - true) < 2 * errors
    assert 0.85 < within.mean() <= 1.0


def test_best_raw_scores_claim_more_than_the_posterior(observe):
    space, seen, true = observe(60, seed=1)
    found = posterior_scores(seen, space, NAMES)
    raw = matrix([s.scores for s in seen]).mean(axis=1)
    believed = matrix([found[s.candidate.index] for s in seen]).mean(axis=1)
    best = np.argsort(-raw)[:6]
    overclaim = (raw[best] - true.mean(axis=1)[best]).mean()
    assert overclaim > 0.01
    assert abs((believed[best] - true.mean(axis=1)[best]).mean()) < overclaim / 2


def test_select_scores_sharpen_what_is_believed_of_a_merge(observe):
    space, seen, true = observe(40)
    before = posterior_scores(seen, space, NAMES)[7]
    held_out = {
        name: ObjectiveScore(float(value), 0.01, 1000)
        for name, value in zip(NAMES, true[7], strict=True)
    }
    after = posterior_scores(seen, space, NAMES, {7: held_out})[7]
    for name, value in zip(NAMES, true[7], strict=True):
        assert after[name].stderr < before[name].stderr
        assert after[name].count == ITEMS + 1000
        assert after[name].value == pytest.approx(value, abs=0.03)


def test_too_few_merges_have_no_posterior(observe):
    space, seen, _ = observe(11)
    assert posterior_scores(seen, space, NAMES) == {}
    failed = [Observation(s.candidate, None) for s in observe(40)[1]]
    assert posterior_scores([*seen, *failed], space, NAMES) == {}


def test_validation_goes_by_the_posterior(observe):
    space, seen, _ = observe(60, seed=2)
    # A lucky one: its neighbours, and what it is, say otherwise.
    lucky = Observation(
        Candidate(60, seen[0].candidate.genotype, seen[0].candidate.recipe, "strategy:x", 60),
        {name: ObjectiveScore(0.80, 0.05, ITEMS) for name in NAMES},
    )
    raw = validation_candidates([*seen, lucky], EQUAL, 4)
    believed = validation_candidates([*seen, lucky], EQUAL, 4, space=space)
    assert 60 in raw
    found = posterior_scores([*seen, lucky], space, NAMES)
    means = {index: np.mean([found[index][n].value for n in NAMES]) for index in found}
    best = sorted(means, key=lambda index: -means[index])[:2]
    assert set(best) <= set(believed)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("belief") / "run.sqlite"
    scripted_search.run(path, budget={"evaluations": 60})
    with Archive.open(path) as archive:
        yield archive


def test_front_shows_raw_scores_beside_the_posterior(archive):
    rows = believed_candidates(archive)
    raw = {row.candidate.index: row for row in scored_candidates(archive, "search")}
    assert rows
    for row in rows:
        assert row.scores == raw[row.candidate.index].scores
        assert row.posterior is not None
        expected = sum(row.posterior[name].value for name in NAMES) / 3
        assert row.mean == pytest.approx(expected)
    table = front_table(front_of(rows), NAMES)
    assert "raw instruct code math" in [column.header for column in table.columns]
    ties = next(row for row in rows if row.candidate.origin == "baseline:TIES")
    index = ties.candidate.index
    if index not in archive.scores("select"):
        assert ties.posterior == ties.scores  # no model of another method


def test_wishes_are_answered_from_the_posterior(archive):
    rows = believed_candidates(archive)
    best = max(rows, key=lambda row: row.posterior["math"].value)
    choice = choose(archive, prefer={"math": 1.0})
    assert choice.candidate.index == best.candidate.index
    assert choice.rule == "best mean (math 1) by the posterior"
    floor = np.median([row.posterior["code"].value for row in rows])
    choice = choose(archive, prefer={"math": 1.0}, floors={"code": floor})
    meeting = [row for row in rows if row.posterior["code"].value >= floor]
    expected = max(meeting, key=lambda row: row.posterior["math"].value)
    assert choice.candidate.index == expected.candidate.index
    assert f"all hold with probability {chance_of(expected, {'code': floor}):.2f}" in choice.rule


def test_floor_that_nothing_is_believed_to_meet_is_refused(archive):
    with pytest.raises(ConfigError, match="no merge meets every floor by the posterior"):
        choose(archive, floors={"math": 0.999})


def test_knee_excludes_a_preference(archive):
    with pytest.raises(ConfigError, match="choice of its own"):
        choose(archive, knee=True, prefer={"math": 1.0})
    with pytest.raises(ConfigError, match="--knee out"):
        choose(archive, knee=True, recipe_id="abc")
    choice = choose(archive, knee=True)
    assert choice.rule == "knee of the front by the posterior"
    rows = ranked(archive, knee=True)
    assert rows[0].candidate.index == choice.candidate.index
    assert rows[0].candidate.index in {row.candidate.index for row in front_of(rows)}


def row_of(observe, index: int, *values: float) -> ScoredCandidate:
    candidate = observe(index + 1)[1][index].candidate
    scores = {n: ObjectiveScore(v, 0.05, 64) for n, v in zip(NAMES, values, strict=False)}
    return ScoredCandidate(candidate, scores, float(np.mean(values)), is_chosen=False)


def test_knee_is_where_the_front_bends(observe):
    ends = [row_of(observe, 0, 0.9, 0.1), row_of(observe, 1, 0.1, 0.5)]
    knee = row_of(observe, 2, 0.7, 0.45)
    assert knee_of([*ends, knee]) is knee
    # Scaled by the front: 0.4 of code count as 0.8 of instruct.
    assert knee_of([*ends, row_of(observe, 3, 0.52, 0.3)]).candidate.index == 3
    assert knee_of(ends[:1]) is ends[0]


def test_chance_is_that_of_normal_variables(observe):
    row = row_of(observe, 0, 0.5, 0.6)
    assert chance_of(row, {"instruct": 0.5}) == pytest.approx(0.5)
    assert chance_of(row, {"instruct": 0.45, "code": 0.6}) == pytest.approx(0.8413 * 0.5, abs=1e-4)
    assert meets(row, {"instruct": 0.5, "code": 0.6})
    assert not meets(row, {"code": 0.61})


def test_front_command_answers_wishes(archive):
    plain = json.loads(mergefront("front", archive.place, "--json").stdout)
    assert plain["rule"] is None
    assert all(row["posterior"] is not None for row in plain["front"])
    raw = json.loads(mergefront("front", archive.place, "--raw", "--json").stdout)
    assert all(row["posterior"] is None for row in raw["front"])
    wish = ["--prefer", "math=2,code=1", "--at-least", "instruct=0.1"]
    found = json.loads(mergefront("front", archive.place, *wish, "--json").stdout)
    chosen = choose(archive, prefer={"math": 2, "code": 1}, floors={"instruct": 0.1})
    assert found["front"][0]["candidate"] == chosen.candidate.index
    assert found["rule"] == chosen.rule
    knee = mergefront("front", archive.place, "--knee")
    assert "is first: knee of the front" in knee.stderr
    refused = mergefront("front", archive.place, "--raw", "--knee")
    assert refused.exit_code == 2
    header = mergefront("front", archive.place, "--csv").stdout.splitlines()[0]
    assert "math.posterior,math.posterior_stderr" in header
