"""Finding scorers and their items: what a score means, and everything that can be wrong."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.evaluation import EvaluationSettings, Objective
from evaluators.manifest import item_id
from evaluators.scorer_suite import LoadedScorer, load_scorers

CALLED = "(model, tokenizer, items, *, batch_size)"
ITEMS = [{"text": f"item {n}"} for n in range(12)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
    return tmp_path


@pytest.fixture
def load(place: Path) -> Callable[..., tuple[list[LoadedScorer], list[str]]]:
    """Load one scorer of a file with this source; returns it and what is wrong."""

    def load_one(
        source: str = f"def f{CALLED}: return [0.0] * len(items)", **spec: object
    ) -> tuple[list[LoadedScorer], list[str]]:
        (place / "metrics.py").write_text(source)
        entry = {"scorer": f"{place}/metrics.py:f", "items": "items.jsonl"} | spec
        settings = EvaluationSettings(data_dir=str(place))
        loaded, problems = load_scorers({"skill": Objective(tasks=[entry])}, settings)
        return loaded, [str(problem) for problem in problems]

    return load_one


def test_items_are_named_by_their_content_in_the_order_of_the_file(load, place) -> None:
    lines = [json.dumps(item) for item in ITEMS]
    (place / "items.jsonl").write_text("\ufeff" + "\n\n".join([*lines, lines[0]]) + "\n")
    (scorer,), problems = load()
    assert problems == []
    assert list(scorer.items) == [item_id(item) for item in ITEMS]
    assert list(scorer.items.values()) == ITEMS


def test_description_is_what_check_prints(load) -> None:
    (scorer,), _ = load(name="private")
    found = scorer.describe()
    assert (found.objective, found.task, found.metric) == ("skill", "private", "metrics.py:f")
    assert (found.output_type, found.num_items, found.max_new_tokens) == ("scorer", 12, 0)


def test_definition_is_source_function_and_options_not_the_place(load, place, tmp_path) -> None:
    def definition(source: str, **spec: object) -> str:
        (scorer,), problems = load(source, **spec)
        assert problems == []
        return scorer.definition

    source = f"def f{CALLED[:-1]}, k=1): return [k]\ng = f\n"
    first = definition(source)
    assert definition(source) == first
    assert definition(source, name="other", weight=3.0) == first
    assert definition(source + "# a comment\n") != first
    assert definition(source, options={"k": 2}) != first
    assert definition(source, scorer=f"{place}/metrics.py:g") != first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "metrics.py").write_text(source)
    assert definition(source, scorer=f"{elsewhere}/metrics.py:f") == first


def test_edited_file_is_run_anew_within_the_same_second(load) -> None:
    for value in ("1", "2", "3"):
        (scorer,), _ = load(f"def f{CALLED}: return {value}")
        assert str(scorer.function(None, None, [], batch_size=1)) == value


def test_file_imports_what_stands_beside_it(load, place) -> None:
    (place / "beside_the_scorer.py").write_text("value = 7")
    (scorer,), problems = load(
        f"import beside_the_scorer\ndef f{CALLED}: return [beside_the_scorer.value]"
    )
    assert problems == []
    assert scorer.function(None, None, [], batch_size=1) == [7]


def test_dataclasses_and_annotations_of_a_file_resolve(load) -> None:
    source = (
        "from __future__ import annotations\nimport dataclasses, typing\n"
        "@dataclasses.dataclass\nclass Box:\n    value: int\n"
        f"def f{CALLED}: return [typing.get_type_hints(Box)['value'] is int]"
    )
    (scorer,), problems = load(source)
    assert problems == []
    assert scorer.function(None, None, [], batch_size=1) == [True]


def test_installed_module_is_found_by_its_name(load, place, monkeypatch) -> None:
    package = place / "scorers_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("from scorers_of_mine.inner import f")
    (package / "inner.py").write_text(f"def f{CALLED}: return [1]")
    monkeypatch.syspath_prepend(str(place))
    (scorer,), problems = load(scorer="scorers_of_mine:f")
    assert problems == []
    assert scorer.spec.metric == "scorers_of_mine:f"
    # What is hashed is also the module that a function comes from.
    for name in ("scorers_of_mine", "scorers_of_mine.inner"):
        monkeypatch.delitem(sys.modules, name)
    (package / "inner.py").write_text(f"def f{CALLED}: return [2]")
    (changed,), _ = load(scorer="scorers_of_mine:f")
    assert changed.definition != scorer.definition


def test_methods_and_objects_that_can_be_called_are_scorers(load, place) -> None:
    source = (
        f"class Kind:\n    @staticmethod\n    def score{CALLED}: return [1]\n"
        "    def __call__(self, model, tokenizer, items, *, batch_size): return [2]\n"
        "f = Kind()\n"
    )
    (scorer,), problems = load(source)
    assert problems == []
    assert scorer.function(None, None, [], batch_size=1) == [2]
    (scorer,), problems = load(source, scorer=f"{place}/metrics.py:Kind.score")
    assert problems == []
    assert scorer.function(None, None, [], batch_size=1) == [1]


@pytest.mark.parametrize(
    ("source", "spec", "message"),
    [
        ("f = 3", {}, "skill.f.scorer: `metrics.py:f` is a int, not a function"),
        ("def ff(): pass", {}, "there is no `f` in .*metrics.py; did you mean `ff`?"),
        ("import no_such_thing", {}, "cannot be imported: ModuleNotFoundError: .*no_such_thing"),
        ("def f(:", {}, "cannot be imported: SyntaxError: .*line 1"),
        ("raise SystemExit(3)", {}, "cannot be imported: SystemExit: 3"),
        ("", {"scorer": "no_such_module_here:f"}, "there is no module `no_such_module_here`"),
        ("", {"scorer": "json.no_such:f"}, "there is no module `json.no_such`"),
        ("", {"scorer": "nowhere/x.py:f"}, "x.py cannot be read: No such file"),
        ("def f(model, items): pass", {}, r"cannot be called as f\(model, tokenizer, items, "),
        ("def f(model, tokenizer, items): pass", {}, "unexpected keyword argument 'batch_size'"),
        (
            f"def f{CALLED}: pass",
            {"options": {"pooling": 1}},
            r"f\.options: .*batch_size=\.\.\., pooling=\.\.\.\).*argument 'pooling'.*it is f\(mod",
        ),
        (f"def f{CALLED}: pass", {"options": {"batch_size": 1}}, "multiple values"),
        (f"def f{CALLED[:-1]}, k): pass", {}, "missing a required.* argument: 'k'"),
    ],
)
def test_wrong_scorer_is_explained(load, source: str, spec: dict, message: str) -> None:
    loaded, problems = load(source, **spec)
    assert loaded == []
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problems[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no items; write one JSON object per line"),
        (b"\n  \n", "has no items"),
        (b'{"a": 1}\n[1]\n{"a"\n', "found a list in line 2; .* in line 3"),
        (b"1\n2\n3\n4\n5\n", "a int in line 3; 2 more"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_wrong_items_are_explained_by_line(load, place, content: bytes, message: str) -> None:
    (place / "items.jsonl").write_bytes(content)
    loaded, problems = load()
    assert loaded == []
    with pytest.raises(AssertionError, match=rf"skill\.f\.items: .*items\.jsonl.*{message}"):
        raise AssertionError(*problems)


def test_scorer_and_items_are_both_told_of(load) -> None:
    _, problems = load("f = 1", items="none.jsonl")
    assert len(problems) == 2
    assert "none.jsonl cannot be read: No such file" in problems[1]
    assert "`evaluation.data_dir`" in problems[1]


def test_module_in_the_working_directory_is_suggested_as_a_file(load, place, monkeypatch) -> None:
    (place / "my_own_metrics.py").write_text("")
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    _, problems = load(scorer="my_own_metrics:f")
    assert "did you mean `my_own_metrics.py:...`?" in problems[0]
