"""Measure how soon the dashboard and its API answer where a million item scores are recorded.

    python -m scripts.bench.dashboard --json

Prints one JSON object. The service runs as a user starts it, and Debian's Chromium, headless, opens
the page of one search of about 1,000 candidates with 1,000 items each. ``page_interactive_s`` is
the median time until every point is drawn and the choice can be opened; ``page_first_s`` that of
the first load after a start, which opens the archive. ``empty_page_s`` is what the same browser
takes for a page of the service without data, and so the limit. ``front_ms`` is the median answer of
``/front`` with a preference, ``health_ms`` that of a request which reads nothing.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.service.client import ServiceClient
from scripts.bench.archive import build_large
from scripts.bench.printing import print_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

NUM_ITEMS = 334  # per task: 1,002 in all
SEARCH = "large.sqlite"
_LINK = re.compile(r"(http://\S+)/login\?token=(\S+)")
_START_S = 60


@contextmanager
def served(archives: Path) -> Iterator[tuple[str, str]]:
    """Run ``mergefront serve`` on a free port; lends its URL and token."""
    command = [sys.executable, "-m", "optimizer.cli", "serve", "--archive-dir", str(archives)]
    said = archives.with_suffix(".log")
    with said.open("w") as log:
        service = subprocess.Popen([*command, "--port", "0"], stderr=log)
    try:
        end = time.monotonic() + _START_S
        while (found := _LINK.search(said.read_text())) is None:
            if service.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the service did not start:\n{said.read_text()}")
            time.sleep(0.05)
        yield found[1], found[2]
    finally:
        service.terminate()
        service.wait()


@contextmanager
def browsing() -> Iterator["Page"]:
    """Lend a page of the system's Chromium.

    Raises:
        RuntimeError: There is none.
    """
    # Of the development tools, which other benchmarks do without.
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError("no Chromium was found; `apt install chromium`")
    with sync_playwright() as engine:
        # Containers have no user namespaces for its sandbox; only our own pages are opened.
        browser = engine.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1400, "height": 900})
        browser.close()


def open_search(page: "Page", url: str, count: int) -> float:
    """Open the page of the search; returns the seconds until it can be used."""
    started = time.perf_counter()
    page.goto(f"{url}/searches/{SEARCH}")
    page.locator(f".scatters > div:first-child .mark >> nth={count - 1}").wait_for(state="attached")
    page.locator(".choice button").wait_for()
    return time.perf_counter() - started


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def measure(directory: Path, repeats: int) -> dict[str, object]:
    """Return the whole report."""
    archives = directory / "archives"
    archives.mkdir()
    count = build_large(archives / SEARCH, NUM_ITEMS)
    with served(archives) as (url, token):
        with browsing() as page:
            page.goto(f"{url}/login?token={token}")
            page.wait_for_url(f"{url}/")
            first = open_search(page, url, count)
            loads = [open_search(page, url, count) for _ in range(repeats)]
            empty = median_ms(lambda: page.goto(f"{url}/login"), repeats)
        with ServiceClient(url, token) as client:
            wish = {"math": 0.7, "code": 0.3}
            front = median_ms(lambda: client.front(SEARCH, prefer=wish, fresh=False), 5 * repeats)
            health = median_ms(client.service, 5 * repeats)
    return {
        "candidates": count,
        "items_per_candidate": 3 * NUM_ITEMS,
        "page_interactive_s": statistics.median(loads),
        "page_slowest_s": max(loads),
        "page_first_s": first,
        "empty_page_s": empty / 1000,
        "front_ms": front,
        "health_ms": health,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=9, help="how often the page is opened")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-") as scratch:
        found = measure(Path(scratch), options.repeats)
    print_report(found, as_json=options.json)


if __name__ == "__main__":
    main()
