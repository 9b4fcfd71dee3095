"""Predictions of means from chosen items: what they claim, and what holds."""

import numpy as np
import pytest

from evaluators.scores import TaskScores
from optimizer.item_record import ItemRecord
from tests.unit.optimizer.rasch_items import ITEMS, drawn, graded, part, scores


def record_of(*known: TaskScores) -> ItemRecord:
    record = ItemRecord(known[0])
    for each in known[1:]:
        record.add(each)
    return record


def best_rows(record: ItemRecord, count: int) -> list[int]:
    order = sorted(record.worth().items(), key=lambda pair: -pair[1])
    return [int(item.removeprefix("t-")) for item, _ in order[:count]]


def test_of_all_items_is_their_mean_and_only_the_split_is_a_sample():
    rng = np.random.default_rng(0)
    record = record_of(*(drawn(rng, 0.0) for _ in range(12)))
    whole = drawn(rng, 1.0)
    found = record.predict(whole)
    assert found.mean == pytest.approx(whole.values.mean())
    assert found.variance == 0.0
    assert found.score.stderr == pytest.approx(whole.values.std() / np.sqrt(ITEMS))
    assert found.count == ITEMS


def test_items_that_differ_come_first():
    known = [scores([1, 1, 0, 1]), scores([1, 0, 0, 1]), scores([1, 1, 0, 0]), scores([1, 0, 0, 0])]
    worth = record_of(*known).worth()
    assert worth["t-1"] == worth["t-3"] > worth["t-0"] == pytest.approx(worth["t-2"])
    assert worth["t-0"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("ability", [-1.5, 0.0, 1.5])
def test_of_chosen_items_is_far_less_biased_than_their_mean_and_as_far_off_as_it_says(ability):
    errors, plain, claimed = [], [], []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        record = record_of(*(drawn(rng, level) for level in np.linspace(-2, 2, 16)))
        whole = drawn(rng, ability)
        block = part(whole, best_rows(record, 16))
        found = record.predict(block)
        errors.append(found.mean - whole.values.mean())
        plain.append(block.values.mean() - whole.values.mean())
        claimed.append(found.variance)
    errors, plain = np.array(errors), np.array(plain)
    assert abs(errors.mean()) < 0.02
    if ability:
        assert abs(plain.mean()) > 0.1, "the mean of these items says something else"
    assert errors.std() < 0.8 * plain.std()
    assert np.sqrt(np.mean(claimed)) > 0.9 * errors.std()


@pytest.mark.parametrize("concentration", [4, 40])
def test_of_graded_scores_is_as_far_off_as_it_says(concentration):
    """As of F1 or likelihoods, which vary less than right and wrong."""
    rng = np.random.default_rng(1)
    errors, claimed = [], []
    for _ in range(60):
        record = record_of(*(graded(rng, 0.0, concentration) for _ in range(14)))
        whole = graded(rng, 0.5, concentration)
        found = record.predict(part(whole, rng.permutation(ITEMS)[:16]))
        errors.append(found.mean - whole.values.mean())
        claimed.append(np.sqrt(found.variance))
    spread = np.sqrt(np.mean(np.square(errors)))
    assert abs(np.mean(errors)) < 0.3 * spread
    assert 0.5 * np.mean(claimed) < spread < 1.2 * np.mean(claimed)


def test_knows_no_unit():
    rng = np.random.default_rng(3)
    known = [rng.random(ITEMS) for _ in range(13)]
    plain = record_of(*map(scores, known[:12]))
    other = record_of(*(scores(4 * values - 7) for values in known[:12]))
    found = plain.predict(part(scores(known[12]), range(16)))
    scaled = other.predict(part(scores(4 * known[12] - 7), range(16)))
    assert scaled.mean == pytest.approx(4 * found.mean - 7)
    assert scaled.variance == pytest.approx(16 * found.variance)
    assert scaled.sampling == pytest.approx(16 * found.sampling)


def test_agreement_is_no_certainty():
    record = record_of(*(scores(np.ones(ITEMS)) for _ in range(12)), scores(np.zeros(ITEMS)))
    found = record.predict(part(scores(np.ones(ITEMS)), range(16)))
    assert 0.9 < found.mean < 1.0
    assert found.variance > 0


def test_one_number_for_all_is_what_everybody_gets():
    record = record_of(*(scores(np.ones(ITEMS)) for _ in range(12)))
    assert set(record.worth().values()) == {0.0}
    found = record.predict(part(scores(np.ones(ITEMS)), range(16)))
    assert (found.mean, found.variance) == (1.0, 0.0)
    worse = record.predict(part(scores(np.zeros(ITEMS)), range(16)))
    assert 0.0 < worse.mean < 0.8
    assert worse.variance > 0


def test_weights_of_items_count():
    weights = np.array([3.0, 1.0, 1.0, 1.0])
    record = record_of(scores([1, 0, 1, 0], weights), scores([1, 1, 0, 0], weights))
    whole = scores([0, 1, 1, 1], weights)
    assert record.predict(whole).mean == pytest.approx(0.5)
