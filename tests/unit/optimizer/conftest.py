from pathlib import Path

import pytest

from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.space import SearchSpace
from tests.fault import scripted_search
from workers.sources import ResolvedSource, Sources


@pytest.fixture
def make_job():
    def make(**changes) -> JobConfig:
        content = {
            "models": {
                "base": "zoo/base",
                "checkpoints": {name: f"zoo/{name}" for name in ("instruct", "code", "math")},
            },
            "objectives": {name: f"zoo_{name}" for name in ("instruct", "code", "math")},
            "archive": "archive.sqlite",
        }
        return JobConfig.model_validate(content | changes)

    return make


@pytest.fixture
def make_sources():
    def make(job: JobConfig) -> Sources:
        def resolved(name: str) -> ResolvedSource:
            return ResolvedSource(name, Path("zoo") / name, digest=name * 4)

        base = None if job.models.base is None else resolved("base")
        return Sources(base, tuple(resolved(name) for name in job.models.checkpoints))

    return make


@pytest.fixture
def make_space(make_sources):
    def make(job: JobConfig) -> SearchSpace:
        return SearchSpace(job, make_sources(job))

    return make


@pytest.fixture(scope="session")
def screened(tmp_path_factory):
    """A search with companions, most of whose candidates were only screened."""
    path = tmp_path_factory.mktemp("screened") / "old.sqlite"
    changes = scripted_search.SEARCHES["screening"]
    scripted_search.run(path, budget={"evaluations": 34}, **changes)
    with Archive.open(path) as archive:
        yield archive
