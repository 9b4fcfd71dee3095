"""Candidates scored block by block through a real pool and archive, as a race would do it."""

import dataclasses

import numpy as np
import pytest

from configs.errors import ArchiveError
from configs.schema import JobConfig
from evaluators.blocks import WHOLE, partition
from evaluators.paired import paired_difference
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.partial import block_request
from tests.contract.archive_examples import (
    completed,
    example_candidate,
    example_job,
    example_manifest,
    example_sources,
    failed,
)
from workers.outcome import Completed, EvaluationKey
from workers.pool import LocalPool

SPLIT = example_manifest().items("search")


class ItemRunner:
    """Scores an item by its name, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, str]] = []

    def run(self, request, attempt=1):
        items = SPLIT if request.items is None else request.items
        self.asked += [(request.key.candidate, t, i) for t, ids in items.items() for i in ids]
        whole = completed(request.key.candidate)
        scores = {}
        for task, ids in items.items():
            rows = [SPLIT[task].index(item) for item in ids]
            scores[task] = TaskScores(task, tuple(ids), whole.task_scores[task].values[rows])
        return Completed(
            key=request.key,
            attempt=attempt,
            worker="test",
            weights_digest=whole.weights_digest,
            task_scores=scores,
        )

    def close(self):
        pass


@pytest.fixture
def archive(tmp_path):
    with Archive.create(
        tmp_path / "a.sqlite",
        job=example_job(),
        job_path=None,
        sources=example_sources(),
        manifest=example_manifest(),
    ) as made:
        for index in range(4):
            made.record_proposal(example_candidate(index))
        yield made


def test_race_scores_survivors_whole_and_no_item_twice(archive):
    runner = ItemRunner()
    job = archive.job
    racing = list(range(4))
    with LocalPool(runner) as pool:
        for block in partition(SPLIT, (2, 2, 3)):
            for index in racing:
                pool.submit(block_request(archive, index, "search", block))
                assert archive.record_outcome(pool.next_outcome())
            so_far = archive.scores_so_far("search")
            best = max(racing, key=lambda index: sum(s.value for s in so_far[index].values()))
            ours = archive.scored_items(best, "search")
            racing = [
                index
                for index in racing
                if paired_difference(
                    job.objectives, job.preference, ours, archive.scored_items(index, "search")
                ).sigmas
                < 1.0
            ]
            assert best in racing
    assert 0 < len(racing) < 4
    assert len(set(runner.asked)) == len(runner.asked)
    assert set(archive.scores("search")) >= set(racing)
    for index in racing:
        assert block_request(archive, index, "search") is None
        expected = completed(index).task_scores
        for task, part in archive.task_scores(index, "search").items():
            np.testing.assert_array_equal(part.values, expected[task].values)
    dropped = next(index for index in range(4) if index not in archive.scores("search"))
    request = block_request(archive, dropped, "search")
    assert request.items == archive.remaining(dropped, "search")


def test_request_for_all_items_is_that_of_the_whole_split(archive):
    for items in (None, SPLIT):
        request = block_request(archive, 0, "search", items)
        assert (request.items, request.key.block) == (None, WHOLE)
        assert request.recipe == archive.candidate(0).recipe


def test_request_of_unknown_candidates_and_items_is_refused(archive):
    with pytest.raises(ArchiveError, match="no candidate 9"):
        block_request(archive, 9, "search")
    with pytest.raises(ArchiveError, match="`x` is no item of task `mbpp`"):
        block_request(archive, 0, "search", {"mbpp": ("x",)})


def test_candidate_that_failed_on_a_block_is_not_asked_for_it_again(archive):
    first, second = partition(SPLIT, (1, 1))
    request = block_request(archive, 0, "search", first)
    assert archive.record_outcome(dataclasses.replace(failed(0), key=request.key))
    with pytest.raises(ArchiveError, match=r"candidate 0 failed on these \d+ items .*stop this"):
        block_request(archive, 0, "search", first)
    assert block_request(archive, 0, "search", second).items == second
    assert block_request(archive, 1, "search", first).key.block == request.key.block

    assert archive.record_outcome(dataclasses.replace(failed(2), key=EvaluationKey(2, "search")))
    with pytest.raises(ArchiveError, match="candidate 2 failed"):
        block_request(archive, 2, "search")


@pytest.fixture
def scored_by_function(tmp_path):
    """Makes an archive whose task `mbpp` is scored by a Python function."""

    def make(name, **keys):
        scorer = {"scorer": "metrics.py:f", "items": "x.jsonl", "name": "mbpp", **keys}
        content = example_job().model_dump(mode="json")
        content["objectives"]["code"] = [scorer, "humaneval"]
        archive = Archive.create(
            tmp_path / f"{name}.sqlite",
            job=JobConfig.model_validate(content),
            job_path=None,
            sources=example_sources(),
            manifest=example_manifest(),
        )
        archive.record_proposal(example_candidate(0))
        return archive

    return make


def test_block_holds_all_items_of_a_scorer_or_none(scored_by_function):
    with scored_by_function("whole") as archive:
        assert archive.job.undivided == {"mbpp"}
        for block in partition(SPLIT, (1, 1)):
            with pytest.raises(ArchiveError, match=r"of the 7 items of scorer `mbpp`.*per_item: t"):
                block_request(archive, 0, "search", block)
        first, second = partition(SPLIT, (1, 1), undivided=archive.job.undivided)
        assert (first["mbpp"], "mbpp" in second) == (SPLIT["mbpp"], False)
        assert block_request(archive, 0, "search", first).items == first
        assert block_request(archive, 0, "search", second).items == second
        assert block_request(archive, 0, "search").items is None


def test_items_of_a_scorer_that_scores_each_by_itself_may_be_divided(scored_by_function):
    with scored_by_function("divided", per_item=True) as archive:
        for block in partition(SPLIT, (1, 1)):
            assert block_request(archive, 0, "search", block).items == block
