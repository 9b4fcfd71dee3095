"""The studies of papers, small, on one zoo: every number that six seeds agree on has its sign."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.papers.studies import STUDIES
from scripts.papers.study import Claim
from scripts.papers.zoos import DEVELOPMENT_SEED, NARROW, zoo_directory

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "runs" / "zoo"
ASSERTED = [
    claim
    for study in STUDIES.values()
    for claim in study.claims
    if claim.fast_above is not None or claim.fast_below is not None
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory where `reproduce.py --fast` writes, which begins with the quickstart's zoo.

    What it prints is in `judged.json` there.
    """
    if not (ZOO / "zoo.json").is_file():
        pytest.skip(f"no zoo: python scripts/make_zoo.py --out {ZOO} trains it")
    runs, page = tmp_path_factory.mktemp("papers"), tmp_path_factory.mktemp("page")
    shutil.copytree(ZOO, zoo_directory(runs, NARROW, DEVELOPMENT_SEED))
    options = ["--fast", "--json", "--runs", str(runs), "--out", str(page)]
    command = [sys.executable, "scripts/reproduce.py", *options]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (page / "judged.json").write_text(done.stdout)
    return page


@pytest.mark.parametrize("claim", ASSERTED, ids=lambda claim: claim.key)
def test_number_is_on_the_side_that_six_seeds_agree_on(page: Path, claim: Claim) -> None:
    judged = json.loads((page / "judged.json").read_text())
    (value,) = judged[claim.key]["by_seed"].values()
    if claim.fast_above is not None:
        assert value > claim.fast_above
    if claim.fast_below is not None:
        assert value < claim.fast_below


def test_page_shows_the_figures_that_were_drawn(page: Path) -> None:
    shown = set(re.findall(r"\]\((papers/\w+\.svg)\)", (page / "papers.md").read_text()))
    assert shown == {str(file.relative_to(page)) for file in page.rglob("*.svg")}
    assert "papers/dare_128.svg" in shown
