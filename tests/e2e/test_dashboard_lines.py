"""The dashboard's charts of convergence in a browser, against what the HTTP interface answers."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from optimizer.archive.archive import Archive
from optimizer.archive.recorded_space import recorded_space
from optimizer.service.app import create_app
from optimizer.service.client import ServiceClient
from optimizer.service.settings import ServiceSettings
from tests.e2e.browser import logged_in
from tests.e2e.service_server import served
from tests.unit.optimizer.service.large_archive import add_candidate, build_large

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow

TOKEN = "a-token-for-tests-and-nothing-else"
# Of 6 genes: 4 + 3 ln 6 candidates, after one baseline.
POPULATION = 9
NUM_UPDATES = 4


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("lines").resolve()
    searches = {name: name for name in ("cma", "scalar_cma", "dirichlet")} | {"growing": "cma"}
    for name, strategy in searches.items():
        home = found / name
        home.mkdir()
        build_large(home / "archive.sqlite", 40, 30, strategy=strategy)
    return found


@pytest.fixture(scope="module")
def service(archives) -> Iterator[str]:
    settings = ServiceSettings(archive_dir=archives, poll_s=0.1)
    with served(create_app(settings, TOKEN)) as url:
        yield url


@pytest.fixture
def page(browser, service):
    with logged_in(browser, service, TOKEN) as found:
        yield found


def read(chart) -> list[tuple[int, float]]:
    """Go through a chart by keys; returns what it says, as candidate and value."""
    chart.focus()
    chart.press("Home")
    found = []
    for _ in range(int(chart.get_attribute("aria-valuemax")) + 1):
        said = chart.get_attribute("aria-valuetext")
        # It stands in the chart, too, for those who see it.
        expect(chart.locator("text.reading")).to_have_text(said)
        match = re.fullmatch(r"candidate (\d+): ([\d.,]+)", said)
        assert match, said
        found.append((int(match[1]), float(match[2].replace(",", ""))))
        chart.press("ArrowRight")
    return found


def heights(chart) -> list[float]:
    """Return how far up the line is at each of its points, in units of the drawing."""
    course = chart.locator("path.course").get_attribute("d")
    return [-float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", course)]


def assert_shows(chart, candidates, values):
    found = read(chart)
    assert [candidate for candidate, _ in found] == candidates
    # It says four digits.
    assert [value for _, value in found] == pytest.approx(values, rel=5e-4)
    drawn, logs = heights(chart), [math.log10(value) for value in values]
    assert len(drawn) == len(values)
    top, bottom = max(drawn), min(drawn)
    # On a logarithmic scale, to the tenth of a unit that it is drawn with.
    scale = (top - bottom) / (max(logs) - min(logs))
    assert drawn == pytest.approx([bottom + scale * (one - min(logs)) for one in logs], abs=0.2)


@pytest.mark.parametrize("strategy", ["cma", "scalar_cma"])
def test_step_size_and_axis_ratio_are_drawn_and_read_as_they_are(page, service, strategy):
    with ServiceClient(service, TOKEN) as client:
        answer = client.convergence(strategy)
    assert answer.candidate == [POPULATION * (number + 1) for number in range(NUM_UPDATES)]
    page.goto(f"{service}/searches/{strategy}")
    charts = page.get_by_role("region", name="Convergence").get_by_role("slider")
    expect(charts).to_have_count(2)
    sigma, ratio = page.get_by_label("Step size sigma"), page.get_by_label("Axis ratio")
    assert_shows(sigma, answer.candidate, answer.sigma)
    assert_shows(ratio, answer.candidate, answer.axis_ratio)


def test_next_population_comes_to_the_charts_by_itself(page, service, archives):
    path = archives / "growing" / "archive.sqlite"
    page.goto(f"{service}/searches/growing")
    sigma = page.get_by_label("Step size sigma")
    expect(sigma).to_have_attribute("aria-valuemax", str(NUM_UPDATES - 1))
    with Archive.open(path, writable=True) as archive:
        archive.begin_run()
        space, rng = recorded_space(archive), np.random.default_rng(1)
        for index in range(40, (NUM_UPDATES + 1) * POPULATION + 1):
            add_candidate(archive, space, index, rng)
        expect(sigma).to_have_attribute("aria-valuemax", str(NUM_UPDATES))
    with ServiceClient(service, TOKEN) as client:
        answer = client.convergence("growing")
    assert len(answer.candidate) == NUM_UPDATES + 1
    assert_shows(sigma, answer.candidate, answer.sigma)


def test_strategy_without_a_step_size_has_no_charts_of_it(page, service):
    page.goto(f"{service}/searches/dirichlet")
    section = page.get_by_role("region", name="Convergence")
    expect(section).to_contain_text("another strategy searches")
    assert section.get_by_role("slider").count() == 0
