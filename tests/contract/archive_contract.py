"""What every archive must do, as tests that each place to keep one inherits.

Outcomes have a contract of their own in ``archive_outcome_contract``, blocks in
``archive_block_contract``; a place to keep archives inherits all three.
"""

import dataclasses
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack
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
from optimizer.archive.archive import Archive
from optimizer.archive.migrations import schema_version
from optimizer.archive.schema import APPEND_ONLY
from optimizer.archive.seeds import Seed, WarmStart
from optimizer.archive.stops import Stop
from optimizer.candidate import Observation
from tests.contract.archive_examples import (
    CHECKPOINTS,
    TASKS,
    completed,
    example_archive,
    example_candidate,
    example_job,
    example_manifest,
    example_sources,
    item_ids,
    with_companion,
)
from workers.outcome import EvaluationKey
from workers.toll import Loss


class ArchiveContract:
    """Inherit and give the fixtures ``location`` and ``execute``."""

    @pytest.fixture
    def location(self, tmp_path: Path) -> Path | str:
        """Where an archive can be made; nothing is there yet."""
        raise NotImplementedError

    @pytest.fixture
    def execute(self, location: Path | str) -> Callable[[str], None]:
        """Run one SQL statement past the archive's own code."""
        raise NotImplementedError

    @pytest.fixture
    def create(self, location: Path):
        opened = []

        def create() -> Archive:
            archive = example_archive(location, Path("/jobs/example.yaml"))
            opened.append(archive)
            return archive

        yield create
        for archive in opened:
            archive.close()

    @pytest.fixture
    def open_reader(self, location):
        with ExitStack() as opened:
            yield lambda: opened.enter_context(Archive.open(location))

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

        with pytest.raises(
            SchemaVersionError, match=rf"schema {found}, .* reads {schema_version()}; .*7\.8\.9"
        ):
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

        with pytest.raises(ArchiveError, match=r"seen 2 finished candidates, but .* holds 1"):
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
        monkeypatch.setattr("optimizer.archive.archive.time.monotonic", lambda: clock[0])
        with create() as archive:
            archive.begin_run()
            clock[0] += 5.0
            archive.heartbeat()
            clock[0] += 2.0
            assert archive.elapsed_s == 7.0
            archive.heartbeat(every_s=2.5)
            with Archive.open(location) as reader:
                assert reader.elapsed_s == 5.0
            clock[0] += 0.5
            archive.heartbeat(every_s=2.5)
            with Archive.open(location) as reader:
                assert reader.elapsed_s == 7.5
            clock[0] += 1.0
            archive.record_proposal(example_candidate(0))
            archive.record_outcome(completed(0))  # counts as a heartbeat
            with Archive.open(location) as reader:
                assert reader.elapsed_s == 8.5
            clock[0] += 1.0
        clock[0] += 1000.0  # nobody was running
        with Archive.open(location, writable=True) as archive:
            assert archive.elapsed_s == 9.5
            archive.begin_run()
            clock[0] += 0.5
            assert archive.elapsed_s == 10.0

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

    def test_losses_of_workers_are_kept_in_their_order(self, archive, location) -> None:
        archive.record_proposal(example_candidate(0))
        block = archive.record_block("search", {"mbpp": item_ids("search", "mbpp")[:2]})
        key = EvaluationKey(0, "search", block)
        died = Loss(key, 1, "node", "WorkerLostError", "half \ud800 and \0")
        archive.record_loss(died)
        archive.record_loss(dataclasses.replace(died, is_forgiven=True))
        with pytest.raises(ArchiveError, match="no candidate 7"):
            archive.record_loss(dataclasses.replace(died, key=EvaluationKey(7, "search")))

        stored = dataclasses.replace(died, message="half \\ud800 and \\x00")
        with Archive.open(location) as reader:
            assert reader.losses() == [stored, dataclasses.replace(stored, is_forgiven=True)]
            assert reader.observations() == []
            with pytest.raises(ArchiveError, match="open for reading"):
                reader.record_loss(died)

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
        seed = dataclasses.replace(example_candidate(0), index=-1, origin="seed:strategy:cma")
        known = Observation(seed, {})
        with create() as archive:
            archive.record_warm_start(WarmStart("old", (Seed(known, 3, is_exact=True),), {}))
            archive.record_proposal(example_candidate(0))
            archive.record_outcome(with_companion(completed(0)))
            archive.record_block("search", {"mbpp": item_ids("search", "mbpp")[:2]})
            archive.record_choice(0, "only one")
            archive.record_proposal(example_candidate(1))
            archive.record_stops({1: Stop(reason="racing", scores={}, numbers={})})
            archive.record_loss(Loss(EvaluationKey(1, "search"), 1, "node", "Error", "it died"))

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
