"""The dashboard in a browser, on a real search: submit, watch, choose, compare, export, load."""

import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import yaml

from optimizer.service.client import ServiceClient
from tests.e2e.service_server import ServeCommand, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found (apt install chromium)"),
]

BUDGET = 15
TIMEOUT_MS = 30_000
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1400, "height": 900}


@dataclass
class Watched:
    """A finished search that was followed in the browser: its id, and what was seen meanwhile."""

    search: str
    counts: list[int]
    num_loads: int


@pytest.fixture(scope="module")
def service(tiny_job, tiny_pool, tmp_path_factory) -> Iterator[ServeCommand]:
    tasks = tiny_job().evaluation.include_path[0]
    allowed = ("--model-root", str(tiny_pool.base.parent), "--allow-tasks", tasks)
    with serving(tmp_path_factory.mktemp("dashboard"), *allowed) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        # Containers have no user namespaces for its sandbox; only this service's pages are opened.
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser, service, viewport=DESKTOP, scheme="light"):
    """Log in with the link; returns a page, and the list of what it complains about."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console", lambda said: faults.append(said.text) if "Security Policy" in said.text else None
    )
    page.goto(f"{service.url}/login?token={service.token}")
    page.wait_for_url(f"{service.url}/")
    return page, faults


@pytest.fixture(scope="module")
def watched(browser, service, tiny_job) -> Watched:
    """Submit a search by the form, and follow it until it is finished."""
    job = tiny_job(
        name="tiny <b>search</b>",
        budget={"evaluations": BUDGET},
        validation={"candidates": 2},
        workers={"count": 1, "cpus": 0.5, "threads": 1},
    )
    page, faults = opened(browser, service)
    page.get_by_label("Job (YAML)").fill("name: 1\nmodels: {}\n")
    page.get_by_role("button", name="Check").click()
    page.locator(".submit .problem li").first.wait_for()
    page.get_by_label("Job (YAML)").fill(yaml.safe_dump(job.model_dump(mode="json")))
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/searches/*")
    assert page.locator("h1").inner_text() == "tiny <b>search</b>"
    loads: list[str] = []
    page.on("load", lambda: loads.append("load"))
    search = urlsplit(page.url).path.rpartition("/")[2]
    marks = page.locator(".scatters > div:first-child .mark")
    counts: list[int] = []
    end = time.monotonic() + 300
    while page.locator(".state").inner_text() != "finished":
        counts.append(marks.count())
        assert time.monotonic() < end, page.locator("main").inner_text()
        page.wait_for_timeout(200)
    page.locator(".verdict .verdict").wait_for()
    counts.append(marks.count())
    assert not faults
    page.context.close()
    return Watched(search, counts, len(loads))


@pytest.fixture
def page(browser, service, watched):
    found, faults = opened(browser, service)
    found.goto(f"{service.url}/searches/{watched.search}")
    found.locator(".choice button").wait_for()
    yield found
    assert not faults
    found.context.close()


def test_points_arrive_without_a_reload_while_the_search_runs(watched):
    assert watched.counts[-1] >= BUDGET
    assert len({count for count in watched.counts if 0 < count < watched.counts[-1]}) >= 2
    assert watched.counts == sorted(watched.counts)
    assert watched.num_loads == 0


def test_list_links_to_the_search(browser, service, watched):
    page, faults = opened(browser, service)
    row = page.get_by_role("row").filter(has_text="tiny <b>search</b>")
    assert "finished" in row.inner_text()
    assert f"{BUDGET} of {BUDGET}" in row.inner_text()
    row.get_by_role("link").click()
    page.locator(".mark").first.wait_for()
    assert not faults
    page.context.close()


def test_floor_dims_what_is_below_and_is_met_by_the_choice(page, service, watched):
    floor = page.locator("input[aria-label^='Floor of']").first
    name = floor.get_attribute("aria-label").removeprefix("Floor of ")
    with ServiceClient(service.url, service.token) as client:
        front = client.front(watched.search).front
    row = max(front, key=lambda one: (one.posterior or one.scores)[name].value)
    best = (row.posterior or row.scores)[name].value
    low = float(floor.get_attribute("min"))
    assert page.locator(".mark.below").count() == 0
    # Sliders move in steps, by keys as by the mouse.
    floor.focus()
    page.keyboard.press("End")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelectorAll('.mark.below').length > 0")
    assert low < float(floor.input_value()) < best + 1e-9
    page.get_by_text(f"{name} >= ").wait_for()
    page.get_by_role("button", name="As the job has it").click()
    page.wait_for_function("document.querySelectorAll('.mark.below').length === 0")


def test_keys_go_through_points_and_open_a_recipe(page):
    chart = page.locator(".scatters svg").first
    start = chart.locator('.mark[tabindex="0"]')
    assert start.count() == 1
    start.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')").split(",")[0]
    page.keyboard.press("Enter")
    heading = page.get_by_role("heading", name=f"Merge {label}")
    heading.wait_for()
    assert page.evaluate("document.activeElement.id") == "recipe-title"
    pressed = chart.locator('[aria-pressed="true"]')
    assert pressed.get_attribute("aria-label").startswith(label)


def test_chosen_merge_is_compared_with_the_uniform_soup(page):
    page.locator(".choice button").click()
    panel = page.locator("#recipe")
    panel.get_by_label("Against").select_option(label="uniform soup")
    panel.locator("caption", has_text="minus uniform soup").wait_for()
    panel.get_by_label("Items").select_option("all")
    task = panel.locator("details", has_text=re.compile(r"tiny_text: \d+ wins, \d+ losses"))
    task.locator("summary").click()
    item = task.locator("li").first
    # What both generated stands there as text.
    playwright.expect(item.locator("pre")).to_have_count(2)
    assert {"search", "report"} <= set(panel.locator(".intervals text").all_text_contents())


def test_export_is_started_downloaded_and_loads(page, tmp_path):
    from transformers import AutoModelForCausalLM

    page.locator(".choice button").click()
    page.get_by_role("button", name="Export this").click()
    link = page.locator("a.download")
    link.wait_for(timeout=3 * TIMEOUT_MS)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "model.tar")
    with tarfile.open(tmp_path / "model.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    [config] = tmp_path.glob("*/config.json")
    assert AutoModelForCausalLM.from_pretrained(config.parent).num_parameters() > 0


def test_phone_in_the_dark_scrolls_in_one_direction(browser, service, watched):
    page, faults = opened(browser, service, PHONE, "dark")
    for path in ("/", f"/searches/{watched.search}"):
        page.goto(service.url + path)
        page.locator("table").first.wait_for()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    light = re.findall(r"\d+", page.evaluate("getComputedStyle(document.documentElement).color"))
    assert min(map(int, light[:3])) > 200
    assert not faults
    page.context.close()


@pytest.mark.parametrize("cookie", [None, "wrong"])
def test_without_the_token_nothing_is_shown(browser, service, watched, cookie):
    context = browser.new_context()
    if cookie is not None:
        port = urlsplit(service.url).port
        context.add_cookies([{"name": f"mergefront_{port}", "value": cookie, "url": service.url}])
    page = context.new_page()
    answer = page.goto(f"{service.url}/searches/{watched.search}")
    assert answer.status == 401
    assert "tiny" not in page.content()
    assert page.get_by_label("Token").count() == 1
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, service, watched, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page, _ = opened(browser, service, DESKTOP, scheme)
    for path in ("/", f"/searches/{watched.search}#candidate-1"):
        page.goto(service.url + path)
        page.locator("table").first.wait_for()
        page.wait_for_timeout(1000)
        found = axe.run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []
    page.context.close()
