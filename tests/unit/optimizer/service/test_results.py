"""What the service says of archives: lists, fronts, candidates, comparisons."""

import dataclasses
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient

from evaluators.blocks import partition
from evaluators.scores import ObjectiveScore
from optimizer.archive.archive import Archive
from optimizer.archive.recorded_space import recorded_space
from optimizer.archive.stops import Stop
from optimizer.candidate import Candidate
from optimizer.results.belief import believed_candidates
from optimizer.results.front_view import front_of
from optimizer.service.app import create_app
from optimizer.service.client import ServiceClient, ServiceRefusedError
from optimizer.strategies.registry import make_strategy
from tests.contract.archive_examples import (
    completed_block,
    example_archive,
    example_candidate,
    example_manifest,
)
from tests.unit.optimizer.service.conftest import MERGES, TOKEN, URL, has_all_streams
from tests.unit.optimizer.service.large_archive import NAMES, add_candidate, build_large
from tests.unit.optimizer.synthetic_archive import Merge, build


def test_list_has_every_archive_below_the_directory(client, archives):
    build(archives / "flat.sqlite", [Merge((0, 0, 0), (0.5,) * 3)])
    (archives / "team" / "run").mkdir(parents=True)
    build(archives / "team" / "run" / "archive.sqlite", [Merge((0, 0, 0), (0.5,) * 3)])
    assert {one.id for one in client.searches()} == {"done", "flat.sqlite", "team~run"}


def test_list_leaves_out_links_and_what_is_no_archive(client, archives, tmp_path):
    outside = build(tmp_path / "outside.sqlite", [Merge((0, 0, 0), (0.5,) * 3)])
    (archives / "link.sqlite").symlink_to(outside)
    (archives / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (archives / "notes.txt").write_text("no archive")
    assert [one.id for one in client.searches()] == ["done"]


def test_list_shows_an_archive_that_cannot_be_read(client, archives):
    (archives / "broken.sqlite").write_bytes(b"not a database" * 100)
    found = {one.id: one for one in client.searches()}
    assert found["broken.sqlite"].state == "unknown"
    assert "broken.sqlite" in (found["broken.sqlite"].error or "")
    assert found["done"].state == "finished"


def test_search_says_what_is_recorded_of_it(client):
    found = client.search("done")
    assert (found.state, found.choice, found.failures) == ("finished", 1, 1)
    assert found.evaluations.model_dump() == {"recorded": 5, "in_flight": 0, "budget": 6}
    assert found.checkpoints == ["instruct", "code", "math"]
    assert found.verdict is not None
    assert found.verdict["strongest"] == "base"
    assert found.job is not None
    assert found.job["name"] == "synthetic"
    assert [worker.evaluations for worker in found.workers] == [9]
    assert found.failed == {"evaluate: EvaluationError": 1}


def test_front_is_that_of_the_command(client, archives):
    with Archive.open(archives / "done" / "archive.sqlite") as archive:
        expected = [row.candidate.index for row in front_of(believed_candidates(archive))]
    found = client.front("done")
    assert [row.index for row in found.front] == expected == [1, 2]
    assert found.front[0].scores["instruct"].value == 0.9
    assert found.front[0].genes["code"]["all"]["weight"] == 0.6
    # Too few were scored for a posterior.
    assert found.belief.state == "raw"


def test_front_obeys_preferences_floors_and_knee(client, archives):
    young = [dataclasses.replace(merge, select=None, report=None) for merge in MERGES]
    build(archives / "young.sqlite", young)
    preferred = client.front("young.sqlite", prefer={"math": 1.0})
    assert [row.index for row in preferred.front] == [2, 1]
    assert "math 1" in (preferred.rule or "")
    floored = client.front("young.sqlite", floors={"instruct": 0.8})
    assert [(row.index, row.chance) for row in floored.front] == [
        (1, pytest.approx(0.93, abs=0.03))
    ]
    assert "knee" in (client.front("young.sqlite", knee=True).rule or "")


def test_wish_goes_by_the_select_split_where_there_is_no_posterior(client):
    found = client.front("done", prefer={"math": 1.0})
    assert found.split == "select"
    assert [(row.index, row.scores["math"].value) for row in found.front] == [(1, 0.8)]


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ({"prefer": {"speed": 1.0}}, "`speed` is no objective"),
        ({"floors": {"math": 2.0}}, "lower one"),
        ({"prefer": {"math": float("nan")}}, "must be a number"),
    ],
)
def test_front_refuses_wishes_that_make_no_sense(client, wish, text):
    with pytest.raises(ServiceRefusedError) as refused:
        client.front("done", **wish)
    assert refused.value.status == 422
    said = [refused.value.message, *(problem.message for problem in refused.value.problems)]
    assert any(text in each for each in said)
    assert all("--" not in problem.path for problem in refused.value.problems)


def test_front_of_a_held_out_split_has_its_scores(client):
    found = client.front("done", split="report")
    assert [row.index for row in found.front] == [1]
    assert found.front[0].scores["math"].value == 0.5


def test_candidates_are_paged_sorted_and_filtered(client):
    page = client.candidates("done", sort="mean", descending=True, limit=2)
    assert (page.total, [row.index for row in page.items]) == (5, [1, 2])
    rest = client.candidates("done", sort="mean", descending=True, offset=2, limit=10)
    assert [row.index for row in rest.items] == [4, 0, 3]  # the failure has no mean
    assert [row.index for row in client.candidates("done", sort="math").items] == [0, 4, 1, 2, 3]
    failed = client.candidates("done", state="failed").items
    assert [row.index for row in failed] == [3]
    assert failed[0].failure is not None
    assert "not finite" in failed[0].failure.message
    assert client.candidates("done", kind="baseline").items[0].label == "base"
    assert [row.index for row in client.every_candidate("done", page=2)] == [0, 1, 2, 3, 4]
    with pytest.raises(ServiceRefusedError, match="1 problem in sort"):
        client.candidates("done", sort="beauty")


def test_candidate_has_its_recipe_and_the_scores_of_every_split(client):
    found = client.candidate("done", 1)
    assert list(found.splits) == ["search", "select", "report"]
    assert found.splits["report"]["code"].value == 0.6
    assert found.recipe["method"] == "dare_linear"
    assert found.is_chosen
    assert found.on_front
    assert found.weights_digest == f"{1:032x}"
    with pytest.raises(ServiceRefusedError, match="no candidate 99"):
        client.candidate("done", 99)


def test_items_are_those_of_the_archive(client):
    found = client.items("done", 1, "report")
    assert [(task.objective, task.task) for task in found.tasks] == [
        ("instruct", "zoo_instruct"), ("code", "zoo_code"), ("math", "zoo_math")
    ]  # fmt: skip
    assert sum(item.score for item in found.tasks[1].items) == 12
    assert client.items("done", 2, "report").tasks == []


def test_points_have_one_row_per_scored_candidate(client):
    found = client.points("done")
    assert found.index == [0, 1, 2, 4]
    assert found.genes == ["instruct", "code", "math"]
    assert found.weights[1] == [0.7, 0.6, 0.5]
    assert found.report == [[0.1] * 3, [0.7, 0.6, 0.5], None, None]
    columns = found.model_dump(exclude={"objectives", "genes", "belief", "revision"})
    assert {len(column) for column in columns.values()} == {4}


def test_progress_grows_with_every_candidate(client):
    found = client.progress("done")
    assert found.candidate == [0, 1, 2, 3, 4]
    assert found.volume == sorted(found.volume)
    assert found.volume[-1] > 0


@pytest.mark.parametrize("strategy", ["cma", "scalar_cma"])
def test_convergence_is_that_of_the_strategy_told_again(client, archives, strategy):
    build_large(archives / "long.sqlite", 40, 30, strategy=strategy)
    found = client.convergence("long.sqlite")
    # 4 + 3 ln 6 outcomes are a population, and the first candidate is a baseline.
    assert found.candidate == [9, 18, 27, 36]
    assert all(sigma > 0 for sigma in found.sigma)
    assert all(ratio > 1 for ratio in found.axis_ratio)
    with Archive.open(archives / "long.sqlite") as archive:
        told = make_strategy(archive.job, recorded_space(archive))
        for seen in archive.observations():
            told.tell(seen)
    assert (found.sigma[-1], found.axis_ratio[-1]) == (told.sigma, told.axis_ratio)
    assert client.convergence("done").candidate == []


def test_comparison_is_paired_and_antisymmetric(client):
    found, other = client.compare("done", 1, 0), client.compare("done", 0, 1)
    assert found.split == "report"
    assert found.preferred.mean == pytest.approx(0.5)
    assert found.preferred.mean == -other.preferred.mean
    low, high = found.preferred.interval_95
    assert low < found.preferred.mean < high
    task = found.tasks[0]
    assert (task.wins, task.losses, task.ties) == (12, 0, 8)
    assert len(task.items) == 12
    assert other.tasks[0].losses == 12
    assert client.compare("done", 1, 0, which="none").tasks[0].items == []
    paged = client.compare("done", 1, 0, which="all", offset=5, limit=3).tasks[0].items
    assert [item.id for item in paged] == [f"report-instruct-{n:02d}" for n in (5, 6, 7)]


def test_scores_and_texts_are_of_one_moment_while_blocks_are_recorded(
    client, archives, monkeypatch
):
    path = archives / "live.sqlite"
    first, second = partition(example_manifest().items("search"), (1, 1))
    with example_archive(path) as archive:
        archive.begin_run()
        blocks = [archive.record_block("search", items) for items in (first, second)]
        for index in range(2):
            candidate = example_candidate(index, origin=f"baseline:{index}")
            archive.record_proposal(candidate)
            archive.record_outcome(completed_block(index, blocks[0], first))
    read_parts = Archive._read_parts

    def record_after(self, *arguments):
        """Read; whatever comes after it in another transaction sees another block."""
        parts = read_parts(self, *arguments)
        monkeypatch.undo()
        with Archive.open(path, writable=True) as writer:
            for index in range(2):
                writer.record_outcome(completed_block(index, blocks[1], second))
        return parts

    monkeypatch.setattr(Archive, "_read_parts", record_after)
    found = client.items("live.sqlite", 0)
    texts = [item.text for item in found.tasks[0].items]
    assert len(texts) == len(first["gsm8k"])
    assert all(text.startswith("answer 0") for text in texts)
    assert len(client.items("live.sqlite", 0).tasks[0].items) == 7


def test_comparison_takes_a_split_that_both_have(client):
    assert client.compare("done", 1, 2).split == "search"
    with pytest.raises(ServiceRefusedError, match="no items of the report split") as refused:
        client.compare("done", 1, 2, split="report")
    assert refused.value.status == 409


def test_comparison_with_itself_has_no_difference(client):
    found = client.compare("done", 1, 1)
    assert (found.preferred.mean, found.preferred.p_value) == (0.0, 1.0)
    assert found.preferred.sigmas == 0.0


def test_events_tell_what_is_recorded_from_where_the_watcher_stands(client):
    events = list(client.follow("done", after=3))
    assert [name for name, _ in events] == ["status", "candidate", "candidate"]
    assert events[0][1]["state"] == "finished"
    assert [content["index"] for _, content in events[1:]] == [3, 4]


def test_events_number_candidates_so_that_browsers_can_go_on(as_program):
    answer = as_program.get("/api/v1/searches/done/events", headers={"Last-Event-ID": "4"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "id: 5\nevent: candidate\n" in answer.text
    assert "id: 4\n" not in answer.text


def test_events_are_limited_in_number(settings):
    app = create_app(settings(max_streams=1, stream_s=600.0), TOKEN)
    url, headers = "/api/v1/searches/done/events", {"Authorization": f"Bearer {TOKEN}"}

    with TestClient(app, base_url=URL) as http, ThreadPoolExecutor() as pool:
        first = pool.submit(http.get, url, headers=headers)
        while not has_all_streams(app):
            assert not first.done(), "the first stream ended before it was counted"
            time.sleep(0.01)
        refused = http.get(url, headers=headers)
        # The stream of a search ends with it.
        ServiceClient(URL, TOKEN, http=http).delete("done")
        assert first.result().status_code == 200
        assert not has_all_streams(app)
    assert refused.status_code == 429
    assert refused.json()["error"]["kind"] == "busy"


def test_what_is_recorded_later_is_seen(client, archives):
    from tests.unit.optimizer.synthetic_archive import CHECKPOINTS, _outcome

    before = client.search("done").revision
    assert len(client.front("done").front) == 2
    with Archive.open(archives / "done" / "archive.sqlite", writable=True) as archive:
        first = archive.candidate(1)
        recipe = archive.candidate(2).recipe.model_copy(update={"mask_seed": 7})
        archive.record_proposal(dataclasses.replace(first, index=5, recipe=recipe, seen=5))
        archive.record_outcome(_outcome(archive.job, 5, "search", (1.0,) * len(CHECKPOINTS)))
    assert client.search("done").revision != before
    assert [row.index for row in client.front("done").front] == [5]


def test_table_is_of_the_belief_that_it_says_when_a_stop_changes_no_outcome(client, archives):
    path = build_large(archives / "live.sqlite", 40, 30)
    client.front("live.sqlite")
    with Archive.open(path, writable=True) as archive:
        weights = [[0.6], [0.6], [0.6]]
        space = recorded_space(archive)
        recipe = space.recipe(weights, [[0.1]] * 3)
        genotype = space.encode(recipe.weights, recipe.drop_ratios)
        archive.record_proposal(Candidate(40, genotype, recipe, "strategy:cma", seen=40))
        estimates = {name: ObjectiveScore(0.05, 0.01, 10) for name in NAMES}
        archive.record_stops({40: Stop(reason="racing", scores=estimates, numbers={})})
        expected = [row.posterior for row in believed_candidates(archive)]
    assert client.candidates("live.sqlite").total == 41  # of the belief from before the stop
    found = client.points("live.sqlite", fresh=True)
    assert found.belief.state == "current"
    for rows in (found.posterior[:40], client.points("live.sqlite").posterior[:40]):
        assert np.array(rows) == pytest.approx(
            np.array([[score.value for score in row.values()] for row in expected]), abs=1e-9
        )


def test_posterior_that_fails_is_not_tried_again_at_once(settings, archives, monkeypatch):
    build_large(archives / "live.sqlite", 40, 30)
    tries = []

    def fail(archive):
        tries.append(archive)
        raise RuntimeError("no posterior")

    monkeypatch.setattr("optimizer.service.beliefs.believed_candidates", fail)
    app = create_app(settings(), TOKEN)
    with TestClient(app, base_url=URL) as http:
        client = ServiceClient(URL, TOKEN, http=http)
        for _ in range(10):
            found = client.front("live.sqlite", fresh=False)
            assert found.belief.state == "pending"
            assert found.front
            time.sleep(0.02)
    assert len(tries) == 1


def test_answers_fit_together_while_a_search_records(client, archives):
    path = build_large(archives / "live.sqlite", 2, 30)
    with Archive.open(path) as archive:
        space = recorded_space(archive)

    def record() -> None:
        rng = np.random.default_rng(0)
        with Archive.open(path, writable=True) as archive:
            for index in range(2, 42):
                add_candidate(archive, space, index, rng)

    writer = threading.Thread(target=record)
    writer.start()
    seen = [2]
    while writer.is_alive():
        seen.append(client.candidates("live.sqlite").total)
        assert client.front("live.sqlite", fresh=False).front
        assert len(client.points("live.sqlite").index) >= seen[-1] - 1
    writer.join()
    assert seen == sorted(seen)
    assert client.candidates("live.sqlite").total == 42


def test_a_deleted_archive_is_not_read_any_further(client, archives):
    assert client.searches()
    client.delete("done")
    assert client.searches() == []
    assert list(archives.iterdir()) == []


def test_html_in_names_is_text_everywhere(as_program, archives):
    evil = "<script>alert(1)</script>"
    build(archives / "x.sqlite", [Merge((0, 0, 0), (0.5,) * 3)], name=evil)
    page = as_program.get("/searches/x.sqlite").text
    assert evil not in page
    assert "&lt;script&gt;" in page
    answer = as_program.get("/api/v1/searches")
    assert answer.headers["content-type"] == "application/json"
    assert evil in json.dumps(answer.json())
