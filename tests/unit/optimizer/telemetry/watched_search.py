"""A whole search on the scripted pool, with the telemetry that its job asks for."""

from pathlib import Path

from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.events import ignore_event
from optimizer.space import SearchSpace
from optimizer.telemetry.telemetry import telemetry_of
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool


class KeptMeters:
    """Keeps the sum of what was recorded, or the last value of gauges, by name and tags."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def record(self, name, value, tags=None):
        key = (name, *(tags or {}).values())
        before = self.values.get(key, 0.0) if name.endswith("_total") else 0.0
        self.values[key] = before + value

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        return {key[1:]: value for key, value in self.values.items() if key[0] == name}


def run_watched(
    path: Path,
    telemetry: dict[str, object],
    *,
    meters: KeptMeters | None = None,
    view=ignore_event,
    pool_type=ScriptedPool,
    **changes: object,
) -> None:
    """Begin the search of an archive, or go on with it, to its end."""
    settings = {"metrics": meters is not None} | telemetry
    changes = {"budget": {"evaluations": 24}, "validation": {"candidates": 3}} | changes
    job = scripted_search.make_job(path, telemetry=settings, **changes)
    manifest, sources = scripted_search.make_manifest(), scripted_search.make_sources()
    if path.exists():
        archive = Archive.open(path, writable=True)
    else:
        archive = Archive.create(path, job=job, job_path=None, sources=sources, manifest=manifest)
    with (
        archive,
        scripted_search.with_strategies(),
        telemetry_of(archive, job, lambda: meters) as watched,
        pool_type(job, manifest) as pool,
    ):
        space = SearchSpace(archive.job, archive.sources)
        run_search(archive, pool, space, job=job, on_event=watched.beside(view))
        watched.note("report", "all is well")
