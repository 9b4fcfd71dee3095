"""Merges that a job names as baselines: read, refused, projected, scored, exported, resumed."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import mergefront
from configs.errors import ConfigError
from configs.recipe import Group
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.cli import app as cli
from optimizer.given_baselines import resolve_baselines
from optimizer.preflight.preflight import prepare
from optimizer.preflight.preflight_view import prepared_record, render_prepared
from optimizer.publish.recipe_file import read_recipe_file
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from tests.learned_merges import write_learned, write_recipe
from tests.small_models import pool_of, recipe_of
from workers.sources import Sources

LAYERS = (
    Group(name="first", patterns=(r".*layers\.0\..*",)),
    Group(name="others", patterns=(r"(?!.*layers\.0\.).*",)),
)


@pytest.fixture
def sources(tiny_pool) -> Sources:
    return pool_of(tiny_pool.base, **tiny_pool.checkpoints)


@pytest.fixture
def learned(sources, tmp_path) -> Path:
    """A learned merge of the tiny pool."""
    write_learned(tmp_path / "dam", sources)
    return tmp_path / "dam"


@pytest.fixture
def layerwise(sources, tmp_path) -> Path:
    """A recipe with other groups than jobs have."""
    weights = [(0.2, 0.8), (0.4, 0.1), (0.3, 0.3)]
    path = tmp_path / "layerwise.json"
    recipe = recipe_of(sources, weights, groups=LAYERS, method="task_arithmetic")
    write_recipe(path, recipe, sources)
    return path


def resolved(job: JobConfig, sources: Sources, **how):
    return resolve_baselines(job, sources, SearchSpace(job, sources), **how)


def problems_of(job: JobConfig, sources: Sources) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolved(job, sources)
    return [str(problem) for problem in caught.value.problems]


def test_outsiders_bring_their_weights_along(tiny_job, sources, learned, layerwise):
    job = tiny_job(baselines={"DAM": str(learned), "adamerging": str(layerwise)})
    found = resolved(job, sources)
    assert [baseline.label for baseline in found.baselines] == [
        "DAM", "DAM, as weights", "adamerging", "adamerging, as weights",
    ]  # fmt: skip
    dam, plain, layers, layers_plain = found.baselines
    assert all(baseline.is_early for baseline in found.baselines)
    assert dam.recipe.coefficients.name == "DAM"
    assert [source.name for source in found.coefficients] == ["DAM"]
    # Coefficients are drawn around a third.
    assert [w for (w,) in plain.recipe.weights] == pytest.approx([1 / 3] * 3, abs=0.05)
    assert plain.recipe.method == layers_plain.recipe.method == "dare_linear"
    assert (dam.genotype == plain.genotype).all()
    for low, (w,), high in zip(
        (0.2, 0.1, 0.3), layers_plain.recipe.weights, (0.8, 0.4, 0.3), strict=True
    ):
        assert low <= w <= high
    space = SearchSpace(job, sources)
    assert space.contains(plain.recipe)
    assert not space.contains(layers.recipe)


def test_what_the_search_can_reach_stands_alone(tiny_job, sources, tmp_path):
    recipe = recipe_of(sources, [0.3, 0.4, 0.5], dtype="bfloat16")
    write_recipe(tmp_path / "mine.json", recipe, sources)
    job = tiny_job(baselines={"mine": str(tmp_path / "mine.json")})
    (found,) = resolved(job, sources).baselines
    # Everything that is compared has the data type of the job.
    assert found.recipe.dtype == "float32"
    assert found.recipe.weights == recipe.weights


def test_every_problem_of_every_baseline_is_named(tiny_job, tiny_pool, sources, tmp_path, learned):
    places = tiny_pool.checkpoints
    other_order = pool_of(
        tiny_pool.base, code=places["code"], instruct=places["instruct"], math=places["math"]
    )
    fewer = pool_of(tiny_pool.checkpoints["code"], math=places["math"])
    write_learned(tmp_path / "order", other_order)
    write_recipe(tmp_path / "fewer.json", recipe_of(fewer, [1.0]), fewer)
    write_recipe(tmp_path / "bare.json", recipe_of(sources, [1.0] * 3, method="dam"), sources)
    write_learned(tmp_path / "cut", sources, change=lambda t: t.pop("0.model.norm.weight"))
    (tmp_path / "config.yml").write_text("merge_method: linear")
    overlapping = recipe_of(sources, [(1.0, 1.0)] * 3, groups=(LAYERS[0], LAYERS[0]))
    write_recipe(tmp_path / "groups.json", overlapping, sources)
    names = ("order", "fewer.json", "bare.json", "cut", "gone", "config.yml", "groups.json")
    baselines = {name.partition(".")[0]: str(tmp_path / name) for name in names}
    text = "\n".join(problems_of(tiny_job(baselines=baselines), sources))
    digests = [source.digest[:12] for source in sources.everything]
    for part in (
        f"baselines.order: its checkpoint 1 is `code` ({digests[2]}), that of the job is `instruct`"
        f" ({digests[1]})",
        "baselines.order: its checkpoint 2 is `instruct`",
        f"baselines.fewer: merges `math` ({digests[3]}); the job's checkpoints are `instruct`",
        f"baselines.fewer: its base is `base` ({digests[2]}), that of the job `base`",
        "baselines.bare: coefficients: `dam` needs one coefficient per input column",
        "0.model.norm.weight: is missing; expected float32 of shape (32,)",
        f"baselines.gone: {tmp_path}/gone: no such file",
        f"baselines.config: {tmp_path}/config.yml: is no recipe in JSON; `mergefront recipe",
        "must be in exactly one group",
    ):
        assert part in text, text


@pytest.mark.parametrize("name", ["base", "TIES", "DARE-TIES"])
def test_names_of_built_in_baselines_are_taken(tiny_job, name):
    with pytest.raises(ValueError, match=f"baselines: `{name}` is one that every search has"):
        tiny_job(baselines={name: "x"})


def test_dam_is_no_method_of_a_search(tiny_job):
    job = tiny_job(merge={"method": "dam"})
    with pytest.raises(ConfigError, match="which no search finds; learn it"):
        prepare(job)


def test_check_reports_baselines_without_reading_tensors(tiny_job, learned, tmp_path):
    job = tiny_job(baselines={"DAM": str(learned), "gone": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=r"baselines\.gone: .*no such file"):
        prepare(job, headers_only=True)
    found = prepare(tiny_job(baselines={"DAM": str(learned)}), headers_only=True)
    assert [baseline.label for baseline in found.baselines] == ["DAM"]


def test_check_says_which_baselines_are_the_job_s(tiny_job, learned):
    found = prepare(tiny_job(baselines={"DAM": str(learned)}))
    assert found.estimate.num_baselines == 20
    console = Console(width=140, file=io.StringIO())
    console.print(render_prepared(found))
    assert "DAM (dam); DAM, as weights (dare_linear)" in console.file.getvalue()
    record = prepared_record(found)["given_baselines"]
    assert [(each["label"], each["method"]) for each in record] == [
        ("DAM", "dam"), ("DAM, as weights", "dare_linear"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tiny_job, tiny_pool, tmp_path_factory):
    """A search with a learned baseline, which was deleted since, and what it was."""
    root = tmp_path_factory.mktemp("searched")
    sources = pool_of(tiny_pool.base, **tiny_pool.checkpoints)
    recipe = write_learned(root / "dam", sources)
    job = tiny_job(
        archive=str(root / "archive.sqlite"),
        baselines={"DAM": str(root / "dam")},
        budget={"evaluations": 24},
        validation={"candidates": 2, "leave_one_out": True},
    )
    mergefront.run(job, in_process=True)
    kept = load_file(root / "dam" / "coefficients.safetensors")
    for path in (root / "dam").iterdir():
        path.unlink()
    return root, recipe, kept


@pytest.mark.slow
def test_learned_baseline_is_scored_early_reported_and_exported(searched, tmp_path):
    root, recipe, kept = searched
    place = str(root / "archive.sqlite")
    with Archive.open(place) as archive:
        candidates = archive.candidates()
        origins = [candidate.origin for candidate in candidates]
        index = origins.index("baseline:DAM")
        assert origins[index + 1] == "baseline:DAM, as weights"
        assert {c.is_baseline for c in candidates[: index + 2]} == {True}
        assert any(c.origin.startswith("strategy:") for c in candidates)
        assert candidates[index].recipe.recipe_id == recipe.recipe_id
        assert index in archive.scores("search")
        assert index in archive.scores("report")
        scored = archive.weights_digest(index)
        assert not verify_replay(archive, prepare_space(archive))
    runner = CliRunner()
    for command in ("report", "front", "status"):
        result = runner.invoke(cli.app, [command, place])
        assert result.exit_code == 0, result.output
    assert "DAM, as weights" in runner.invoke(cli.app, ["report", place]).output
    report = json.loads(runner.invoke(cli.app, ["report", place, "--json"]).output)
    assert {"DAM", "DAM, as weights", "delta-guided fusion"} <= set(report["baselines"])
    out = tmp_path / "exported"
    command = ["export", place, "--id", recipe.recipe_id[:10], "--out", str(out)]
    result = runner.invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    record = json.loads((out / "recipe.json").read_text())
    assert record["weights_digest"] == scored
    card = (out / "README.md").read_text()
    assert "`merge/coefficients.safetensors`" in card
    assert "sum_i w_i * tuned_i * diag(c_i)" in card
    copied = load_file(out / "merge" / "coefficients.safetensors")
    assert copied.keys() == kept.keys()
    # The export makes itself again.
    again = tmp_path / "again"
    result = runner.invoke(cli.app, ["merge", str(out / "recipe.json"), "--out", str(again)])
    assert result.exit_code == 0, result.output
    assert json.loads((again / "recipe.json").read_text())["weights_digest"] == scored
    assert "no number per input column" in refused_by_mergekit(runner, out / "recipe.json")


def refused_by_mergekit(runner: CliRunner, path: Path) -> str:
    result = runner.invoke(cli.app, ["recipe", str(path), "--format", "mergekit"])
    assert isinstance(result.exception, ConfigError) or result.exit_code == 2
    return str(result.exception) + result.output


def prepare_space(archive: Archive) -> SearchSpace:
    return SearchSpace(archive.job, archive.sources, dtype="float32")


@pytest.mark.slow
def test_a_baseline_is_added_on_resume_and_none_is_exchanged(searched, tmp_path, sources):
    root, _, _ = searched
    place = str(root / "archive.sqlite")
    write_learned(tmp_path / "second", sources, seed=7)
    with pytest.raises(ConfigError, match="another merge was scored under this name"):
        mergefront.resume(place, {"baselines.DAM": str(tmp_path / "second")}, in_process=True)
    # The directory of the first is gone: its recipe is recorded, and its coefficients are kept.
    mergefront.resume(place, {"budget.evaluations": 25}, in_process=True)
    # Where a job does not name it any more, it stays a baseline of the search.
    changes = {"baselines": {"second": str(tmp_path / "second")}, "budget.evaluations": 29}
    mergefront.resume(place, changes, in_process=True)
    with Archive.open(place) as archive:
        origins = [c.origin for c in archive.candidates() if not c.is_attribution]
        assert origins[25:27] == ["baseline:second", "baseline:second, as weights"]
        added = next(c.index for c in archive.candidates() if c.origin == "baseline:second")
        assert {added, origins.index("baseline:DAM")} <= archive.scores("report").keys()
        assert not verify_replay(archive, prepare_space(archive))


@pytest.mark.slow
def test_merge_command_makes_a_learned_merge_and_refuses_a_spoiled_one(learned, tmp_path, sources):
    runner = CliRunner()
    command = ["merge", str(learned / "recipe.json"), "--out", str(tmp_path / "out"), "--json"]
    result = runner.invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    file = read_recipe_file(learned / "recipe.json")
    record = json.loads(result.stdout)
    assert record["recipe_id"] == file.recipe.recipe_id
    assert file.recipe.coefficients.digest in record["reads"].values()
    write_learned(tmp_path / "bad", sources, change=lambda t: t.pop("1.model.norm.weight"))
    command = ["merge", str(tmp_path / "bad" / "recipe.json"), "--out", str(tmp_path / "no")]
    result = runner.invoke(cli.app, command)
    assert result.exit_code == 3
    assert not (tmp_path / "no").exists()


def test_job_file_names_baselines_by_paths_of_its_own(tiny_job, tmp_path, learned):
    from configs.load import load_job

    content = tiny_job().model_dump(mode="json") | {"baselines": {"DAM": "dam"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    job = load_job(tmp_path / "job.yaml", directory=tmp_path)
    assert job.baselines == {"DAM": str(learned)}
    assert job.digest == job.model_copy(update={"baselines": {}}).digest
