"""Models behind URLs, and models that every node finds for itself."""

import contextlib
import os
import re
import shutil
import sys
import threading
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from configs.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from configs.load import job_of
from configs.schema import Models
from tests.learned_merges import write_learned
from workers import fetched
from workers.column_coefficients import COEFFICIENTS_FILE
from workers.fetched import fetch
from workers.job import WorkerSpec
from workers.node_runner import on_this_node
from workers.sources import ResolvedSource, missing_directories, resolve_sources

ROOT = Path(__file__).parents[3]
PATTERNS = ("*.safetensors", "*.json")


@pytest.fixture
def bucket(tiny_pool, tmp_path, monkeypatch):
    """A checkpoint in a store of its own, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    root = f"memory://{tmp_path.name}/model"
    store.put(f"{tiny_pool.base}/", f"/{tmp_path.name}/model/", recursive=True)
    store.pipe(f"/{tmp_path.name}/model/code.py", b"raise SystemExit")
    store.pipe(f"/{tmp_path.name}/empty/readme.json", b"{}")
    yield root
    store.rm(f"/{tmp_path.name}", recursive=True)


def test_checkpoint_is_fetched_once(bucket, monkeypatch):
    first = fetch("base", bucket, PATTERNS)
    assert (first / "model.safetensors").is_file()
    assert not (first / "code.py").exists()
    monkeypatch.setattr(fetched, "_download", lambda *_: pytest.fail("fetched again"))
    assert fetch("base", bucket + "/", PATTERNS) == first


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_missing_package_of_a_store_is_told_with_its_extra(tiny_pool, monkeypatch, scheme, package):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    monkeypatch.setitem(sys.modules, package, None)
    models = Models.model_validate(
        {**tiny_pool.models, "base": f"{scheme}://bucket/{scheme}-{tiny_pool.base.parent.name}"}
    )
    with pytest.raises(CheckpointError, match=r"pip install 'mergefront\[\w+\]'") as error:
        resolve_sources(models)
    extra = re.search(r"mergefront\[(\w+)\]", str(error.value)).group(1)
    assert [re.match(r"\w+", wanted).group() for wanted in extras[extra]] == [package]


def test_workers_of_a_machine_wait_for_the_one_that_fetches(bucket, monkeypatch):
    calls = []
    download = fetched._download

    def counted(*arguments):
        calls.append(arguments)
        download(*arguments)

    monkeypatch.setattr(fetched, "_download", counted)
    threads = [threading.Thread(target=fetch, args=("base", bucket, PATTERNS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def leftover(place, age_s):
    """What a fetcher has of a checkpoint that showed its life last so long ago."""
    directory = place.with_name(f".{place.name}.partial-{int(age_s)}")
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"half")
    last = time.time() - age_s
    os.utime(directory, (last, last))
    return directory


def test_what_a_killed_process_left_is_fetched_again(bucket):
    place = fetch("base", bucket, PATTERNS)
    shutil.rmtree(place)
    dead, alive = leftover(place, 7200), leftover(place, 1800)
    assert fetch("base", bucket, PATTERNS) == place
    assert (place / "model.safetensors").stat().st_size > 1000
    assert not dead.exists()
    # Nobody can know whether it is that of another machine that fetches now.
    assert (alive / "model.safetensors").read_bytes() == b"half"


def test_machines_that_share_a_cache_do_not_disturb_each_other(bucket, monkeypatch):
    # Locks of one machine say nothing to another.
    monkeypatch.setattr(fetched, "machine_lock", lambda _: contextlib.nullcontext())
    both_began = threading.Barrier(2)
    store = fsspec.filesystem("memory")
    get_file, began = type(store).get_file, threading.local()
    # All readers of a file in memory move one position.
    one_reads = threading.Lock()

    def slow(self, *arguments, **options):
        if not hasattr(began, "is_set"):
            began.is_set = True
            both_began.wait(timeout=30)
        with one_reads:
            get_file(self, *arguments, **options)

    monkeypatch.setattr(type(store), "get_file", slow)
    places, errors = [], []

    def machine():
        try:
            places.append(fetch("base", bucket, PATTERNS))
        except CheckpointError as error:
            errors.append(error)

    threads = [threading.Thread(target=machine) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    place, again = places
    assert place == again
    assert (place / "model.safetensors").stat().st_size > 1000
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_fetcher_shows_that_it_lives(bucket, monkeypatch):
    monkeypatch.setattr(fetched, "_BEAT_S", 0.01)
    store = fsspec.filesystem("memory")
    get_file, ages = type(store).get_file, []

    def stalled(self, remote, local, **options):
        own = Path(local).parent
        get_file(self, remote, local, **options)
        os.utime(own, (0, 0))
        end = time.monotonic() + 30
        while own.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        ages.append(time.time() - own.stat().st_mtime)

    monkeypatch.setattr(type(store), "get_file", stalled)
    fetch("base", bucket, PATTERNS)
    assert ages
    assert max(ages) < 60


def test_file_that_did_not_arrive_whole_is_refused(bucket, monkeypatch):
    store = fsspec.filesystem("memory")
    get_file = type(store).get_file

    def cut(self, remote, local, **options):
        get_file(self, remote, local, **options)
        if local.endswith(".safetensors"):
            os.truncate(local, 100)

    monkeypatch.setattr(type(store), "get_file", cut)
    with pytest.raises(CheckpointError, match=r"model.safetensors: 100 bytes arrived of \d{4,}"):
        fetch("base", bucket, PATTERNS)
    monkeypatch.setattr(type(store), "get_file", get_file)
    assert (fetch("base", bucket, PATTERNS) / "model.safetensors").stat().st_size > 1000


def test_urls_without_weights_and_unknown_stores_are_named(bucket):
    with pytest.raises(
        CheckpointNotFoundError, match=r"`base`: memory://.*/empty holds no safeten"
    ):
        fetch("base", bucket.replace("/model", "/empty"), PATTERNS)
    with pytest.raises(CheckpointError, match="memory://nothing cannot be read: FileNotFoundError"):
        fetch("base", "memory://nothing", PATTERNS)
    with pytest.raises(CheckpointError, match="cannot be read: ValueError: Protocol not known"):
        fetch("base", "nosuch://bucket/model", PATTERNS)


def test_job_may_name_a_model_by_its_url(bucket, tiny_pool, tmp_path):
    content = {
        "models": {"base": bucket, "checkpoints": {"math": str(tiny_pool.checkpoints["math"])}},
        "objectives": {"skill": "task"},
        "archive": "a.sqlite",
    }
    job = job_of(content, directory=tmp_path)
    assert job.models.base.path == bucket
    sources = resolve_sources(job.models)
    direct = resolve_sources(Models.model_validate({**tiny_pool.models}))
    assert sources.base.digest == direct.base.digest
    assert missing_directories(job.models) == []


def test_missing_directories_are_named_but_no_hub_ids(tiny_pool, tmp_path):
    gone = str(tmp_path / "gone")
    models = {"base": str(tiny_pool.base), "checkpoints": {"here": "org/name", "gone": gone}}
    assert missing_directories(Models.model_validate(models)) == [("gone", gone)]


def test_node_of_a_cluster_must_have_the_same_tensors(tiny_job, tiny_pool, tmp_path):
    copy = Path(shutil.copytree(tiny_pool.base, tmp_path / "base"))
    job = tiny_job(
        models={**tiny_pool.models, "base": str(copy)}, workers={"address": "10.0.0.1:6379"}
    )
    sources = resolve_sources(job.models)
    spec = WorkerSpec(job=job, sources=sources, manifest=None)
    assert on_this_node(spec) == spec
    elsewhere = replace(sources, base=replace(sources.base, directory=Path("/of/the/head")))
    assert on_this_node(replace(spec, sources=elsewhere)).sources == sources
    shutil.copy(tiny_pool.checkpoints["math"] / "model.safetensors", copy)
    with pytest.raises(CorruptCheckpointError, match="`base` has other tensors on this node"):
        on_this_node(spec)


def test_node_of_a_cluster_must_have_the_same_coefficients(tiny_job, tiny_pool, tmp_path):
    home = tmp_path / "dam"
    sources = resolve_sources(tiny_job().models)
    recipe = write_learned(home, sources)
    job = tiny_job(workers={"address": "10.0.0.1:6379"}, baselines={"learned": str(home)})
    there = ResolvedSource("learned", Path("/of/the/head"), recipe.coefficients.digest)
    spec = WorkerSpec(job=job, sources=replace(sources, coefficients=(there,)), manifest=None)
    (found,) = on_this_node(spec).sources.coefficients
    assert (found.directory / COEFFICIENTS_FILE).is_file()
    # What is kept does not hide that the node's own directory holds something else.
    write_learned(home, sources, seed=1)
    with pytest.raises(CorruptCheckpointError, match="its coefficients have digest"):
        on_this_node(spec)
    # A job that does not name them any more has them from the search before.
    silent = replace(spec, job=job.model_copy(update={"baselines": {}}))
    assert on_this_node(silent).sources.coefficients == (found,)


def test_worker_on_the_machine_of_its_driver_looks_for_nothing(tiny_job):
    spec = WorkerSpec(job=tiny_job(), sources=None, manifest=None)
    assert on_this_node(spec) is spec
