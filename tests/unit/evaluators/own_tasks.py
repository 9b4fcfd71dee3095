"""Task files that tests change, and what a suite says to them."""

from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.evaluation import EvaluationSettings, Objective
from evaluators.harness_suite import build_manifest

SCORER_FAILURES = [
    ("{'vowels': float('nan')}", r"vowels,none of ITEM is nan"),
    ("{'vowels': '1'}", r"vowels,none of ITEM is a str, not a number"),
    ("{'other': 1}", r"vowels,none of ITEM is missing; the scorer gave other"),
    ("1 / 0", r"ZeroDivisionError: division by zero"),
]
"""What a scorer returns for an item, and what is said of it."""


def refusal(specs: list[object], settings: EvaluationSettings) -> str:
    with pytest.raises(ConfigError) as caught:
        build_manifest({"skill": Objective(tasks=specs)}, settings)
    return str(caught.value)


def add_task(directory: Path, name: str, old: str, changes: dict[str, str]) -> Path:
    """Copy the task directory, with one more task made from another by replacing text."""
    text = (directory / f"{old}.yaml").read_text().replace(f"task: {old}", f"task: {name}")
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (directory / f"{name}.yaml").write_text(text)
    return directory


def with_tasks(settings: EvaluationSettings, directory: Path) -> EvaluationSettings:
    return settings.model_copy(
        update={"include_path": [str(directory)], "data_dir": str(directory)}
    )
