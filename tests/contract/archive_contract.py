"""What every archive must do, as tests that each place to keep one inherits."""

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import (
    ArchiveError,
    ArchiveExistsError,
    ArchiveLockedError,
    ArchiveNotFoundError,
    SchemaVersionError,
)
from configs.evaluation import SPLITS
from evaluators.scores import TaskScores, aggregate
from optimizer.archive import Archive
from optimizer.archive_schema import APPEND_ONLY
from tests.contract.archive_examples import (
    CHECKPOINTS,
    TASKS,
    completed,
    example_candidate,
    example_job,
    example_manifest,
    example_sources,
    failed,
    item_ids,
    with_companion,
)
from workers.outcome import Stage


class ArchiveContract:
    """Inherit and give the fixtures ``location`` and ``execute``."""

    @pytest.fixture
    def location(self, tmp_path: Path) -> Path:
        """Where an archive can be made; nothing is there yet."""
        raise NotImplementedError

    @pytest.fixture
    def execute(self, location: Path) -> Callable[[str], None]:
        """Run one SQL statement past the archive's own code."""
        raise NotImplementedError

    @pytest.fixture
    def create(self, location: Path):
        opened = []

        def create() -> Archive:
            archive = Archive.create(
                location,
                job=example_job(),
                job_path=Path("/jobs/example.yaml"),
                sources=example_sources(),
                manifest=example_manifest(),
            )
            opened.append(archive)
            return archive

        yield create
        for archive in opened:
            archive.close()

    @pytest.fixture
    def archive(self, create) -> Archive:
        return create()

    # What a search is

    def test_archive_gives_back_the_search_it_was_made_from(self, create, location) -> None:
        create().close()

        with Archive.open(location) as archive:
            assert archive.job == example_job()
            assert archive.job.digest == example_job().digest
            assert archive.job_path == Path("/jobs/example.yaml")
            assert archive.working_directory == Path.cwd()
            assert archive.sources == example_sources()
            assert archive.manifest == example_manifest()
            assert archive.candidates() == []
            assert archive.observations() == []
            assert archive.choice() is None
            assert archive.elapsed_s == 0.0

    def test_archive_keeps_the_order_of_checkpoints_and_objectives(self, create, location) -> None:
        create().close()

        with Archive.open(location) as archive:
            assert tuple(archive.job.models.checkpoints) == CHECKPOINTS
            assert list(archive.job.objectives) == ["math", "code", "instruct"]

    def test_create_refuses_when_there_is_an_archive(self, create, location) -> None:
        with create() as archive:
            archive.record_proposal(example_candidate(0))

        with pytest.raises(ArchiveExistsError, match=r"exists already.*mergefront resume"):
            create()
        with Archive.open(location) as archive:
            assert len(archive.candidates()) == 1

    @pytest.mark.parametrize("writable", [False, True])
    def test_open_says_so_when_there_is_nothing(self, location, writable) -> None:
        with pytest.raises(ArchiveNotFoundError, match=r"no archive at .*mergefront run"):
            Archive.open(location, writable=writable)

    @pytest.mark.parametrize("found", ["0", "99"])
    @pytest.mark.parametrize("writable", [False, True])
    def test_open_refuses_another_schema(self, create, location, execute, found, writable) -> None:
        create().close()
        execute(f"UPDATE meta SET value = '{found}' WHERE key = 'schema_version'")  # noqa: S608 - our own text
        execute("UPDATE meta SET value = '7.8.9' WHERE key = 'mergefront_version'")

        with pytest.raises(SchemaVersionError, match=rf"schema {found}, .* reads 2; .*7\.8\.9"):
            Archive.open(location, writable=writable)

    # Proposals

    def test_proposal_comes_back_bit_for_bit(self, archive, location) -> None:
        proposed = [
            example_candidate(0, origin="baseline:soup"),
            example_candidate(1),
            with_floats(example_candidate(2), [5e-324, math.nextafter(0.3, 1), 1e308, -1 / 3]),
        ]
        for candidate in proposed:
            archive.record_proposal(candidate)

        for opened in (archive, Archive.open(location)):
            with opened:
                for candidate, found in zip(proposed, opened.candidates(), strict=True):
                    assert found.same_proposal(candidate)
                    assert found.genotype.tobytes() == candidate.genotype.tobytes()
                    assert found.recipe == candidate.recipe
                    assert opened.candidate(candidate.index).same_proposal(candidate)

    @pytest.mark.parametrize("index", [0, 2, -1])
    def test_proposal_is_refused_when_it_is_not_the_next(self, archive, index) -> None:
        archive.record_proposal(example_candidate(0))

        with pytest.raises(ArchiveError, match=f"expects candidate 1 next, got {index}"):
            archive.record_proposal(dataclasses.replace(example_candidate(9), index=index))
        assert len(archive.candidates()) == 1

    def test_proposal_is_refused_when_it_has_seen_what_is_not_recorded(self, archive) -> None:
        archive.record_proposal(example_candidate(0))
        archive.record_outcome(completed(0))

        with pytest.raises(ArchiveError, match=r"seen 2 outcomes, but .* holds 1"):
            archive.record_proposal(example_candidate(1, seen=2))
        archive.record_proposal(example_candidate(1, seen=1))

    def test_pending_is_what_was_proposed_and_not_told(self, archive) -> None:
        for index in range(3):
            archive.record_proposal(example_candidate(index))
        for index in (2, 0):
            archive.record_outcome(completed(index))
        archive.record_outcome(completed(2, "select"))  # not told to a strategy
        archive.record_proposal(example_candidate(3, seen=1))
        archive.record_proposal(example_candidate(4, seen=2))

        found = [archive.pending(index) for index in range(5)]
        assert found == [(), (0,), (0, 1), (0, 1), (1, 3)]

    def test_candidate_is_refused_when_it_was_never_proposed(self, archive) -> None:
        archive.record_proposal(example_candidate(0))

        for index in (1, -1):
            with pytest.raises(ArchiveError, match=f"no candidate {index}; it holds 1"):
                archive.candidate(index)

    # Outcomes

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

    # Choice and time

    def test_choice_is_the_latest(self, archive, location) -> None:
        for index in range(2):
            archive.record_proposal(example_candidate(index))
        for index in (1, 0, 1):
            archive.record_choice(index, "best mean on select")
            with Archive.open(location) as reader:
                assert reader.choice() == index
        with pytest.raises(ArchiveError, match="no candidate 5"):
            archive.record_choice(5, "none")

    def test_time_adds_up_over_runs(self, create, location, monkeypatch) -> None:
        clock = [100.0]
        monkeypatch.setattr("optimizer.archive.time.monotonic", lambda: clock[0])
        with create() as archive:
            archive.begin_run()
            clock[0] += 5.0
            archive.heartbeat()
            clock[0] += 2.0
            assert archive.elapsed_s == 7.0
            with Archive.open(location) as reader:
                assert reader.elapsed_s == 5.0
            archive.record_proposal(example_candidate(0))
            archive.record_outcome(completed(0))  # counts as a heartbeat
            with Archive.open(location) as reader:
                assert reader.elapsed_s == 7.0
            clock[0] += 1.0
        clock[0] += 1000.0  # nobody was running
        with Archive.open(location, writable=True) as archive:
            assert archive.elapsed_s == 8.0
            archive.begin_run()
            clock[0] += 0.5
            assert archive.elapsed_s == 8.5

    def test_heartbeat_is_refused_when_no_run_began(self, archive) -> None:
        with pytest.raises(ValueError, match="begin_run first"):
            archive.heartbeat()

    # Who may read and write

    def test_reader_sees_every_outcome_as_soon_as_it_is_recorded(self, archive, location) -> None:
        with Archive.open(location) as watching:
            for index in range(5):
                archive.record_proposal(example_candidate(index))
                archive.record_outcome(completed(index))
                with Archive.open(location) as fresh:
                    for reader in (watching, fresh):
                        assert len(reader.candidates()) == index + 1
                        assert reader.scores("search") == archive.scores("search")
                        assert reader.task_scores(index, "search").keys() == set(TASKS)

    def test_reader_cannot_record(self, create, location) -> None:
        with create() as archive:
            archive.record_proposal(example_candidate(0))

        with Archive.open(location) as reader:
            assert not reader.writable
            for record in (
                lambda: reader.record_proposal(example_candidate(1)),
                lambda: reader.record_outcome(completed(0)),
                lambda: reader.record_choice(0, "rule"),
                reader.begin_run,
            ):
                with pytest.raises(ArchiveError, match="open for reading"):
                    record()
            assert len(reader.candidates()) == 1

    def test_second_writer_is_refused_while_the_first_has_it_open(self, create, location) -> None:
        with create() as archive:
            assert archive.writable
            with pytest.raises(
                ArchiveLockedError, match=r"being written by process \d+ on .* since"
            ):
                Archive.open(location, writable=True)
            with Archive.open(location) as reader:
                assert reader.candidates() == []
            archive.record_proposal(example_candidate(0))
        with Archive.open(location, writable=True) as second:
            second.record_outcome(completed(0))

    def test_threads_read_while_one_writes(self, archive, location) -> None:
        problems: list[BaseException] = []
        done = threading.Event()

        def watch(reader: Archive) -> None:
            try:
                while not done.is_set():
                    told = [outcome.key.candidate for outcome in reader.outcomes("search")]
                    assert told == list(range(len(told)))
                    for candidate in told[-1:]:
                        assert reader.task_scores(candidate, "search").keys() == set(TASKS)
            except BaseException as problem:  # noqa: BLE001 - asserted on below
                problems.append(problem)

        with Archive.open(location) as reader:
            threads = [
                threading.Thread(target=watch, args=(source,))
                for source in (archive, reader, reader)
            ]
            for thread in threads:
                thread.start()
            for index in range(30):
                archive.record_proposal(example_candidate(index))
                archive.record_outcome(completed(index))
            done.set()
            for thread in threads:
                thread.join()
            assert problems == []
            assert len(reader.outcomes("search")) == 30

    def test_closed_archive_is_refused(self, archive) -> None:
        archive.record_proposal(example_candidate(0))
        archive.close()
        archive.close()

        with pytest.raises(ArchiveError, match="was closed"):
            archive.record_outcome(completed(0))
        with pytest.raises(ArchiveError, match="was closed"):
            archive.candidates()

    # What is recorded stays

    @pytest.mark.parametrize("change", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}"])
    def test_recorded_rows_cannot_be_changed(self, create, execute, change) -> None:
        with create() as archive:
            archive.record_proposal(example_candidate(0))
            archive.record_outcome(with_companion(completed(0)))
            archive.record_block("search", {"mbpp": item_ids("search", "mbpp")[:2]})
            archive.record_choice(0, "only one")

        for table in APPEND_ONLY:
            with pytest.raises(Exception, match=f"{table.name} is append-only"):
                execute(change.format(table.name, table.columns.keys()[-1]))


def with_floats(candidate, floats):
    """The candidate with other genes and weights."""
    weights = tuple((value,) for value in floats)
    recipe = type(candidate.recipe).model_validate(
        candidate.recipe.model_dump() | {"weights": weights}
    )
    return dataclasses.replace(candidate, genotype=np.array(floats), recipe=recipe)


def with_level(outcome, level):
    """The outcome with this score on every item."""
    for part in outcome.task_scores.values():
        part.values[:] = level
    return outcome


def set_values(scores, task, values) -> None:
    scores[task] = TaskScores(task, scores[task].item_ids, np.array(values))
