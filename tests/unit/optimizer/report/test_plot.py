import re

import numpy as np
import pytest
from PIL import Image, ImageColor
from scipy import ndimage

from configs.errors import ArchiveError
from optimizer.archive.archive import Archive
from optimizer.pareto import hypervolume
from optimizer.report.plot import CHOSEN_COLOR, Picture, baseline_kind, write_png
from optimizer.report.plot_html import write_html
from optimizer.scalarize import reference_point
from tests.unit.optimizer.synthetic_archive import Merge, build

pytestmark = pytest.mark.slow  # draws figures

NAMES = ("instruct", "code", "math", "chat", "safety")


def merges(num_objectives: int) -> list[Merge]:
    rng = np.random.default_rng(num_objectives)

    def scores(low: float) -> list[float]:
        return rng.uniform(low, 1.0, num_objectives).round(2).tolist()

    return [
        Merge((0, 0, 0), [0.1] * num_objectives, origin="baseline:base"),
        Merge((1, 0, 0), scores(0.1), origin="baseline:checkpoint instruct"),
        Merge((0.2, 0.2, 0.2), scores(0.2), origin="baseline:task arithmetic 0.2"),
        Merge((0.4, 0.4, 0.4), None, origin="baseline:task arithmetic 0.4"),
        *(Merge((0.5, 0.1 * step, 0.3), scores(0.3), drop=0.1) for step in range(8)),
        Merge((0.7, 0.7, 0.7), [0.8] * num_objectives, report=[0.7] * num_objectives),
    ]


@pytest.fixture
def make_picture(tmp_path):
    def make(num_objectives: int, **changes: object) -> Picture:
        path = tmp_path / f"{num_objectives}.sqlite"
        found = merges(num_objectives)
        build(path, found, objectives=NAMES[:num_objectives], chosen=len(found) - 1, **changes)
        with Archive.open(path) as archive:
            return Picture.of(archive)

    return make


def test_picture_sorts_merges_into_front_and_dominated(make_picture):
    picture = make_picture(3)
    assert len(picture.front) + len(picture.dominated) == 12
    assert {row.candidate.index for row in picture.dominated} >= {0}
    assert picture.chosen is not None
    assert picture.chosen.candidate.index == 12
    assert picture.report is not None
    assert set(picture.baselines) == {
        "base", "checkpoint instruct", "task arithmetic, 8 scales",
    }  # fmt: skip
    assert picture.num_before_search == 4


def test_volume_grows_to_that_of_the_whole_front(tmp_path):
    with Archive.open(build(tmp_path / "a.sqlite", merges(3), objectives=NAMES[:3])) as archive:
        volume = Picture.of(archive).volume
        observations = archive.observations()
    points = [
        [score.value for score in seen.scores.values()] for seen in observations if seen.scores
    ]
    reference = reference_point(observations, NAMES[:3])
    assert volume.shape == (13,)
    assert (np.diff(volume) >= 0).all()
    assert volume[3] == volume[2]  # a failure changes nothing
    assert volume[-1] == pytest.approx(hypervolume(points, reference))
    assert volume[2] == pytest.approx(hypervolume(points[:3], reference))


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 5])
def test_png_shows_the_choice_in_every_pair_of_objectives(make_picture, tmp_path, num_objectives):
    picture = make_picture(num_objectives)
    write_png(picture, tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    is_star_color = np.abs(pixels - ImageColor.getrgb(CHOSEN_COLOR)).sum(axis=2) < 30
    regions, _ = ndimage.label(is_star_color)
    stars = np.bincount(regions.ravel())[1:]
    num_pairs = max(1, num_objectives * (num_objectives - 1) // 2)
    # One on search items and one on report items, once more in the legend.
    assert (stars > 40).sum() == 2 * (num_pairs + 1)


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 5])
def test_html_holds_everything_and_fetches_nothing(make_picture, tmp_path, num_objectives):
    write_html(make_picture(num_objectives), tmp_path / "front.html")
    text = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text)
    assert len(re.findall(r'<div id="figure-\d"', text)) == (4 if num_objectives >= 3 else 3)
    assert text.count("plotly.js v") == 1
    assert "baseline:checkpoint instruct" in text
    # Checkpoints and objectives may have the same names: each has its own axis.
    for label in ("code weight", "code drop", "instruct score"):
        assert f'"label":"{label}"' in text


def test_html_escapes_names_of_people(make_picture, tmp_path):
    picture = make_picture(2, name="<script>alert(1)</script>")
    write_html(picture, tmp_path / "front.html")
    assert "<script>alert(1)" not in (tmp_path / "front.html").read_text(encoding="utf-8")


def test_same_archive_gives_the_same_page(make_picture, tmp_path):
    picture = make_picture(2)
    for name in ("a.html", "b.html"):
        write_html(picture, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_picture_of_an_archive_without_scores_says_how_to_go_on(tmp_path):
    path = build(tmp_path / "a.sqlite", [Merge((1, 0, 0), None)])
    with (
        Archive.open(path) as archive,
        pytest.raises(ArchiveError, match=r"nothing was scored yet.*mergefront resume"),
    ):
        Picture.of(archive)


@pytest.mark.parametrize("write", [write_png, write_html])
def test_plot_that_cannot_be_written_is_an_error_with_its_path(make_picture, tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match=r"cannot be written to .*file/front"):
        write(make_picture(2), tmp_path / "file" / "front")


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("task arithmetic 0.2", "task arithmetic, 8 scales"),
        ("soup of code + math", "greedy soup steps"),
        ("uniform soup", "uniform soup"),
        ("checkpoint math", "checkpoint math"),
    ],
)
def test_baseline_kind_gathers_what_belongs_together(label, kind):
    assert baseline_kind(label) == kind
