"""What every archive must do with what came of evaluations.

Inherit beside ``ArchiveContract``, whose fixtures these tests use.
"""

import dataclasses
import math

import numpy as np
import pytest

from configs.errors import (
    ArchiveError,
)
from configs.evaluation import SPLITS
from evaluators.scores import TaskScores, aggregate
from optimizer.archive.archive import Archive
from tests.contract.archive_examples import (
    TASKS,
    completed,
    example_candidate,
    example_job,
    failed,
    item_ids,
    with_companion,
)
from workers.outcome import Stage


class ArchiveOutcomeContract:
    """Inherit together with ``ArchiveContract``."""

    def test_completed_outcome_comes_back_bit_for_bit(self, archive, location) -> None:
        archive.record_proposal(example_candidate(0))
        outcome = completed(0, attempt=2)
        assert archive.record_outcome(outcome) is True

        for opened in (archive, Archive.open(location)):
            with opened:
                recorded = opened.outcome(0, "search")
                assert recorded.status == "completed"
                assert recorded.key == outcome.key
                assert (recorded.attempt, recorded.worker) == (2, "worker-0")
                assert recorded.seconds == outcome.seconds
                assert recorded.finished_at.endswith("+00:00")
                assert recorded.scores == aggregate(example_job().objectives, outcome.task_scores)
                assert list(recorded.scores) == ["math", "code", "instruct"]
                assert opened.weights_digest(0) == outcome.weights_digest
                assert opened.texts(0, "search") == outcome.texts
                found = opened.task_scores(0, "search")
                assert list(found) == list(TASKS)
                for task, part in outcome.task_scores.items():
                    assert found[task].item_ids == part.item_ids
                    assert found[task].values.tobytes() == part.values.tobytes()

    def test_failed_outcome_comes_back_whole(self, archive, location) -> None:
        archive.record_proposal(example_candidate(0))
        assert archive.record_outcome(failed(0)) is True

        with Archive.open(location) as reader:
            recorded = reader.outcome(0, "search")
            assert recorded.status == "failed"
            assert recorded.stage is Stage.EVALUATE
            assert recorded.error_class == "EvaluationError"
            assert recorded.message == "logits are not finite"
            assert recorded.seconds == {"materialize": 0.25}
            assert recorded.scores is None
            assert reader.scores("search") == {}
            assert reader.observations()[0].scores is None
            with pytest.raises(ArchiveError, match="no scores on split `search`: its evaluation"):
                reader.task_scores(0, "search")
            with pytest.raises(ArchiveError, match="never scored"):
                reader.weights_digest(0)

    def test_texts_of_any_kind_survive(self, archive) -> None:
        strange = (
            "",
            "\0",
            "\ud800 alone",
            "é \N{SNAKE}",
            "line\nline",
            "'; DROP TABLE",
            "x" * 9999,
        )
        archive.record_proposal(example_candidate(0))
        archive.record_outcome(dataclasses.replace(completed(0), texts={"gsm8k": strange}))

        assert archive.texts(0, "search") == {"gsm8k": strange}

    def test_error_message_of_any_kind_is_recorded(self, archive) -> None:
        archive.record_proposal(example_candidate(0))
        archive.record_outcome(dataclasses.replace(failed(0), message="nul \0, half \ud800, é"))

        assert archive.outcome(0, "search").message == "nul \\x00, half \\ud800, é"

    @pytest.mark.parametrize("first", [completed, failed])
    @pytest.mark.parametrize("stale", [completed, failed])
    def test_second_outcome_of_a_key_is_dropped(self, archive, location, first, stale) -> None:
        archive.record_proposal(example_candidate(0))
        assert archive.record_outcome(first(0)) is True
        before = archive.outcomes("search")

        assert archive.record_outcome(stale(0, attempt=2)) is False
        assert archive.outcomes("search") == before
        archive.close()
        with Archive.open(location, writable=True) as resumed:
            assert resumed.record_outcome(stale(0, attempt=3)) is False
            assert resumed.outcomes("search") == before

    def test_outcome_is_refused_when_nothing_was_proposed(self, archive) -> None:
        with pytest.raises(ArchiveError, match="no candidate 0; it holds 0"):
            archive.record_outcome(completed(0))
        assert archive.outcomes("search") == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda scores: scores.pop("mbpp"), "task `mbpp` has no scores"),
            (
                lambda scores: set_values(scores, "mbpp", [1.0] * 6 + [math.nan]),
                "has score nan on item `search-mbpp-6`",
            ),
            (
                lambda scores: set_values(scores, "mbpp", [math.inf] + [1.0] * 6),
                "has score inf on item `search-mbpp-0`",
            ),
            (
                lambda scores: scores.update(mbpp=TaskScores("mbpp", (), np.empty(0))),
                "was scored on no item",
            ),
            (
                lambda scores: scores.update(
                    mbpp=TaskScores("mbpp", ("report-mbpp-0",), np.ones(1))
                ),
                "scored on `report-mbpp-0`, which is no item of it in this split",
            ),
            (
                lambda scores: scores.update(
                    mbpp=TaskScores(
                        "mbpp", item_ids("search", "mbpp"), np.ones(7), np.array([1.0] * 6 + [0.0])
                    )
                ),
                "has weights from 0.0 to 1.0; they are positive",
            ),
        ],
    )
    def test_unusable_scores_are_refused(self, archive, change, message) -> None:
        archive.record_proposal(example_candidate(0))
        outcome = completed(0)
        change(outcome.task_scores)

        with pytest.raises(ArchiveError, match=message):
            archive.record_outcome(outcome)
        assert archive.outcomes("search") == []
        assert archive.record_outcome(failed(0)) is True
        assert archive.outcome(0, "search").sequence == 0

    def test_scores_on_some_items_keep_their_items(self, archive) -> None:
        archive.record_proposal(example_candidate(0))
        outcome = completed(0)
        some = (item_ids("search", "mbpp")[4], item_ids("search", "mbpp")[1])
        outcome.task_scores["mbpp"] = TaskScores("mbpp", some, np.array([0.25, 1.0]))
        archive.record_outcome(outcome)

        found = archive.task_scores(0, "search")
        assert found["mbpp"].item_ids == some
        assert found["mbpp"].values.tolist() == [0.25, 1.0]
        assert found["gsm8k"].item_ids == item_ids("search", "gsm8k")
        assert archive.scores("search")[0]["code"].count == 2 + 7

    def test_companions_come_back_bit_for_bit_beside_the_scores(self, archive) -> None:
        archive.record_proposal(example_candidate(0))
        archive.record_proposal(example_candidate(1))
        outcome = with_companion(completed(0))
        archive.record_outcome(outcome)
        archive.record_outcome(completed(1))

        found = archive.companions(0, "search")
        assert list(found) == ["gsm8k"]
        assert found["gsm8k"].item_ids == item_ids("search", "gsm8k")
        assert found["gsm8k"].values.tobytes() == outcome.companions["gsm8k"].values.tobytes()
        assert archive.companions(1, "search") == {}
        assert archive.scores("search")[0] == aggregate(
            example_job().objectives, completed(0).task_scores
        )

    def test_texts_are_kept_of_baselines_the_front_and_held_out_items(self, archive) -> None:
        for index, origin in enumerate(["baseline:base", *["strategy:cma"] * 3, "baseline:soup"]):
            archive.record_proposal(example_candidate(index, origin=origin))
        for index, level in enumerate([1.0, 0.5, 1.5, 1.5, 0.0]):
            archive.record_outcome(with_level(completed(index), level))
        archive.record_outcome(with_level(completed(1, "report"), 0.0))

        kept = [bool(archive.texts(index, "search")) for index in range(5)]
        assert kept == [True, False, True, True, True]  # an equal is not dominated
        assert archive.texts(1, "report") == completed(1, "report").texts
        assert archive.task_scores(1, "search")["mbpp"].values.tolist() == [0.5] * 7

    def test_weights_of_items_come_back_bit_for_bit(self, archive) -> None:
        archive.record_proposal(example_candidate(0))
        outcome = completed(0)
        weights = np.array([1.0, 2.0, 1 / 3, 5.0, 1e9, 1e-9, 7.0])
        scores = dataclasses.replace(outcome.task_scores["gsm8k"], weights=weights)
        outcome.task_scores["gsm8k"] = scores
        archive.record_outcome(outcome)

        found = archive.task_scores(0, "search")
        assert found["gsm8k"].weights.tobytes() == weights.tobytes()
        assert found["mbpp"].weights is None
        assert archive.scores("search")[0]["math"].value == pytest.approx(scores.mean)

    def test_outcomes_keep_their_finishing_order(self, archive, location) -> None:
        for index in range(4):
            archive.record_proposal(example_candidate(index))
        archive.record_outcome(completed(2))
        archive.record_outcome(failed(0))
        archive.record_outcome(completed(2, "report"))
        archive.record_outcome(completed(2, "select"))
        archive.record_outcome(completed(1))

        with Archive.open(location) as reader:
            found = [outcome.key.candidate for outcome in reader.outcomes("search")]
            assert found == [2, 0, 1]
            assert [outcome.sequence for outcome in reader.outcomes("search")] == [0, 1, 4]
            assert [outcome.sequence for outcome in reader.outcomes("select")] == [3]
            told = [observation.candidate.index for observation in reader.observations()]
            assert told == [2, 0, 1]
            assert list(reader.scores("search")) == [1, 2]
            assert reader.scores("report").keys() == {2}
            assert reader.outcome(3, "search") is None

    def test_splits_do_not_mix(self, archive) -> None:
        archive.record_proposal(example_candidate(0))
        for split in SPLITS:
            assert archive.record_outcome(completed(0, split)) is True

        for split in SPLITS:
            expected = completed(0, split).task_scores
            found = archive.task_scores(0, split)
            assert all(found[t].values.tobytes() == expected[t].values.tobytes() for t in TASKS)
            assert all(found[t].item_ids == expected[t].item_ids for t in TASKS)


def with_level(outcome, level):
    """The outcome with this score on every item."""
    for part in outcome.task_scores.values():
        part.values[:] = level
    return outcome


def set_values(scores, task, values) -> None:
    scores[task] = TaskScores(task, scores[task].item_ids, np.array(values))
