"""What samples of the items tell of a merge's mean: what is claimed, and what holds."""

import numpy as np
import pytest

from evaluators.scores import TaskScores
from optimizer.racing import Race
from optimizer.sample_record import SampleRecord
from tests.fault import scripted_search
from tests.unit.optimizer.rasch_items import ITEMS, drawn, graded, part, scores

SAMPLE, HARDEST = 16, 6.0


def learnt(rng, num_samples: int) -> SampleRecord:
    """A record of one whole candidate and so many samples, of other items each."""
    record = SampleRecord(drawn(rng, -1.0, HARDEST))
    for _ in range(num_samples):
        record.add(part(drawn(rng, rng.uniform(-2, 2), HARDEST), rng.permutation(ITEMS)[:SAMPLE]))
    return record


def errors_after(num_samples: int, ability: float = 1.0) -> tuple[np.ndarray, np.ndarray, float]:
    """Errors of predictions, of plain means of the samples, and the claimed error."""
    errors, plain, claimed = [], [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        record, whole = learnt(rng, num_samples), drawn(rng, ability, HARDEST)
        some = part(whole, rng.permutation(ITEMS)[:SAMPLE])
        found = record.predict(some)
        errors.append(found.mean - whole.values.mean())
        plain.append(some.values.mean() - whole.values.mean())
        claimed.append(found.variance)
    return np.array(errors), np.array(plain), float(np.sqrt(np.mean(claimed)))


@pytest.mark.slow
@pytest.mark.parametrize("ability", [-1.5, 1.0])
def test_samples_teach_how_easy_items_are(ability):
    errors, plain, claimed = errors_after(60, ability)
    assert errors.std() < 0.68 * plain.std()
    assert abs(errors.mean()) < 0.02
    assert 0.8 * errors.std() < claimed < 1.5 * errors.std()


@pytest.mark.slow
def test_more_samples_teach_more_and_few_claim_little():
    (few, plain, claimed), (many, _, _) = errors_after(2), errors_after(60)
    assert many.std() < 0.87 * few.std()
    assert few.std() < plain.std()
    assert claimed > 0.8 * few.std()


@pytest.mark.parametrize("concentration", [4, 40])
def test_of_graded_scores_is_as_far_off_as_it_says(concentration):
    rng = np.random.default_rng(1)
    errors, claimed = [], []
    for _ in range(60):
        record = SampleRecord(graded(rng, 0.0, concentration))
        for _ in range(40):
            whole = graded(rng, rng.uniform(-1, 1), concentration)
            record.add(part(whole, rng.permutation(ITEMS)[:SAMPLE]))
        whole = graded(rng, 0.5, concentration)
        found = record.predict(part(whole, rng.permutation(ITEMS)[:SAMPLE]))
        errors.append(found.mean - whole.values.mean())
        claimed.append(np.sqrt(found.variance))
    spread = np.sqrt(np.mean(np.square(errors)))
    assert abs(np.mean(errors)) < 0.4 * spread
    assert 0.4 * np.mean(claimed) < spread < 1.2 * np.mean(claimed)


def test_of_all_items_is_their_mean():
    rng = np.random.default_rng(0)
    whole = drawn(rng, 1.0, HARDEST)
    found = learnt(rng, 20).predict(whole)
    assert found.mean == pytest.approx(whole.values.mean())
    assert found.variance == 0.0
    assert found.count == ITEMS


def test_item_that_nobody_else_solves_counts_for_more_than_one_that_all_do():
    easy = scores([1] * 32 + [0] * 32)
    record = SampleRecord(easy)
    for _ in range(10):
        record.add(easy)
    on_easy = record.predict(part(scores(np.ones(ITEMS)), range(8)))
    on_hard = record.predict(part(scores(np.ones(ITEMS)), range(56, 64)))
    assert on_easy.mean < on_hard.mean - 0.2


def test_knows_no_unit():
    rng = np.random.default_rng(3)
    values = [rng.random(ITEMS) for _ in range(6)]
    records = [SampleRecord(scores(a * values[0] + b)) for a, b in ((1, 0), (4, -7))]
    for record, (a, b) in zip(records, ((1, 0), (4, -7)), strict=True):
        for row, each in enumerate(values[1:5]):
            record.add(part(scores(a * each + b), range(row, ITEMS, 4)))
    plain, other = (
        record.predict(part(scores(a * values[5] + b), range(0, ITEMS, 4)))
        for record, (a, b) in zip(records, ((1, 0), (4, -7)), strict=True)
    )
    # The lowest and the highest score are those that were seen, so the scale is found as it goes.
    assert other.mean == pytest.approx(4 * plain.mean - 7)
    assert other.variance == pytest.approx(16 * plain.variance)
    assert other.sampling == pytest.approx(16 * plain.sampling)


def test_heavy_items_count_for_more():
    weights = np.where(np.arange(ITEMS) < 32, 9.0, 1.0)
    record = SampleRecord(scores([1] * 32 + [0] * 32, weights))
    even = SampleRecord(scores([1] * 32 + [0] * 32))
    rows = range(0, ITEMS, 4)
    whole = [1] * 32 + [0] * 32
    assert record.predict(part(scores(whole, weights), rows)).mean > 0.6
    assert even.predict(part(scores(whole), rows)).mean == pytest.approx(0.5, abs=0.05)


def test_one_number_for_all_is_what_everybody_gets():
    record = SampleRecord(scores(np.ones(ITEMS)))
    found = record.predict(part(scores(np.ones(ITEMS)), range(16)))
    assert (found.mean, found.variance, found.sampling) == (1.0, 0.0, 0.0)


def test_samples_that_came_before_the_first_whole_candidate_are_learnt_then(tmp_path):
    job = scripted_search.make_job(tmp_path / "a.sqlite", search={})
    rng = np.random.default_rng(5)

    def items(of=range(24)) -> dict[str, TaskScores]:
        names = [spec.task for part in job.objectives.values() for spec in part.tasks]
        found = {}
        for name in names:
            ids = tuple(f"{name}-{i}" for i in range(24))
            whole = TaskScores(name, ids, rng.integers(0, 2, 24).astype(float))
            found[name] = whole.restricted_to({ids[i] for i in of})
        return found

    from evaluators.scores import aggregate

    first, early, late = items(), items(range(8)), items(range(8, 16))
    scored = aggregate(job.objectives, first)
    races = [Race(job.objectives, job.preference, job.search.racing, 1) for _ in range(2)]
    races[0].learn(early)
    races[0].add(0, scored, first)
    races[0].learn(first)
    races[1].add(0, scored, first)
    races[1].learn(first)
    before = races[1].estimate(late)
    races[1].learn(early)
    assert races[0].estimate(late) == races[1].estimate(late) != before
