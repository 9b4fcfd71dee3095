"""The studies of papers, small, on one zoo: every number that five seeds agree on has its sign."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.papers.studies import STUDIES
from scripts.papers.zoos import DEVELOPMENT_SEED, NARROW, zoo_directory

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "runs" / "zoo"
ASSERTED = {
    claim.key: claim.fast
    for study in STUDIES.values()
    for claim in study.claims
    if claim.fast is not None
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What `reproduce.py --fast` prints, beginning with the quickstart's zoo."""
    if not (ZOO / "zoo.json").is_file():
        pytest.skip(f"no zoo: python scripts/make_zoo.py --out {ZOO} trains it")
    runs = tmp_path_factory.mktemp("papers")
    shutil.copytree(ZOO, zoo_directory(runs, NARROW, DEVELOPMENT_SEED))
    command = [sys.executable, "scripts/reproduce.py", "--fast", "--json", "--runs", str(runs)]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("key", ASSERTED)
def test_number_is_on_the_side_that_five_seeds_agree_on(
    judged: dict[str, dict[str, dict[str, float]]], key: str
) -> None:
    (value,) = judged[key]["by_seed"].values()
    assert value > ASSERTED[key]
