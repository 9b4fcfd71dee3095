"""A search on three hosts while workers, nodes, links, its driver and the head fail.

After every fault: the search has ended by itself, every candidate has exactly one outcome, its
scores are those of its recipe, and every proposal is the one that an undisturbed search with the
same finishing order makes.
"""

import json
import queue
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from configs.evaluation import SPLITS
from optimizer.archive.archive import Archive
from optimizer.pareto import non_dominated
from optimizer.results.front_view import front_of, scored_candidates
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from scripts.bench.scripted import make_manifest, scripted_outcome
from tests.fault import cluster_search
from tests.fault.scripted_search import whole_request
from workers.outcome import Completed, EvaluationKey, EvaluationRequest

pytestmark = pytest.mark.campaign

LIMIT_S = 180
# How long a link is cut.
CUT_S = 30


class Search:
    """A search whose driver runs on the head, watched line by line."""

    def __init__(self, network, archive, **workers):
        self.archive = archive
        self._network, self._workers = network, workers
        self.driver = None
        self.start()

    def start(self):
        if self.driver is not None:
            self.kill()
        address = f"{self._network.head.address}:6379"
        settings = json.dumps({"address": address, **self._workers})
        self.driver = self._network.head.start(
            "python", "-m", "tests.fault.cluster_search", str(self.archive), settings
        )
        self._lines = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self.driver.stdout,))
        self._reader.start()

    def _read(self, stream):
        for line in stream:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, text, times=1):
        """Wait until a text was printed so often; returns the last line with it."""
        seen, end = [], time.monotonic() + LIMIT_S
        while sum(text in line for line in seen) < times:
            try:
                line = self._lines.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no `{text}` within {LIMIT_S} s: {seen}")
            if not line:
                pytest.fail(f"ended without `{text}`: {seen}\n{self.driver.stderr.read()}")
            seen.append(line)
        return seen[-1]

    def wait_until(self, happened):
        end = time.monotonic() + LIMIT_S
        while not happened():
            assert time.monotonic() < end, f"not within {LIMIT_S} s"
            time.sleep(0.2)

    def signal(self, number):
        """Send a signal to the driver, which `nsenter` has started."""
        if self.driver.poll() is None:
            for process in psutil.Process(self.driver.pid).children(recursive=True):
                process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.driver.wait()
        self._reader.join(timeout=10)
        self.driver.stdout.close()
        self.driver.stderr.close()

    @property
    def is_running(self):
        return self.driver.poll() is None

    def slow_down(self, **seconds):
        """Let evaluations that begin from now on take so much longer, by host."""
        # At once, since workers read it all the time.
        new = Path(f"{self.archive}.new")
        new.write_text(json.dumps(seconds))
        new.rename(f"{self.archive}.slow")

    def begun(self):
        return self._noted("begun")

    def ended(self):
        return self._noted("ended")

    def _noted(self, what):
        text = Path(f"{self.archive}.{what}").read_text()
        # A line may be half written.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def end(self):
        self.wait_for("ended: ")
        self.driver.wait(timeout=30)
        check_archive(self.archive)


def check_archive(path):
    """Compare an archive with what an undisturbed search records in the same finishing order."""
    with Archive.open(path) as archive:
        candidates = {one.index: one for one in archive.candidates()}
        searched = archive.outcomes("search")
        assert Counter(outcome.key.candidate for outcome in searched) == Counter(
            range(cluster_search.EVALUATIONS)
        )
        manifest = make_manifest()
        for split in SPLITS:
            keys = [outcome.key for outcome in archive.outcomes(split)]
            assert len(keys) == len(set(keys))
            for outcome in archive.outcomes(split):
                key = EvaluationKey(outcome.key.candidate, split)
                request = EvaluationRequest(key, candidates[key.candidate].recipe)
                expected = scripted_outcome(archive.job, manifest, request)
                assert (outcome.scores is not None) == isinstance(expected, Completed)
                if isinstance(expected, Completed):
                    means = {n: s.values.mean() for n, s in expected.task_scores.items()}
                    found = {f"zoo_{n}": s.value for n, s in outcome.scores.items()}
                    assert found == pytest.approx(means)
        assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []
        assert {row.candidate.index for row in front_of(scored_candidates(archive, "search"))} == (
            front_by_formula(archive, candidates.values())
        )
        assert archive.choice() in archive.scores("report")


def front_by_formula(archive, candidates):
    """The front of what the recipes score, without the archive's outcomes."""
    scores, indices, seen = [], [], set()
    for candidate in candidates:
        outcome = scripted_outcome(archive.job, archive.manifest, whole_request(candidate))
        recipe_id = candidate.recipe.recipe_id
        if isinstance(outcome, Completed) and recipe_id not in seen:
            seen.add(recipe_id)
            indices.append(candidate.index)
            scores.append([part.values.mean() for part in outcome.task_scores.values()])
    return {index for index, keep in zip(indices, non_dominated(scores), strict=True) if keep}


@pytest.fixture
def search(network, tmp_path):
    searches = []

    def start(**workers):
        network.turn_on()
        searches.append(Search(network, tmp_path / "archive.sqlite", **workers))
        return searches[-1]

    yield start
    for one in searches:
        one.kill()


def test_killed_worker_loses_nothing(network, search):
    running = search()
    running.wait_for("finished search", 8)
    assert network.hosts["one"].kill("ray::WorkerActor.run") >= 1
    running.end()
    begun = running.begun()
    assert {entry["host"] for entry in begun} == {"one", "two"}
    assert max(entry["attempt"] for entry in begun) == 2


def test_killed_raylet_loses_nothing_and_a_new_node_is_used(network, search):
    running = search()
    running.wait_for("finished search", 8)
    assert network.hosts["two"].kill("raylet/raylet") == 1
    running.slow_down(one=5, two=5)
    network.hosts["two"].turn_off()
    known = len(running.begun())
    network.turn_on()
    running.wait_until(lambda: "two" in {entry["host"] for entry in running.begun()[known:]})
    running.slow_down()
    running.end()


def test_node_that_is_cut_off_and_let_back_doubles_nothing(network, search):
    running, host = search(), network.hosts["one"]
    running.wait_for("finished search", 8)
    # Where it is cut off, evaluations take longer than it takes to see that, so that they begin
    # elsewhere before they are over; elsewhere so long that the search outlasts the cut.
    running.slow_down(one=CUT_S - 4, two=3)
    known = len(running.begun())
    running.wait_until(lambda: len(begun_on("one", running.begun()[known:])) == 2)
    cut_off = {attempt_of(entry) for entry in begun_on("one", running.begun()[known:])}
    again = {(candidate, attempt + 1) for candidate, attempt in cut_off}
    host.cut()
    cut_at = time.monotonic()
    try:
        running.wait_until(lambda: again <= {attempt_of(entry) for entry in running.begun()})
        time.sleep(max(0.0, cut_at + CUT_S - time.monotonic()))
    finally:
        host.mend()
    assert running.is_running
    with Archive.open(running.archive) as archive:
        at_mend = {outcome.key for outcome in archive.evaluations()}
    running.slow_down()
    # Whoever was cut off came to an end beside the replacement, and says so now.
    running.wait_until(lambda: cut_off <= {attempt_of(entry) for entry in running.ended()})
    replaced_at = {attempt_of(entry): entry["at"] for entry in running.begun()}
    stale = [entry for entry in running.ended() if attempt_of(entry) in cut_off]
    assert all(entry["at"] > replaced_at[entry["candidate"], 2] for entry in stale)
    # As whoever manages a cluster does: a node that was declared dead does not join by itself.
    running.wait_for("finished search", 2)
    host.turn_off()
    known = len(running.begun())
    network.turn_on()
    running.wait_until(lambda: "one" in {entry["host"] for entry in running.begun()[known:]})
    running.end()
    with Archive.open(running.archive) as archive:
        assert len(at_mend) < len(archive.evaluations())
        for entry in stale:
            outcome = archive.outcome(entry["candidate"], "search")
            assert outcome.attempt == 2
            assert not outcome.worker.endswith(f"@one:{entry['pid']}")


def begun_on(host, begun):
    return [entry for entry in begun if entry["host"] == host]


def attempt_of(entry):
    return entry["candidate"], entry["attempt"]


def test_killed_driver_goes_on_when_started_again(network, search):
    running = search()
    running.wait_for("finished search", 10)
    running.kill()
    running.start()
    running.end()


def test_terminated_driver_finishes_what_is_under_way(network, search):
    running = search(grace_s=15)
    running.wait_for("finished search", 6)
    running.signal(signal.SIGTERM)
    start = time.monotonic()
    running.wait_for("terminated")
    assert time.monotonic() - start < 15
    with Archive.open(running.archive) as archive:
        assert len(archive.outcomes("search")) < cluster_search.EVALUATIONS
        # One proposal is kept ready, which no worker was given.
        open_ = len(archive.candidates()) - len(archive.outcomes("search"))
        assert open_ <= 1
    running.driver.wait(timeout=20)
    running.start()
    running.end()


def test_head_that_alone_is_lost_is_joined_again_and_the_archive_goes_on(network, search):
    running = search()
    running.wait_for("finished search", 10)
    head, *nodes = network.hosts.values()
    head.turn_off()
    running.driver.wait(timeout=30)
    network.turn_on()
    # A head without its old state knows no node: `ray start --block` of each ends with that. Who
    # runs it starts it again: Kubernetes its pod, systemd its unit, SLURM its step.
    running.wait_until(lambda: all(node.has_ended for node in nodes))
    network.wait_until_started()
    known = len(running.begun())
    running.start()
    running.end()
    assert {entry["host"] for entry in running.begun()[known:]} == {"one", "two"}


def test_cluster_that_is_lost_is_replaced_and_the_archive_goes_on(network, search):
    running = search()
    running.wait_for("finished search", 10)
    for host in network.hosts.values():
        host.turn_off()
    running.driver.wait(timeout=30)
    network.turn_on()
    running.start()
    running.end()
