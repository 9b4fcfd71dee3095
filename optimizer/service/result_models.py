"""What answers say of candidates: rows, fronts, charts, item scores and comparisons."""

from typing import Literal

from pydantic import JsonValue

from configs.evaluation import SplitName
from optimizer.service.models import Model

BeliefState = Literal["current", "stale", "pending", "raw"]
CandidateState = Literal["pending", "completed", "failed", "stopped"]
CandidateKind = Literal["search", "baseline", "attribution"]


class Score(Model):
    """Mean over items, its standard error, and over how many."""

    value: float
    stderr: float
    count: int


class CandidateFailure(Model):
    """Why a candidate has no scores."""

    stage: str
    error_class: str
    message: str


class CandidateRow(Model):
    """One proposed merge, as tables and charts need it."""

    index: int
    recipe_id: str
    label: str
    """Name of a baseline, else the first digits of the recipe's id."""
    origin: str
    kind: CandidateKind
    state: CandidateState
    stopped: str | None
    """``racing``, ``screened`` or ``broken``; its scores are estimates then."""
    scores: dict[str, Score] | None
    """On the search split; of a stopped candidate what the strategy was told."""
    posterior: dict[str, Score] | None
    """What is believed of it; its ``stderr`` is the posterior's standard deviation."""
    mean: float | None
    """Preferred mean of the posterior, or of the scores where there is none."""
    effective_checkpoints: float
    is_chosen: bool
    on_front: bool
    failure: CandidateFailure | None
    worker: str | None
    seconds: float | None
    finished_at: str | None


class CandidatePage(Model):
    """Some of the candidates, and how many there are."""

    total: int
    offset: int
    items: list[CandidateRow]


class CandidateDetail(CandidateRow):
    """One proposed merge with all that is recorded of it."""

    genes: dict[str, dict[str, dict[str, float]]]
    """Checkpoint -> group -> ``weight`` and ``drop_ratio``."""
    recipe: dict[str, JsonValue]
    splits: dict[str, dict[str, Score]]
    """Split -> objective -> score, where it was scored on the whole split."""
    weights_digest: str | None
    stop_numbers: dict[str, JsonValue] | None
    """What decided that it was stopped."""


class ScoredItem(Model):
    """One item of a task."""

    id: str
    score: float
    weight: float | None
    text: str | None
    """What was generated, where that was kept."""


class TaskItems(Model):
    """What one task's items were scored."""

    task: str
    objective: str
    mean: float
    items: list[ScoredItem]


class ItemsAnswer(Model):
    """The item scores of a candidate on a split."""

    candidate: int
    split: SplitName
    tasks: list[TaskItems]


class Belief(Model):
    """What the rows of an answer go by."""

    state: BeliefState
    """``current``: the posterior of all that is recorded. ``stale``: that of an earlier moment, a
    newer one is being computed. ``pending``: raw scores, until the first one is computed. ``raw``:
    there is none, or it was not asked for."""
    outcomes: int
    """How many outcomes it knows."""
    expected_gain: float | None = None
    """Hypervolume that the next candidate scored is expected to add to the front of posterior
    medians; None without a posterior, and where the strategy cannot tell."""


class FrontRow(CandidateRow):
    """A member of the front, with its genes."""

    genes: dict[str, dict[str, dict[str, float]]]
    chance: float | None
    """How likely all floors hold; None without floors."""


class FrontAnswer(Model):
    """The merges that none dominates, what is wanted most first."""

    split: SplitName
    """Whose raw scores the rows have. Where there is no posterior for a wish to go by, and merges
    were validated, it is ``select``."""
    objectives: list[str]
    preference: dict[str, float]
    rule: str | None
    """By which the first row is the first, where one was asked for."""
    belief: Belief
    revision: str
    front: list[FrontRow]


class Points(Model):
    """All scored candidates as columns, for charts; row i of every column is one candidate."""

    objectives: list[str]
    genes: list[str]
    """Names of the columns of ``weights`` and ``drop_ratios``: ``checkpoint`` or
    ``checkpoint/group``."""
    belief: Belief
    revision: str
    index: list[int]
    kind: list[CandidateKind]
    label: list[str]
    state: list[CandidateState]
    on_front: list[bool]
    mean: list[float]
    scores: list[list[float]]
    """Rows of scores, columns as ``objectives``."""
    stderr: list[list[float]]
    posterior: list[list[float] | None]
    posterior_stderr: list[list[float] | None]
    report: list[list[float] | None]
    """Scores on the report split, where there are some."""
    weights: list[list[float]]
    drop_ratios: list[list[float]]


class Progress(Model):
    """The course of a search, one row per finished candidate in their order."""

    candidate: list[int]
    evaluations: list[int]
    items: list[float]
    model_s: list[float]
    volume: list[float]
    """Hypervolume of the scores by then; that of samples is larger by their luck."""
    finished_at: list[str | None]


class Convergence(Model):
    """How CMA-ES narrows, one row per update; empty for strategies without it."""

    candidate: list[int]
    """Whose outcome completed the population."""
    sigma: list[float]
    """Overall step size, in units of the genotype; ``scalar_cma`` has units of its own."""
    axis_ratio: list[float]
    """Longest axis of the distribution over its shortest."""


class Difference(Model):
    """Mean of a minus b over the same items."""

    mean: float
    stderr: float
    sigmas: float | None
    interval_95: tuple[float, float]
    p_value: float | None


class ComparedItem(Model):
    """One item of two candidates."""

    id: str
    a: float
    b: float
    text_a: str | None
    text_b: str | None


class ComparedTask(Model):
    """One task of two candidates: on how many items each is better."""

    task: str
    objective: str
    num_items: int
    wins: int
    losses: int
    ties: int
    items: list[ComparedItem]
    """Those that were asked for, in the order of the split."""


class Compared(Model):
    """One side of a comparison."""

    candidate: int
    label: str
    recipe_id: str


class CompareAnswer(Model):
    """Two candidates item by item; every difference is a minus b."""

    a: Compared
    b: Compared
    split: SplitName
    preferred: Difference
    """On the preferred mean of the objectives."""
    objectives: dict[str, Difference]
    tasks: list[ComparedTask]
    left_out: list[str]
    """Objectives of which they share no items."""
