"""What a job file can say: the frozen, fully validated description of one search.

Objectives, tasks and splits are in ``configs.evaluation``. ``configs.load.load_job`` reads a job
from YAML. Paths stay as they were written here; ``load_job`` resolves the local ones against the
working directory.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.evaluation import EvaluationSettings, Objective
from configs.groups import GroupRule, GroupRules, check_rest
from configs.local_paths import exists
from configs.place import read_place
from configs.racing import Gates, Racing, Screening
from configs.section import Section
from configs.telemetry import TelemetrySettings
from configs.worker_settings import WorkerSettings

Parametrization = Literal["free", "simplex", "softmax"]
VocabularyPolicy = Literal["refuse", "intersect", "pad"]
Scalarization = Literal["weighted_sum", "tchebycheff"]
DtypeName = Literal["float32", "bfloat16", "float16"]

# Keys that say how long, where and on what a search runs and how it is validated, not what it
# searches: a search may be resumed with other values of these.
OPERATIONAL_KEYS = frozenset(
    {"name", "baselines", "budget", "validation", "workers", "telemetry", "archive"}
)

# The same inside objectives: whether a scorer is tried before a worker starts changes no score.
_OPERATIONAL_OF_ENTRIES = {"__all__": {"tasks": {"__all__": {"dry_run"}}}}

# Those of `optimizer.baselines` that look like names of a job.
_BUILT_IN_BASELINES = frozenset({"base", "TIES", "DARE-TIES"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ModelSource(Section):
    """One checkpoint: a local directory, or a Hugging Face hub id.

    A plain string in the job file is short for ``path``; ``org/name@revision`` names a revision.
    """

    path: str = Field(min_length=1)
    """Directory with safetensors weights, a hub id such as ``org/name``, or a URL that fsspec reads
    (``s3://bucket/model``; every machine fetches it once)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None is the default branch. Ignored for a directory."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        path, at, revision = value.partition("@")
        if at and not exists(value):
            return {"path": path, "revision": revision}
        return {"path": value}


class Models(Section):
    """The pool: what is merged, and what it was fine-tuned from."""

    base: ModelSource | None = None
    """The model that the checkpoints were fine-tuned from; None merges checkpoints of
    different runs directly (method ``linear``)."""
    checkpoints: dict[str, ModelSource] = Field(min_length=1)
    """Name -> checkpoint. Names appear in every table; the order is the order of the genes."""
    vocabulary: VocabularyPolicy = "refuse"
    """What to do where models have tables of tokens of different lengths. ``intersect`` keeps the
    tokens that all have, ``pad`` those that any has; the tokenizer that fits is exported."""


class Bounds(Section):
    """A closed interval that a gene is decoded to."""

    low: float
    """Smallest value."""
    high: float
    """Largest value; may equal ``low``, which fixes the gene."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"`low <= high` must hold, but got low={self.low}, high={self.high}")
        return self


class DropBounds(Bounds):
    """The interval of DARE drop ratios, the share of a task vector that is dropped."""

    low: float = Field(default=0.0, ge=0.0)
    """Smallest drop ratio."""
    high: float = 0.9
    """Largest drop ratio; must be below 1."""

    @model_validator(mode="after")
    def _below_one(self) -> Self:
        if self.high >= 1.0:
            raise ValueError(
                f"high must be < 1 (got {self.high}): dropping everything leaves nothing to "
                "rescale; use 0.99"
            )
        return self


class Merge(Section):
    """How checkpoints are merged, and the range of every gene."""

    method: str = "dare_linear"
    """``dare_linear`` (base + sum w_i DARE(tuned_i - base)), ``task_arithmetic`` (the same
    without drops), ``linear`` (sum w_i tuned_i, no base), ``ties``, ``dare_ties``, ``della``,
    ``della_linear``, ``slerp``, ``delta_guided``, or one that a package installed beside this one
    brings."""
    options: dict[str, float] = Field(default_factory=dict)
    """Parameters of the method that are not searched, e.g. ``normalize: true`` of ``ties``; what
    is not named keeps the method's default."""
    parametrization: Parametrization = "free"
    """``free``: every weight in its own interval. ``simplex``: non-negative, sum one, can reach
    zero. ``softmax``: sum one, never reaches zero."""
    weight: Bounds = Bounds(low=0.0, high=1.5)
    """Interval of the linear weights (``free`` only)."""
    scale: Bounds | None = None
    """Interval of one more gene that multiplies all weights (``simplex`` and ``softmax`` with a
    base only); None leaves their sum at one. Task vectors that conflict want 1.5 to 2.5."""
    drop_ratio: DropBounds = DropBounds()
    """Interval of the DARE drop ratios (methods with drops only)."""
    groups: dict[str, GroupRules] = Field(
        default_factory=lambda: {"all": [GroupRule(regex=".*")]}, min_length=1
    )
    """Group name -> rules. A rule is a regular expression over whole tensor names, a mapping with
    ``layers`` (``0-11``, ``12-``), ``kind`` (``attention``, ``mlp``, ``embeddings``, ``norms``,
    ``head``) and ``regex``, of which all must hold, or ``rest``: what no other group holds. Each
    group has its own weights and drop ratios; every tensor must be in exactly one group."""
    dtype: DtypeName | None = None
    """Data type of the merged tensors; None keeps that of the base (or first checkpoint)."""
    mask_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the DARE masks."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_rest(self.groups)
        if self.scale is not None and self.parametrization == "free":
            raise ValueError(
                "scale: weights of `free` have a scale of their own; take it out, or use "
                "parametrization `simplex` or `softmax`"
            )
        if self.scale is not None and self.scale.low < 0:
            raise ValueError(f"scale.low must be >= 0 (got {self.scale.low})")
        return self


# Of so many workers one may become free while the strategy answers, which takes some 30 ms.
_WORKERS_PER_AHEAD = 4


class SearchSettings(Section):
    """How candidates are proposed."""

    strategy: str = "surrogate_cma"
    """``surrogate_cma`` (Gaussian processes choose from what CMA-ES and others propose), ``cma``
    (CMA-ES ranked by hypervolume contribution), ``scalar_cma`` (CMA-ES on one number, as
    mergekit-evolve runs it), ``nsga2``, ``dirichlet`` (random search), ``sobol``, ``grid``
    (interpolations on grids of the simplex), or one that an installed package brings (entry points
    ``mergefront.strategies``)."""
    population_size: int | None = Field(default=None, ge=4)
    """Outcomes per update of a distribution or population; None is 4 + 3 ln n for n genes, and 20
    for ``nsga2``."""
    sigma: float = Field(default=0.2, gt=0, le=1)
    """Initial standard deviation of the genotype, whose range is [0, 1]."""
    preference: dict[str, float] = Field(default_factory=dict)
    """Objective -> relative weight when one merge has to be chosen; empty weighs all alike."""
    preference_share: float = Field(default=0.25, ge=0, le=1)
    """How much the preferred mean counts; the rest is the hypervolume of the front. Of
    ``surrogate_cma`` it is the share of proposals that aim at the best preferred mean; ``cma``
    ranks candidates by a mean of both."""
    scalarization: Scalarization = "weighted_sum"
    """What ``scalar_cma`` maximizes: the preferred mean, or the weighted distance from the best
    seen in the objective that is furthest behind (Tchebycheff)."""
    l1: float = Field(default=0.0, ge=0)
    """What ``scalar_cma`` takes off what it maximizes per unit of the mean absolute weight, in
    units of the score; other strategies refuse it. LoRAHub has 0.05, beside a loss in nats. Scores
    in the archive stay what they are."""
    ask_ahead: int | None = Field(default=None, ge=0)
    """Proposals that are kept ready while workers are busy, so that one that becomes free starts
    at once; 0 asks when a worker is free, which then knows one outcome more. None is one per 4
    workers, rounded up: so many may become free while the strategy is asked. May change on
    resume."""
    racing: Racing = Racing()
    """When candidates are stopped before all of their items are scored."""
    gates: Gates = Gates()
    """When a candidate counts as broken."""
    screening: Screening = Screening()
    """Whether several candidates are looked at for each that is scored."""
    max_failed_share: float = Field(default=0.5, gt=0, le=1)
    """The search stops when more than this share of at least 8 outcomes are failures."""

    def num_ahead(self, workers: int) -> int:
        """Return how many proposals are kept ready for so many workers."""
        return -(-workers // _WORKERS_PER_AHEAD) if self.ask_ahead is None else self.ask_ahead


class Budget(Section):
    """When the search ends: the first limit that is reached."""

    evaluations: int = Field(default=96, ge=1)
    """Evaluations of the search split, baselines included: of candidates that are screened
    together, and of as many samples as have its items, each group is one."""
    items: int | None = Field(default=None, ge=1)
    """Items scored on the search split, of all candidates together; None is no limit."""
    hours: float | None = Field(default=None, gt=0)
    """Wall time of the search in hours, summed over resumed runs; None is no limit."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """Hours of evaluations of the search split times ``workers.gpus``; what is under way then is
    finished. None is no limit."""
    min_gain_per_hour: float | None = Field(default=None, gt=0)
    """Hypervolume that the search must still be expected to gain per hour, in the product of the
    objectives' units: what the next candidate scored adds on average, at the pace so far.
    Strategies without a model of the scores refuse it; None goes on to another limit."""


class ValidationSettings(Section):
    """Held-out validation after the search."""

    candidates: int = Field(default=8, ge=1)
    """How many spread points of the front are scored on the select split."""
    leave_one_out: bool = False
    """Whether the chosen merge is also scored on the report split without each checkpoint, and
    without drops (up to two evaluations per checkpoint, and one): the report says what matters."""


class JobConfig(Section):
    """One search: equal jobs have equal ``digest``."""

    name: str = "search"
    """Name of the search, for people."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of every random draw of the search."""
    models: Models
    """The base and the checkpoints."""
    merge: Merge = Merge()
    """Method, parametrization and gene ranges."""
    baselines: dict[str, str] = Field(default_factory=dict)
    """Name -> merge that is scored before the search's own proposals, beside the baselines that
    every search has: a directory of ``mergefront learn``, or a ``recipe.json``. It must be of the
    job's checkpoints. Some may be added on resume."""
    objectives: dict[str, Objective] = Field(min_length=1)
    """Name -> objective; one to five make a readable front."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Items, splits and batch size."""
    search: SearchSettings = SearchSettings()
    """Strategy and its parameters."""
    validation: ValidationSettings = ValidationSettings()
    """What is scored on held-out items."""
    budget: Budget = Budget()
    """When the search ends."""
    workers: WorkerSettings = WorkerSettings()
    """Number and resources of the workers."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """Logs, metrics and trackers."""
    archive: str
    """What records the search: an SQLite file, or ``postgresql://USER@HOST/DB?search=NAME``."""

    @field_validator("archive")
    @classmethod
    def _a_place(cls, text: str) -> str:
        read_place(text)
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, names in (
            ("models.checkpoints", self.models.checkpoints),
            ("objectives", self.objectives),
            ("merge.groups", self.merge.groups),
            ("baselines", self.baselines),
        ):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{kind}: name `{name}` may hold letters, digits, `_`, `.` and `-` only"
                    )
        if self.budget.gpu_hours is not None and self.workers.gpus == 0:
            raise ValueError(
                "budget.gpu_hours: workers have no GPU (`workers.gpus` is 0), so it would never be "
                "reached; use `hours` or `items`"
            )
        _check_preference(self.search.preference, self.objectives)
        if taken := sorted(_BUILT_IN_BASELINES & self.baselines.keys()):
            raise ValueError(f"baselines: `{taken[0]}` is one that every search has; rename it")
        tasks = [spec.task for objective in self.objectives.values() for spec in objective.tasks]
        if self.search.screening.enabled is True and not self.has_companions:
            raise ValueError(
                "search.screening: no task has `companion: true`, so there is nothing to screen "
                "by; set it where tasks have reference answers, or leave `screening` out"
            )
        if repeated := sorted({task for task in tasks if tasks.count(task) > 1}):
            raise ValueError(f"objectives: task `{repeated[0]}` is used twice; use each task once")
        return self

    @property
    def preference(self) -> dict[str, float]:
        """Objective -> weight, summing to one; every objective alike where the job is silent."""
        weights = self.search.preference or dict.fromkeys(self.objectives, 1.0)
        total = sum(weights.values())
        return {name: weights.get(name, 0.0) / total for name in self.objectives}

    @property
    def has_companions(self) -> bool:
        """Whether a task records the likelihood of its references beside its scores."""
        parts = self.objectives.values()
        return any(spec.companion for objective in parts for spec in objective.lm_eval_tasks)

    @property
    def screens(self) -> bool:
        """Whether candidates may be screened; ``optimizer.dispatch_plan`` says whether they are."""
        enabled = self.search.screening.enabled
        return self.has_companions if enabled == "auto" else enabled

    @property
    def searched(self) -> dict[str, Any]:
        """The job without what may change on resume, as JSON has it.

        A ``companion`` stays in it: an archive holds those of all its candidates or of none.
        """
        excluded: dict[str, Any] = dict.fromkeys(OPERATIONAL_KEYS, True)
        excluded["objectives"] = _OPERATIONAL_OF_ENTRIES
        excluded["search"] = {"ask_ahead"}
        return self.model_dump(mode="json", exclude=excluded)

    @property
    def undivided(self) -> frozenset[str]:
        """Names of the scorers that must see all items of a split at once, or none of them."""
        entries = [spec for objective in self.objectives.values() for spec in objective.scorers]
        return frozenset(spec.task for spec in entries if not spec.per_item)

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides what is searched (not budget, workers, archive).

        The order of checkpoints, groups and objectives counts: it is the order of the genes.
        """
        text = json.dumps(self.searched, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _check_preference(preference: Mapping[str, float], objectives: Mapping[str, object]) -> None:
    if unknown := sorted(set(preference) - set(objectives)):
        raise ValueError(
            f"search.preference: `{unknown[0]}` is no objective; there are {', '.join(objectives)}"
        )
    if any(weight < 0 for weight in preference.values()):
        raise ValueError("search.preference: weights must be >= 0")
    if preference and sum(preference.values()) <= 0:
        raise ValueError("search.preference: at least one weight must be > 0")
