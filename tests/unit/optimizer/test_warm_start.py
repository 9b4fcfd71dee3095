"""Searches that begin with what another one learnt: what is taken, what not, and exact resumes."""

import dataclasses
import json

import numpy as np
import pytest

from configs.errors import ArchiveError
from configs.evaluation import SPLITS
from configs.schema import Models
from evaluators.manifest import Manifest
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.report.report import report_of, report_record
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from optimizer.stopped import num_evaluated
from optimizer.strategies.cma import CmaStrategy
from optimizer.strategies.registry import STRATEGIES
from optimizer.warm_start import describe, warm_start_from
from scripts.bench.scripted import NAMES
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool
from tests.unit.optimizer import synthetic_archive
from tests.unit.optimizer.report.test_report import text_of
from tests.unit.optimizer.warm_starts import job_with, sources_of, start
from workers.sources import Sources

pytestmark = pytest.mark.slow  # whole searches


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("old") / "old.sqlite"
    scripted_search.run(path, budget={"evaluations": 40})
    with Archive.open(path) as archive:
        yield archive


def other_items(**counts: int) -> Manifest:
    """A manifest whose search items are others: so many of the old ones are still there."""
    manifest = scripted_search.make_manifest()
    splits = {split: dict(manifest.items(split)) for split in SPLITS}
    for name in NAMES:
        task = f"zoo_{name}"
        kept = splits["search"][task][: counts.get(name, 0)]
        splits["search"][task] = (*kept, *(f"new-{name}-{i}" for i in range(24 - len(kept))))
    return dataclasses.replace(manifest, splits=splits)


def scored(old) -> int:
    own = [s for s in old.observations() if s.candidate.recipe.method == "dare_linear"]
    return sum(s.scores is not None for s in own)


def test_new_checkpoint_has_weight_zero_and_scores_are_exact(old, tmp_path):
    found = start(old, tmp_path, (*NAMES, "poet"))
    assert len(found.seeds) == scored(old)
    for seed in found.seeds:
        candidate = seed.observation.candidate
        before = old.candidate(seed.source).recipe
        assert candidate.recipe.weights == (*before.weights, (0.0,))
        assert seed.is_exact
        assert seed.observation.scores == old.scores("search")[seed.source]
        assert candidate.origin == f"seed:{old.candidate(seed.source).origin}"
    indices = [seed.observation.candidate.index for seed in found.seeds]
    assert indices == [-1 - number for number in range(len(indices))]


def test_order_of_checkpoints_may_change(old, tmp_path):
    found = start(old, tmp_path, ("math", "instruct", "code"))
    for seed in found.seeds:
        before = old.candidate(seed.source).recipe.weights
        assert seed.observation.candidate.recipe.weights == (before[2], before[0], before[1])


def test_removed_checkpoint_leaves_out_what_it_took_part_in(old, tmp_path):
    found = start(old, tmp_path, ("instruct", "math"))
    assert 0 < len(found.seeds) < scored(old)
    for seed in found.seeds:
        recipe = old.candidate(seed.source).recipe
        total = sum(abs(row[0]) for row in recipe.weights)
        assert abs(recipe.weights[1][0]) <= 0.02 * total
        assert seed.is_exact == (recipe.weights[1][0] == 0.0)
    reason = "checkpoint code takes part, which is not in the pool now"
    assert found.left_out[reason] == scored(old) - len(found.seeds)
    assert sum(found.left_out.values()) + len(found.seeds) == len(old.observations())


def test_removed_checkpoint_with_hardly_any_weight_makes_it_nearly_the_same_merge(tmp_path):
    merges = [
        synthetic_archive.Merge((1.0, 0.01, 0.5), (0.5, 0.5, 0.5)),
        synthetic_archive.Merge((1.0, 0.1, 0.5), (0.5, 0.5, 0.5)),
        synthetic_archive.Merge((1.0, 0.0, 0.5), (0.5, 0.5, 0.5)),
    ]
    with Archive.open(synthetic_archive.build(tmp_path / "old.sqlite", merges)) as archive:
        whole = archive.sources
        rest = Sources(whole.base, (whole.checkpoints[0], whole.checkpoints[2]))
        models = {"base": "/models/base", "checkpoints": {n: n for n in ("instruct", "math")}}
        job = archive.job.model_copy(update={"models": Models.model_validate(models)})
        space = SearchSpace(job, rest)
        found = warm_start_from(archive, job, space, archive.manifest)
    assert [(seed.source, seed.is_exact) for seed in found.seeds] == [(0, False), (2, True)]
    near, same = (seed.observation.scores["math"] for seed in found.seeds)
    assert near.stderr == pytest.approx(same.stderr * np.sqrt(2))
    assert found.seeds[0].observation.candidate.recipe.weights == ((1.0,), (0.5,))


def test_other_methods_and_failures_are_counted_with_their_reason(old, tmp_path):
    found = start(old, tmp_path)
    assert found.left_out["another method, or other options of it"] == 3  # and delta-guided
    failed = sum(seen.scores is None for seen in old.observations())
    assert found.left_out.get("it failed", 0) == failed
    lines = describe(found)
    assert f"{len(found.seeds)} outcomes of" in lines[0]
    assert "3 are not used: another method, or other options of it" in lines


def test_other_items_make_scores_noisier(old, tmp_path):
    found = start(old, tmp_path, manifest=other_items())
    assert found.seeds
    for seed in found.seeds:
        before = old.scores("search")[seed.source]
        assert not seed.is_exact
        for name, score in seed.observation.scores.items():
            # The old search items, and the old held-out ones are held out still.
            assert score.value == before[name].value
            assert score.stderr == pytest.approx(before[name].stderr * np.sqrt(2))
            assert score.count == 12


def test_items_that_are_held_out_now_are_not_used(old, tmp_path):
    manifest = scripted_search.make_manifest()
    task = "zoo_math"
    splits = {split: dict(manifest.items(split)) for split in SPLITS}
    searched = splits["search"][task]
    splits["report"][task] = searched[:20]
    splits["search"][task] = (*searched[20:], *(f"new-{i}" for i in range(20)))
    found = start(old, tmp_path, manifest=dataclasses.replace(manifest, splits=splits))
    checked = 0
    for seed in found.seeds:
        if seed.source in old.scores("select") or seed.source in old.scores("report"):
            continue
        values = old.task_scores(seed.source, "search")[task].values
        assert seed.observation.scores["math"].value == pytest.approx(values[20:].mean())
        checked += values[20:].mean() != values.mean()
    assert checked >= 3


def test_more_search_items_of_the_same_task_are_no_exact_scores(old, tmp_path):
    found = start(old, tmp_path, manifest=other_items(instruct=24, code=24, math=12))
    assert not any(seed.is_exact for seed in found.seeds)


def test_task_that_means_something_else_leaves_everything_out(old, tmp_path):
    manifest = scripted_search.make_manifest()
    hashes = {**manifest.task_hashes, "zoo_math": "1" * 16}
    found = start(old, tmp_path, manifest=dataclasses.replace(manifest, task_hashes=hashes))
    assert found.seeds == ()
    assert found.left_out == {"task zoo_math is defined otherwise now": len(old.observations())}


def test_another_mask_seed_is_nearly_the_same_merge(old, tmp_path):
    found = start(old, tmp_path, merge={"mask_seed": 7})
    assert not any(seed.is_exact for seed in found.seeds)
    seed = found.seeds[-1]
    before = old.scores("search")[seed.source]["math"]
    assert seed.observation.scores["math"].stderr == pytest.approx(before.stderr * np.sqrt(2))


def run(path, old, *, budget: int, checkpoints=(*NAMES, "poet"), strategy="cma", **changes):
    """Run a search of a pool with one more checkpoint from an archive, or go on with it."""
    job = job_with(
        path, checkpoints, budget={"evaluations": budget},
        search={"strategy": strategy, "population_size": 6}, **changes,
    )  # fmt: skip
    manifest = scripted_search.make_manifest()
    space = SearchSpace(job, sources_of(checkpoints))
    if path.exists():
        archive = Archive.open(path, writable=True)
    else:
        archive = Archive.create(
            path, job=job, job_path=None, sources=sources_of(checkpoints), manifest=manifest
        )
        archive.record_warm_start(warm_start_from(old, job, space, manifest))
    with archive, FourWayPool(job, manifest) as pool:
        return run_search(archive, pool, space, job=job)


class FourWayPool(ScriptedPool):
    """Scores as the other pool does, by the first three checkpoints, and may break down."""

    num_left = 10**6

    def next_outcome(self, timeout_s=None):
        self.num_left -= 1
        if self.num_left < 0:
            raise KeyboardInterrupt
        return super().next_outcome(timeout_s)

    def submit(self, request):
        recipe = request.recipe
        if len(recipe.weights) == 4:
            update = {
                "weights": recipe.weights[:3],
                "drop_ratios": recipe.drop_ratios[:3],
                "checkpoints": recipe.checkpoints[:3],
            }
            request = dataclasses.replace(request, recipe=recipe.model_copy(update=update))
        super().submit(request)


@pytest.mark.parametrize("kind", ["cma", "surrogate_cma", "screening"])
def test_seeded_search_resumes_and_replays_exactly(old, screened, tmp_path, kind, monkeypatch):
    budget, changes = 26, {"strategy": kind}
    if kind == "screening":
        old = screened
        changes = {"strategy": "surrogate_cma", "objectives": scripted_search.COMPANIONS}
    whole, halves = tmp_path / "whole.sqlite", tmp_path / "halves.sqlite"
    run(whole, old, budget=budget, **changes)
    with Archive.open(whole) as archive:
        space = SearchSpace(archive.job, archive.sources)
        assert verify_replay(archive, space) == []
        assert num_evaluated(archive) == budget
        assert any(seed.companions for seed in archive.seeds()) == (kind == "screening")
        known = len(archive.seeds())
        own = [c for c in archive.candidates() if not c.is_baseline]
        assert own
        assert all(c.seen >= known for c in archive.candidates())
        assert not any(c.origin.startswith("seed:") for c in archive.candidates())
        every = [c.genotype.tolist() for c in archive.candidates()]
    with monkeypatch.context() as patch:
        patch.setattr(FourWayPool, "num_left", 17)
        with pytest.raises(KeyboardInterrupt):
            run(halves, old, budget=budget, **changes)
    run(halves, old, budget=budget, **changes)
    with Archive.open(halves) as archive:
        assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []
        assert [c.genotype.tolist() for c in archive.candidates()] == every


def test_seeds_are_told_first(old, tmp_path, monkeypatch):
    told = []

    class Listening:
        def __init__(self, job, space):
            self._strategy = CmaStrategy(job, space)

        def ask(self, index, pending):
            return self._strategy.ask(index, pending)

        def tell(self, observation):
            told.append(observation.candidate.index)
            self._strategy.tell(observation)

        def stop(self):
            return {}

    monkeypatch.setitem(STRATEGIES, "cma", Listening)
    run(tmp_path / "new.sqlite", old, budget=24)
    with Archive.open(tmp_path / "new.sqlite") as archive:
        count = len(archive.seeds())
    assert told[:count] == [-1 - number for number in range(count)]
    assert min(told[count:]) >= 0
    assert len(told) == count + 24


def test_report_says_what_the_search_began_with(old, tmp_path):
    path = tmp_path / "new.sqlite"
    run(path, old, budget=24)
    with Archive.open(path) as archive:
        report = report_of(archive)
        assert report.num_outcomes == 24
        found = archive.warm_start()
    text = text_of(report)
    assert f"{len(found.seeds)} outcomes of" in text
    assert "Warm start" in text
    record = json.loads(json.dumps(report_record(report), allow_nan=False))["warm_start"]
    assert record["used"] == record["exact"] == len(found.seeds)
    assert record["left_out"] == dict(found.left_out)


def test_recorded_warm_start_is_read_back_as_it_was(old, tmp_path):
    found = start(old, tmp_path, ("instruct", "math"))
    path = tmp_path / "new.sqlite"
    job = job_with(path, ("instruct", "math"))
    arguments = {"job": job, "job_path": None, "sources": sources_of(("instruct", "math"))}
    manifest = scripted_search.make_manifest()
    with Archive.create(path, manifest=manifest, **arguments) as archive:
        archive.record_warm_start(found)
        with pytest.raises(ArchiveError, match="has begun already"):
            archive.record_warm_start(found)
    with Archive.open(path) as archive:
        again = archive.warm_start()
    assert (again.archive, again.left_out) == (found.archive, found.left_out)
    for one, other in zip(again.seeds, found.seeds, strict=True):
        assert (one.source, one.is_exact) == (other.source, other.is_exact)
        assert one.observation.scores == other.observation.scores
        assert one.observation.candidate.same_proposal(other.observation.candidate)
