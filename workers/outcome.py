"""What is asked of a worker, and what comes back: exactly one outcome per evaluation."""

from dataclasses import dataclass, field
from enum import StrEnum

from configs.recipe import MergeRecipe
from configs.schema import SplitName
from evaluators.scores import TaskScores


@dataclass(frozen=True, slots=True)
class EvaluationKey:
    """Names one evaluation of a search: a candidate on a split."""

    candidate: int
    split: SplitName


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Materialize a recipe and score it on all items of a split."""

    key: EvaluationKey
    recipe: MergeRecipe


class Stage(StrEnum):
    """Where a candidate failed."""

    MATERIALIZE = "materialize"
    EVALUATE = "evaluate"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A candidate that was scored.

    ``weights_digest`` names the merged tensors bit for bit (``workers.digest``). ``seconds``
    says where the wall time went, by stage: ``materialize``, ``digest``, ``forward``, ``score``.
    ``attempt`` counts from 1; ``worker`` names the process.
    """

    key: EvaluationKey
    attempt: int
    worker: str
    weights_digest: str
    task_scores: dict[str, TaskScores]
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A candidate that could not be scored: where, and with which error."""

    key: EvaluationKey
    attempt: int
    worker: str
    stage: Stage
    error_class: str
    message: str
    seconds: dict[str, float] = field(default_factory=dict)


Outcome = Completed | Failed
