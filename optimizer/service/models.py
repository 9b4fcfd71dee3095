"""What requests and answers hold, for the routes, the OpenAPI and the Python client alike.

Here is what is asked and said of searches and exports; what is said of candidates is in
``optimizer.service.result_models``. Times are UTC, ISO-8601; scores are higher-is-better.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from configs.schema import DtypeName

State = Literal["starting", "running", "stopping", "interrupted", "finished", "failed", "unknown"]
"""``starting``: its process lives, and there is no archive yet. ``running``: somebody writes the
archive. ``stopping``: it was asked to end. ``interrupted``: it can go on. ``finished``: validated
and chosen. ``failed``: its process ended with an error; it can go on once that is mended.
``unknown``: the archive or the cluster cannot be read now."""

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
