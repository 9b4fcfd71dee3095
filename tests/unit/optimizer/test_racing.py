import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from configs.evaluation import Objective
from configs.racing import Racing
from evaluators.blocks import remaining
from evaluators.paired import PairedDifference, Stratum, difference
from evaluators.scores import TaskScores, aggregate
from optimizer.racing import Race, adjusted_difference, doubt, whole_estimate
from optimizer.stages import stages

NAMES = ("math", "code", "chat")
OBJECTIVES = {name: Objective(tasks=[f"t_{name}"]) for name in NAMES}
EQUAL = dict.fromkeys(NAMES, 1 / 3)
SETTINGS = Racing(enabled=True)


def ids(task, count):
    return tuple(f"{task}-{n}" for n in range(count))


SPLIT = {f"t_{name}": ids(name, 64) for name in NAMES}


def scored(values):
    """Objective -> item scores, as the scores of a candidate on the whole split."""
    return {
        f"t_{name}": TaskScores(f"t_{name}", ids(name, 64), np.asarray(row, dtype=np.float64))
        for name, row in zip(NAMES, values, strict=True)
    }


def drawn(rng, rates):
    return scored([rng.random(64) < rate for rate in rates])


def part_of(items, stage):
    found = {}
    for task, wanted in stage.items():
        rows = [items[task].item_ids.index(item) for item in wanted]
        found[task] = TaskScores(task, tuple(wanted), items[task].values[rows])
    return found


def race_of(*candidates, preference=EQUAL, settings=SETTINGS, num_looks=2):
    race = Race(OBJECTIVES, preference, settings, num_looks)
    for index, items in enumerate(candidates):
        race.add(index, aggregate(OBJECTIVES, items), items)
    return race


class TestStages:
    def test_each_stage_holds_the_one_before_and_the_last_is_the_whole_split(self):
        found = stages(SPLIT, SETTINGS, seed=1)
        assert [[len(part) for part in stage.values()] for stage in found] == [
            [16] * 3, [32] * 3, [64] * 3,
        ]  # fmt: skip
        for earlier, later in itertools.pairwise(found):
            assert remaining(earlier, later) == {}
        assert found[-1] == SPLIT

    def test_items_are_a_function_of_their_ids_and_the_seed(self):
        backwards = {task: items[::-1] for task, items in SPLIT.items()}
        first, again = stages(SPLIT, SETTINGS, 1)[0], stages(backwards, SETTINGS, 1)[0]
        assert all(set(first[task]) == set(again[task]) for task in SPLIT)
        assert first != stages(SPLIT, SETTINGS, 2)[0]
        assert list(first["t_math"]) == [i for i in SPLIT["t_math"] if i in first["t_math"]]

    def test_small_tasks_are_in_the_first_block(self):
        items = {"a": ids("a", 5), "b": ids("b", 20), "c": ids("c", 100)}
        found = stages(items, SETTINGS, 0, least_items=8)
        assert [[len(stage[task]) for task in "abc"] for stage in found] == [
            [5, 8, 25], [5, 10, 50], [5, 20, 100],
        ]  # fmt: skip
        assert stages({"a": ids("a", 8)}, SETTINGS, 0, least_items=8) == [{"a": ids("a", 8)}]

    def test_scorers_that_are_not_divided_are_whole_from_the_start(self):
        found = stages(SPLIT, SETTINGS, 0, undivided={"t_code"})
        assert [len(stage["t_code"]) for stage in found] == [64] * 3
        assert [len(stage["t_math"]) for stage in found] == [16, 32, 64]


class TestAdjustedDifference:
    def test_is_that_of_agresti_and_min(self):
        # 5 items won, 1 lost, of 20: their interval adds one half to each of the four cells.
        gaps = np.array([1.0] * 5 + [-1.0] + [0.0] * 14)
        found = adjusted_difference([Stratum(1.0, gaps)], [1.0])
        n, won, lost = 22.0, 5.5, 1.5
        assert found.mean == pytest.approx((won - lost) / n)
        assert found.stderr == pytest.approx(math.sqrt((won + lost - (won - lost) ** 2 / n) / n**2))

    def test_agreement_is_no_certainty(self):
        ties = Stratum(1.0, np.zeros(16))
        assert difference([ties]).stderr == 0.0
        found = adjusted_difference([ties], [1.0])
        assert (found.mean, found.stderr) == (0.0, pytest.approx(1 / 18))

    def test_comes_close_to_the_paired_difference_of_many_items(self):
        rng = np.random.default_rng(0)
        parts = [
            Stratum(0.3, rng.normal(0.2, 1, 5000)),
            Stratum(0.7, rng.normal(0.1, 2, 4000), rng.uniform(0.5, 2, 4000)),
        ]
        found, plain = adjusted_difference(parts, [4.0, 8.0]), difference(parts)
        assert found.mean == pytest.approx(plain.mean, rel=2e-3)
        assert found.stderr == pytest.approx(plain.stderr, rel=2e-2)
        assert found.degrees_of_freedom == pytest.approx(plain.degrees_of_freedom, rel=2e-2)

    def test_doubt_is_the_tail_of_students_t(self):
        lead = PairedDifference(0.2, 0.1, 7.0)
        assert doubt(lead) == pytest.approx(stats.t.sf(2.0, 7))
        assert doubt(lead, margin=0.1) == pytest.approx(stats.t.sf(3.0, 7))
        assert doubt(PairedDifference(0.0, 0.0), margin=0.1) == 0.0
        assert doubt(PairedDifference(-0.1, 0.0)) == 1.0


class TestLoss:
    def test_candidate_that_is_worse_everywhere_loses_to_a_member_of_the_front(self):
        rng = np.random.default_rng(0)
        race = race_of(drawn(rng, (0.2, 0.3, 0.2)), drawn(rng, (0.8, 0.7, 0.8)))
        loser = part_of(drawn(rng, (0.1, 0.05, 0.1)), stages(SPLIT, SETTINGS, 0)[0])
        loss = race.loss(loser)
        assert (loss.rival, loss.best) == (1, 1)
        assert loss.leads.keys() == set(NAMES)
        assert all(lead > 0.3 for lead in loss.leads.values())
        assert max(loss.doubts.values()) <= 0.025
        assert race.loss(loser | {"t_math": drawn(rng, (0.9, 0, 0))["t_math"]}) is None

    def test_specialist_stays_although_its_mean_is_far_behind(self):
        rng = np.random.default_rng(1)
        race = race_of(drawn(rng, (0.7, 0.7, 0.7)))
        for stage in stages(SPLIT, SETTINGS, 0)[:2]:
            assert race.loss(part_of(drawn(rng, (0.95, 0.0, 0.0)), stage)) is None

    def test_candidate_near_the_best_preferred_mean_stays(self):
        rng = np.random.default_rng(2)
        strong = drawn(rng, (0.9, 0.5, 0.5))
        weak = part_of(drawn(rng, (0.88, 0.02, 0.02)), stages(SPLIT, SETTINGS, 0)[1])
        wide = SETTINGS.model_copy(update={"margin": 6.0})
        assert race_of(strong, settings=wide).loss(weak) is not None
        on_math = {"math": 1.0, "code": 0.0, "chat": 0.0}
        assert race_of(strong, preference=on_math, settings=wide).loss(weak) is None

    def test_candidate_that_is_as_good_in_one_objective_stays_without_a_margin(self):
        rng = np.random.default_rng(5)
        race = race_of(drawn(rng, (0.9, 0.9, 0.5)))
        stage = stages(SPLIT, SETTINGS, 0)[1]
        assert race.loss(part_of(drawn(rng, (0.1, 0.1, 0.1)), stage)) is not None
        assert race.loss(part_of(drawn(rng, (0.1, 0.1, 0.5)), stage)) is None

    def test_nothing_is_decided_without_rivals_or_without_items_of_every_task(self):
        rng = np.random.default_rng(3)
        stage = stages(SPLIT, SETTINGS, 0)[0]
        bad = part_of(drawn(rng, (0.0, 0.0, 0.0)), stage)
        assert race_of().loss(bad) is None
        race = race_of(drawn(rng, (0.9, 0.9, 0.9)))
        assert race.loss(bad) is not None
        assert race.loss({task: bad[task] for task in ("t_math", "t_code")}) is None

    def test_dominated_rivals_do_not_change_the_decision(self):
        rng = np.random.default_rng(4)
        front = [drawn(rng, rates) for rates in ((0.9, 0.5, 0.7), (0.5, 0.8, 0.6))]
        behind = [drawn(rng, (0.1, 0.1, 0.1)) for _ in range(5)]
        bad = part_of(drawn(rng, (0.05, 0.0, 0.05)), stages(SPLIT, SETTINGS, 0)[1])
        first, second = race_of(*front).loss(bad), race_of(*front, *behind).loss(bad)
        assert first is not None
        assert second is not None
        assert first.leads == second.leads

    def test_candidate_as_good_as_the_best_is_rarely_stopped(self):
        """Both looks together err less often than the job allows."""
        looks = stages(SPLIT, SETTINGS, 0)[:-1]
        stopped = 0
        for seed in range(400):
            rng = np.random.default_rng(seed)
            hard = rng.random((3, 64))  # some items are hard for both
            best, equal = (scored([rng.random(64) < 1 - row for row in hard]) for _ in range(2))
            race = race_of(best)
            stopped += any(race.loss(part_of(equal, look)) is not None for look in looks)
        assert stopped / 400 < 0.05

    def test_weights_of_tasks_and_items_count(self):
        objectives = {"one": Objective(tasks=[{"task": "a", "weight": 3.0}, {"task": "b"}])}
        weights = np.array([1.0] * 30 + [5.0] * 10)

        def candidate(a, b):
            return {
                "a": TaskScores("a", ids("a", 40), np.full(40, a), weights),
                "b": TaskScores("b", ids("b", 40), np.linspace(0, b, 40)),
            }

        race = Race(objectives, {"one": 1.0}, SETTINGS, 1)
        best = candidate(0.9, 0.5)
        race.add(0, aggregate(objectives, best), best)
        other = candidate(0.2, 1.0)
        race.add(1, aggregate(objectives, other), other)
        assert race.loss(candidate(0.1, 0.5)).rival == 0
        assert race.loss(candidate(0.9, 0.5)) is None


class TestWholeEstimate:
    def test_of_all_items_is_the_score(self):
        rng = np.random.default_rng(0)
        part = TaskScores("t", ids("t", 30), rng.random(30))
        usual = dataclasses.replace(part, values=rng.random(30))
        found = whole_estimate(part, usual, (0.0, 1.0))
        whole = aggregate({"o": Objective(tasks=["t"])}, {"t": part})["o"]
        assert found.value == pytest.approx(whole.value)
        assert found.stderr == pytest.approx(whole.stderr)
        assert found.count == 30

    def test_of_blocks_is_unbiased_and_nearer_than_their_means(self):
        """And as far off as it says: the error of what was not scored."""
        rng = np.random.default_rng(1)
        ease = rng.random(64)
        usual = TaskScores("t", ids("t", 64), ease)
        errors, plain, claimed = [], [], []
        for _ in range(3000):
            values = np.where(rng.random(64) < 0.8, ease, rng.random(64))
            rows = np.sort(rng.permutation(64)[:16])
            part = TaskScores("t", tuple(f"t-{row}" for row in rows), values[rows])
            found = whole_estimate(part, usual, (0.0, 1.0))
            errors.append(found.value - values.mean())
            plain.append(values[rows].mean() - values.mean())
            claimed.append(found.stderr**2 - values.var(ddof=1) / 64)
        errors, plain = np.array(errors), np.array(plain)
        assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(3000)
        assert errors.std() < 0.7 * plain.std()
        assert errors.std() == pytest.approx(math.sqrt(np.mean(claimed)), rel=0.15)

    def test_error_is_larger_than_that_of_the_whole_split(self):
        rng = np.random.default_rng(2)
        items = drawn(rng, (0.5, 0.5, 0.5))
        race = race_of(items)
        part = part_of(drawn(rng, (0.4, 0.5, 0.6)), stages(SPLIT, SETTINGS, 0)[0])
        found = race.estimate(part)
        whole = aggregate(OBJECTIVES, items)
        assert list(found) == list(NAMES)
        for name in NAMES:
            assert found[name].count == 16
            assert found[name].stderr > 1.5 * whole[name].stderr

    def test_block_of_easy_items_is_corrected(self):
        ease = np.array([1.0] * 32 + [0.0] * 32)
        usual = TaskScores("t", ids("t", 64), ease)
        rows = [*range(14), 40, 41]
        part = TaskScores("t", tuple(f"t-{row}" for row in rows), ease[rows])
        assert part.mean == 14 / 16
        assert whole_estimate(part, usual, (0.0, 1.0)).value == pytest.approx(0.5)

    def test_estimate_stays_within_the_scores_of_items(self):
        usual = TaskScores("t", ids("t", 4), np.array([0.9, 1.0, 0.0, 0.0]))
        part = TaskScores("t", ("t-0", "t-1"), np.array([0.0, 0.1]))
        assert whole_estimate(part, usual, (0.0, 1.0)).value == 0.0


def mean_of(items):
    return np.mean([part.mean for part in items.values()])


class TestChosenItems:
    """From twelve complete candidates on, items are chosen and the rest is predicted."""

    @staticmethod
    def drawn(rng, ability):
        hard = np.linspace(-3, 3, 64)
        return scored([rng.random(64) < 1 / (1 + np.exp(hard - ability)) for _ in NAMES])

    def race(self, rng, *, best):
        known = [self.drawn(rng, level) for level in np.linspace(-1.5, 1, 12)]
        return race_of(*known, self.drawn(rng, best))

    def test_first_block_has_the_items_that_told_candidates_apart(self):
        race = self.race(np.random.default_rng(0), best=1.0)
        worth = race.worth()
        first, second, _ = stages(SPLIT, SETTINGS, 0, worth=worth)
        for task, ids_of_task in SPLIT.items():
            inside = [worth[task][item] for item in first[task]]
            outside = [worth[task][item] for item in ids_of_task if item not in first[task]]
            assert (len(inside), min(inside) >= max(outside)) == (16, True)
        assert remaining(first, second) == {}

    @pytest.mark.slow
    def test_who_scores_better_on_the_whole_is_rarely_stopped_and_a_bad_one_early(self):
        wrong, better, early = 0, 0, 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            known = [self.drawn(rng, level) for level in np.linspace(-1.5, 1, 12)]
            race = race_of(*known)
            best = max(mean_of(items) for items in known)
            looks = stages(SPLIT, SETTINGS, 0, worth=race.worth())[:-1]
            strong, bad = self.drawn(rng, 1.2), self.drawn(rng, -1.5)
            if mean_of(strong) > best:
                better += 1
                wrong += any(race.loss(part_of(strong, look)) is not None for look in looks)
            early += race.loss(part_of(bad, looks[0])) is not None
        assert better > 60
        assert wrong / better < 0.05
        assert early > 160

    def test_estimate_of_a_stopped_candidate_is_near_its_whole_score(self):
        gaps = []
        for seed in range(100):
            rng = np.random.default_rng(seed)
            race = self.race(rng, best=1.0)
            whole = self.drawn(rng, -1.0)
            first = stages(SPLIT, SETTINGS, 0, worth=race.worth())[0]
            found, truth = race.estimate(part_of(whole, first)), aggregate(OBJECTIVES, whole)
            gaps += [found[name].value - truth[name].value for name in NAMES]
            assert found["math"].count == 16
        assert abs(np.mean(gaps)) < 0.02
        assert np.std(gaps) < 0.07
