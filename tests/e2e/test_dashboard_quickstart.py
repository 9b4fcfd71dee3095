"""The quickstart's search in a browser: live points, floors, a recipe, the soup, the export."""

import time
from pathlib import Path

import pytest
import yaml

from configs.load import load_job
from optimizer.service.client import ServiceClient
from tests.e2e.browser import logged_in
from tests.e2e.search_page import (
    compare_with_uniform_soup,
    download_export,
    id_of,
    marks_of,
    open_merge,
    raise_a_floor,
    wait_for_state,
)
from tests.e2e.service_server import ROOT, ServeCommand, serving

pytestmark = pytest.mark.slow

ZOO = ROOT / "runs" / "zoo"
# The 17 baselines, and some of its own.
EVALUATIONS = 23
SMALL = {
    "evaluation.splits": {"search": 16, "select": 16, "report": 32},
    "budget.evaluations": EVALUATIONS,
}


@pytest.fixture
def job_text() -> str:
    """The job of `scripts/quickstart` with fewer items, by paths that hold everywhere."""
    if not (ZOO / "zoo.json").is_file():
        pytest.skip(f"no zoo: python scripts/make_zoo.py --out {ZOO} trains it")
    job = load_job(ROOT / "configs" / "quickstart.yaml", SMALL, directory=ROOT)
    return yaml.safe_dump(job.model_dump(mode="json"))


@pytest.fixture
def service(tmp_path):
    options = ["--model-root", str(ZOO.parent), "--allow-code-execution"]
    options += ["--allow-tasks", str(ROOT / "evaluators" / "tasks")]
    with serving(tmp_path, *options) as found:
        yield found


def test_quickstart_search_from_its_form_to_a_model_that_loads(
    browser, service: ServeCommand, job_text: str, tmp_path: Path
):
    with (
        logged_in(browser, service.url, service.token) as page,
        ServiceClient(service.url, service.token) as client,
    ):
        page.get_by_label("Job (YAML)").fill(job_text)
        page.get_by_role("button", name="Start").click()
        page.wait_for_url("**/searches/*")
        loads: list[str] = []
        page.on("load", lambda: loads.append("load"))
        counts, end = set(), time.monotonic() + 600
        while client.search(id_of(page)).state in {"starting", "running"}:
            counts.add(marks_of(page).count())
            assert time.monotonic() < end, page.locator("main").inner_text()
            page.wait_for_timeout(200)
        wait_for_state(page, "finished")
        # More and more, in a page that was opened before there was anything to see.
        assert min(counts) == 0
        assert len(counts) > 3
        assert loads == []

        page.locator(".choice button").wait_for()
        raise_a_floor(page, client.front(id_of(page)).front)
        page.get_by_role("button", name="As the job has it").click()
        page.locator(".choice button").click()
        chosen = client.search(id_of(page)).choice
        assert chosen is not None
        open_merge(page, chosen)
        compare_with_uniform_soup(page, "zoo_math")
        model = download_export(page, tmp_path / "download")
    assert model.num_parameters() > 900_000
