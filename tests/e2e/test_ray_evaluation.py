"""Real runners in real Ray workers: the bits of an evaluation do not depend on where it runs."""

import os
import signal

import numpy as np
import pytest

from tests.contract.pool_contract import drain
from workers.outcome import Completed, EvaluationKey, EvaluationRequest

pytestmark = pytest.mark.slow


@pytest.fixture
def spec(tiny_job):
    from evaluators.harness_suite import build_manifest
    from workers.job import WorkerSpec
    from workers.sources import resolve_sources

    job = tiny_job(workers={"count": 2, "cpus": 0.5, "threads": 1})
    return WorkerSpec(
        job, resolve_sources(job.models), build_manifest(job.objectives, job.evaluation)
    )


@pytest.fixture
def requests(spec):
    from optimizer.space import SearchSpace

    space = SearchSpace(spec.job, spec.sources)
    genotypes = np.random.default_rng(0).random((5, space.size))
    return [
        EvaluationRequest(EvaluationKey(index, "search"), space.decode(genotype))
        for index, genotype in enumerate(genotypes)
    ]


def as_text(outcome):
    assert isinstance(outcome, Completed), outcome
    scores = {task: part.values.tolist() for task, part in outcome.task_scores.items()}
    return outcome.key.candidate, outcome.weights_digest, scores, outcome.texts


def test_ray_workers_give_the_outcomes_of_this_process_even_when_one_is_killed(
    spec, requests, local_ray
):
    from workers.job import JobRunner
    from workers.ray_pool import RayPool

    local = JobRunner(spec, "local")
    expected = [as_text(local.run(request)) for request in requests]
    outcomes = []
    with RayPool(spec) as pool:
        for request in requests:
            if pool.num_free == 0:
                outcomes.append(pool.next_outcome())
            if len(outcomes) == 2:
                os.kill(next(iter(pool.worker_pids().values())), signal.SIGKILL)
            pool.submit(request)
        outcomes += drain(pool)
    assert sorted(map(as_text, outcomes)) == expected
