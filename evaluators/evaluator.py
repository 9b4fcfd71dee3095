"""The contract between a worker and whatever scores a live model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from evaluators.scores import Items, TaskScores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(slots=True)
class LiveModel:
    """A loaded model whose weights change between evaluations, and its tokenizer.

    The worker owns it and writes into its parameters; an evaluator only reads it.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def device(self) -> "torch.device":
        """Where the model's inputs go."""
        return self.model.device


@dataclass(frozen=True, slots=True)
class TaskDescription:
    """What ``mergefront check`` prints of a task or scorer, and what its cost is estimated from.

    ``output_type`` is lm-eval's, or ``scorer``.
    """

    objective: str
    task: str
    metric: str
    output_type: str
    num_items: int
    num_fewshot: int
    max_new_tokens: int
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out of one pass over a set of items.

    ``texts`` holds the raw generated text per item of generation tasks, aligned with that
    task's ``item_ids``. ``seconds`` says where the time went, by stage (``forward``, ``score``).
    ``companions`` holds what a task says beside its score, where the job asks for it: higher is
    better there too.
    """

    task_scores: dict[str, TaskScores]
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    companions: dict[str, TaskScores] = field(default_factory=dict)


class Evaluator(Protocol):
    """Scores a live model on items.

    Calls are independent of each other: the same weights and items give the same scores
    whatever was evaluated before, and items may be asked for in any subset.
    """

    def evaluate(
        self, live: LiveModel, items: Items, companions: Items | None = None
    ) -> Evaluation:
        """Score the model as it is now.

        Args:
            live: Model and tokenizer; not modified.
            items: Task -> item ids of the manifest; every task non-empty.
            companions: Items whose companions are wanted, be they scored now or not; what has
                none is passed over. None takes ``items``.

        Raises:
            EvaluationError: An item is unknown, or a score is not finite.
        """
        ...
