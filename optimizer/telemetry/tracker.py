"""What a tracker of experiments does: the interface that TensorBoard, MLflow and others are behind.

Each library is imported by a module of its own, when a job asks for it; start at
:func:`tracker_makers`. When they are called, and what happens when they fail, is in
``optimizer.telemetry.tracking``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal, Protocol

from configs.errors import Problem
from configs.telemetry import (
    MlflowSettings,
    TelemetrySettings,
    TensorBoardSettings,
    WandbSettings,
)

RunEnd = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The search that is tracked, the same whenever it is resumed.

    Attributes:
        uid: Id of the search (``Archive.uid``), from which a tracker finds its run again.
        name: For people.
        params: Dotted key of the job -> value; only what cannot change on resume.
        first_step: The first step that will be logged: what was logged of it or later ones by
            an earlier driver is void.
    """

    uid: str
    name: str
    params: Mapping[str, object]
    first_step: int


class Tracker(Protocol):
    """Keeps the course of a search somewhere. One thread calls it; it may block, and raise."""

    def start(self, run: TrackedRun) -> None:
        """Begin the run of a search, or go on with it."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep numbers.

        Args:
            step: Counts within the group of the metrics, from 1.
            metrics: ``GROUP/NAME`` -> finite value, all of one group (``search``, ``select``,
                ``report``).
        """
        ...

    def note(self, name: str, text: str) -> None:
        """Keep a text, such as the report at the end; ``name`` is that of a file without suffix."""
        ...

    def close(self, end: RunEnd) -> None:
        """Hand over what is kept back and say how the run ended; it may be resumed all the same."""
        ...


def missing_packages(telemetry: TelemetrySettings) -> list[Problem]:
    """Name the trackers of a job whose packages are not installed, and what installs them."""
    needed: dict[str, list[str]] = {name: [name] for name in tracker_makers(telemetry)}
    if telemetry.mlflow is not None and telemetry.mlflow.is_file:
        # MLflow's client opens the file itself, with what only a server has to have otherwise.
        needed["mlflow"].append("alembic")
    absent = {
        name: [module for module in modules if not _is_installed(module)]
        for name, modules in needed.items()
    }
    return [
        Problem(
            f"telemetry.{name}",
            f"needs the package `{modules[0]}`, which is not installed; run `pip install "
            f"'mergefront[{name}]'`, or set the key to null",
        )
        for name, modules in absent.items()
        if modules
    ]


def tracker_makers(telemetry: TelemetrySettings) -> dict[str, Callable[[], Tracker]]:
    """Return what makes the trackers that a job asks for, by the name of their section.

    Making one imports its library (some seconds) and raises whatever that raises; nothing is
    written or sent before ``start``.
    """
    makers: dict[str, Callable[[], Tracker]] = {}
    if telemetry.tensorboard is not None:
        makers["tensorboard"] = partial(_tensorboard, telemetry.tensorboard)
    if telemetry.mlflow is not None:
        makers["mlflow"] = partial(_mlflow, telemetry.mlflow)
    if telemetry.wandb is not None:
        makers["wandb"] = partial(_wandb, telemetry.wandb)
    return makers


def _tensorboard(settings: TensorBoardSettings) -> Tracker:
    from optimizer.telemetry.tracker_tensorboard import TensorBoardTracker

    return TensorBoardTracker(settings)


def _mlflow(settings: MlflowSettings) -> Tracker:
    from optimizer.telemetry.tracker_mlflow import MlflowTracker

    return MlflowTracker(settings)


def _wandb(settings: WandbSettings) -> Tracker:
    from optimizer.telemetry.tracker_wandb import WandbTracker

    return WandbTracker(settings)


def _is_installed(module: str) -> bool:
    # Of a directory that happens to have the name (wandb writes into one), there is no origin.
    spec = find_spec(module)
    return spec is not None and spec.origin is not None
