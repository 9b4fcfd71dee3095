"""What requests and answers hold, for the routes, the OpenAPI and the Python client alike.

Times are UTC, ISO-8601; scores are higher-is-better; ids of searches come from ``list``.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from configs.evaluation import SplitName
from configs.schema import DtypeName

State = Literal["starting", "running", "stopping", "interrupted", "finished", "failed", "unknown"]
"""``starting``: its process lives, and there is no archive yet. ``running``: somebody writes the
archive. ``stopping``: it was asked to end. ``interrupted``: it can go on. ``finished``: validated
and chosen. ``failed``: its process ended with an error; it can go on once that is mended.
``unknown``: the archive or the cluster cannot be read now."""

CandidateState = Literal["pending", "completed", "failed", "stopped"]
CandidateKind = Literal["search", "baseline", "attribution"]
Changes = Annotated[dict[str, JsonValue], Field(default_factory=dict)]
"""Dotted key -> value, as ``--set`` has them."""

_MAX_TEXT = 200_000


class Model(BaseModel):
    """Base of requests and answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Request(BaseModel):
    """Base of requests: what is not known is refused."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class ProblemAnswer(Model):
    """One thing that is wrong: where, and what to do."""

    path: str
    message: str


class ErrorBody(Model):
    """What went wrong."""

    kind: str
    """Name for programs, such as ``not_found`` or ``config``."""
    message: str
    """Text for people."""
    problems: list[ProblemAnswer]
    """All that is wrong, where there can be several things."""


class ErrorAnswer(Model):
    """The shape of every answer that is an error."""

    error: ErrorBody


class JobRequest(Request):
    """A job file, as ``mergefront run`` takes it."""

    job: str = Field(min_length=1, max_length=_MAX_TEXT)
    """Text of the YAML. Its ``archive`` is not used: the service has a place for it. Paths are
    relative to the first model root."""
    changes: Changes
    """Keys to set, over what the job file says."""


class ValidateRequest(JobRequest):
    """A job to be checked."""

    depth: Literal["form", "headers", "full"] = "full"
    """``form`` looks at the text alone, ``headers`` reads no weights, ``full`` is what
    ``mergefront check`` does (seconds to minutes)."""


class ValidateAnswer(Model):
    """What was found wrong with a job: nothing, where it is valid."""

    valid: bool
    message: str
    problems: list[ProblemAnswer]
    report: dict[str, JsonValue] | None = None
    """What ``mergefront check --json`` says of a valid job; None for ``form``."""


class SubmitRequest(JobRequest):
    """A search to be started."""

    start_from: str | None = None
    """Id of a search that this one begins with (warm start)."""


class ForkRequest(Request):
    """A new search that begins with what another one learnt."""

    job: str | None = Field(default=None, min_length=1, max_length=_MAX_TEXT)
    """Text of its YAML; None takes the other search's job."""
    changes: Changes
    """Keys to set."""


class ResumeRequest(Request):
    """How a search goes on."""

    changes: Changes
    """Keys of ``budget`` and ``validation`` to set, such as ``budget.evaluations``."""


class StopRequest(Request):
    """How a search ends."""

    force: bool = False
    """Kill it at once; what is recorded stays, and it can go on."""


class Evaluations(Model):
    """How many candidates were evaluated."""

    recorded: int
    in_flight: int
    """Proposed and not finished: under way, or lost with a process that died."""
    budget: int


class SearchSummary(Model):
    """One search, for lists and live views."""

    id: str
    name: str
    state: State
    advice: str
    """What to do next, in words."""
    error: str | None
    """The last error that its process printed, where the state is ``failed``."""
    archive: str
    """Path of the archive, relative to the directory that is served."""
    created_at: str | None
    """When the search began; None before there is an archive."""
    objectives: list[str]
    checkpoints: list[str]
    evaluations: Evaluations
    failures: int
    elapsed_s: float
    eta_s: float | None
    """Seconds until the evaluations are spent at the present pace; None where it does not run."""
    choice: int | None
    """The candidate that was chosen on held-out items."""
    revision: str
    """Changes whenever something was recorded."""


class WorkerActivity(Model):
    """What one worker did."""

    name: str
    evaluations: int
    failures: int
    busy_s: float
    last_finished_at: str


class Cost(Model):
    """What a search has taken so far."""

    items: float
    """Items of the search split that were scored."""
    model_s: float
    """Seconds in which a model ran."""
    worker_s: float
    """Seconds of workers, everything included."""
    gpu_hours: float


class SearchStatus(SearchSummary):
    """One search with all that is known of it as a whole."""

    job: dict[str, JsonValue] | None
    """The job as it was recorded."""
    preference: dict[str, float]
    submitted_job: str | None
    """Text of the job file that was sent, where it came over HTTP."""
    stopped: dict[str, int]
    """Reason -> candidates that were stopped early."""
    validated: dict[str, int]
    failed: dict[str, int]
    """Stage and class of error -> candidates."""
    workers: list[WorkerActivity]
    cost: Cost | None
    verdict: dict[str, JsonValue] | None
    """What ``mergefront report --json`` says of chosen merge and baselines."""
    runner: Literal["local", "cluster", "elsewhere"] | None
    """Where it runs, or ran last, as far as this service knows."""
    pid: int | None
    cluster_job: str | None


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

    state: Literal["current", "stale", "pending", "raw"]
    """``current``: the posterior of all that is recorded. ``stale``: that of an earlier moment, a
    newer one is being computed. ``pending``: raw scores, until the first one is computed. ``raw``:
    there is none, or it was not asked for."""
    outcomes: int
    """How many outcomes it knows."""


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
    """Hypervolume of what was scored on all items by then."""
    finished_at: list[str | None]


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


class ExportRequest(Request):
    """Which merge to export, and how; without a wish, the one that the search chose."""

    recipe_id: str | None = Field(default=None, min_length=1, max_length=64)
    """Id of the recipe, or a prefix of it."""
    prefer: dict[str, float] | None = None
    floors: dict[str, float] | None = None
    knee: bool = False
    dtype: DtypeName | None = None
    """Another data type than that of the search."""
    max_shard_size: str = Field(
        default="5GB", pattern=r"^\s*\d{1,6}(\.\d{1,3})?\s*([KMGkmg]i?[Bb])\s*$"
    )


ExportState = Literal["running", "finished", "failed"]


class ExportAnswer(Model):
    """One export."""

    id: str
    search: str
    state: ExportState
    recipe_id: str
    candidate: int
    rule: str
    dtype: DtypeName | None
    started_at: str
    written_bytes: int
    expected_bytes: int | None
    """How large the weights will be; None where that is not known."""
    error: str | None
    weights_digest: str | None
    """Of the tensors that were written, once it is finished."""
    directory: str | None
    """Where it lies on the machine of the service, once it is finished."""


class SearchList(Model):
    """All searches, the newest first."""

    searches: list[SearchSummary]


class ExportList(Model):
    """The exports of a search, the newest first."""

    exports: list[ExportAnswer]


class Deleted(Model):
    """What is gone."""

    deleted: str


class ServiceFacts(Model):
    """What this service is and allows."""

    version: str
    archive_dir: str
    cluster: str | None
    model_roots: list[str]
    hub: list[str]
    scorers: list[str]
    task_dirs: list[str]
    allow_code_execution: bool
    max_searches: int
