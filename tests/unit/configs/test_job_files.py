"""The job files that ship with the project load, and the commented one explains every key."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import configs
from configs.evaluation import Objective, TaskSpec
from configs.groups import compile_groups
from configs.load import load_job
from configs.recipe import Group
from configs.schema import Bounds, JobConfig, ModelSource
from configs.scorers import ScorerSpec

DIRECTORY = Path(configs.__file__).parent
JOB_FILES = sorted(DIRECTORY.glob("*.yaml"))
# Named by the person, so there is no key to look for.
FREE_NAMES = {"models.checkpoints", "merge.groups", "objectives", "search.preference"}


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.name)
def test_job_file_loads(path):
    assert load_job(path).name == path.stem


def test_there_are_the_two_job_files_that_the_readme_names():
    assert {"quickstart.yaml", "example-7b.yaml"} <= {path.name for path in JOB_FILES}


def test_quickstart_searches_the_zoo_with_its_own_tasks():
    job = load_job(DIRECTORY / "quickstart.yaml", directory=Path("/checkout"))
    assert job.models.base.path == "/checkout/runs/zoo/base"
    assert {name: spec.path for name, spec in job.models.checkpoints.items()} == {
        name: f"/checkout/runs/zoo/{name}" for name in ("instruct", "code", "math")
    }
    metrics = {spec.task: spec.metric for part in job.objectives.values() for spec in part.tasks}
    assert metrics == {
        "zoo_instruct": "constraint_acc",
        "zoo_code": "pass_at_1",
        "zoo_math": "exact_match",
    }
    sizes = job.evaluation.splits
    assert (sizes.search, sizes.select, sizes.report) == (64, 128, 512)
    assert (job.workers.count, job.workers.threads) == (2, 1)
    assert job.archive == "/checkout/runs/quickstart/archive.sqlite"


def test_example_keeps_hub_ids_and_their_revisions():
    job = load_job(DIRECTORY / "example-7b.yaml", directory=Path("/checkout"))
    assert job.models.base.path == "Qwen/Qwen2.5-7B"
    assert job.models.base.revision is not None
    assert all("/checkout" not in spec.path for spec in job.models.checkpoints.values())
    assert job.archive == "/checkout/runs/example-7b/archive.sqlite"


def test_example_splits_fit_into_humaneval():
    sizes = load_job(DIRECTORY / "example-7b.yaml").evaluation.splits
    assert sizes.search + sizes.select + sizes.report <= 164


def test_example_explains_every_key_that_a_job_can_have():
    content = yaml.safe_load((DIRECTORY / "example-7b.yaml").read_text(encoding="utf-8"))
    missing = [path for path in _paths(JobConfig) if not _is_in(content, path.split("."))]
    assert missing == []


def test_example_shows_every_key_of_tasks_and_scorers_at_least_in_a_comment():
    text = (DIRECTORY / "example-7b.yaml").read_text(encoding="utf-8")
    section = text.partition("# Each objective is one axis")[2].partition("\nevaluation:")[0]
    shown = set(re.findall(r"\b([a-z_]+):(?= )", section))
    assert (TaskSpec.model_fields.keys() | ScorerSpec.model_fields.keys()) - shown == set()


def test_example_shows_every_kind_of_rule_and_holds_every_tensor_once():
    groups = load_job(DIRECTORY / "example-7b.yaml").merge.groups
    rules = [rule for held in groups.values() for rule in held]
    for part in ("layers", "kind", "regex"):
        assert any(getattr(rule, part) for rule in rules)
    assert any(rule.is_rest for rule in rules)
    compiled = [Group(name=n, patterns=p) for n, p in compile_groups(groups).items()]
    held = {
        f"model.layers.{layer}.{part}.weight": [
            group.name for group in compiled if group.holds(f"model.layers.{layer}.{part}.weight")
        ]
        for layer in (0, 13, 14, 27)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    }
    assert all(len(names) == 1 for names in held.values())
    assert {names[0] for names in held.values()} == set(groups)


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        kind = field.annotation
        if path in FREE_NAMES or kind is None:
            yield path
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            shorthand = issubclass(kind, Bounds | ModelSource | Objective)
            yield from [path] if shorthand else _paths(kind, f"{path}.")
        else:
            yield path


def _is_in(content: object, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True
