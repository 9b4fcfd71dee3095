"""Encoders searched by rank correlation on sentence pairs, with the scorer of the README."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr

from configs.schema import JobConfig
from tests.e2e.sentence_pairs import DOMAINS, train_encoders, write_pairs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
POOLING = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


@dataclass(frozen=True)
class Workplace:
    """A directory as a person has it: models, items, the scorer's file."""

    directory: Path
    scorer: Any

    def job(self, **sections: object) -> dict[str, Any]:
        scorer = {"scorer": "my_metrics.py:similarity", "options": {"max_length": 16}}
        return {
            "models": {"base": "base", "checkpoints": {name: name for name in DOMAINS}},
            "objectives": {
                name: [{**scorer, "name": f"{name}_pairs", "items": f"{name}.jsonl"}]
                for name in DOMAINS
            },
            "evaluation": {"splits": {"search": 48, "select": 48, "report": 96}},
            "validation": {"candidates": 3},
            "budget": {"evaluations": 24},
            "archive": "archive.sqlite",
        } | sections

    def correlations(self, model: Path, domain: str, ids: tuple[str, ...]) -> np.ndarray:
        """Score a checkpoint as anybody would load it, without this project's evaluators."""
        from transformers import AutoModel, AutoTokenizer

        from evaluators.manifest import item_id

        lines = (self.directory / f"{domain}.jsonl").read_text().splitlines()
        items = {item_id(item): item for item in map(json.loads, lines)}
        loaded = AutoModel.from_pretrained(model).eval()
        tokenizer = AutoTokenizer.from_pretrained(model)
        with torch.no_grad():
            scores: np.ndarray = self.scorer(
                loaded, tokenizer, [items[i] for i in ids], batch_size=64, max_length=16
            )
        return scores


def readme_block(language: str) -> str:
    section = (ROOT / "README.md").read_text().split("## Your own scorer\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    directory = tmp_path_factory.mktemp("encoders")
    train_encoders(directory)
    write_pairs(directory, 220)
    (directory / "my_metrics.py").write_text(readme_block("python"))
    # Side files of sentence-transformers: what makes a vector of the outputs.
    for name in ("base", *DOMAINS):
        (directory / name / "1_Pooling").mkdir()
        (directory / name / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
        (directory / name / "modules.json").write_text("[]")
    namespace: dict[str, Any] = {}
    exec(readme_block("python"), namespace)  # noqa: S102 - what the README says
    return Workplace(directory, namespace["similarity"])


def test_readme_shows_the_objectives_of_a_job(workplace: Workplace) -> None:
    shown = yaml.safe_load(readme_block("yaml"))
    job = JobConfig.model_validate(workplace.job(objectives=shown["objectives"]))
    assert [spec.task for part in job.objectives.values() for spec in part.scorers] == [
        "news_pairs", "law_pairs",
    ]  # fmt: skip


def test_encoders_are_searched_and_exported_as_they_were_scored(
    workplace: Workplace, tmp_path: Path
) -> None:
    from configs.load import job_of
    from optimizer.archive.archive import Archive
    from optimizer.driver import run_search
    from optimizer.preflight.preflight import prepare
    from optimizer.publish.export import export
    from optimizer.report.report import report_of
    from optimizer.results.select import Choice
    from workers.job import JobRunner, WorkerSpec
    from workers.pool import LocalPool

    content = workplace.job(archive=str(tmp_path / "archive.sqlite"))
    job = job_of(content, directory=workplace.directory)
    prepared = prepare(job)
    assert [task.output_type for task in prepared.tasks] == ["scorer", "scorer"]
    spec = WorkerSpec(job=job, sources=prepared.sources, manifest=prepared.manifest)
    threads = torch.get_num_threads()
    archive = Archive.create(
        Path(job.archive),
        job=job,
        job_path=None,
        sources=prepared.sources,
        manifest=prepared.manifest,
    )
    with archive:
        with LocalPool(JobRunner(spec, "local")) as pool:
            run_search(archive, pool, prepared.space, job=job)
        chosen = archive.choice()
        assert chosen is not None
        baselines = {c.origin: c.index for c in archive.candidates()}
        scores = archive.scores("report")
        # Each encoder is good at its own domain, and the choice at both.
        for own, other in (DOMAINS, DOMAINS[::-1]):
            alone = scores[baselines[f"baseline:checkpoint {own}"]]
            assert alone[own].value > 0.9
            assert alone[other].value < 0.8
            assert scores[chosen][own].value > 0.85
        assert report_of(archive).verdict is not None
        candidate = archive.candidate(chosen)
        export(archive, Choice(candidate, "select", "chosen"), tmp_path / "model")
        recorded = archive.task_scores(chosen, "report")
    for domain in DOMAINS:
        part = recorded[f"{domain}_pairs"]
        again = workplace.correlations(tmp_path / "model", domain, part.item_ids)
        np.testing.assert_allclose(part.values, again, atol=1e-9)
        assert part.values.mean() == pytest.approx(scores[chosen][domain].value)
    assert json.loads((tmp_path / "model/1_Pooling/config.json").read_text()) == POOLING
    assert (tmp_path / "model/modules.json").read_text() == "[]"
    assert "my_metrics.py:similarity" in (tmp_path / "model/README.md").read_text()
    torch.set_num_threads(threads)


def test_worker_of_scorers_only_imports_no_lm_eval(workplace: Workplace) -> None:
    content = workplace.job(archive="never.sqlite")
    code = f"""
import sys
from pathlib import Path
from configs.load import job_of
from optimizer.preflight.preflight import prepare
from workers.job import JobRunner, WorkerSpec
job = job_of({content!r})
prepared = prepare(job)
JobRunner(WorkerSpec(job=job, sources=prepared.sources, manifest=prepared.manifest), "local")
print([name for name in ("lm_eval", "datasets", "ray") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workplace.directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_command_line_searches_encoders(workplace: Workplace, mergefront) -> None:  # type: ignore[no-untyped-def]  # a fixture
    mergefront.directory = workplace.directory
    job = workplace.job(workers={"count": 2, "cpus": 0.5}, budget={"evaluations": 20})
    (workplace.directory / "job.yaml").write_text(yaml.safe_dump(job))
    checked = mergefront.succeed("check", "job.yaml")
    assert "my_metrics.py:similarity" in checked
    mergefront.succeed("run", "job.yaml")
    status = json.loads(mergefront.succeed("status", "archive.sqlite", "--json"))
    assert status["evaluations"]["recorded"] == 20
    assert status["failures"] == {}
    mergefront.succeed("report", "archive.sqlite")
    mergefront.succeed("export", "archive.sqlite", "--out", "model")
    verified = subprocess.run(
        [sys.executable, ROOT / "scripts/verify_export.py", "archive.sqlite", "model"],
        cwd=workplace.directory,
        env=mergefront.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "192 items of report: equal" in verified.stdout


def test_readme_scorer_is_spearmans_correlation(workplace: Workplace) -> None:
    from evaluators.manifest import item_id

    lines = (workplace.directory / "news.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines[:50]]
    ids = tuple(item_id(item) for item in items)
    found = workplace.correlations(workplace.directory / "news", "news", ids)

    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(workplace.directory / "news").eval()
    tokenizer = AutoTokenizer.from_pretrained(workplace.directory / "news")
    cosines = []
    for item in items:
        with torch.no_grad():
            vectors = [
                model(**tokenizer(item[side], return_tensors="pt")).last_hidden_state[0].mean(0)
                for side in ("a", "b")
            ]
        cosines.append(float(torch.cosine_similarity(vectors[0], vectors[1], dim=0)))
    expected = spearmanr(cosines, [item["score"] for item in items]).statistic
    assert found.mean() == pytest.approx(expected, abs=1e-3)
