"""Searches of scripted pools that begin with what another one learnt."""

from pathlib import Path

from configs.schema import JobConfig
from optimizer.archive.seeds import WarmStart
from optimizer.space import SearchSpace
from optimizer.warm_start import warm_start_from
from scripts.bench.scripted import NAMES
from tests.fault import scripted_search
from workers.sources import ResolvedSource, Sources


def job_with(path: Path, checkpoints=NAMES, **changes) -> JobConfig:
    models = {"base": "zoo/base", "checkpoints": {name: f"zoo/{name}" for name in checkpoints}}
    return scripted_search.make_job(path, models=models, **changes)


def sources_of(checkpoints=NAMES) -> Sources:
    def resolved(name: str) -> ResolvedSource:
        return ResolvedSource(name, Path("zoo") / name, digest=name * 4)

    return Sources(resolved("base"), tuple(resolved(name) for name in checkpoints))


def start(old, tmp_path, checkpoints=NAMES, manifest=None, **changes) -> WarmStart:
    job = job_with(tmp_path / "new.sqlite", checkpoints, **changes)
    space = SearchSpace(job, sources_of(checkpoints))
    return warm_start_from(old, job, space, manifest or scripted_search.make_manifest())
