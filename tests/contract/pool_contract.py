"""What every WorkerPool promises. Inherit, and provide a fixture ``pool``."""

from typing import ClassVar

import pytest

from tests.contract.light_runners import request
from workers.outcome import Completed, EvaluationKey, Failed, Stage
from workers.pool import WorkerPool


def drain(pool: WorkerPool) -> list:
    outcomes = []
    while pool.num_pending:
        outcome = pool.next_outcome(timeout_s=180)
        assert outcome is not None, f"no outcome within 180 s; {pool.worker_states()}"
        outcomes.append(outcome)
    return outcomes


def warm_up(pool: WorkerPool) -> None:
    """Wait until every worker is up, so that what follows is not mixed with starting."""
    while "starting" in pool.worker_states().values():
        pool.submit(request(0, "sleep 0.05"))
        drain(pool)


class PoolContract:
    interrupts: ClassVar[bool] = True
    """Whether next_outcome can give up waiting while an evaluation runs."""
    num_workers: ClassVar[int] = 2

    def test_pool_gives_one_outcome_per_request(self, pool):
        outcomes = []
        for candidate in range(7):
            if pool.num_free == 0:
                outcomes.append(pool.next_outcome())
            pool.submit(request(candidate))
        outcomes += drain(pool)
        assert sorted(outcome.key.candidate for outcome in outcomes) == list(range(7))
        assert all(isinstance(outcome, Completed) for outcome in outcomes)
        assert {outcome.attempt for outcome in outcomes} == {1}

    def test_pool_lets_its_runners_close(self, pool, tmp_path):
        marker = tmp_path / "closed"
        pool.submit(request(0, f"farewell {marker}"))
        drain(pool)
        assert not marker.exists()
        pool.close()
        assert marker.exists()

    def test_pool_bounds_what_is_in_flight(self, pool):
        assert pool.num_free == self.num_workers
        for candidate in range(self.num_workers):
            pool.submit(request(candidate))
            assert pool.num_pending == candidate + 1
            assert pool.num_free == self.num_workers - candidate - 1
        with pytest.raises(ValueError, match="no worker is free"):
            pool.submit(request(99))
        assert len(drain(pool)) == self.num_workers
        assert pool.num_free == self.num_workers

    def test_pool_refuses_to_wait_for_nothing(self, pool):
        with pytest.raises(ValueError, match="nothing is pending"):
            pool.next_outcome(timeout_s=0)

    def test_pool_returns_outcomes_in_finishing_order(self, pool):
        if self.num_workers < 2:
            pytest.skip("one worker has one order")
        warm_up(pool)
        pool.submit(request(2, "sleep 1.0"))
        pool.submit(request(3))
        assert [outcome.key.candidate for outcome in drain(pool)] == [3, 2]

    def test_pool_returns_none_when_the_time_is_up(self, pool):
        if not self.interrupts:
            pytest.skip("an evaluation in this process cannot be interrupted")
        pool.submit(request(0, "sleep 1.0"))
        assert pool.next_outcome(timeout_s=0) is None
        assert pool.next_outcome(timeout_s=0.2) is None
        assert pool.num_pending == 1
        assert [outcome.key.candidate for outcome in drain(pool)] == [0]

    def test_pool_scores_blocks_of_one_candidate_each_once(self, pool):
        requests = [request(0, items={"task": [item]}) for item in ("a", "b")]
        requests += [request(0), request(0, "raise no", items={"task": ("b", "a")})]
        outcomes = {}
        for one in requests:
            if pool.num_free == 0:
                outcome = pool.next_outcome()
                outcomes[outcome.key] = outcome
            pool.submit(one)
        outcomes |= {outcome.key: outcome for outcome in drain(pool)}
        assert outcomes.keys() == {one.key for one in requests}
        scored = [outcomes[one.key].task_scores["task"] for one in requests[:3]]
        assert [part.item_ids for part in scored] == [("a",), ("b",), ("a", "b")]
        assert isinstance(outcomes[requests[3].key], Failed)

    def test_pool_passes_a_failure_on(self, pool):
        pool.submit(request(0, "fail"))
        (outcome,) = drain(pool)
        assert isinstance(outcome, Failed)
        assert outcome.key == EvaluationKey(0, "search")
        assert (outcome.stage, outcome.error_class) == (Stage.EVALUATE, "EvaluationError")
        assert outcome.message == "logits are nan"

    def test_pool_turns_an_exception_of_the_runner_into_a_failure(self, pool):
        pool.submit(request(0, "raise disk on fire"))
        (outcome,) = drain(pool)
        assert isinstance(outcome, Failed)
        assert (outcome.stage, outcome.error_class) == (Stage.WORKER, "RuntimeError")
        assert outcome.message == "disk on fire"
        pool.submit(request(1))
        assert isinstance(drain(pool)[0], Completed), "the pool goes on after a failure"

    def test_pool_says_what_its_workers_do(self, pool):
        assert set(pool.worker_states().values()) <= {"starting", "idle"}
        pool.submit(request(0, "sleep 0.3"))
        drain(pool)
        states = pool.worker_states()
        assert len(states) == self.num_workers
        assert "idle" in states.values()

    def test_pool_forgets_what_is_pending_when_closed(self, pool):
        pool.submit(request(0, "sleep 30"))
        pool.close()
        assert pool.num_pending == 0
        pool.close()
