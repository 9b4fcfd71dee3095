"""An exported merge goes to a hub: its own client against a server that speaks the hub's API."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from configs.errors import CheckpointError, ConfigError, HubError
from optimizer.cli import app as cli
from optimizer.publish.push import Destination, push
from optimizer.publish.push_check import check_upload
from tests.hub_stub import READ_TOKEN, TOKEN, serve_hub

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def exported(tiny_pool, tmp_path_factory) -> Path:
    """A merge of the tiny pool in several shards, as the command writes it."""
    root = tmp_path_factory.mktemp("exported")
    config = root / "config.yml"
    models = [{"model": str(tiny_pool.checkpoints["math"]), "parameters": {"weight": 0.5}}]
    content = {
        "merge_method": "task_arithmetic",
        "base_model": str(tiny_pool.base),
        "models": models,
        "dtype": "float32",
    }
    config.write_text(yaml.safe_dump(content))
    arguments = ["merge", str(config), "--out", str(root / "model"), "--max-shard-size", "40KB"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    return root / "model"


@pytest.fixture
def model(exported, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


@pytest.fixture
def hub():
    with serve_hub() as hub:
        yield hub


def mergefront_push(address: str, *arguments: object, token: str | None = TOKEN, **environment):
    """Run the command in a process of its own: the client reads its settings when imported."""
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": address,
        # Its transfer protocol is another server's; the one below is what every hub speaks.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": os.environ["XDG_CACHE_HOME"],
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        **({} if token is None else {"HF_TOKEN": token}),
        **environment,
    }
    command = [sys.executable, "-m", "optimizer.cli", "push", *map(str, arguments)]
    return subprocess.run(
        command, env=settings, capture_output=True, text=True, check=False, timeout=180
    )


@pytest.mark.slow
def test_every_file_arrives_in_a_private_repository(hub, model):
    done = mergefront_push(hub.address, model, "our-merge", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["repo_id"] == "ann/our-merge"
    assert record["url"] == f"{hub.address}/ann/our-merge"
    repository = hub.repositories["ann/our-merge"]
    assert repository.private
    here = {path.name: path.read_bytes() for path in model.iterdir()}
    assert repository.branches["main"] == here
    assert len([name for name in here if name.endswith(".safetensors")]) > 1
    recipe = json.loads(here["recipe.json"])["recipe_id"]
    assert repository.messages == [f"Upload merge {recipe[:10]} with mergefront"]

    # Again: weights that the hub has are not sent a second time.
    sent = len([path for method, path in hub.requests if method == "PUT"])
    again = mergefront_push(hub.address, model, "ann/our-merge", "-m", "once more")
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == f"{hub.address}/ann/our-merge"
    assert len([path for method, path in hub.requests if method == "PUT"]) == sent
    assert repository.messages[-1] == "once more"


@pytest.mark.slow
def test_branch_pull_request_and_public_are_as_asked(hub, model):
    done = mergefront_push(hub.address, model, "team/merge", "--public", "--revision", "v2")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["team/merge"]
    assert not repository.private
    assert repository.branches["main"] == {}
    assert "model.safetensors.index.json" in repository.branches["v2"]
    assert "recipe.json will show where things are here: /" in done.stderr
    done = mergefront_push(hub.address, model, "team/merge", "--public", "--create-pr")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/team/merge/discussions/1"
    assert repository.branches["main"] == {}
    # Without --public everybody would see it all the same.
    done = mergefront_push(hub.address, model, "team/merge")
    assert done.returncode == 8
    assert "team/merge exists and is public" in done.stderr
    assert len(repository.messages) == 2


@pytest.mark.slow
def test_upload_that_breaks_off_goes_on(hub, model):
    hub.broken_uploads = 1000
    done = mergefront_push(hub.address, model, "merge")
    assert done.returncode == 8
    assert "the upload to merge failed: Error while uploading 'model-0000" in done.stderr
    assert "push again, what is there is not sent twice" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.repositories["ann/merge"].branches["main"] == {}
    hub.broken_uploads = 0
    assert mergefront_push(hub.address, model, "merge").returncode == 0
    assert "recipe.json" in hub.repositories["ann/merge"].branches["main"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "environment", "said"),
    [
        (None, {}, "no token of the Hugging Face hub was found; run `hf auth login`"),
        ("hf_wrong", {}, "the hub refuses the token"),
        (READ_TOKEN, {}, "the hub refuses to let this token write to merge"),
        (TOKEN, {"HF_HUB_OFFLINE": "1"}, "offline mode is on"),
        (TOKEN, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_refusals_say_what_to_do(hub, model, token, environment, said):
    done = mergefront_push(hub.address, model, "merge", token=token, **environment)
    assert done.returncode == 8
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.repositories == {}


def test_only_files_of_a_model_are_uploaded(model, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (model / "linked.json").symlink_to(secret)
    (model / "folder").symlink_to(tmp_path)
    (model / ".hidden.json").write_text("{}")
    (model / "notes.py").write_text("x = 1")
    (model / "inner").mkdir()
    (model / "inner" / "more.json").write_text("{}")
    (model / "merge").mkdir()
    for name in ("coefficients.safetensors", "other.json"):
        (model / "merge" / name).write_text("{}")
    for name in ("archive.sqlite", "archive.json"):
        with sqlite3.connect(model / name) as connection:
            connection.execute("create table t (a)")
        connection.close()
    upload = check_upload(model)
    assert set(upload.left_out) == {
        "linked.json", "folder", ".hidden.json", "notes.py", "inner/more.json", "archive.sqlite",
        "archive.json", "merge/other.json",
    }  # fmt: skip
    # What makes a learned merge again goes along.
    assert "merge/coefficients.safetensors" in upload.files
    assert {"config.json", "README.md", "recipe.json", "tokenizer.json"} <= set(upload.files)
    assert upload.size_bytes == sum((model / name).stat().st_size for name in upload.files)
    done = CliRunner().invoke(cli.app, ["push", str(model), "merge", "--dry-run"])
    assert done.stdout.split() == list(upload.files)
    assert "note: archive.sqlite stays here" in done.stderr


def test_places_that_are_not_for_everybody_are_named(model):
    path = model / "recipe.json"
    content = json.loads(path.read_text())
    content["sources"] = {
        "a": {"path": "s3://our-bucket/a"},
        "b": {"path": "/data/b"},
        "c": {"path": "org/c"},
    }
    content["job"] = {"workers": {"address": "ray://head:10001"}, "archive": "~/a.sqlite"}
    path.write_text(json.dumps(content))
    assert check_upload(model).private_paths == (
        "/data/b", "ray://head:10001", "s3://our-bucket/a", "~/a.sqlite",
    )  # fmt: skip


@pytest.mark.slow
def test_parent_that_is_no_id_is_seen_by_the_hub(hub, model):
    card = (model / "README.md").read_text().replace("---\n", "---\nbase_model: s3://b/m\n", 1)
    (model / "README.md").write_text(card)
    done = mergefront_push(hub.address, model, "merge")
    assert done.returncode == 8
    assert "Invalid metadata in README.md" in done.stderr


def spoil_weights(model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_shard(model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-4])


def link_shard(model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[0]
    path.rename(model.parent / "outside.safetensors")
    path.symlink_to(model.parent / "outside.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: (m / "recipe.json").unlink(), "recipe.json: is missing"),
        (lambda m: (m / "recipe.json").write_text("{}"), "recipe.json: holds no digest"),
        (lambda m: (m / "README.md").unlink(), "README.md: the model card is missing"),
        (lambda m: (m / "README.md").write_text("# model"), "README.md: has no metadata"),
        # What the hub does not see as metadata is none.
        (lambda m: (m / "README.md").write_text("a\n---\nb: c\n---\n"), "has no metadata"),
        (lambda m: (m / "README.md").write_text("---\n- a\n---\n"), "should be a dict"),
        (lambda m: (m / "README.md").write_text("---\na: [\n---\n"), "its metadata are no YAML"),
        (lambda m: (m / "config.json").unlink(), "config.json"),
        (lambda m: sorted(m.glob("*.safetensors"))[0].unlink(), "model-00001"),
        (spoil_weights, "they are not those of the merge"),
        (cut_shard, "model-00001"),
        (link_shard, "a link, or no name for a shard"),
    ],
)
def test_incomplete_export_is_refused_before_anything_is_sent(model, spoil, said):
    spoil(model)
    with pytest.raises(CheckpointError) as caught:
        check_upload(model)
    assert said in caught.value.message
    assert str(model) in caught.value.message


def test_all_that_is_wrong_is_said_at_once(model):
    (model / "README.md").unlink()
    (model / "recipe.json").unlink()
    cut_shard(model)
    with pytest.raises(CheckpointError) as caught:
        check_upload(model)
    assert len(caught.value.context["problems"]) == 3


@pytest.mark.parametrize("repo_id", ["a/b/c", "a b", "-x", "a--b", ""])
def test_what_is_no_name_of_a_repository_is_refused(repo_id):
    with pytest.raises(ConfigError, match="is no name of a repository"):
        Destination(repo_id).check()


def test_pull_request_on_a_branch_is_refused():
    with pytest.raises(ConfigError, match="leave --revision out"):
        Destination("a/b", revision="v2", create_pr=True).check()


def test_nothing_is_sent_offline(model):
    # As in all tests here; see conftest.py.
    with pytest.raises(HubError, match="unset HF_HUB_OFFLINE"):
        push(check_upload(model), Destination("a/b"))
