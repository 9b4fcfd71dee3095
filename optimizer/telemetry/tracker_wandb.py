"""Runs of Weights & Biases, offline or online."""

import os
from collections.abc import Mapping
from pathlib import Path

# Read when wandb is imported: its makers need not hear of errors here.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

from configs.telemetry import WandbSettings
from optimizer.telemetry.tracker import RunEnd, TrackedRun

_GROUPS = ("search", "select", "report")


class WandbTracker:
    """Keeps a search as one run whose id is that of the search.

    Offline, each driver of the search writes a directory of its own; ``wandb sync`` puts them into
    the one run.

    Args:
        settings: The job's.
    """

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._run: wandb.Run | None = None

    def start(self, run: TrackedRun) -> None:
        """Begin the run, or go on with it."""
        directory = Path(self._settings.directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._settings.project,
            id=run.uid,
            name=run.name,
            config=dict(run.params),
            dir=str(directory),
            mode=self._settings.mode,
            resume="allow",
            settings=_quiet_settings(),
        )
        for group in _GROUPS:
            self._run.define_metric(f"{group}/step")
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand metrics to wandb's own process, which writes or sends them."""
        # Its own step only grows, while those of each group begin at 1.
        groups = {name.partition("/")[0] for name in metrics}
        self._open.log({**metrics, **{f"{group}/step": step for group in groups}})

    def note(self, name: str, text: str) -> None:
        """Keep a text among the files of the run."""
        path = Path(self._open.dir) / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        self._open.save(str(path), base_path=self._open.dir, policy="now")

    def close(self, end: RunEnd) -> None:
        """Wait until everything is written or sent."""
        self._open.finish(exit_code=0 if end == "finished" else 1)

    @property
    def _open(self) -> "wandb.Run":
        if self._run is None:
            raise ValueError("the tracker was not started")
        return self._run


def _quiet_settings() -> wandb.Settings:
    """Return settings for a guest in a process: it takes no output, and gives up at some time.

    By default an unreachable server keeps the process from ending for hours.
    """
    return wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        init_timeout=60,
        x_graphql_retry_max=3,
        x_graphql_retry_wait_max_seconds=5,
        x_file_stream_retry_max=5,
        x_file_stream_retry_wait_max_seconds=5,
        x_file_transfer_retry_max=3,
        x_file_transfer_retry_wait_max_seconds=5,
    )
