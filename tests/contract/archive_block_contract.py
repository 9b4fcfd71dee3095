"""What every archive must do with splits that are scored block by block.

Inherit beside ``ArchiveContract``, whose fixtures these tests use.
"""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from configs.errors import ArchiveError
from evaluators.blocks import WHOLE, partition
from evaluators.scores import aggregate
from optimizer.archive.archive import Archive
from tests.contract.archive_examples import (
    TASKS,
    completed,
    completed_block,
    example_candidate,
    example_job,
    example_manifest,
    failed,
    item_ids,
)
from workers.outcome import EvaluationKey

SPLIT = example_manifest().items("search")


def record(archive: Archive, candidate: int, items) -> bool:
    return archive.record_outcome(
        completed_block(candidate, archive.record_block("search", items), items)
    )


class ArchiveBlockContract:
    """Inherit together with ``ArchiveContract``."""

    @pytest.fixture
    def raced(self, archive) -> Archive:
        """An archive with three candidates and no outcome."""
        for index in range(3):
            archive.record_proposal(example_candidate(index))
        return archive

    def test_block_is_named_by_its_items_and_recorded_once(self, raced, location) -> None:
        items = {"mbpp": item_ids("search", "mbpp")[:3], "gsm8k": item_ids("search", "gsm8k")[:1]}
        name = raced.record_block("search", items)
        turned = {task: ids[::-1] for task, ids in reversed(items.items())}
        assert raced.record_block("search", turned) == name
        assert raced.record_block("search", {"mbpp": items["mbpp"]}) != name
        assert raced.record_block("search", SPLIT) == WHOLE
        with Archive.open(location) as reader:
            assert reader.block("search", name) == items
            assert list(reader.block("search", name)) == ["gsm8k", "mbpp"]
            assert reader.block("search", WHOLE) == SPLIT

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            ({}, "needs at least one item"),
            ({"mbpp": ()}, "needs at least one item"),
            ({"mbpp": ("report-mbpp-0",)}, "`report-mbpp-0` is no item of task `mbpp`"),
            ({"chess": ("e4",)}, "`e4` is no item of task `chess`"),
        ],
    )
    def test_block_is_refused_when_it_is_none_of_the_split(self, raced, items, message) -> None:
        with pytest.raises(ArchiveError, match=message):
            raced.record_block("search", items)

    def test_outcome_is_refused_when_its_block_was_never_recorded(self, raced) -> None:
        outcome = dataclasses.replace(completed(0), key=EvaluationKey(0, "search", "0123"))
        with pytest.raises(ArchiveError, match="knows no block `0123` of split `search`"):
            raced.record_outcome(outcome)
        assert raced.evaluations("search") == []

    def test_outcome_is_refused_when_an_item_of_its_block_is_missing(self, raced) -> None:
        block = {"mbpp": item_ids("search", "mbpp")[:3]}
        name = raced.record_block("search", block)
        for items, message in (
            ({"mbpp": block["mbpp"][:2]}, "not scored on `search-mbpp-2`, which is in this block"),
            ({"mbpp": item_ids("search", "mbpp")[:4]}, "`search-mbpp-3`, .* in this block"),
            ({"gsm8k": item_ids("search", "gsm8k")}, "task `mbpp` has no scores"),
        ):
            with pytest.raises(ArchiveError, match=message):
                raced.record_outcome(completed_block(0, name, items))
        assert raced.evaluations("search") == []

    def test_second_outcome_of_a_block_is_dropped(self, raced) -> None:
        first, second = partition(SPLIT, (1, 1))
        assert record(raced, 0, first) is True
        assert record(raced, 0, first) is False
        stale = dataclasses.replace(failed(0), key=raced.evaluations("search")[0].key)
        assert raced.record_outcome(stale) is False
        assert record(raced, 0, second) is True
        assert record(raced, 1, first) is True

    def test_part_of_a_split_is_no_outcome_of_it(self, raced, open_reader) -> None:
        first, _ = partition(SPLIT, (1, 1))
        record(raced, 1, first)

        for opened in (raced, open_reader()):
            assert opened.outcomes("search") == []
            assert opened.observations() == []
            assert opened.scores("search") == {}
            with pytest.raises(ArchiveError, match="no scores on split `search`"):
                opened.task_scores(1, "search")
            (found,) = opened.evaluations("search")
            assert opened.block("search", found.key.block) == first
            assert found.scores == opened.scores_so_far("search")[1]
            assert found.scores["math"].count == len(first["gsm8k"])
            assert opened.weights_digest(1) == completed(1).weights_digest
        raced.record_proposal(example_candidate(3, seen=0))
        assert raced.pending(3) == (0, 1, 2)

    @pytest.mark.parametrize("seed", range(4))
    def test_blocks_in_any_order_make_the_outcome_of_the_split(
        self, raced, open_reader, seed
    ) -> None:
        blocks = partition(SPLIT, (1, 2, 3, 1))
        jobs = list(itertools.product((0, 1), blocks))
        random.Random(seed).shuffle(jobs)
        for candidate, items in jobs:
            record(raced, candidate, items)

        for opened in (raced, open_reader()):
            last = {o.key.candidate: o for o in opened.evaluations("search")}
            by_end = sorted(last.values(), key=lambda outcome: outcome.sequence)
            assert [o.key.candidate for o in opened.outcomes("search")] == [
                outcome.key.candidate for outcome in by_end
            ]
            assert opened.outcomes("search")[1].sequence == len(jobs) - 1
            for index in (0, 1):
                whole = completed(index)
                found = opened.outcome(index, "search")
                assert found.key == EvaluationKey(index, "search")
                assert found.scores == aggregate(example_job().objectives, whole.task_scores)
                assert found.seconds["materialize"] == pytest.approx(4 * 0.1)
                assert opened.texts(index, "search") in ({}, whole.texts)
                for task, part in opened.task_scores(index, "search").items():
                    assert part.item_ids == whole.task_scores[task].item_ids
                    assert part.values.tobytes() == whole.task_scores[task].values.tobytes()

    def test_texts_of_all_blocks_stand_together(self, raced) -> None:
        for items in partition(SPLIT, (1, 1, 1)):
            record(raced, 2, items)
        assert raced.texts(2, "search") == completed(2).texts

    def test_remaining_items_extend_a_candidate_without_doing_any_twice(self, raced) -> None:
        first, second, _ = partition(SPLIT, (1, 1, 1))
        assert raced.remaining(0, "search") == SPLIT
        record(raced, 0, first)
        assert raced.remaining(0, "search", first) == {}
        assert raced.remaining(0, "search", second) == second
        wanted = {task: first[task] + second[task] for task in SPLIT}
        assert raced.remaining(0, "search", wanted) == second
        record(raced, 0, raced.remaining(0, "search"))
        assert raced.remaining(0, "search") == {}
        assert raced.scores("search").keys() == {0}

    def test_first_score_of_an_item_counts_where_blocks_overlap(self, raced) -> None:
        ids = item_ids("search", "mbpp")
        record(raced, 0, {"mbpp": ids[2:5]})
        items = {"mbpp": ids[:4]}
        again = completed_block(0, raced.record_block("search", items), items)
        again.task_scores["mbpp"].values[:] = 9.0
        raced.record_outcome(again)

        found = raced.scored_items(0, "search")["mbpp"]
        assert found.item_ids == ids[:5]
        expected = completed(0).task_scores["mbpp"].values[2:5].tolist()
        assert found.values.tolist() == [9.0, 9.0, *expected]

    def test_whole_split_counts_alone_where_blocks_were_scored_before(self, raced) -> None:
        first, second = partition(SPLIT, (1, 1))
        record(raced, 0, first)
        assert raced.record_outcome(completed(0)) is True
        record(raced, 0, second)

        assert [outcome.sequence for outcome in raced.outcomes("search")] == [1]
        found = raced.task_scores(0, "search")
        assert all(found[t].values.tobytes() == completed(0).task_scores[t].values.tobytes()
                   for t in TASKS)  # fmt: skip

    def test_whole_split_is_dropped_once_its_blocks_are_complete(self, raced) -> None:
        for items in partition(SPLIT, (1, 1)):
            record(raced, 0, items)
        assert raced.record_outcome(completed(0)) is False
        assert len(raced.evaluations("search")) == 2
        assert len(raced.outcomes("search")) == 1

    def test_failed_block_leaves_the_split_open(self, raced) -> None:
        first, second = partition(SPLIT, (1, 1))
        record(raced, 0, first)
        name = raced.record_block("search", second)
        raced.record_outcome(dataclasses.replace(failed(0), key=EvaluationKey(0, "search", name)))
        assert raced.outcome(0, "search", name).status == "failed"
        assert raced.outcome(0, "search") is None
        assert raced.remaining(0, "search") == second

    def test_objective_counts_once_every_task_of_it_was_scored(self, raced) -> None:
        record(raced, 0, {"mbpp": item_ids("search", "mbpp")[:2]})
        (found,) = raced.evaluations("search")
        assert (found.scores, found.status) == ({}, "completed")
        assert raced.scores_so_far("search") == {0: {}}
        record(raced, 0, {"humaneval": item_ids("search", "humaneval")[4:]})
        scores = raced.scores_so_far("search")[0]
        assert list(scores) == ["code"]
        expected = 2 / 3 * completed(0).task_scores["mbpp"].values[:2].mean()
        expected += 1 / 3 * completed(0).task_scores["humaneval"].values[4:].mean()
        assert scores["code"].value == pytest.approx(expected)
        assert scores["code"].count == 5

    def test_sequence_counts_blocks_too(self, raced) -> None:
        first, second = partition(SPLIT, (1, 1))
        record(raced, 0, first)
        raced.record_outcome(completed(1))
        record(raced, 0, second)
        raced.record_outcome(completed(2, "select"))
        assert [o.sequence for o in raced.evaluations("search")] == [0, 1, 2]
        assert [(o.key.candidate, o.sequence) for o in raced.outcomes("search")] == [
            (1, 1),
            (0, 2),
        ]
        assert raced.outcomes("select")[0].sequence == 3
        raced.record_proposal(example_candidate(3, seen=2))
        assert raced.pending(3) == (2,)

    def test_writer_goes_on_with_blocks_after_a_restart(self, raced, location) -> None:
        first, second = partition(SPLIT, (1, 1))
        record(raced, 0, first)
        raced.close()
        with Archive.open(location, writable=True) as resumed:
            assert record(resumed, 0, first) is False
            assert resumed.remaining(0, "search") == second
            assert record(resumed, 0, second) is True
            assert np.array_equal(
                resumed.task_scores(0, "search")["mbpp"].values,
                completed(0).task_scores["mbpp"].values,
            )
