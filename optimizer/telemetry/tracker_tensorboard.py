"""Event files for TensorBoard."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from configs.telemetry import TensorBoardSettings
from optimizer.telemetry.tracker import RunEnd, TrackedRun, Tracker


class TensorBoardTracker(Tracker):
    """Writes a search into a directory of its own below the log directory.

    A driver that resumes the search writes a file beside the first; TensorBoard then shows nothing
    of the first file from the step on at which the second begins.

    Args:
        settings: The job's.
    """

    def __init__(self, settings: TensorBoardSettings) -> None:
        self._root = Path(settings.directory)
        self._writer: SummaryWriter | None = None

    def start(self, run: TrackedRun) -> None:
        """Open a new event file."""
        name = re.sub(r"[^\w.-]+", "-", run.name).strip("-.") or "search"
        directory = self._root / f"{name}-{run.uid}"
        is_resumed = directory.is_dir()
        purge_step = run.first_step if is_resumed else None
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)
        if not is_resumed:
            self.note("job", "\n".join(f"{key}: {value}" for key, value in run.params.items()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in metrics.items():
            self._open.add_scalar(name, value, step)
        # Evaluations take seconds to minutes: whoever watches wants to see each.
        self._open.flush()

    def note(self, name: str, text: str) -> None:
        """Write a text, indented: TensorBoard reads Markdown, in which that is shown as it is."""
        self._open.add_text(name, textwrap.indent(text, " " * 4))

    @override
    def close(self, end: RunEnd) -> None:
        """Close the file; it has no state of a run."""
        self._open.close()

    @property
    def _open(self) -> SummaryWriter:
        if self._writer is None:
            raise ValueError("the tracker was not started")
        return self._writer
