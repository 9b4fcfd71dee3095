"""The noise report on numbers that are known by hand, and against simulation."""

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from configs.errors import ArchiveError, JobChangedError
from configs.evaluation import SPLITS
from optimizer.archive.archive import Archive
from optimizer.cli import app as cli
from optimizer.results.noise import items_needed, noise_of, task_noise
from optimizer.results.noise_view import noise_record, render_noise
from tests.unit.optimizer.synthetic_archive import CHECKPOINTS, NUM_ITEMS, Merge, build, make_job

# Of 20 items the base has the first 10 right and one checkpoint the first 15, in one objective.
BASE = Merge((0, 0, 0), (0.5, 0.5, 0.0), report=(0.5, 0.5, 0.0), origin="baseline:base")
MATH = Merge((0, 0, 1), (0.75, 0.5, 0.0), origin="baseline:checkpoint math")
SEARCHED = Merge((0.5, 0.5, 0.5), (1.0, 0.0, 1.0))


@pytest.fixture
def archive(tmp_path):
    with Archive.open(build(tmp_path / "a.sqlite", [BASE, MATH, SEARCHED])) as opened:
        yield opened


def by_name(report, split="search"):
    return {row.name: row for row in report.rows if row.split == split}


def with_sizes(job, **sizes):
    splits = job.evaluation.splits.model_copy(update=sizes)
    return job.model_copy(
        update={"evaluation": job.evaluation.model_copy(update={"splits": splits})}
    )


def test_variances_are_those_of_the_definition():
    scores = [
        {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0},
        {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0},
    ]
    found = task_noise("t", scores)
    # ddof 1: 1/3 and 1/4; differences 0, -1, 0, 0 vary by 1/4.
    assert found.variance == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert found.paired_variance == pytest.approx(1 / 4)
    assert found.correlation == pytest.approx(1 - (1 / 4) / (7 / 12))
    assert (found.num_items, found.is_paired) == (4, True)


def test_pairs_count_only_the_items_that_both_have():
    found = task_noise("t", [{"a": 1.0, "b": 0.0, "c": 9.0}, {"a": 0.0, "b": 1.0}])
    assert found.paired_variance == pytest.approx(2.0)
    assert found.num_items == 3


def test_one_baseline_is_taken_as_unpaired():
    found = task_noise("t", [{"a": 1.0, "b": 0.0}])
    assert (found.variance, found.paired_variance) == (0.5, 1.0)
    assert (found.is_paired, found.correlation) == (False, None)


def test_items_that_count_more_make_more_noise():
    scores = [{"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0}]
    weights = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 3.0}
    # Weighted mean 3/4: 4 * (4 / 3) * 2 * ((3 * 1/4)^2 + (3/4)^2) / 64
    assert task_noise("t", scores, weights).variance == pytest.approx(0.1875)
    assert task_noise("t", scores, dict.fromkeys("abcd", 2.0)).variance == pytest.approx(1 / 3)


def test_items_needed_is_the_formula():
    # d2 (2 / 0.02)^2 = 0.25 * 10,000
    assert items_needed([(1.0, 0.25)], 0.02) == 2500
    assert items_needed([(0.5, 0.25), (0.5, 0.25)], 0.02) == 1250
    assert items_needed([(1.0, 0.25)], 0.1) == 100
    assert items_needed([(1.0, 0.25)], 0.0999) == 101
    assert items_needed([(1.0, 0.0)], 0.02) is None
    assert items_needed([(1.0, 1e-9)], 0.5) == 1


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.001, 4)), min_size=1, max_size=4),
    st.floats(0.005, 0.5),
)
def test_needed_items_see_the_difference_and_one_less_does_not(terms, difference):
    count = items_needed(terms, difference)

    def reach(items):
        return 2 * math.sqrt(sum(w**2 * v / items for w, v in terms))

    assert reach(count) <= difference * (1 + 1e-6)
    assert count == 1 or reach(count - 1) > difference * (1 - 1e-6)


def test_report_pools_search_and_report_items_of_all_baselines(archive):
    report = noise_of(archive, archive.job, 0.02)
    assert report.labels == ("base", "checkpoint math")
    first = report.tasks["zoo_instruct"]
    assert first.num_items == 2 * NUM_ITEMS
    rights = np.array([1.0] * 10 + [0.0] * 10)
    both = [np.tile(rights, 2), np.array([1.0] * 15 + [0.0] * 5)]
    assert first.variance == pytest.approx(np.mean([values.var(ddof=1) for values in both]))
    assert first.paired_variance == pytest.approx((both[1] - rights).var(ddof=1))
    assert report.tasks["zoo_code"].paired_variance == 0.0
    row = by_name(report)["instruct"]
    assert row.stderr == pytest.approx(math.sqrt(first.variance / 64))
    assert row.visible == pytest.approx(2 * math.sqrt(first.paired_variance / 64))
    assert row.detectable == pytest.approx(2.8016 * row.paired_stderr, rel=1e-4)
    assert row.needed == math.ceil(first.paired_variance * 1e4)


def test_report_follows_the_sizes_of_the_job_and_not_of_the_archive(archive):
    small = noise_of(archive, with_sizes(archive.job, search=16, report=1024), 0.02)
    assert by_name(small, "search")["instruct"].items == 16
    ratio = (
        by_name(small, "search")["instruct"].stderr / by_name(small, "report")["instruct"].stderr
    )
    assert ratio == pytest.approx(8)
    assert by_name(small)["instruct"].needed == by_name(small, "report")["instruct"].needed


def test_mean_of_objectives_weighs_variances_by_squares(archive):
    job = archive.job.model_copy(
        update={
            "search": archive.job.search.model_copy(
                update={"preference": {"instruct": 3, "code": 1}}
            )
        }
    )
    rows = by_name(noise_of(archive, job, 0.02))
    assert list(rows) == [*CHECKPOINTS, "mean"]
    assert rows["mean"].paired_stderr == pytest.approx(0.75 * rows["instruct"].paired_stderr)
    assert rows["mean"].needed == math.ceil(
        0.75**2 * 1e4 * rows["instruct"].paired_stderr ** 2 * 64
    )


def test_stderr_is_what_repeated_samples_vary_by():
    rng = np.random.default_rng(0)
    hard = rng.random(200_000)
    one, two = ((rng.random(hard.size) < 0.2 + 0.6 * hard).astype(float) for _ in range(2))
    names = [str(i) for i in range(2000)]
    found = task_noise("t", [dict(zip(names, v[:2000], strict=True)) for v in (one, two)])
    gaps = (one - two).reshape(-1, 100).mean(axis=1)
    assert gaps.std() == pytest.approx(math.sqrt(found.paired_variance / 100), rel=0.08)
    means = one.reshape(-1, 100).mean(axis=1)
    assert means.std() == pytest.approx(math.sqrt(found.variance / 100), rel=0.08)


def test_report_says_what_items_cannot_tell(archive):
    record = noise_record(noise_of(archive, archive.job, 0.02))
    assert any("no item of `zoo_code` told two baselines apart" in note for note in record["notes"])
    assert record["splits"]["select"]["code"]["items_per_task_needed"] is None
    json.dumps(record, allow_nan=False)


def test_report_prints_every_split_and_objective(archive, capsys):
    from rich.console import Console

    Console(width=160).print(render_noise(noise_of(archive, archive.job, 0.05)))
    text = capsys.readouterr().out
    assert all(f"{split}: " in text for split in SPLITS)
    assert "items for 0.05" in text
    assert "too few" in text


def test_archive_without_baselines_is_refused(tmp_path):
    path = build(tmp_path / "a.sqlite", [SEARCHED])
    message = r"no baseline was scored .* --run"
    with Archive.open(path) as archive, pytest.raises(ArchiveError, match=message):
        noise_of(archive, archive.job, 0.02)


def test_job_of_other_tasks_is_refused(archive, tmp_path):
    other = make_job(tmp_path / "a.sqlite", ("instruct", "chess", "math"))
    with pytest.raises(JobChangedError, match=r"(?s)task `zoo_chess` differs"):
        noise_of(archive, other, 0.02)


def command(*arguments):
    return CliRunner().invoke(cli.app, ["noise", *map(str, arguments)])


@pytest.fixture
def job_file(tmp_path):
    def write(**changes):
        job = make_job(tmp_path / "a.sqlite", **changes)
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
        return path

    return write


def test_command_prints_json_for_another_number_of_items(job_file, tmp_path):
    build(tmp_path / "a.sqlite", [BASE, MATH])
    done = command(
        job_file(), "--json", "--difference", 0.1, "--set", "evaluation.splits.search=16"
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["difference"] == 0.1
    assert record["items_per_task"]["search"] == 16
    first = record["splits"]["search"]["instruct"]
    assert first["two_stderr"] == pytest.approx(
        2 * math.sqrt(record["tasks"]["zoo_instruct"]["paired_variance"] / 16)
    )


def test_command_says_how_to_get_scores_when_there_are_none(job_file):
    done = command(job_file())
    assert done.exit_code == 4
    assert "--run` scores base and checkpoints, 4 evaluations on 64 items per task" in done.stderr


@pytest.mark.parametrize("value", ["0", "-0.1", "nan", "inf"])
def test_command_refuses_a_difference_that_is_none(job_file, value):
    done = command(job_file(), f"--difference={value}")
    assert done.exit_code == 2
    assert "--difference: must be a number > 0" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"apply_chat_template": True}, "evaluation.apply_chat_template: False -> True"),
        ({"data_dir": "/items"}, "evaluation.data_dir: None -> /items"),
        ({"include_path": ["/tasks"]}, "evaluation.include_path: .* -> .*/tasks"),
    ],
)
def test_job_that_scores_in_another_way_is_refused(archive, tmp_path, changes, message):
    other = make_job(tmp_path / "a.sqlite", evaluation=changes)
    with pytest.raises(JobChangedError, match=f"(?s){message}"):
        noise_of(archive, other, 0.02)


def test_settings_that_leave_scores_as_they_are_may_differ(archive, tmp_path):
    sizes = {"search": 5, "select": 5, "report": 5}
    other = make_job(tmp_path / "a.sqlite", evaluation={"batch_size": "auto", "splits": sizes})
    assert noise_of(archive, other, 0.02).sizes == sizes
