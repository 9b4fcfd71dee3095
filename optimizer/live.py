"""What a person sees while a search runs: a live view on a terminal, plain lines elsewhere.

Both are told the driver's events through ``on_event`` and are context managers. They write to
standard error only; nothing here decides anything.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from configs.schema import JobConfig
from evaluators.scores import Scores
from optimizer.events import (
    Event,
    Finished,
    Phase,
    PhaseChanged,
    Progressed,
    Proposed,
    SearchStarted,
    WorkersSeen,
)
from optimizer.progress import ProgressPoint, progress_of
from optimizer.results.front_view import (
    ScoredCandidate,
    front_of,
    front_table,
    scored_candidates,
)
from optimizer.scalarize import preferred_mean
from optimizer.sparkline import CourseLine
from workers.outcome import Failed

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

_PHASE_NAMES: Mapping[Phase, str] = {
    "search": "search",
    "select": "validation: select",
    "report": "validation: report",
    "done": "done",
}
_STATE_STYLES = {"busy": "green", "idle": "yellow", "starting": "cyan", "lost": "bold red"}
_MAX_FAILURES = 3
# Lines of the view that are not the front: title, bar, workers, failures, captions, spacing.
_FIXED_LINES = 15


class View(Protocol):
    """Watches a search."""

    def on_event(self, event: Event) -> None:
        """Take notice of an event; must be quick, the driver waits."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Pace:
    """Counts evaluations of the current phase and times them.

    Args:
        clock: Seconds from any origin; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._phase_began = clock()
        self._done_before = 0
        self.phase: Phase = "search"
        self.is_baseline = False
        self.done = 0
        self.total = 0

    def note(self, event: Event) -> None:
        """Update the counts."""
        match event:
            case SearchStarted():
                self._start("search", event.num_recorded, event.budget)
            case PhaseChanged(phase="search"):
                # The budget and what is recorded of it are known from SearchStarted.
                self.phase = "search"
            case PhaseChanged():
                self._start(event.phase, 0, event.total)
            case Proposed():
                self.is_baseline = event.candidate.is_baseline
            case Finished():
                self.done = event.num_outcomes
            case _:
                pass

    def _start(self, phase: Phase, done: int, total: int) -> None:
        self.phase, self.total = phase, total
        self.done = self._done_before = done
        self._phase_began = self._clock()

    @property
    def title(self) -> str:
        """What is going on, in words."""
        if self.phase == "search" and self.is_baseline:
            return "baselines"
        return _PHASE_NAMES[self.phase]

    @property
    def elapsed_s(self) -> float:
        """Seconds since this process began to watch."""
        return self._clock() - self._began

    @property
    def per_minute(self) -> float | None:
        """Evaluations per minute of this phase in this process; None before the first."""
        seconds = self._clock() - self._phase_began
        num_here = self.done - self._done_before
        return 60.0 * num_here / seconds if num_here > 0 and seconds > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds until this phase ends at the present pace; None while unknown."""
        rate = self.per_minute
        return None if rate is None else max(0, self.total - self.done) * 60.0 / rate


def format_duration(seconds: float) -> str:
    """Write seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainLog:
    """One line per evaluation and per phase, for logs and pipes."""

    def __init__(
        self, job: JobConfig, console: Console, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._console = console
        self._pace = Pace(clock)

    def on_event(self, event: Event) -> None:
        """Write the line of an event, if it has one."""
        self._pace.note(event)
        match event:
            case SearchStarted():
                self._line(f"search: {event.num_recorded} of {event.budget} evaluations recorded")
            case PhaseChanged():
                todo = "" if event.phase == "done" else f": {event.total} evaluations to do"
                self._line(f"{_PHASE_NAMES[event.phase]}{todo}")
            case Finished() if event.stopped != "screened":
                self._line(_outcome_line(event, self._pace, self._job.preference))
            case WorkersSeen() if "lost" in event.states.values():
                self._line(f"workers: {_count_states(event.states)}")
            case _:
                pass

    def _line(self, text: str) -> None:
        elapsed = format_duration(self._pace.elapsed_s)
        self._console.print(f"[{elapsed:>7}] {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class LiveView:
    """Front table, progress bar, pace, worker states and failures, redrawn in place.

    Args:
        job: The job that runs.
        console: A terminal.
        recorded: What earlier runs scored on the search split.
        course: How they came there.
        clock: Seconds from any origin.
    """

    def __init__(
        self,
        job: JobConfig,
        console: Console,
        *,
        recorded: list[ScoredCandidate],
        course: Sequence[ProgressPoint] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._console = console
        self._course = CourseLine(course)
        self._pace = Pace(clock)
        self._rows = {row.candidate.recipe.recipe_id: row for row in recorded}
        self._front = front_of(recorded)
        self._states: Mapping[str, str] = {}
        self._failures: deque[Text] = deque(maxlen=_MAX_FAILURES)
        self._num_failed = 0
        self._last = Text("")
        self._progress: Progressed | None = None
        # The refresh thread of rich draws while the driver's thread reports.
        self._lock = threading.Lock()
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, transient=False
        )

    def on_event(self, event: Event) -> None:
        """Take notice of an event."""
        with self._lock:
            self._pace.note(event)
            if isinstance(event, WorkersSeen):
                self._states = dict(event.states)
            elif isinstance(event, Finished):
                self._note_outcome(event)
            elif isinstance(event, Progressed):
                self._progress = event
                self._course.add(event)
        # A phase may be over before the next refresh. Not under our lock, which drawing takes.
        if isinstance(event, PhaseChanged) and self._live.is_started:
            self._live.refresh()

    def _note_outcome(self, event: Finished) -> None:
        if event.stopped == "screened":
            return
        line = _outcome_line(event, self._pace, self._job.preference)
        if isinstance(event.outcome, Failed):
            self._num_failed += 1
            self._failures.append(Text(line, style="red", overflow="ellipsis", no_wrap=True))
            return
        self._last = Text(line, style="dim", overflow="ellipsis", no_wrap=True)
        recipe_id = event.candidate.recipe.recipe_id
        if not event.is_scored or not event.scores or recipe_id in self._rows:
            return
        if event.outcome.key.split == "search":
            self._rows[recipe_id] = ScoredCandidate(
                candidate=event.candidate,
                scores=event.scores,
                mean=preferred_mean(event.scores, self._job.preference),
                is_chosen=False,
            )
            self._front = front_of(list(self._rows.values()))

    def render(self) -> RenderableType:
        """Draw the view as it is now."""
        with self._lock:
            parts: list[RenderableType] = [self._title(), self._bar(), self._front_part()]
            if self._states:
                parts.append(self._workers())
            parts.append(self._last)
            parts.extend(self._failures)
            return Group(*parts)

    def _title(self) -> Text:
        pace = self._pace
        rate = "" if pace.per_minute is None else f" · {pace.per_minute:.1f} evaluations/min"
        eta = "" if pace.eta_s is None else f" · {format_duration(pace.eta_s)} left"
        failed = f" · {self._num_failed} failed" if self._num_failed else ""
        elapsed = format_duration(pace.elapsed_s)
        return Text.assemble(
            (self._job.name, "bold"),
            f" · {pace.title} · {elapsed}{rate}{eta}",
            (failed, "red"),
            overflow="ellipsis",
            no_wrap=True,
        )

    def _bar(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            ProgressBar(total=max(1, self._pace.total), completed=self._pace.done, width=50),
            f"{self._pace.done}/{self._pace.total}",
        )
        if self._progress is None:
            return grid
        found = f"hypervolume {self._progress.volume:.4g} after {self._progress.items:,.0f} items"
        if (gain := self._progress.expected_gain) is not None:
            found += f" · the next candidate scored is expected to add {gain:.2g}"
        parts: list[RenderableType] = [grid, Text(found, style="dim")]
        course = "" if self._console.options.ascii_only else self._course.text(self._console.width)
        if course:
            parts.append(Text(course, style="dim", overflow="ellipsis", no_wrap=True))
        return Group(*parts)

    def _front_part(self) -> RenderableType:
        shown = self._front[: max(3, self._console.height - _FIXED_LINES)]
        title = f"\nfront on the search split, {len(self._front)} of {len(self._rows)} merges"
        if len(shown) < len(self._front):
            title += f", the best {len(shown)} on the mean"
        # Recipes are left out on narrow terminals: objectives are what a person watches.
        wide = self._console.width >= 60 + 18 * len(self._job.objectives)
        table = front_table(shown, self._job.objectives, with_recipe=wide)
        return Group(Text(title, style="bold"), table)

    def _workers(self) -> Text:
        text = Text("workers  ", overflow="ellipsis", no_wrap=True)
        if len(self._states) > 8:
            return text.append(_count_states(self._states))
        for name, state in self._states.items():
            text.append(f"{name} ").append(state, style=_STATE_STYLES.get(state, "")).append("  ")
        return text

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.__exit__(None, None, None)


def make_view(archive: "Archive", console: Console, *, plain: bool) -> View:
    """Return the live view on a terminal, the plain log elsewhere or on request."""
    if plain or not console.is_terminal:
        return PlainLog(archive.job, console)
    recorded, course = scored_candidates(archive, "search"), progress_of(archive)
    return LiveView(archive.job, console, recorded=recorded, course=course)


def _count_states(states: Mapping[str, str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())


def _outcome_line(event: Finished, pace: Pace, preference: Mapping[str, float]) -> str:
    outcome = event.outcome
    head = (
        f"{outcome.key.split} {pace.done}/{pace.total} "
        f"candidate {event.candidate.index} {event.candidate.origin}"
    )
    if isinstance(outcome, Failed):
        reason = outcome.message.strip().splitlines()
        return (
            f"{head} FAILED at {outcome.stage}: {outcome.error_class}"
            f"{': ' + reason[0] if reason else ''}"
        )
    seconds = sum(outcome.seconds.values())
    if event.stopped:
        head = f"{head} {'sample' if event.is_scored else f'stopped ({event.stopped})'}"
    return f"{head} {_scores_text(event.scores or {}, preference)} ({seconds:.1f} s)"


def _scores_text(scores: Scores, preference: Mapping[str, float]) -> str:
    text = " ".join(f"{name}={score.value:.3f}" for name, score in scores.items())
    return f"{text} mean={preferred_mean(scores, preference):.3f}" if scores else text
