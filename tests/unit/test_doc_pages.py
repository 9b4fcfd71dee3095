"""What the documentation and the README show: commands parse, jobs are valid, nothing is missed."""

import re

import pytest
from typer.main import get_command

from configs.load import job_of
from optimizer.cli.app import app
from tests.doc_pages import LEFT_OUT, PAGES, README, ROOT, SAMPLES, boxes_of, job_of_box

READ = [*PAGES, README]
BOXES = [box for page in READ for box in boxes_of(page)]
CALLS = [(box, arguments) for box in BOXES for arguments in box.commands]
JOBS = [(box, job) for box in BOXES if (job := job_of_box(box)) is not None]
MINIMAL = {
    "models": {"base": "models/base", "checkpoints": {"math": "models/math"}},
    "objectives": {"math": "gsm8k"},
    "workers": {"device": "cuda"},
    "archive": "archive.sqlite",
}


@pytest.mark.parametrize(("box", "arguments"), CALLS, ids=[f"{box}" for box, _ in CALLS])
def test_shown_command_has_arguments_that_the_command_line_takes(box, arguments) -> None:
    command, words = get_command(app), list(arguments)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    # Parses, and calls nothing; what is wrong raises, with a message that says what.
    assert command.make_context("mergefront", words).params


@pytest.mark.parametrize(("box", "job"), JOBS, ids=[f"{box}" for box, _ in JOBS])
def test_shown_job_is_valid(box, job, tmp_path) -> None:
    job_of({**MINIMAL, **job}, directory=tmp_path)


@pytest.mark.parametrize("page", READ, ids=[str(page.relative_to(ROOT)) for page in READ])
def test_boxes_of_a_page_are_run_or_say_why_not(page) -> None:
    boxes = boxes_of(page)
    # Every fence that opens is one that was understood.
    assert len(re.findall(r"^```.+$", page.read_text(), re.MULTILINE)) == len(boxes)
    for box in boxes:
        is_checked = job_of_box(box) is not None  # by the test above
        known = box.is_run or box.file or box.language in SAMPLES or is_checked
        assert known or len(box.why_not_run or "") > 5, f"{box}: {LEFT_OUT!r} and why"


def test_commands_and_jobs_are_found_in_the_pages() -> None:
    assert len(CALLS) > 40
    assert len(JOBS) > 5
    assert sum(box.is_run for page in PAGES for box in boxes_of(page)) > 25
    assert sum(box.is_run for box in boxes_of(README)) >= 3
