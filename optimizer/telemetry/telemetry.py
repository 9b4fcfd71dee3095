"""Who is told of a search beside the person who watches it: log file, metrics, trackers.

Start at :func:`telemetry_of`. Nothing here can end a search: what fails is told once and left out.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import JobConfig
from optimizer.events import Event, OnEvent
from optimizer.telemetry.event_log import EventLog
from optimizer.telemetry.search_meters import SearchMeters
from optimizer.telemetry.tracker import RunEnd, Tracker, tracker_makers
from optimizer.telemetry.tracking import Tracking
from workers.meters import Meters

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

logger = logging.getLogger(__name__)


class Telemetry:
    """All watchers of a search but its view; made by :func:`telemetry_of`."""

    def __init__(self) -> None:
        self._watchers: dict[str, OnEvent] = {}
        self._tracking: Tracking | None = None

    def beside(self, view: OnEvent) -> OnEvent:
        """Return what tells a view and all watchers of an event."""

        def tell(event: Event) -> None:
            view(event)
            for name, watcher in list(self._watchers.items()):
                try:
                    watcher(event)
                except Exception as error:
                    # Whatever a watcher raises, it ends no search.
                    self._leave_out(name, error)
                    logger.debug("telemetry.%s failed", name, exc_info=True)

        return tell

    def note(self, name: str, text: str) -> None:
        """Keep a text with the trackers."""
        if self._tracking is not None:
            self._tracking.note(name, text)

    def _leave_out(self, name: str, error: BaseException | None) -> None:
        # First of all: a warning may come here again.
        if self._watchers.pop(name, None) is not None:
            _warn(name, error)

    def _open_log(self, path: Path, archive: "Archive", stack: ExitStack) -> None:
        def fail() -> None:
            self._leave_out("log_file", sys.exception())

        try:
            log = stack.enter_context(EventLog(path, archive.uid, on_error=fail))
        except OSError as error:
            _warn("log_file", error)
        else:
            self._watchers["log_file"] = log.on_event

    def _open_trackers(self, job: JobConfig, archive: "Archive") -> None:
        trackers: dict[str, Tracker] = {}
        for name, make in tracker_makers(job.telemetry).items():
            try:
                trackers[name] = make()
            except Exception as error:
                # Its library is imported there, and may break in any way.
                _warn(name, error)
                logger.debug("telemetry.%s cannot be made", name, exc_info=True)
        if trackers:
            self._tracking = Tracking(trackers, archive)
            self._watchers["trackers"] = self._tracking.on_event

    def _close(self, end: RunEnd) -> None:
        if self._tracking is not None:
            self._tracking.close(end)


@contextmanager
def telemetry_of(
    archive: "Archive", job: JobConfig, make_meters: Callable[[], Meters]
) -> Iterator[Telemetry]:
    """Open the telemetry that a job asks for, for as long as its search runs.

    Args:
        archive: Of the search.
        job: The archive's, with what may have changed on resume.
        make_meters: Called at the first event, if the job wants metrics.
    """
    telemetry, settings = Telemetry(), job.telemetry
    with ExitStack() as stack:
        if settings.log_file is not None:
            telemetry._open_log(Path(settings.log_file), archive, stack)
        if settings.metrics:
            telemetry._watchers["metrics"] = SearchMeters(make_meters).on_event
        telemetry._open_trackers(job, archive)
        end: RunEnd = "failed"
        try:
            yield telemetry
            end = "finished"
        except KeyboardInterrupt:
            end = "interrupted"
            raise
        finally:
            telemetry._close(end)


def _warn(name: str, error: BaseException | None) -> None:
    logger.warning(
        "telemetry.%s failed: %s: %s. The search goes on without it; mend the cause and "
        "`mergefront resume`",
        name,
        type(error).__name__,
        error,
    )
