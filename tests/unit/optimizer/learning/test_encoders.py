"""Learning merges of encoders: of those with a head that classifies, from a scorer's own items."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from optimizer.cli import app as cli
from tests.small_models import small_bert, write_words

SCORER = """
def sure(model, tokenizer, items, *, batch_size):
    return [0.5 for _ in items]
"""


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        models = {name: tmp_path / f"{kind}-{name}" for name in ("base", "news", "law")}
        for seed, directory in enumerate(models.values()):
            small_bert(kind, seed=seed).save_pretrained(directory)
            write_words(directory, 30)
        (tmp_path / "metric.py").write_text(SCORER)
        items = [{"a": f"{n} {n + 1}", "b": f"{n}", "label": n % 2} for n in range(20)]
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
        entry = {"scorer": f"{tmp_path / 'metric.py'}:sure", "items": "items.jsonl", "name": "own"}
        job = {
            "models": {
                "base": str(models.pop("base")),
                "checkpoints": {name: str(path) for name, path in models.items()},
            },
            "objectives": {"news": [entry]},
            "evaluation": {
                "data_dir": str(tmp_path),
                "splits": {"search": 5, "select": 5, "report": 5},
            },
            "archive": str(tmp_path / "archive.sqlite"),
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job, sort_keys=False))
        return path

    return make


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("BertForSequenceClassification", "dam"),
        ("BertForSequenceClassification", "adamerging"),
        ("BertForMaskedLM", "dam"),
    ],
)
def test_encoders_with_a_head_are_learned_and_merged(
    make_job: Callable[[str], Path], tmp_path: Path, kind: str, method: str
) -> None:
    out = tmp_path / "out"
    arguments = ["learn", str(make_job(kind)), method, "--out", str(out), "--steps", "3"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "recipe.json").read_text())
    # Both texts of each of the 5 items of the search split.
    assert {data["texts"] for data in record["learned"]["data"].values()} == {10}
    merged = CliRunner().invoke(
        cli.app, ["merge", str(out / "recipe.json"), "--out", str(tmp_path / "merged")]
    )
    assert merged.exit_code == 0, merged.output


@pytest.mark.parametrize(
    ("kind", "method", "wanted"),
    [
        ("BertModel", "dam", "a head that predicts tokens or classes"),
        ("BertModel", "adamerging", "a head that classifies texts"),
        ("BertForMaskedLM", "adamerging", "a head that classifies texts"),
    ],
)
def test_encoders_without_predictions_are_refused(
    make_job: Callable[[str], Path], tmp_path: Path, kind: str, method: str, wanted: str
) -> None:
    arguments = ["learn", str(make_job(kind)), method, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 3
    assert f"`{kind}` gives no predictions that `{method}` could learn from" in done.stderr
    assert wanted in done.stderr
    assert not (tmp_path / "out").exists()
