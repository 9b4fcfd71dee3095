"""What the tests of LoRA adapters share; ``make_adapter`` is in ``conftest.py``."""

from collections.abc import Callable
from pathlib import Path

from configs.schema import Models
from workers.sources import resolve_sources

Make = Callable[..., Path]
"""Saves an adapter of a base; see ``make_adapter``."""

ATTENTION = ["q_proj", "v_proj"]


def merged_by_us(base: Path, adapter: Path) -> Path:
    models = Models(base=str(base), checkpoints={"tuned": str(adapter)})
    return resolve_sources(models).checkpoints[0].directory
