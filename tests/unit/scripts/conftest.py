"""A zoo of tiny models with random weights, for the tests of what measures zoos."""

import json
from pathlib import Path

import pytest

from scripts.bench.zoo_job import SKILLS
from scripts.zoo.items import held_out_items
from tests.conftest import TinyPool


@pytest.fixture(scope="module")
def zoo(tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pool as a zoo: its checkpoints have the specialists' names, the items are real."""
    root = tmp_path_factory.mktemp("zoo")
    for name, path in {"base": tiny_pool.base, **tiny_pool.checkpoints}.items():
        (root / name).symlink_to(path)
    (root / "items").mkdir()
    for skill in SKILLS:
        rows = [json.dumps(item.row()) for item in held_out_items(skill, count=40, seed=0)]
        (root / "items" / f"zoo_{skill}.jsonl").write_text("\n".join(rows) + "\n")
    return root
