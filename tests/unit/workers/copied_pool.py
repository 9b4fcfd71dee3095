"""A pool of checkpoints that a test may damage, and what checking it says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import IncompatibleCheckpointsError
from configs.schema import Merge, Models
from tests.conftest import TinyPool
from workers.compat import PoolReport, check_compatible
from workers.sources import resolve_sources

Tensors = dict[str, torch.Tensor]


class CopiedPool:
    """A copy of the tiny pool that a test may damage."""

    def __init__(self, original: TinyPool, root: Path) -> None:
        self.root = root
        for path in (original.base, *original.checkpoints.values()):
            shutil.copytree(path, root / path.name)
        self.names = list(original.checkpoints)

    def check(self, *, base: str | None = "base", **merge: Any) -> PoolReport:
        models = Models(
            base=base and str(self.root / base),
            checkpoints={name: str(self.root / name) for name in self.names},
        )
        return check_compatible(resolve_sources(models), Merge.model_validate(merge))

    def problems(self, **arguments: Any) -> list[str]:
        with pytest.raises(IncompatibleCheckpointsError) as caught:
            self.check(**arguments)
        return [str(problem) for problem in caught.value.problems]

    def change(self, name: str, change: Callable[[Tensors], object]) -> None:
        path = self.root / name / "model.safetensors"
        tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    def change_json(self, name: str, file_name: str, change: Callable[[Any], object]) -> None:
        path = self.root / name / file_name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
