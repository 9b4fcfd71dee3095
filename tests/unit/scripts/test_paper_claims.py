"""What the committed records say: the page, and the margins that CI asserts of ``--fast``."""

import json
from pathlib import Path

import pytest
import typer
from pandas import DataFrame

from scripts import reproduce
from scripts.papers.page import FIGURES, PAGE, judge_all, page
from scripts.papers.runner import Settings
from scripts.papers.studies import STUDIES
from scripts.papers.study import Claim, Judged
from scripts.papers.zoos import DEVELOPMENT_SEED, SEEDS

RESULTS = Path(__file__).parents[3] / "scripts" / "bench" / "results"
ROOM = 0.015
"""Between an asserted margin and the nearest of six seeds: zoos that another kind of processor
trains score a little otherwise. The asserted seed has more."""

ASSERTED = [
    claim
    for study in STUDIES.values()
    for claim in study.claims
    if claim.fast_above is not None or claim.fast_below is not None
]


def frames(file: str) -> dict[str, DataFrame]:
    """Return study -> records of a committed file, whatever code measured them."""
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in STUDIES}
    for line in (RESULTS / file).read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        study, width, seed, _, _ = content["cell"].rsplit("-", 4)
        rows[study] += [
            {"width": int(width), "seed": int(seed), **record} for record in content["records"]
        ]
    return {study: DataFrame(records) for study, records in rows.items()}


@pytest.fixture(scope="module")
def full() -> dict[str, DataFrame]:
    return frames("papers.jsonl")


@pytest.fixture(scope="module")
def judged(full: dict[str, DataFrame]) -> dict[str, Judged]:
    return judge_all(tuple(STUDIES.values()), full)


@pytest.fixture(scope="module")
def judged_fast() -> dict[str, Judged]:
    return judge_all(tuple(STUDIES.values()), frames("papers_fast.jsonl"), fast=True)


@pytest.mark.parametrize("claim", ASSERTED, ids=lambda claim: claim.key)
def test_asserted_margin_has_room_on_six_seeds(
    judged_fast: dict[str, Judged], claim: Claim
) -> None:
    values = judged_fast[claim.key].by_seed
    assert sorted(values) == [DEVELOPMENT_SEED, *SEEDS]
    if claim.fast_above is not None:
        assert min(values.values()) > claim.fast_above + ROOM
    if claim.fast_below is not None:
        assert max(values.values()) < claim.fast_below - ROOM


def test_every_study_of_language_models_but_two_is_asserted_of() -> None:
    asserted = {study.name for study in STUDIES.values() if set(study.claims) & set(ASSERTED)}
    # What few examples and few evaluations find differs in sign between seeds.
    assert set(STUDIES) - asserted == {"lora", "rivals"}


def test_committed_page_is_that_of_the_committed_records(full: dict[str, DataFrame]) -> None:
    first, *_ = (RESULTS / "papers.jsonl").read_text(encoding="utf-8").splitlines()
    text = page(
        tuple(STUDIES.values()),
        full,
        command="python scripts/reproduce.py",
        machine=json.loads(first)["machine"],
        figures={
            study.name: [Path(FIGURES) / f"{figure.name}.svg" for figure in study.figures]
            for study in STUDIES.values()
        },
    )
    assert (RESULTS / PAGE).read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("fast", "seeds", "command"),
    [
        (False, SEEDS, "python scripts/reproduce.py"),
        (False, SEEDS[:2], "python scripts/reproduce.py --seeds 2"),
        (True, (DEVELOPMENT_SEED,), "python scripts/reproduce.py --fast"),
        (True, (DEVELOPMENT_SEED, *SEEDS), "python scripts/reproduce.py --fast --seeds 6"),
    ],
)
def test_command_of_a_page_gives_its_seeds(
    fast: bool, seeds: tuple[int, ...], command: str, tmp_path: Path
) -> None:
    settings = Settings(root=tmp_path, studies=(), seeds=seeds, fast=fast)
    assert reproduce._command(settings, None) == command


def test_sixth_seed_is_of_fast_runs_only(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="there are 5 seeds without --fast, found 6"):
        reproduce.main(seeds=6, runs=tmp_path)


def test_keys_of_claims_are_different() -> None:
    keys = [claim.key for study in STUDIES.values() for claim in study.claims]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("key", "verdict"),
    [
        ("recycling_beats_scale_two", "holds"),
        ("recycling_beats_scale_three", "does not hold"),
        ("fused_as_good_as_joint", "does not hold"),
        ("fused_specialists_as_good_as_joint", "does not hold"),
        ("wider_tolerates_more_p90", "not decided"),
        ("wider_tolerates_more_p99", "holds"),
        ("adamerging_beats_tuned_scale", "not decided"),
    ],
)
def test_refutations_are_not_hidden_in_means(
    judged: dict[str, Judged], key: str, verdict: str
) -> None:
    assert judged[key].verdict == verdict
