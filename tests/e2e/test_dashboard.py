"""The dashboard in a browser, on a real search: submit, watch, choose, compare, export, steer."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import yaml

from optimizer.service.client import ServiceClient
from optimizer.service.models import SearchStatus
from tests.e2e.browser import TIMEOUT_MS, logged_in, serious_faults
from tests.e2e.search_page import (
    compare_with_uniform_soup,
    download_export,
    id_of,
    marks_of,
    raise_a_floor,
    wait_for_state,
)
from tests.e2e.service_server import ServeCommand, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow

NAME = "tiny <b>search</b>"
# More than is ever made of it: it is stopped, and resumed with less.
BUDGET = 1000
ENOUGH = 9


@dataclass
class Watched:
    """What was seen of a search in one page, from the form to its end.

    Attributes:
        search: Its id.
        counts: How many points there were at each look, until its service was killed.
        before: How the search was before that.
        after: How it was once there was a service again, and the page had gone on.
        num_points: How many points the page had when the service was gone, and when it was back.
        num_loads: How often the page was loaded anew.
        recorded: Evaluations when it had been stopped.
        was_focus_kept: Whether the focus stayed among the buttons when the one for stopping went.
    """

    search: str
    counts: list[int]
    before: SearchStatus
    after: SearchStatus
    num_points: tuple[int, int]
    num_loads: int
    recorded: int
    was_focus_kept: bool


@pytest.fixture(scope="module")
def service(tiny_job, tiny_pool, tmp_path_factory) -> Iterator[ServeCommand]:
    tasks = tiny_job().evaluation.include_path[0]
    allowed = ("--model-root", str(tiny_pool.base.parent), "--allow-tasks", tasks)
    with serving(tmp_path_factory.mktemp("dashboard"), *allowed) as found:
        yield found


@pytest.fixture(scope="module")
def watched(browser, service, tiny_job) -> Watched:
    """Submit a search by the form and follow it: its service is killed, it is stopped, resumed."""
    with (
        logged_in(browser, service.url, service.token) as page,
        ServiceClient(service.url, service.token) as client,
    ):
        submit(page, tiny_job)
        loads: list[str] = []
        page.on("load", lambda: loads.append("load"))
        counts = []
        end = time.monotonic() + 300
        while not counts or counts[-1] < ENOUGH:
            counts.append(marks_of(page).count())
            assert time.monotonic() < end, page.locator("main").inner_text()
            page.wait_for_timeout(200)
        search = id_of(page)
        before = client.search(search)
        num_points = lose_the_service(page, service)
        after = client.search(search)
        page.get_by_role("button", name="Stop").press("Enter")
        wait_for_state(page, "interrupted")
        was_kept = page.evaluate("() => document.activeElement.closest('.buttons') !== null")
        recorded = client.search(search).evaluations.recorded
        page.get_by_label("Evaluations", exact=True).fill(str(recorded + 1))
        page.get_by_role("button", name="Resume").click()
        wait_for_state(page, "finished")
        page.locator(".verdict .verdict").wait_for()
    return Watched(search, counts, before, after, num_points, len(loads), recorded, was_kept)


def submit(page, tiny_job) -> None:
    """Have a wrong job refused, then start a good one."""
    job = tiny_job(
        name=NAME,
        budget={"evaluations": BUDGET},
        validation={"candidates": 2},
        workers={"count": 1, "cpus": 0.5, "threads": 1},
    )
    text = page.get_by_label("Job (YAML)")
    text.fill("name: 1\nmodels: {}\n")
    page.get_by_role("button", name="Check").click()
    page.locator(".submit .problem li").first.wait_for()
    text.fill(yaml.safe_dump(job.model_dump(mode="json")))
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/searches/*")
    assert page.locator("h1").inner_text() == NAME


def lose_the_service(page, service) -> tuple[int, int]:
    """Kill the service and start it again; the page goes on although nobody does anything."""
    said = page.locator(".live [role=status]")
    service.kill()
    expect(said).to_contain_text("The connection is lost", timeout=TIMEOUT_MS)
    count = marks_of(page).count()
    service.start()
    expect(said).to_have_text("Live.", timeout=TIMEOUT_MS)
    marks_of(page).nth(count + 1).wait_for(timeout=4 * TIMEOUT_MS)
    expect(page.get_by_role("alert")).to_have_count(0)
    return count, marks_of(page).count()


@pytest.fixture
def page(browser, service, watched):
    with logged_in(browser, service.url, service.token) as found:
        found.goto(f"{service.url}/searches/{watched.search}")
        found.locator(".choice button").wait_for()
        yield found


def test_points_arrive_without_a_reload_while_the_search_runs(watched):
    # It was opened before there was anything to see.
    assert watched.counts[0] == 0
    assert watched.counts == sorted(watched.counts)
    assert watched.num_points[1] > watched.num_points[0] >= watched.counts[-1] >= ENOUGH
    assert watched.num_loads == 0


def test_killed_service_disturbs_neither_the_search_nor_its_page(watched, service):
    before, after = watched.before, watched.after
    assert (before.state, after.state) == ("running", "running")
    assert after.pid == before.pid
    assert after.evaluations.recorded > before.evaluations.recorded
    with ServiceClient(service.url, service.token) as client:
        assert client.search(watched.search).failures == 0


def test_search_was_stopped_and_resumed_from_its_page(watched, service):
    assert watched.was_focus_kept
    assert watched.after.evaluations.recorded <= watched.recorded < BUDGET
    with ServiceClient(service.url, service.token) as client:
        found = client.search(watched.search)
    assert found.evaluations.recorded == found.evaluations.budget == watched.recorded + 1


def test_list_links_to_the_search(browser, service, watched):
    with logged_in(browser, service.url, service.token) as page:
        row = page.get_by_role("row").filter(has=page.locator(f'[href$="{watched.search}"]'))
        assert NAME in row.inner_text()
        assert "finished" in row.inner_text()
        assert f"{watched.recorded + 1} of {watched.recorded + 1}" in row.inner_text()
        row.get_by_role("link").click()
        marks_of(page).first.wait_for()


def test_floor_dims_what_is_below_and_is_met_by_the_choice(page, service, watched):
    with ServiceClient(service.url, service.token) as client:
        front = client.front(watched.search).front
    raise_a_floor(page, front)
    page.get_by_role("button", name="As the job has it").click()
    expect(page.locator(".mark.below")).to_have_count(0)


def test_keys_go_through_points_and_open_a_recipe(page):
    chart = page.locator(".scatters svg").first
    start = chart.locator('.mark[tabindex="0"]')
    assert start.count() == 1
    start.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    label = page.evaluate("() => document.activeElement.getAttribute('aria-label')").split(",")[0]
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=f"Merge {label}").wait_for()
    assert page.evaluate("() => document.activeElement.id") == "recipe-title"
    pressed = chart.locator('[aria-pressed="true"]')
    assert pressed.get_attribute("aria-label").startswith(label)


def test_chosen_merge_is_compared_with_the_uniform_soup(page):
    page.locator(".choice button").click()
    compare_with_uniform_soup(page, "tiny_text")
    panel = page.locator("#recipe")
    assert {"search", "report"} <= set(panel.locator(".intervals text").all_text_contents())


def test_export_is_started_downloaded_and_loads(page, tmp_path):
    page.locator(".choice button").click()
    assert download_export(page, tmp_path).num_parameters() > 0


def test_fork_is_started_killed_and_deleted(page, service, watched):
    page.get_by_text("Fork …").click()
    page.get_by_label("Its evaluations").fill(str(BUDGET))
    page.get_by_role("button", name="Start the fork").click()
    page.wait_for_url(lambda url: "/searches/" in url and watched.search not in url)
    fork = id_of(page)
    with ServiceClient(service.url, service.token) as client:
        assert client.search(fork).evaluations.budget == BUDGET
        page.get_by_role("button", name="Stop").click()
        kill = page.get_by_role("button", name="Kill now")
        # A process that has only begun may be gone at once.
        kill.or_(page.get_by_text("Delete …")).wait_for()
        with suppress(playwright.TimeoutError):
            kill.click(timeout=2_000)
        page.get_by_text("Delete …").click()
        page.get_by_label("Type the id").fill(fork)
        page.get_by_role("button", name="Delete", exact=True).click()
        page.wait_for_url(f"{service.url}/")
        assert fork not in {one.id for one in client.searches()}


@pytest.mark.parametrize("cookie", [None, "wrong"])
@pytest.mark.parametrize("path", ["/", "/searches/{}", "/api/v1/searches"])
def test_without_the_token_nothing_is_shown(browser, service, watched, path, cookie):
    context = browser.new_context()
    if cookie is not None:
        port = urlsplit(service.url).port
        context.add_cookies([{"name": f"mergefront_{port}", "value": cookie, "url": service.url}])
    page = context.new_page()
    answer = page.goto(service.url + path.format(watched.search))
    assert answer.status == 401
    assert "tiny" not in page.content()
    assert page.get_by_label("Token").count() == (not path.startswith("/api"))
    context.close()


def test_wrong_token_of_a_link_opens_nothing(browser, service, watched):
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"{service.url}/login?token=wrong")
    assert answer.status == 401
    assert context.cookies() == []
    page.goto(service.url)
    assert page.get_by_label("Token").count() == 1
    assert "tiny" not in page.content()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, service, watched, scheme):
    with logged_in(browser, service.url, service.token, scheme=scheme) as page:
        page.goto(f"{service.url}/searches/{watched.search}#candidate-1")
        page.locator("#recipe .compare caption").wait_for()
        assert serious_faults(page) == []
