"""What is asked of a worker, and what comes back: exactly one outcome per evaluation."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from configs.evaluation import SplitName
from configs.recipe import MergeRecipe
from evaluators.blocks import WHOLE, block_name
from evaluators.scores import Items, TaskScores

Signal = Literal["scores", "companions"]
"""What an evaluation is asked for: scores with the companions of their items, or companions only,
one forward pass per item and no generation."""


@dataclass(frozen=True, slots=True)
class EvaluationKey:
    """Names one evaluation of a search: a candidate on a split, or on a block of its items.

    ``block`` is the name of the block (``evaluators.blocks.block_name``), or ``WHOLE``.
    """

    candidate: int
    split: SplitName
    block: str = WHOLE
    signal: Signal = "scores"


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Materialize a recipe and score it on a split: on all of its items, or on those of a block.

    ``companions`` names the items whose companions are wanted beside the scores, where not all
    of them: the others are known already. With ``key.signal`` ``companions`` nothing is scored,
    and they are wanted of all items of the block.

    Raises:
        ValueError: ``items`` are not those of the block that ``key`` names.
    """

    key: EvaluationKey
    recipe: MergeRecipe
    items: Items | None = None
    companions: Items | None = None

    def __post_init__(self) -> None:
        found = WHOLE if self.items is None else block_name(self.items)
        if found != self.key.block:
            raise ValueError(
                f"the key names block `{self.key.block}`, but the items are those of `{found}`"
            )


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
    ``attempt`` counts from 1; ``worker`` names the process. ``companions`` holds what tasks say
    beside their scores (``companion`` in the job), for the same items.
    """

    key: EvaluationKey
    attempt: int
    worker: str
    weights_digest: str
    task_scores: dict[str, TaskScores]
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    companions: dict[str, TaskScores] = field(default_factory=dict)
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
