"""The accounting of the fault campaign notices what it is there for, on doctored archives."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.space import SearchSpace
from scripts.bench import faults
from scripts.bench.fault_account import Account, Witness, account_for, snapshot_of
from scripts.bench.fault_lives import Fared
from scripts.bench.fault_runner import Begun, expected_error
from scripts.bench.fault_search import Settings, fault_job, open_or_create
from tests.fault.scripted_pool import ScriptedPool
from workers.outcome import Failed, Stage


class FailingPool(ScriptedPool):
    """Fails what the campaign's workers would fail."""

    def __init__(self, job, manifest):
        super().__init__(job, manifest)
        self.requests = {}

    def submit(self, request):
        self.requests[request.key] = request
        super().submit(request)

    def next_outcome(self, timeout_s=None):
        outcome = super().next_outcome(timeout_s)
        error = expected_error(self._job.seed, self.requests[outcome.key])
        if not error:
            return outcome
        return Failed(
            key=outcome.key, attempt=1, worker="scripted", stage=Stage.WORKER,
            error_class=error, message="on purpose",
        )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search that nothing has disturbed, and what was seen of it."""
    path = tmp_path_factory.mktemp("account") / "search.sqlite"
    settings = Settings(str(path), "", "127.0.0.1:1", "racing", seed=5, life=1)
    with open_or_create(fault_job(settings)) as archive:
        pool = FailingPool(archive.job, archive.manifest)
        run_search(archive, pool, SearchSpace(archive.job, archive.sources))
        recorded = archive.evaluations()
        seen = Witness(
            recorded={outcome.key for outcome in recorded},
            told=[observation.candidate.index for observation in archive.observations()],
            begun=[Begun(outcome.key, 1, 1, "scripted", 1, "") for outcome in recorded],
        )
    return path, seen


@pytest.fixture
def search(finished, tmp_path):
    path, seen = finished
    copy = Witness(set(seen.recorded), list(seen.told), list(seen.begun), {})
    return shutil.copy(path, tmp_path / "search.sqlite"), copy


def doctor(path, *statements, **values):
    with closing(sqlite3.connect(path)) as file, file:
        triggers = file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            file.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert file.execute(statement, values).rowcount != 0, "nothing was changed"


def last_of(path, split):
    """Return the last that was scored on the whole split at once."""
    with Archive.open(path) as archive:
        return archive.outcomes(split)[-1].key


def test_sound_search_has_nothing_to_account_for(search):
    assert account_for(*search) == Account()


@pytest.mark.parametrize("split", ["search", "report"])
def test_lost_outcome_is_noticed_when_nobody_saw_it(search, split):
    path, seen = search
    key = last_of(path, split)
    doctor(
        path,
        "DELETE FROM outcomes WHERE candidate = :candidate AND split = :split",
        candidate=key.candidate,
        split=split,
    )
    seen.recorded.clear()
    account = account_for(path, seen)
    assert any(f"candidate {key.candidate} has no outcome" in text for text in account.lost)


def test_lost_outcome_is_noticed_when_the_driver_had_said_that_it_was_recorded(search):
    path, seen = search
    seen.recorded.add(replace(last_of(path, "report"), split="select", candidate=0))
    assert any("was recorded, and is not there" in text for text in account_for(path, seen).lost)


def test_record_that_changed_between_lives_is_noticed(search):
    path, seen = search
    before = snapshot_of(path)
    seen.before[1] = replace(before, evaluations=before.evaluations[1:])
    assert account_for(path, seen).lost == [
        f"after life 1 the first {len(before.evaluations) - 1} evaluations are not what they were"
    ]


def test_second_outcome_of_an_evaluation_is_noticed(search):
    path, seen = search
    key = last_of(path, "report")
    doctor(
        path,
        # A table without the constraints that would refuse it.
        "CREATE TABLE loose AS SELECT * FROM outcomes",
        "DROP TABLE outcomes",
        "ALTER TABLE loose RENAME TO outcomes",
        "INSERT INTO outcomes SELECT * FROM outcomes "
        "WHERE split = 'report' AND candidate = :candidate",
        candidate=key.candidate,
    )
    assert any("has 2 outcomes" in text for text in account_for(path, seen).duplicates)


def test_candidate_that_is_told_twice_is_noticed(search):
    path, seen = search
    seen.told.append(7)
    assert account_for(path, seen).duplicates == ["candidate 7 was told 2 times"]


def test_outcome_of_an_attempt_that_was_given_up_is_noticed(search):
    path, seen = search
    key = last_of(path, "report")
    seen.begun = [*seen.begun, Begun(key, 2, 1, "another", 2, "")]
    (text,) = account_for(path, seen).duplicates
    assert "has the outcome of attempt 1, which was given up" in text
    # Attempts are counted anew by the next driver.
    seen.begun = [*seen.begun[:-1], Begun(key, 2, 2, "another", 2, "")]
    assert account_for(path, seen).duplicates == []


def test_evaluation_that_is_run_again_is_a_wrong_resume(search):
    path, seen = search
    seen.before[2] = snapshot_of(path)
    key = last_of(path, "select")
    seen.begun = [*seen.begun, Begun(key, 1, 2, "another", 2, "")]
    assert account_for(path, seen).wrong_resumes == [f"{key} was run again in life 2"]


def test_ask_that_comes_out_differently_is_a_wrong_resume(search):
    path, seen = search
    doctor(
        path,
        "UPDATE proposals SET genotype_f64 = "
        "(SELECT genotype_f64 FROM proposals WHERE candidate = 0) "
        "WHERE candidate = (SELECT MAX(candidate) FROM proposals WHERE origin LIKE 'strategy%')",
    )
    found = account_for(path, seen).wrong_resumes
    assert any("another ask than recorded" in text for text in found)


def test_scores_that_are_not_those_of_their_recipe_are_a_wrong_resume(search):
    path, seen = search
    doctor(path, "UPDATE objective_scores SET value = value + 0.1 WHERE split = 'report'")
    assert any(", expected " in text for text in account_for(path, seen).wrong_resumes)


@pytest.mark.slow
def test_failure_that_nothing_provoked_is_a_wrong_resume(search):
    path, seen = search
    key = last_of(path, "report")
    doctor(
        path,
        "UPDATE outcomes SET status = 'failed', stage = 'worker', message = 'gone', "
        "error_class = 'WorkerLostError' WHERE split = 'report' AND candidate = :candidate",
        "DELETE FROM objective_scores WHERE split = 'report' AND candidate = :candidate",
        "DELETE FROM item_scores WHERE split = 'report' AND candidate = :candidate",
        candidate=key.candidate,
    )
    found = account_for(path, seen).wrong_resumes
    assert any("ended with WorkerLostError, expected None" in text for text in found)


def test_report_counts_what_searches_say():
    fared = [Fared("cma", lives=2), Fared("racing", lives=3)]
    fared[0].faults.update(["worker_killed", "worker_killed", "disk_full"])
    fared[1].faults.update(["worker_killed"])
    # Whatever has not struck is missing, but for what this machine cannot do.
    left_out = dict.fromkeys(faults.INNER, "not here") | {"head_killed": "no hosts"}
    missing = set(faults.PACK) - {"worker_killed", "disk_full", "head_killed"}
    assert set(faults.report_of(fared, left_out)["missing_kinds"]) == missing
    assert not faults.is_clean(faults.report_of(fared, left_out))
    fared[1].faults.update([*missing, *left_out])
    assert faults.is_clean(faults.report_of(fared, {}))
    for kind in (*missing, *left_out):
        del fared[1].faults[kind]
    report = faults.report_of(fared, {})
    assert (report["faults"], report["by_kind"]) == (4, {"disk_full": 1, "worker_killed": 3})
    assert (report["searches"], report["lives"]) == (2, 5)
    fared[0].account.lost.append("one")
    fared[1].account.duplicates += ["two", "three"]
    fared[1].hangs.append("four")
    report = faults.report_of(fared, {})
    keys = ("lost", "duplicates", "wrong_resumes", "hangs", "unexpected_ends")
    assert [report[key] for key in keys] == [1, 2, 0, 1, 0]
    assert not faults.is_clean(report)


def test_deck_holds_every_kind_and_none_that_this_machine_cannot_do():
    rng = faults.random.Random(0)
    assert set(faults.shuffled_deck(rng, ())) == set(faults.PACK)
    assert set(faults.PACK) - set(faults.shuffled_deck(rng, {"disk_full"})) == {"disk_full"}
