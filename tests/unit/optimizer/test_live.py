import io
import re
import threading

import pytest
from rich.console import Console

from evaluators.scores import ObjectiveScore
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from optimizer.events import (
    Finished,
    PhaseChanged,
    Progressed,
    Proposed,
    SearchStarted,
    WorkersSeen,
)
from optimizer.live import LiveView, Pace, PlainLog, format_duration, make_view
from optimizer.progress import ProgressPoint
from optimizer.results.front_view import scored_candidates
from optimizer.space import SearchSpace
from optimizer.sparkline import sparkline
from tests.unit.optimizer.synthetic_archive import Merge, build, make_job, make_sources
from workers.outcome import Completed, EvaluationKey, Failed, Stage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path / "a.sqlite")


@pytest.fixture
def make_finished(job):
    space = SearchSpace(job, make_sources())

    def make(index, values=None, *, split="search", origin="strategy:cma", message="", done=1):
        recipe = space.recipe([[0.01 * index], [0.5], [0.5]])
        candidate = Candidate(index, space.encode(recipe.weights), recipe, origin, seen=0)
        key = EvaluationKey(index, split)
        if values is None:
            outcome = Failed(
                key=key, attempt=1, worker="w", stage=Stage.MATERIALIZE,
                error_class="RuntimeError", message=message,
            )  # fmt: skip
            return Finished(candidate, outcome, None, done)
        outcome = Completed(
            key=key, attempt=1, worker="w", weights_digest="", task_scores={},
            seconds={"materialize": 0.5, "forward": 1.0},
        )  # fmt: skip
        names = job.objectives
        scores = {n: ObjectiveScore(v, 0.05, 20) for n, v in zip(names, values, strict=True)}
        return Finished(candidate, outcome, scores, done)

    return make


def make_console(*, terminal: bool = False, width: int = 160, height: int = 40) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None
    )


def drawn(view: LiveView, width: int = 160) -> str:
    console = make_console(width=width)
    console.print(view.render())
    return console.file.getvalue()


def test_pace_counts_only_what_this_process_did(make_finished):
    clock = Clock()
    pace = Pace(clock)
    pace.note(SearchStarted(num_recorded=30, budget=50))
    pace.note(PhaseChanged("search", 20))
    assert (pace.done, pace.total, pace.per_minute, pace.eta_s) == (30, 50, None, None)
    clock.now += 120
    pace.note(make_finished(34, (0.1,) * 3, done=34))
    assert pace.per_minute == pytest.approx(2.0)
    assert pace.eta_s == pytest.approx(16 * 30.0)


def test_pace_starts_anew_with_each_phase(make_finished):
    clock = Clock()
    pace = Pace(clock)
    pace.note(SearchStarted(0, 10))
    clock.now += 60
    pace.note(make_finished(0, (0.1,) * 3, done=10))
    pace.note(PhaseChanged("select", 8))
    assert (pace.phase, pace.done, pace.total, pace.eta_s) == ("select", 0, 8, None)
    clock.now += 30
    pace.note(make_finished(0, (0.1,) * 3, split="select", done=1))
    assert pace.per_minute == pytest.approx(2.0)
    assert pace.elapsed_s == pytest.approx(90)


def test_pace_tells_baselines_from_the_search(make_finished):
    pace = Pace(Clock())
    pace.note(Proposed(make_finished(0, origin="baseline:base").candidate))
    assert pace.title == "baselines"
    pace.note(Proposed(make_finished(1).candidate))
    assert pace.title == "search"
    pace.note(Proposed(make_finished(2, origin="baseline:soup of code + math").candidate))
    pace.note(PhaseChanged("select", 8))
    assert pace.title == "validation: select"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3661, "1:01:01")]
)
def test_duration_is_written_as_a_clock_would(seconds, text):
    assert format_duration(seconds) == text


def test_plain_log_writes_one_line_per_outcome(job, make_finished):
    console, clock = make_console(width=40), Clock()
    log = PlainLog(job, console, clock=clock)
    with log:
        log.on_event(SearchStarted(0, 96))
        clock.now += 65
        log.on_event(make_finished(0, (0.25, 0.5, 0.75), origin="baseline:base", done=1))
        log.on_event(make_finished(1, message="logits [nan]\nare bad", done=2))
        log.on_event(PhaseChanged("select", 8))
        log.on_event(WorkersSeen({"worker-1": "busy"}))
    assert console.file.getvalue().splitlines() == [
        "[   0:00] search: 0 of 96 evaluations recorded",
        "[   1:05] search 1/96 candidate 0 baseline:base instruct=0.250 code=0.500 math=0.750 "
        "mean=0.500 (1.5 s)",
        "[   1:05] search 2/96 candidate 1 strategy:cma FAILED at materialize: RuntimeError: "
        "logits [nan]",
        "[   1:05] validation: select: 8 evaluations to do",
    ]


def test_sparkline_keeps_the_last_value_and_ends_at_the_top():
    assert sparkline([1, 2, 3, 4], [0.0, 0.5, 0.5, 1.0], 4) == "▁▅▅█"
    # The second point took most of it; before the first there is nothing.
    assert sparkline([2, 10], [0.7, 1.4], 5) == "▅▅▅▅█"
    assert sparkline([5, 10], [1.0, 1.0], 10) == "▁▁▁▁██████"
    assert sparkline([1], [1.0], 4) == sparkline([1, 2], [0.0, 0.0], 4) == ""


def test_live_view_draws_the_course_and_says_what_is_ahead(job):
    before = [ProgressPoint(0, 1, 10.0, 1.0, 0.0), ProgressPoint(1, 2, 20.0, 2.0, 0.2)]
    view = LiveView(job, make_console(terminal=True), recorded=[], course=before)
    view.on_event(Progressed(3, 100.0, 3.0, 0.2))
    assert "expected to add" not in drawn(view)
    view.on_event(Progressed(4, 110.0, 4.0, 0.4, expected_gain=0.0123))
    text = drawn(view)
    assert (
        "hypervolume 0.4 after 110 items · the next candidate scored is expected to add 0.012"
        in text
    )
    evaluations, items = re.findall("[▁-█]{32}", text)
    # Half as high from the second evaluation of four on, but from the 20th item of 110.
    assert evaluations == "▁" * 15 + "▅" * 16 + "█"
    assert items == "▁" * 5 + "▅" * 26 + "█"


def test_plain_log_tells_of_lost_workers(job):
    console = make_console()
    PlainLog(job, console).on_event(WorkersSeen({"worker-1": "lost", "worker-2": "busy"}))
    assert "workers: 1 lost, 1 busy" in console.file.getvalue()


def test_live_view_shows_front_pace_workers_and_failures(job, make_finished):
    clock = Clock()
    view = LiveView(job, make_console(terminal=True), recorded=[], clock=clock)
    view.on_event(SearchStarted(0, 96))
    clock.now += 60
    view.on_event(make_finished(1, (0.2, 0.2, 0.2), done=1))
    view.on_event(make_finished(2, (0.6, 0.5, 0.4), done=2))
    view.on_event(make_finished(3, message="no [memory]", done=3))
    view.on_event(WorkersSeen({"worker-1": "busy", "worker-2": "starting"}))
    text = drawn(view)
    assert "synthetic · search · 1:00 · 3.0 evaluations/min · 31:00 left · 1 failed" in text
    assert "3/96" in text
    assert "1 of 2 merges" in text
    assert "0.600 ± 0.050" in text
    assert "0.200 ± 0.050" not in text  # dominated
    assert "worker-1 busy" in text
    assert "FAILED at materialize: RuntimeError: no [memory]" in text


def test_live_view_begins_with_what_was_recorded(tmp_path):
    path = build(tmp_path / "b.sqlite", [Merge((0.5, 0.5, 0.5), (0.4, 0.4, 0.4))])
    with Archive.open(path) as archive:
        rows = scored_candidates(archive, "search")
        view = LiveView(archive.job, make_console(terminal=True), recorded=rows)
    assert rows[0].short_id in drawn(view)


def test_live_view_keeps_validation_out_of_the_front(job, make_finished):
    view = LiveView(job, make_console(terminal=True), recorded=[])
    view.on_event(PhaseChanged("select", 8))
    view.on_event(make_finished(1, (0.9, 0.9, 0.9), split="select"))
    text = drawn(view)
    assert "validation: select" in text
    assert "0 of 0 merges" in text


def test_live_view_fits_its_terminal(job, make_finished):
    console = make_console(terminal=True, width=70, height=24)
    view = LiveView(job, console, recorded=[])
    view.on_event(SearchStarted(0, 96))
    for index in range(40):  # all on the front
        values = (index / 40, 1 - index / 40, 0.5)
        view.on_event(make_finished(index, values, done=index))
        view.on_event(make_finished(100 + index, message="x" * 300, done=index))
        view.on_event(Progressed(index, 10.0 * index, 1.0, index / 40))
    view.on_event(WorkersSeen({f"worker-{n}": "busy" for n in range(64)}))
    lines = drawn(view, width=70).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 70
    assert "64 busy" in "\n".join(lines)
    (course,) = [line for line in lines if line.startswith("over evaluations")]
    assert re.fullmatch("over evaluations [▁-█]{20}  over items [▁-█]{20}", course)
    assert "40 of 40 merges, the best 9 on the mean" in "\n".join(lines)


def test_live_view_can_be_drawn_while_events_arrive(job, make_finished):
    view = LiveView(job, make_console(terminal=True), recorded=[])
    events = [make_finished(index, (index / 300, 0.5, 0.5), done=index) for index in range(300)]
    errors = []

    def draw() -> None:
        try:
            for _ in range(30):
                drawn(view)
        except RuntimeError as error:
            errors.append(error)

    drawing = threading.Thread(target=draw)
    drawing.start()
    for event in events:
        view.on_event(event)
    drawing.join()
    assert errors == []


def test_live_view_leaves_its_last_state_on_the_terminal(job, make_finished):
    console = make_console(terminal=True)
    with LiveView(job, console, recorded=[]) as view:
        view.on_event(SearchStarted(0, 1))
        view.on_event(make_finished(1, (0.6, 0.5, 0.4), done=1))
    assert "1/1" in console.file.getvalue()


@pytest.mark.parametrize(
    ("terminal", "plain", "kind"),
    [(True, False, LiveView), (True, True, PlainLog), (False, False, PlainLog)],
)
def test_view_is_plain_on_request_and_without_a_terminal(tmp_path, terminal, plain, kind):
    with Archive.open(build(tmp_path / "c.sqlite", [])) as archive:
        view = make_view(archive, make_console(terminal=terminal), plain=plain)
    assert type(view) is kind
