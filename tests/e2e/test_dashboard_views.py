"""Pages of the dashboard in a browser, on made-up archives: what real searches seldom show."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from optimizer.archive.archive import Archive
from optimizer.service.app import create_app
from optimizer.service.settings import ServiceSettings
from tests.e2e.browser import DESKTOP, PHONE, TIMEOUT_MS, logged_in, serious_faults
from tests.e2e.service_server import served
from tests.unit.optimizer.synthetic_archive import Merge, add, build

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow

TOKEN = "a-token-for-tests-and-nothing-else"
EVIL = '<img src=x onerror="document.title=1">'
MERGES = (
    Merge((0, 0, 0), (0.1, 0.2, 0.1), (0.1,) * 3, (0.1,) * 3, origin="baseline:base"),
    Merge((0.3, 0.3, 0.3), (0.4, 0.4, 0.4), (0.4,) * 3, (0.4,) * 3, origin="baseline:uniform soup"),
    Merge((0.7, 0.6, 0.5), (0.9, 0.2, 0.6), (0.8,) * 3, (0.7, 0.6, 0.5)),
    Merge((0.7, 0.6, 0.6), (0.5, 0.5, 0.9), drop=0.5),
    Merge((0.2, 0.9, 0.1), (0.2, 0.9, 0.3)),
    Merge((0.1, 0.6, 0.6), None),
)


@dataclass(frozen=True)
class Served:
    """A service in this process: where it answers, and its archives."""

    url: str
    archives: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Served]:
    archives = tmp_path_factory.mktemp("views").resolve()
    for name, merges in {"done": MERGES, "none": (), "bad": MERGES[-1:]}.items():
        (archives / name).mkdir()
        chosen = 2 if name == "done" else None
        build(archives / name / "archive.sqlite", merges, chosen=chosen, name=f"{name} {EVIL}")
    settings = ServiceSettings(archive_dir=archives, poll_s=0.1)
    with served(create_app(settings, TOKEN)) as url:
        yield Served(url, archives)


@pytest.fixture
def page(browser, service):
    with logged_in(browser, service.url, TOKEN) as found:
        yield found


def show(page, service, search="done"):
    page.goto(f"{service.url}/searches/{search}")
    page.locator(".choice button").wait_for()
    return page.locator(".scatters > div:first-child .mark")


@pytest.fixture
def growing(service, request) -> Iterator[Archive]:
    """The archive of search `growing`, to which the test adds."""
    home = service.archives / "growing"
    home.mkdir(exist_ok=True)
    path = home / "archive.sqlite"
    if not path.exists():
        build(path, MERGES, name="growing")
    with Archive.open(path, writable=True) as archive:
        archive.begin_run()
        yield archive


def test_token_is_given_in_the_form_and_forgotten(browser, service):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{service.url}/searches/done")
    token = page.get_by_label("Token")
    token.fill("wrong")
    token.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the token of this service.")
    assert "done" not in page.content()
    token.fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="done").wait_for()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto(service.url)
    expect(token).to_be_visible()
    assert "done" not in page.content()
    context.close()


def test_names_are_text_wherever_they_are_shown(page, service):
    expect(page.get_by_role("link", name=f"done {EVIL}")).to_be_visible()
    show(page, service)
    assert page.locator("h1").inner_text() == f"done {EVIL}"
    assert page.locator("img").count() == 0
    assert EVIL in page.title()


def test_three_objectives_are_turned_and_gone_through_by_keys(page, service):
    show(page, service)
    expect(page.locator(".scatters svg")).to_have_count(3)
    page.get_by_text("Three objectives in 3-D").click()
    spots = page.locator(".space .spot")
    expect(spots).to_have_count(5)
    before = [spot.get_attribute("cx") for spot in spots.all()]
    page.get_by_label("Turn").focus()
    page.keyboard.press("ArrowRight")
    assert before != [spot.get_attribute("cx") for spot in spots.all()]
    page.locator('.space .mark[tabindex="0"]').focus()
    page.keyboard.press("End")
    assert page.evaluate("() => document.activeElement.dataset.index") == "0"
    page.keyboard.press("Enter")
    expect(page.locator("#recipe-title")).to_have_text("Merge base")
    expect(page.locator(".space .ring.selected")).to_have_count(1)


def test_failure_is_told_and_opened_from_its_list(page, service):
    show(page, service)
    page.locator(".failures button").click()
    expect(page.locator("#recipe .problem")).to_contain_text("It failed in evaluate")
    expect(page.locator("#recipe pre").first).to_have_text("logits are not finite")
    assert page.get_by_role("button", name="Export this").count() == 0


@pytest.mark.parametrize("search", ["none", "bad"])
def test_search_without_scores_says_so(page, service, search):
    page.goto(f"{service.url}/searches/{search}")
    expect(page.locator(".scatters")).to_have_text("No merge was scored yet.")
    expect(page.locator(".parallel")).to_have_text("No merge was scored yet.")
    expect(page.locator(".volumes")).to_have_text("No merge has a hypervolume yet.")
    assert page.locator("svg").count() == 0
    assert page.locator(".problem").count() == 0


def test_floors_that_nothing_meets_are_told(page, service):
    show(page, service)
    expect(page.locator(".scatters .ring.wished")).to_have_count(3)
    for floor in page.locator("input[aria-label^='Floor of']").all():
        floor.focus()
        page.keyboard.press("End")
    expect(page.locator(".choice .problem")).to_contain_text("no merge")
    expect(page.locator(".scatters .ring.wished")).to_have_count(0)
    page.get_by_role("button", name="As the job has it").click()
    expect(page.locator(".scatters .ring.wished")).to_have_count(3)
    assert page.locator(".choice .problem").count() == 0


def test_answer_that_comes_late_is_not_shown_for_another_merge(page, service):
    marks = show(page, service)
    late = []

    def keep(route):
        late.append(route)

    page.route("**/candidates/2", keep)
    page.locator('.scatters > div:first-child [data-index="2"]').click()
    page.locator('.scatters > div:first-child [data-index="0"]').click()
    title = page.locator("#recipe-title")
    expect(title).to_have_text("Merge base")
    with page.expect_response("**/candidates/2") as answer:
        late[0].continue_()
    answer.value.finished()
    # Not only in the end: what is asked for anew would mend it.
    for _ in range(20):
        assert page.locator("#recipe dd").first.inner_text() == "0"
        page.wait_for_timeout(25)
    expect(title).to_have_text("Merge base")
    expect(marks.and_(page.locator('[aria-pressed="true"]'))).to_have_attribute("data-index", "0")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 500, "body": '{"error": {"message": "it broke <b>"}}'}, "it broke <b>"),
        ({"status": 502, "body": "<h1>Bad gateway</h1>"}, "the service answered 502"),
        ({"status": 200, "body": '{"half": '}, "does not answer"),
    ],
)
def test_error_of_the_service_is_told_and_asked_again(page, service, answer, said):
    page.route("**/points", lambda route: route.fulfill(**answer))
    page.goto(f"{service.url}/searches/done")
    expect(page.get_by_role("alert")).to_contain_text(said)
    page.unroute("**/points")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".scatters svg")).to_have_count(3)


def test_page_asks_again_by_itself_where_no_event_comes(page, service):
    page.route("**/events", lambda route: route.abort())
    page.route("**/points", lambda route: route.fulfill(status=500, body="{}"))
    page.goto(f"{service.url}/searches/done")
    expect(page.get_by_role("alert")).to_have_text("the service answered 500")
    page.unroute("**/points")
    expect(page.locator(".scatters svg")).to_have_count(3, timeout=TIMEOUT_MS)
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".live")).to_contain_text("The connection is lost")


def test_page_goes_to_the_login_when_the_session_is_over(page, service):
    marks = show(page, service)
    page.context.clear_cookies()
    marks.first.press("Enter")
    page.wait_for_url("**/login")
    assert "done" not in page.content()


def test_what_somebody_looks_at_stays_while_results_arrive(page, service, growing):
    marks = show(page, service, "growing")
    count = marks.count()
    page.locator('.scatters > div:first-child [data-index="2"]').press("Enter")
    page.get_by_text("As JSON").click()
    page.get_by_label("Against").select_option(label="uniform soup")
    page.locator("#recipe caption", has_text="minus uniform soup").wait_for()
    page.locator('.scatters > div:first-child [data-index="3"]').focus()
    add(growing, Merge((0.5, 0.5, 0.1), (0.6, 0.6, 0.2)))
    expect(marks).to_have_count(count + 1)
    page.wait_for_timeout(300)
    assert page.evaluate("() => document.activeElement.dataset.index") == "3"
    assert page.locator("#recipe details[open] pre").count() == 1
    assert page.get_by_label("Against").locator("option:checked").inner_text() == "uniform soup"
    # A reader of a table is not thrown out of it, either.
    evaluations = page.locator(".workers td").first
    before = evaluations.inner_text()
    page.get_by_role("region", name="What each worker did").focus()
    add(growing, Merge((0.5, 0.1, 0.5), (0.6, 0.2, 0.6)))
    expect(marks).to_have_count(count + 2)
    focused = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert focused == "What each worker did"
    expect(evaluations).not_to_have_text(before)


def test_press_on_a_point_is_a_click_though_results_arrive_meanwhile(page, service, growing):
    marks = show(page, service, "growing")
    count = marks.count()
    # A diamond of its own place.
    page.locator('.scatters > div:first-child [data-index="0"]').hover()
    page.mouse.down()
    add(growing, Merge((0.4, 0.4, 0.2), (0.5, 0.6, 0.2)))
    page.get_by_text("Last finished").wait_for()
    page.wait_for_timeout(1500)
    page.mouse.up()
    expect(page.locator("#recipe-title")).to_have_text("Merge base")
    expect(marks).to_have_count(count + 1)


def test_hidden_page_follows_nothing_and_catches_up(browser, service, growing):
    with logged_in(browser, service.url, TOKEN) as page:
        page.add_init_script(
            "Object.defineProperty(document, 'hidden', { get: () => window.away === true })"
        )
        streams = []
        page.on("request", lambda one: streams.append(one) if one.url.endswith("/events") else None)
        marks = show(page, service, "growing")
        count = marks.count()
        change = "(away) => { window.away = away; document.dispatchEvent(new Event('%s')) }"
        with page.expect_event("requestfailed", lambda one: one.url.endswith("/events")):
            page.evaluate(change % "visibilitychange", True)
        page.wait_for_timeout(1500)  # what it has asked for already
        add(growing, Merge((0.6, 0.1, 0.5), (0.7, 0.1, 0.6)))
        page.wait_for_timeout(1500)
        assert marks.count() == count
        assert len(streams) == 1
        page.evaluate(change % "visibilitychange", False)
        expect(marks).to_have_count(count + 1)
        assert len(streams) == 2
        # One that is opened behind others does not begin with it, either.
        page.add_init_script("window.away = true")
        page.reload()
        expect(marks).to_have_count(count + 1)
        assert len(streams) == 2


def test_search_is_deleted_once_its_id_was_typed(page, service):
    home = service.archives / "old"
    home.mkdir()
    build(home / "archive.sqlite", MERGES, name="old")
    show(page, service, "old")
    with page.context.expect_page() as opening:
        page.evaluate("() => window.open(location.href)")
    other = opening.value
    other.locator(".choice button").wait_for()
    page.get_by_text("Delete …").click()
    confirm = page.get_by_label("Type the id")
    confirm.fill("older")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("repeat its id")
    assert home.exists()
    confirm.fill("old")
    confirm.press("Enter")
    page.wait_for_url(f"{service.url}/")
    page.get_by_role("link", name="done").wait_for()
    assert page.get_by_role("link", name="old").count() == 0
    assert not home.exists()
    # Who looked at it elsewhere hears of it.
    expect(other.locator(".live [role=status]")).to_have_text("This search was deleted.")


def test_list_shows_searches_though_one_cannot_be_asked(page, service):
    answer = {"status": 409, "body": json.dumps({"error": {"message": "unreadable"}})}
    page.route("**/searches/bad", lambda route: route.fulfill(**answer))
    page.goto(service.url)
    row = page.get_by_role("row").filter(has_text="done")
    expect(row).to_contain_text("better than all baselines")
    assert page.get_by_role("alert").count() == 0


def test_list_keeps_the_focus_where_it_is(page, service):
    link = page.get_by_role("link", name="none")
    link.focus()
    with page.expect_response("**/api/v1/searches"):
        pass
    page.wait_for_timeout(300)
    assert "none" in page.evaluate("() => document.activeElement.textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_pages_fit_and_are_accessible(browser, service, viewport, scheme):
    with logged_in(browser, service.url, TOKEN, viewport, scheme) as page:
        for path in ("/", "/searches/done#candidate-2", "/searches/bad", "/searches/none"):
            page.goto(service.url + path)
            page.locator("table, .volumes p").first.wait_for()
            if "#" in path:
                page.locator("#recipe .compare caption").wait_for()
                for summary in page.locator("summary").all():
                    summary.click()
            page.wait_for_timeout(300)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= viewport["width"]
            assert serious_faults(page) == [], path
