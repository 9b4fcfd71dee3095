import numpy as np
import pytest

from evaluators.scores import TaskScores
from optimizer.gates import is_repetitive, likelihood_gate, repetition_gate, repetitive_share


def companions(count=8, **means):
    return {
        task: TaskScores(
            task, tuple(f"{task}-{n}" for n in range(count)), mean * np.linspace(0.5, 1.5, count)
        )
        for task, mean in means.items()
    }


class TestLikelihoodGate:
    sources = (companions(math=-1.0, chat=-3.0), companions(math=-2.0, chat=-1.5))

    def test_model_that_finds_every_reference_unlikely_is_stopped(self):
        stop = likelihood_gate(companions(math=-5.0, chat=-7.0), self.sources, 2.0)
        assert stop.scores is None
        assert stop.reason == "broken"
        assert stop.numbers["worst source"] == pytest.approx({"math": -2.0, "chat": -3.0})
        assert stop.numbers["found"] == pytest.approx({"math": -5.0, "chat": -7.0})

    def test_gap_has_to_be_wide_at_any_level(self):
        """Four times next to nothing is still next to nothing: seen on merges that score well."""
        certain = [companions(math=-0.05), companions(math=-0.1)]
        assert likelihood_gate(companions(math=-0.4), certain, 2.0) is None
        assert likelihood_gate(companions(math=-1.0), certain, 2.0) is None
        assert likelihood_gate(companions(math=-1.2), certain, 2.0) is not None

    def test_model_that_forgot_one_task_is_not_broken(self):
        assert likelihood_gate(companions(math=-1.0, chat=-50.0), self.sources, 2.0) is None

    def test_sources_are_compared_on_the_same_items(self):
        """The worst source is at -1.4 on the first two items, and at -2 on all of them."""
        found = {"math": companions(math=-9.0)["math"].restricted_to({"math-0", "math-1"})}
        assert found["math"].mean == pytest.approx(-9.0 * (0.5 + 0.5 / 7))
        worst = -2.0 * (0.5 + 0.5 / 7)
        assert likelihood_gate(found, self.sources, 4.4).numbers["worst source"] == pytest.approx(
            {"math": worst}
        )
        assert likelihood_gate(found, self.sources, 4.6) is None

    def test_nothing_to_compare_stops_nothing(self):
        assert likelihood_gate(companions(math=-99.0), (), 2.0) is None
        assert likelihood_gate({}, self.sources, 2.0) is None
        assert likelihood_gate(companions(other=-99.0), self.sources, 2.0) is None


class TestRepetition:
    @pytest.mark.parametrize(
        "text",
        [
            "the the the the the the the",
            "The answer is" + " 12, 12, 12, 12, 12, 12, 12",
            "!" * 40,
            "I am sure. " + "No, wait: it is 7. " * 4 + "No, wa",
        ],
    )
    def test_text_that_ends_in_repetitions_is_noticed(self, text):
        assert is_repetitive(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "7777",
            "def add(a, b):\n    return a + b\n",
            "To get the total we add 12 and 30, so there are 42 apples in the basket.",
            "for i in range(10):\n    for j in range(10):\n        print(i, j)\n",
            "aaaaaaaaaaaaaaaaaaaaaaaa is how it starts, and then it goes on with other words",
        ],
    )
    def test_other_text_is_not(self, text):
        assert not is_repetitive(text)

    def test_share_is_of_all_texts(self):
        texts = {"a": ["!" * 40, "fine"], "b": ["ab" * 20, "also fine"]}
        assert repetitive_share(texts) == 0.5
        assert repetitive_share({}) == 0.0

    def test_model_that_only_repeats_itself_is_stopped_unless_a_source_does_too(self):
        bad, good = {"a": ["!" * 40] * 9 + ["fine"]}, {"a": ["fine"] * 10}
        stop = repetition_gate(bad, [good, {"a": ["!" * 40] * 5 + ["fine"] * 5}], 0.9)
        assert (stop.reason, stop.scores) == ("broken", None)
        assert stop.numbers["share"] == 0.9
        assert stop.numbers["worst source"] == 0.5
        assert repetition_gate(bad, [good, bad], 0.9) is None
        assert repetition_gate(bad, [], 0.9) is None
        assert repetition_gate(good, [good], 0.9) is None
