"""Traces are kept by what they are of, and told by the code that made them."""

from scripts.bench.zoo_job import SPLITS
from scripts.bench.zoo_runs import Checkpoint, Trace
from scripts.bench.zoo_traces import TraceKey, TraceStore, code_version

KEY = TraceKey(pool="zoo3", rival="cma", seed=1, budget=200, splits=SPLITS)


def trace(chosen: float) -> Trace:
    parts = [Checkpoint(20.0, 20, 200, 0, 1.5, ["r"], [[0.5, 0.25, 1.0]])]
    return Trace("zoo3", "cma", 1, parts, [0.5] * 3, [chosen] * 3, 1.0, 2.0, ["r"], [""])


def test_trace_of_this_code_is_recalled_as_it_was(tmp_path):
    TraceStore(tmp_path / "traces", "a").keep(KEY, trace(0.5))
    store = TraceStore(tmp_path / "traces", "a")
    assert store.recall(KEY) == trace(0.5)
    assert store.num_old == 0


def test_trace_of_other_code_is_recalled_on_request_only_and_counted(tmp_path):
    TraceStore(tmp_path, "a").keep(KEY, trace(0.5))
    store = TraceStore(tmp_path, "b")
    assert store.recall(KEY) is None
    assert store.recall(KEY, old=True) == trace(0.5)
    assert store.num_old == 1
    store.keep(KEY, trace(0.75))
    assert TraceStore(tmp_path, "b").recall(KEY) == trace(0.75)


def test_other_searches_have_other_files(tmp_path):
    store = TraceStore(tmp_path, "a")
    store.keep(KEY, trace(0.5))
    for change in ({"seed": 2}, {"rival": "race"}, {"pool": "zoo5"}, {"budget": 100}):
        fields = {name: getattr(KEY, name) for name in KEY.__dataclass_fields__}
        assert store.recall(TraceKey(**{**fields, **change})) is None


def test_version_names_the_code_as_it_is():
    assert code_version() == code_version()
    assert len(code_version()) == 10
