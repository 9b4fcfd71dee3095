import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from pandas import DataFrame
from safetensors.torch import load_file, save_file

from configs.evaluation import SplitSizes
from scripts.bench.zoo_store import ScoreStore
from scripts.papers.bench import Bench, Lab
from scripts.papers.cells import Cell, imported_modules, measuring_code
from scripts.papers.dare import delta_range, write_zeros
from scripts.papers.figures import draw
from scripts.papers.page import judge_all, page, table_lines
from scripts.papers.runner import Settings, cells_of, measure_all, zoos_of
from scripts.papers.study import Claim, Figure, Judged, Record, Study, Table, judge, mean_of
from scripts.papers.zoos import zoo_recipe
from scripts.zoo.recipe import Recipe

CLAIM = Claim(
    key="larger",
    text="Scores are larger\n than one.",
    measured="mean score minus 1",
    value=lambda records: mean_of(records) - 1.0,
)


def frame(*scores_by_seed: float) -> DataFrame:
    return DataFrame(
        [
            {"width": 128, "seed": seed, "how": "as it is", "p": 0.5, "score": score}
            for seed, score in enumerate(scores_by_seed)
        ]
    )


def judged(*scores_by_seed: float) -> Judged:
    return judge(CLAIM, frame(*scores_by_seed))


def test_interval_is_students_t_over_seeds() -> None:
    found = judged(2.0, 3.0, 4.0)
    # Mean 2 above the margin, sd 1, t(0.975, 2) = 4.3027: 2 -+ 4.3027 / sqrt(3).
    assert found.mean == pytest.approx(2.0)
    assert found.sd == pytest.approx(1.0)
    assert found.low == pytest.approx(2.0 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert found.high == pytest.approx(2.0 + 4.3027 / math.sqrt(3), abs=1e-3)
    assert found.verdict == "not decided"


def test_verdict_needs_the_whole_interval() -> None:
    assert judged(2.0, 2.1, 2.2).verdict == "holds"
    assert judged(0.0, 0.1, 0.2).verdict == "does not hold"
    assert judged(0.9, 1.1, 1.0).verdict == "not decided"


def test_one_seed_decides_nothing() -> None:
    assert judged(5.0).verdict == "not decided"


def test_claim_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"`larger` has no value in seeds \[1\]"):
        judged(2.0, math.nan)


def test_split_claim_judges_every_part_for_itself() -> None:
    claim = Claim(
        key="gains",
        text="It gains.",
        measured="mean score",
        value=mean_of,
        fast_above=0.0,
    )
    two, three = claim.split("tasks", {"two": "two", "three": "three"}, full_only=("three",))
    # In the mean over both it would hold.
    records = DataFrame(
        [
            {"seed": seed, "tasks": tasks, "score": score + seed / 100}
            for seed in (0, 1)
            for tasks, score in (("two", 0.5), ("three", -0.2))
        ]
    )
    assert judge(claim, records).verdict == "holds"
    assert [judge(one, records).verdict for one in (two, three)] == ["holds", "does not hold"]
    assert (two.key, two.measured) == ("gains_two", "tasks two: mean score")
    assert (two.fast_above, two.full_only) == (0.0, False)
    assert (three.fast_above, three.full_only) == (None, True)


def test_table_shows_spread_over_seeds_not_over_records() -> None:
    records = DataFrame(
        [
            {"seed": seed, "how": "x", "p": 0.5, "score": score}
            for seed, score in ((0, 0.0), (0, 1.0), (1, 0.6), (1, 0.6))
        ]
    )
    lines = list(table_lines(Table("Scores", ("how",), "p", "score"), records))
    # Seed means are 0.5 and 0.6.
    assert lines == [
        "**Scores**",
        "",
        "| how | p 0.5 |",
        "|---|---|",
        "| x | 0.550 ± 0.071 |",
    ]


def measure_trivially(bench: Bench) -> list[Record]:
    # Appended, so that a test sees how often it was called.
    with (bench.root / "calls").open("a") as file:
        file.write(f"{bench.width} {bench.seed} {bench.fast}\n")
    return [{"how": "as it is", "p": 0.5, "score": 2.0 + bench.seed}]


def ignore(*_: object) -> None:
    """Train no zoo, tell nobody."""


def trivial_study(name: str = "trivial", **changes: object) -> Study:
    settings: dict[str, object] = {
        "name": name,
        "title": "A trivial study",
        "papers": ("Nobody, Nothing",),
        "how": "It is\n measured.",
        "measure": measure_trivially,
        "checkpoints": ("math", "code"),
        "claims": (CLAIM,),
        "tables": (Table("Scores", ("how",), "p", "score"),),
    }
    return Study(**(settings | changes))  # type: ignore[arg-type]  # a mapping of settings


@pytest.mark.slow
def test_cells_are_measured_once_and_come_out_again(tmp_path: Path) -> None:
    settings = Settings(
        root=tmp_path, studies=(trivial_study(),), seeds=(0, 1), fast=False, processes=1
    )
    told: list[tuple[Cell, float]] = []
    made: list[tuple[object, ...]] = []

    def measure() -> dict[str, DataFrame]:
        return measure_all(
            settings,
            lambda cell, seconds: told.append((cell, seconds)),
            lambda *zoo: made.append(zoo),
        )

    first, again = measure(), measure()
    # One seed after the other, and nothing for what is there.
    assert made == [(128, 0, ("math", "code")), (128, 1, ("math", "code"))]
    assert first["trivial"].equals(again["trivial"])
    assert sorted(first["trivial"]["score"]) == [2.0, 3.0]
    assert (tmp_path / "calls").read_text().splitlines() == ["128 0 False", "128 1 False"]
    assert [seconds > 0 for _, seconds in told] == [True, True, False, False]


@pytest.mark.slow
def test_fast_records_are_others_than_full_ones(tmp_path: Path) -> None:
    for fast in (True, False):
        settings = Settings(
            root=tmp_path, studies=(trivial_study(),), seeds=(0,), fast=fast, processes=1
        )
        measure_all(settings, ignore, ignore)
    assert (tmp_path / "calls").read_text().splitlines() == ["128 0 True", "128 0 False"]


@pytest.mark.slow
def test_records_of_one_run_spare_another_the_measuring(tmp_path: Path) -> None:
    first, second = (
        Settings(
            root=tmp_path / name, studies=(trivial_study(),), seeds=(0, 1), fast=False, processes=1
        )
        for name in ("first", "second")
    )
    first.root.mkdir()
    found = measure_all(first, ignore, ignore)
    first.cells.write(cells_of(first), tmp_path / "papers.jsonl")
    second.cells.read(tmp_path / "papers.jsonl")
    spent = second.cells.seconds(cells_of(second))
    assert spent is not None
    assert spent == first.cells.seconds(cells_of(first))
    assert measure_all(second, ignore, ignore)["trivial"].equals(found["trivial"])
    assert not (second.root / "calls").exists()


def test_time_is_unknown_where_one_record_has_none(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path, studies=(trivial_study(),), seeds=(0, 1), fast=False)
    first, second = cells_of(settings)
    settings.cells.keep(first, [], 2.04)
    settings.cells.keep(second, [], 3.0)
    assert settings.cells.seconds([first, second]) == pytest.approx(5.0)
    settings.cells.path(second).write_text(json.dumps({"machine": "", "records": []}))
    assert settings.cells.seconds([first, second]) is None


CODE = '''
"""Of a module."""
X = 1
def measure(bench):
    """Of a function."""
    return [X]  # a comment
ONE = Study(name="one", claims=())
'''


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        ("Of a", "Of another", True),
        ("a comment", "another comment", True),
        ("claims=()", "claims=(1,)", True),
        ("X = 1", "X = 2", False),
        ("return [X]", "return [X, X]", False),
    ],
)
def test_only_what_measures_decides_whether_a_cell_is_measured_again(
    before: str, after: str, is_same: bool, tmp_path: Path
) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(CODE)
    new.write_text(CODE.replace(before, after))
    assert (measuring_code(old) == measuring_code(new)) == is_same


def test_cell_is_named_by_all_that_measures() -> None:
    found = imported_modules("scripts.papers.learned")
    assert {
        "scripts.papers.learned",
        "scripts.papers.searching",
        "scripts.bench.merge_lab",
        "scripts.zoo.items",
    } <= found
    assert "scripts.papers.study" not in found


def fail(bench: Bench) -> list[Record]:
    raise OSError(f"no zoo of seed {bench.seed}")


@pytest.mark.slow
def test_cells_beside_one_that_fails_are_kept(tmp_path: Path) -> None:
    studies = (trivial_study("broken", measure=fail), trivial_study())
    settings = Settings(root=tmp_path, studies=studies, seeds=(0,), fast=False, processes=2)
    with pytest.raises(OSError, match="no zoo of seed 0"):
        measure_all(settings, ignore, ignore)
    assert settings.cells.recall(Cell("trivial", 128, 0)) is not None


def test_zoos_hold_what_any_study_needs(tmp_path: Path) -> None:
    studies = (
        trivial_study(),
        trivial_study("other", checkpoints=("math_longer",), widths=(128, 256)),
    )
    settings = Settings(root=tmp_path, studies=studies, seeds=(0,), fast=False)
    assert zoos_of(settings, cells_of(settings)) == {
        (128, 0): ("math", "code", "math_longer"),
        (256, 0): ("math_longer",),
    }
    fast = Settings(root=tmp_path, studies=studies, seeds=(0,), fast=True)
    assert {cell.width for cell in cells_of(fast)} == {128}


def test_narrow_zoo_is_the_quickstarts() -> None:
    ours, theirs = zoo_recipe(128, ("math",)), Recipe()
    assert ours.digest(ours.base) == theirs.digest(theirs.base)


def test_page_says_what_the_records_say(tmp_path: Path) -> None:
    study = trivial_study(notes=lambda records: [f"The mean is {records['score'].mean():g}."])
    text = page(
        (study,),
        {"trivial": frame(2.0, 2.1, 2.2)},
        command="python scripts/reproduce.py",
        machine="2 processors",
        figures={"trivial": [Path("papers/x.svg")]},
        seconds=150.0,
    )
    assert "2 processors. Measuring took 2 minutes, summed over cells, zoos not counted." in text
    assert "were all 1 exactly at their margins, 0.0 would hold" in text
    assert "| A trivial study | 1 | 0 | 0 |" in text
    assert "Scores are larger than one." in text
    assert "+1.000, +1.100, +1.200" in text
    assert "**holds**" in text
    assert "Seeds 0, 1, 2." in text
    assert "- The mean is 2.1." in text
    assert "![A trivial study](papers/x.svg)" in text


def test_only_a_fast_run_may_leave_claims_out() -> None:
    wide = Claim(
        key="wide",
        text="",
        measured="",
        value=lambda records: mean_of(records, width=256),
        full_only=True,
    )
    study = trivial_study(claims=(CLAIM, wide), widths=(128, 256))
    records = {"trivial": frame(2.0, 2.1)}
    assert set(judge_all((study,), records, fast=True)) == {"larger"}
    with pytest.raises(ValueError, match="claim `wide` has no value"):
        judge_all((study,), records)


def test_figure_is_the_same_file_for_the_same_records(tmp_path: Path) -> None:
    figure = Figure(
        "one", "Title", x="p", value="score", series="how", panel="width", label="score"
    )
    records = frame(0.1, 0.2)
    for name in ("a.svg", "b.svg"):
        draw(figure, records, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_lines_of_a_figure_are_told_apart_without_colours(tmp_path: Path) -> None:
    figure = Figure("one", "Title", x="p", value="score", series="how", panel="width", label="y")
    records = pd.concat([frame(0.1, 0.2), frame(0.3, 0.4).assign(how="otherwise")])
    draw(figure, frame(0.1, 0.2), tmp_path / "one.svg")
    draw(figure, records, tmp_path / "two.svg")
    one, two = ((tmp_path / name).read_text() for name in ("one.svg", "two.svg"))
    assert "stroke-dasharray" not in one
    # In the panel and in the legend.
    assert two.count("stroke-dasharray") == 2


def write_model(directory: Path, values: list[float]) -> None:
    directory.mkdir()
    save_file({"w": torch.tensor(values)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))


def test_delta_range_leaves_out_what_was_frozen(tmp_path: Path) -> None:
    write_model(tmp_path / "base", [1.0, 1.0, 1.0, 1.0])
    write_model(tmp_path / "math", [1.0, 1.5, 0.75, 2.0])
    assert delta_range(tmp_path, "math") == {"delta_median": 0.5, "delta_p99": 1.0}


def test_model_of_zeros_keeps_everything_but_weights(tmp_path: Path) -> None:
    write_model(tmp_path / "base", [1.0, 2.0])
    out = tmp_path / "zeros"
    out.mkdir()
    write_zeros(tmp_path / "base", out)
    assert load_file(out / "model.safetensors")["w"].tolist() == [0.0, 0.0]
    assert (out / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()


@pytest.fixture
def lab(zoo: Path, tmp_path: Path) -> Iterator[Lab]:
    splits = SplitSizes(search=2, select=2, report=2)
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        bench = Bench(tmp_path, zoo, 128, 0, True, store, splits)
        with bench.lab(("math",), skills=("math",)) as lab:
            yield lab


@pytest.mark.parametrize(
    ("method", "drop_ratio", "scored"),
    [
        ("dare_linear", 0.5, 3),
        ("della_linear", 0.5, 3),
        ("ties", 0.5, 1),
        ("dare_linear", 0.0, 1),
    ],
)
def test_report_takes_masks_only_where_they_are_random(
    lab: Lab, method: str, drop_ratio: float, scored: int
) -> None:
    recipe = lab.recipe({"math": 1.0}, method=method, drop_ratio=drop_ratio)
    lab.report(recipe, masks=3)
    assert lab.scored_items == scored * 2


def test_dropping_without_rescaling_keeps_the_size_of_what_is_kept(lab: Lab) -> None:
    (weight,) = lab.dropped("math", 0.75, rescale=False).weights[0]
    # The method divides by 1 - p.
    assert weight / (1 - 0.75) == 1.0
    assert lab.dropped("math", 0.75).weights[0] == (1.0,)


def test_best_is_by_search_items(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = lab.recipe({"math": 1.0}), lab.recipe({"math": 0.5})
    means = {(good.recipe_id, "search"): 0.9, (bad.recipe_id, "search"): 0.1}
    monkeypatch.setattr(
        Lab,
        "mean_scores",
        lambda _, one, split="report": {"t": means.get((one.recipe_id, split), 0.5)},
    )
    assert lab.best([bad, good]) == good
