"""The report as files: what a team reads of a search without mergefront."""

import html.parser
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table as RichTable
from typer.testing import CliRunner

from configs.errors import ArchiveError, ConfigError
from optimizer.archive.archive import Archive
from optimizer.cli import app as cli
from optimizer.progress import progress_of
from optimizer.report import plot
from optimizer.report.document import Table
from optimizer.report.report import report_of
from optimizer.report.sections import document_of
from optimizer.report.write import check_targets, html_of, markdown_of, write_report
from optimizer.results import belief, progress_view
from tests.unit.optimizer.synthetic_archive import Merge, build

MERGES = (
    Merge((0, 0, 0), (0.1,) * 3, report=(0.1,) * 3, origin="baseline:base"),
    Merge((0.4,) * 3, (0.5,) * 3, report=(0.5,) * 3, origin="baseline:uniform soup"),
    Merge((0.7, 0.6, 0.5), (0.9,) * 3, (0.8,) * 3, (0.75, 0.7, 0.65), drop=0.25),
    Merge((3, 3, 3), None),
)
HOSTILE = "<script>alert('x')</script> [a](javascript:b) `c` | $d$ **e** &lt; \n# f"
NO_CONTENT = {"meta", "link", "br", "img"}


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in their order; counts them and keeps what a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += attrs
        if tag not in NO_CONTENT:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


@pytest.fixture
def make_document(tmp_path):
    def make(*merges: Merge, file: str = "a", chosen: int | None = 2, **changes: object):
        path = build(tmp_path / f"{file}.sqlite", merges or MERGES, chosen=chosen, **changes)
        with Archive.open(path) as archive:
            return document_of(archive)

    return make


def test_page_fetches_nothing_and_runs_nothing(make_document):
    page = Page(html_of(make_document()))
    assert page.elements["script"] == page.elements["link"] == page.elements["img"] == 0
    targets = [value for key in ("src", "href", "xlink:href") for value in page.values(key)]
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")
    assert not [key for key, _ in page.attributes if key.startswith("on")]


def test_page_is_for_phones_and_for_the_dark(make_document):
    text = html_of(make_document())
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    # A figure has no colour of its own where the page decides, and no two ids are equal.
    body = text[text.index("<main>") :]
    assert not re.search("#(000000|ffffff|e6e6e6|555555|0072b2)", body)
    assert "var(--ink)" in body
    ids = Page(text).values("id")
    assert len(ids) == len(set(ids)) > 50
    # Figures refer to parts of themselves only, all of which are there.
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', text)) <= set(ids)


def test_page_says_what_the_printed_report_says(make_document, tmp_path):
    document = make_document()
    with Archive.open(tmp_path / "a.sqlite") as archive:
        report = report_of(archive)
        job, weights = archive.job, archive.weights_digest(2)
    shown = " ".join(Page(html_of(document)).texts)
    assert report.verdict.sentence in shown
    assert report.verdict.curse.sentence in shown
    for text in (
        "0.900 ± 0.069", "0.800 ± 0.092", "0.650 ± 0.109",  # math on each split
        "+0.200 ± 0.053", "logits are not finite", "/models/math", job.digest, weights,
        "20 items each", "mergefront export a.sqlite --id", "math=0.50@0.25", "GPU hours",
    ):  # fmt: skip
        assert text in shown, text


@pytest.mark.slow
def test_texts_of_people_stay_texts_on_the_page(make_document):
    models = {"base": HOSTILE, "checkpoints": dict.fromkeys(("instruct", "code", "math"), HOSTILE)}
    clean = Page(html_of(make_document(name="harmless")))
    page = Page(html_of(make_document(file="b", name=HOSTILE, models=models)))
    assert page.elements == clean.elements
    # The title, and where each of four models is from.
    assert "".join(page.texts).count("<script>alert('x')</script>") >= 5


def test_markdown_has_whole_tables_whatever_names_hold(make_document):
    models = {"base": HOSTILE, "checkpoints": dict.fromkeys(("instruct", "code", "math"), HOSTILE)}
    text = markdown_of(make_document(name=HOSTILE, models=models), {})
    prose = text[: text.index("```yaml")]
    assert "<script>" not in prose.replace("\\<script", "")
    assert not re.search(r"(?<!\\)\]\(", prose)
    width = 0
    for line in prose.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert line.startswith("|") == (cells > 0), line
        if cells:
            assert width in (0, cells), line
        width = cells
    # The job stands between fences that nothing in it closes.
    assert text.count("\n```") == 4


def test_markdown_shows_figures_where_they_are(make_document, tmp_path):
    document = make_document()
    page, figures = tmp_path / "wiki" / "page.md", tmp_path / "wiki pictures"
    written = write_report(document, markdown=page, png=figures)
    assert written[-1] == page
    assert [path.name for path in written[:-1]] == [
        "verdict.png", "front-1.png", "front-2.png", "front-3.png",
        "hypervolume-evaluations.png", "hypervolume-items.png",
    ]  # fmt: skip
    links = re.findall(r"!\[.+?\]\(<?([^)>]+)>?\)", page.read_text())
    assert {(page.parent / link).resolve() for link in links} == set(written[:-1])
    for path in written[:-1]:
        with Image.open(path) as image:
            assert image.width > 600
    alone = tmp_path / "alone.md"
    write_report(document, markdown=alone)
    assert "![" not in alone.read_text()


@pytest.mark.slow
def test_contribution_is_shown_where_it_was_measured(make_document):
    merges = [
        Merge((0.7, 0.6, 0.5), (0.9,) * 3, (0.8,) * 3, (0.75,) * 3),
        Merge((0, 0, 0), (0.1,) * 3, report=(0.1,) * 3, origin="baseline:base"),
        Merge((0, 0.6, 0.5), report=(0.3,) * 3, origin="attribution:without instruct"),
    ]
    text = html_of(make_document(*merges, chosen=0))
    assert "without instruct" in text
    assert 'id="contribution-' in text
    assert "Not asked what each checkpoint adds" in html_of(make_document(file="b"))


def test_what_only_has_a_colour_does_not_stand_out():
    table = RichTable("a")
    for style in ("bold green", "red", None, "bold", "green"):
        table.add_row("x", style=style)
    assert Table.of(table).marked == {0, 3}


def test_commands_survive_any_name(make_document):
    text = markdown_of(make_document(file="a b;c"), {})
    assert "mergefront resume 'a b;c.sqlite' --verify" in text
    assert "mergefront export 'a b;c.sqlite' --id " in text


def test_posterior_is_fitted_once_for_a_written_report(tmp_path, monkeypatch):
    fits = []
    fit = belief.posterior_scores

    def counted(*arguments):
        fits.append(arguments)
        return fit(*arguments)

    monkeypatch.setattr(belief, "posterior_scores", counted)
    with Archive.open(build(tmp_path / "a.sqlite", MERGES, chosen=2)) as archive:
        document_of(archive, report_of(archive))
    assert len(fits) == 1


@pytest.mark.slow
def test_course_is_worked_out_once_for_a_written_report(tmp_path, monkeypatch):
    seen = []

    def counted(archive):
        seen.append(archive)
        return progress_of(archive)

    for module in (plot, progress_view):
        monkeypatch.setattr(module, "progress_of", counted)
    with Archive.open(build(tmp_path / "a.sqlite", MERGES, chosen=2)) as archive:
        document_of(archive, report_of(archive))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("merges", "said"),
    [
        ([], "Nothing was scored yet"),
        ([Merge((3, 3, 3), None)], "logits are not finite"),
        (list(MERGES[:2]), "No merge was chosen yet"),
    ],
)
def test_search_that_is_not_finished_has_a_report(tmp_path, merges, said):
    with Archive.open(build(tmp_path / "a.sqlite", merges)) as archive:
        document = document_of(archive)
    assert said in " ".join(Page(html_of(document)).texts)
    assert said in markdown_of(document, {})


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_pair_of_objectives_has_a_figure(tmp_path, count):
    names = ("instruct", "code", "math", "chat", "safety")[:count]
    merges = [
        Merge((0, 0, 0), (0.1,) * count, report=(0.1,) * count, origin="baseline:base"),
        Merge((0.5, 0.5, 0.5), (0.9,) * count, report=(0.8,) * count),
    ]
    path = build(tmp_path / "a.sqlite", merges, objectives=names, chosen=1)
    with Archive.open(path) as archive:
        document = document_of(archive)
    fronts = [drawing for drawing in document.drawings if drawing.name.startswith("front-")]
    assert len(fronts) == max(1, count * (count - 1) // 2)
    assert html_of(document).count("<figure>") == len(document.drawings)


@pytest.mark.slow
def test_same_archive_gives_the_same_files(make_document, tmp_path):
    document = make_document()
    assert html_of(document) == html_of(document)
    with Archive.open(tmp_path / "a.sqlite") as archive:
        assert html_of(document_of(archive)) == html_of(document)


def test_wrong_targets_are_refused_all_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        check_targets(tmp_path / "r.pdf", tmp_path, tmp_path / "file")
    assert [problem.path for problem in caught.value.problems] == ["--out", "--md", "--png"]
    check_targets(tmp_path / "r.html", tmp_path / "r.md", tmp_path / "new")


def test_report_that_cannot_be_written_is_an_error_with_its_path(make_document, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match=r"cannot be written to .*file/r\.html"):
        write_report(make_document(), html=tmp_path / "file" / "r.html")


@pytest.mark.slow
def test_command_writes_what_it_is_asked_for_and_prints_where(tmp_path):
    path = build(tmp_path / "a.sqlite", MERGES, chosen=2)
    page, figures = tmp_path / "r.html", tmp_path / "figures"
    arguments = ["report", str(path), "--out", str(page), "--png", str(figures)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert {Path(line) for line in done.stdout.split()} == {page, *figures.iterdir()}
    assert page.read_text().startswith("<!DOCTYPE html>")
    printed = CliRunner().invoke(cli.app, ["report", str(path)]).stdout
    assert "Baselines on the report items" in printed
    refused = CliRunner().invoke(cli.app, ["report", str(path), "--out", "report.pdf"])
    assert refused.exit_code == 2
    assert "must end in .html" in refused.stderr
