"""A browser for tests of pages: the system's Chromium, logged in at a service."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TIMEOUT_MS = 30_000
PHONE: "ViewportSize" = {"width": 390, "height": 844}
DESKTOP: "ViewportSize" = {"width": 1400, "height": 900}


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Run the browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    playwright.expect.set_options(timeout=TIMEOUT_MS)
    if CHROMIUM is None:
        pytest.skip("no Chromium was found (apt install chromium)")
    with playwright.sync_playwright() as engine:
        # Containers have no user namespaces for its sandbox; only this service's pages are opened.
        found = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def logged_in(
    browser: "Browser",
    url: str,
    token: str,
    viewport: "ViewportSize" = DESKTOP,
    scheme: str = "light",
) -> Iterator["Page"]:
    """Yield a page that followed the login link; fails where a script or the policy complains."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console", lambda said: faults.append(said.text) if "Security Policy" in said.text else None
    )
    try:
        page.goto(f"{url}/login?token={token}")
        page.wait_for_url(f"{url}/")
        yield page
    finally:
        context.close()
    assert faults == []


def serious_faults(page: "Page") -> list[str]:
    """Return the rules of accessibility that a page breaks seriously, as axe-core sees it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{one['id']}: {node['html']}"
        for one in found
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]
