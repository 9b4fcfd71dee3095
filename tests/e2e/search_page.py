"""What a person does on the page of a search, by a driven browser."""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from optimizer.service.result_models import FrontRow
from tests.e2e.browser import TIMEOUT_MS

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page
    from transformers import PreTrainedModel


def id_of(page: "Page") -> str:
    """Return the id of the search that a page shows."""
    return urlsplit(page.url).path.rpartition("/")[2]


def marks_of(page: "Page") -> "Locator":
    """Return the points of the first scatter."""
    return page.locator(".scatters > div:first-child .mark")


def wait_for_state(page: "Page", state: str) -> None:
    """Wait until the page says a state; processes of searches start with seconds of imports."""
    page.locator(".state", has_text=re.compile(f"^{state}$")).wait_for(timeout=120_000)


def raise_a_floor(page: "Page", front: Sequence[FrontRow]) -> None:
    """Move the first floor to just below the front's best; points dim, and the choice meets it."""
    from playwright.sync_api import expect

    floor = page.locator("input[aria-label^='Floor of']").first
    name = (floor.get_attribute("aria-label") or "").removeprefix("Floor of ")
    best = max((row.posterior or row.scores)[name].value for row in front)
    low = float(floor.get_attribute("min") or "nan")
    below = page.locator(".mark.below")
    expect(below).to_have_count(0)
    # Sliders move in steps, by keys as by the mouse.
    floor.focus()
    page.keyboard.press("End")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(below).not_to_have_count(0)
    assert low < float(floor.input_value()) < best + 1e-9
    page.get_by_text(f"{name} >= ").wait_for()


def open_merge(page: "Page", index: int) -> None:
    """Open a merge from its point, by keys: others may lie on it."""
    page.locator(f'.scatters > div:first-child [data-index="{index}"]').focus()
    page.keyboard.press("Enter")
    number = page.locator("#recipe dd").first
    number.filter(has_text=re.compile(f"^{index}$")).wait_for()


def compare_with_uniform_soup(page: "Page", task: str) -> None:
    """Compare the recipe that is open with the soup, down to what both generated for an item."""
    from playwright.sync_api import expect

    panel = page.locator("#recipe")
    panel.get_by_label("Against").select_option(label="uniform soup")
    panel.locator("caption", has_text="minus uniform soup").wait_for()
    panel.get_by_label("Items").select_option("all")
    counts = re.compile(rf"{task}: \d+ wins, \d+ losses")
    items = panel.locator("details", has_text=counts)
    items.locator("summary").click()
    # What both generated stands there as text, which is kept of what held-out items were for.
    expect(items.locator("li").first.locator("pre")).to_have_count(2)


def download_export(page: "Page", directory: Path) -> "PreTrainedModel":
    """Export the recipe that is open, download it, and load it as anybody would."""
    from transformers import AutoModelForCausalLM

    page.get_by_role("button", name="Export this").click()
    link = page.locator("a.download")
    link.wait_for(timeout=3 * TIMEOUT_MS)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(directory / "model.tar")
    with tarfile.open(directory / "model.tar") as tar:
        tar.extractall(directory, filter="data")
    [config] = directory.glob("*/config.json")
    return AutoModelForCausalLM.from_pretrained(config.parent)
