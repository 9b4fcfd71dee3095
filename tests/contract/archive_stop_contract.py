"""What every archive promises of stops, and of what is told of candidates in which order."""

import dataclasses

import pytest

from configs.errors import ArchiveError
from configs.schema import JobConfig
from evaluators.blocks import partition
from evaluators.scores import ObjectiveScore, TaskScores, aggregate
from optimizer.archive.archive import Archive
from optimizer.archive.stops import Stop
from tests.contract.archive_examples import (
    completed,
    completed_block,
    example_candidate,
    example_job,
    example_manifest,
    example_sources,
    failed,
    item_ids,
)
from workers.outcome import EvaluationKey

SPLIT = example_manifest().items("search")
SCORES = {
    "math": ObjectiveScore(1 / 3, 0.1, 4),
    "code": ObjectiveScore(-0.5, 0.2, 8),
    "instruct": ObjectiveScore(0.0, 0.0, 4),
}


def stop(reason="racing", scores=SCORES):
    return Stop(reason=reason, scores=scores, numbers={"rival": 0, "gaps": {"math": 0.1}})


def told(archive):
    return [(o.candidate.index, o.scores, o.stopped) for o in archive.observations()]


class ArchiveStopContract:
    """Inherit, and provide fixtures ``archive`` (new, open for writing) and ``location``."""

    @pytest.fixture
    def proposed(self, archive):
        for index in range(5):
            archive.record_proposal(example_candidate(index))
        return archive

    def test_stop_comes_back_as_it_was_recorded(self, proposed, location) -> None:
        proposed.record_outcome(completed(3))
        proposed.record_stops({1: stop()})
        with Archive.open(location) as reader:
            (found,) = reader.stops().values()
        assert (found.candidate, found.number, found.sequence) == (1, 0, 0)
        assert found.stop == stop()
        assert proposed.stops() == {1: found}

    def test_candidates_are_told_once_in_the_order_in_which_they_finished(
        self, proposed, location
    ) -> None:
        first, second = partition(SPLIT, (1, 1))
        name = proposed.record_block("search", first)
        proposed.record_stops({4: stop("screened", {})})
        for index in (0, 2):
            proposed.record_outcome(completed_block(index, name, first))
        proposed.record_stops({2: stop()})
        proposed.record_stops({3: stop("broken", None)})
        failure = dataclasses.replace(failed(1), key=EvaluationKey(1, "search", name))
        proposed.record_outcome(failure)
        rest = proposed.record_block("search", second)
        proposed.record_outcome(completed_block(0, rest, second))

        whole = aggregate(example_job().objectives, completed(0).task_scores)
        expected = [
            (4, {}, "screened"),
            (2, SCORES, "racing"),
            (3, None, "broken"),
            (1, None, ""),
            (0, whole, ""),
        ]
        with Archive.open(location) as reader:
            assert told(reader) == told(proposed) == expected
        assert [o.is_complete for o in proposed.observations()] == [False] * 4 + [True]

    def test_reader_that_watches_sees_the_same_order(self, proposed, location) -> None:
        with Archive.open(location) as reader:
            for index in range(4):
                if index % 2:
                    proposed.record_stops({index: stop()})
                else:
                    proposed.record_outcome(completed(index))
                assert told(reader) == told(proposed)
                assert [index for index, *_ in told(reader)] == list(range(index + 1))

    def test_seen_counts_stopped_candidates(self, proposed) -> None:
        proposed.record_stops({2: stop()})
        proposed.record_outcome(completed(1))
        proposed.record_proposal(example_candidate(5, seen=2))
        assert proposed.pending(5) == (0, 3, 4)
        with pytest.raises(ArchiveError, match=r"seen 3 finished candidates, but .* holds 2"):
            proposed.record_proposal(example_candidate(6, seen=3))

    def test_finished_candidate_is_not_stopped(self, proposed) -> None:
        proposed.record_outcome(completed(0))
        proposed.record_outcome(failed(1))
        proposed.record_stops({2: stop()})
        for index in range(3):
            with pytest.raises(ArchiveError, match=f"candidate {index} of .* is finished"):
                proposed.record_stops({index: stop()})
        with pytest.raises(ArchiveError, match="no candidate 9"):
            proposed.record_stops({9: stop()})
        assert [index for index, *_ in told(proposed)] == [0, 1, 2]

    def test_stopped_candidate_takes_no_outcome_of_the_search(self, proposed) -> None:
        proposed.record_stops({0: stop()})
        assert proposed.record_outcome(completed(0)) is False
        assert proposed.outcomes("search") == []
        assert proposed.record_outcome(completed(0, "report")) is True

    def test_failed_block_is_an_outcome_of_the_search(self, proposed) -> None:
        first, _ = partition(SPLIT, (1, 1))
        name = proposed.record_block("search", first)
        failure = dataclasses.replace(failed(1), key=EvaluationKey(1, "search", name))
        proposed.record_outcome(failure)
        assert [o.message for o in proposed.outcomes("search")] == [failure.message]
        assert proposed.scores("search") == {}

    def test_companions_are_asked_for_alone_and_completed_later(
        self, create_with_companion, open_reader
    ) -> None:
        with create_with_companion() as archive:
            archive.record_proposal(example_candidate(0))
            ids = item_ids("search", "gsm8k")
            values = -abs(completed(0).task_scores["gsm8k"].values)
            first = {"gsm8k": ids[:3]}
            name = archive.record_block("search", first)
            archive.record_outcome(
                companions_only(0, name, TaskScores("gsm8k", ids[:3], values[:3]))
            )

            assert archive.observations() == []
            assert archive.remaining(0, "search") == SPLIT
            assert archive.remaining(0, "search", first, "companions") == {}
            assert archive.scores_so_far("search") == {}
            assert archive.outcome(0, "search", name) is None
            assert archive.outcome(0, "search", name, "companions").scores == {}

            rest = TaskScores("gsm8k", ids[3:], values[3:])
            archive.record_outcome(dataclasses.replace(completed(0), companions={"gsm8k": rest}))
            for opened in (archive, open_reader()):
                (observation,) = opened.observations()
                assert observation.companions["math"].value == pytest.approx(values.mean())
                assert observation.companions["math"].count == len(ids)
                assert observation.companions.keys() == {"math"}
                found = opened.companions(0, "search")["gsm8k"]
                assert found.item_ids == ids
                assert found.values.tobytes() == values.tobytes()

    def test_screened_candidate_is_told_with_its_companions(self, create_with_companion) -> None:
        with create_with_companion() as archive:
            archive.record_proposal(example_candidate(0))
            ids = item_ids("search", "gsm8k")
            values = completed(0).task_scores["gsm8k"].values
            name = archive.record_block("search", {"gsm8k": ids})
            archive.record_outcome(companions_only(0, name, TaskScores("gsm8k", ids, values)))
            archive.record_stops({0: stop("screened", {})})
            (observation,) = archive.observations()
        assert observation.scores == {}
        assert observation.companions["math"].value == pytest.approx(values.mean())

    @pytest.fixture
    def create_with_companion(self, location):
        def create():
            content = example_job().model_dump(mode="json")
            content["objectives"]["math"] = [{"task": "gsm8k", "companion": True}]
            # One of two tasks is not enough to speak for an objective.
            content["objectives"]["code"]["tasks"][0]["companion"] = True
            return Archive.create(
                location,
                job=JobConfig.model_validate(content),
                job_path=None,
                sources=example_sources(),
                manifest=example_manifest(),
            )

        return create


def companions_only(candidate, block, scores):
    return dataclasses.replace(
        completed(candidate),
        key=EvaluationKey(candidate, "search", block, "companions"),
        task_scores={},
        texts={},
        companions={scores.task: scores},
    )
