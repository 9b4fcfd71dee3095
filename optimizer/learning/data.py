"""Which texts each checkpoint learns from: items of the job's search split, or files."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError, Problem
from configs.schema import JobConfig
from workers.learning.texts import TokenIds, encode_texts, read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from evaluators.evaluator import LiveModel
    from evaluators.suite import JobSuite

_FLAG = "--data"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where texts come from: an objective of the job, or a file with its texts."""

    name: str
    texts: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """How people read it."""
        return f"objective {self.name}" if self.texts is None else f"file {self.name}"


def assign_data(job: JobConfig, flags: Sequence[str]) -> dict[str, tuple[Origin, ...]]:
    """Say where every checkpoint's own texts come from.

    What ``--data CHECKPOINT=OBJECTIVE_OR_FILE`` says; for the others the objective of the
    checkpoint's name, or all objectives where there is none of that name.

    Raises:
        ConfigError: Every flag that cannot be used.
    """
    named: dict[str, list[Origin]] = {}
    problems: list[Problem] = []
    for flag in flags:
        name, equals, value = (part.strip() for part in flag.partition("="))
        if not (name and equals and value):
            problems.append(
                Problem(_FLAG, f"expected CHECKPOINT=OBJECTIVE_OR_FILE, found `{flag}`")
            )
            continue
        if name not in job.models.checkpoints:
            message = f"`{name}` is no checkpoint of the job; {_near(name, job.models.checkpoints)}"
            problems.append(Problem(_FLAG, message))
        try:
            named.setdefault(name, []).append(_origin(job, value))
        except ValueError as error:
            problems.append(Problem(_FLAG, str(error)))
    if problems:
        raise ConfigError("the texts to learn from cannot be used", problems)
    everything = tuple(map(Origin, job.objectives))
    return {
        name: tuple(named.get(name, ()))
        or ((Origin(name),) if name in job.objectives else everything)
        for name in job.models.checkpoints
    }


def _origin(job: JobConfig, value: str) -> Origin:
    if value in job.objectives:
        return Origin(value)
    path = Path(value).expanduser()
    if not path.exists():
        raise ValueError(
            f"`{value}` is neither an objective nor a file; {_near(value, job.objectives)}"
        )
    return Origin(value, tuple(read_texts(path)))


def _near(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}"


def tokens_of(
    assigned: Mapping[str, Sequence[Origin]],
    by_objective: Mapping[str, Sequence[TokenIds]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int,
    is_causal: bool,
) -> dict[str, list[TokenIds]]:
    """Return the texts of every checkpoint as tokens.

    Raises:
        ConfigError: A checkpoint has none.
    """
    found = {
        checkpoint: [
            text
            for origin in origins
            for text in (
                by_objective[origin.name]
                if origin.texts is None
                else encode_texts(
                    tokenizer, origin.texts, max_tokens=max_tokens, is_causal=is_causal
                )
            )
        ]
        for checkpoint, origins in assigned.items()
    }
    problems = [
        Problem(
            f"{_FLAG} {checkpoint}",
            f"{', '.join(o.label for o in assigned[checkpoint])}: no text with a token; name others",
        )
        for checkpoint, texts in found.items()
        if not texts
    ]
    if problems:
        raise ConfigError("the texts to learn from cannot be used", problems)
    return found


def objective_tokens(
    job: JobConfig,
    suite: "JobSuite",
    live: "LiveModel | None",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int,
    is_causal: bool,
) -> dict[str, list[TokenIds]]:
    """Return what stands in the search items of every objective, without answers, as tokens.

    Of lm-eval's tasks that is the prompt of each item. Of a scorer's item, which can have any
    form, it is every text in it: each value that is a string. No other split is looked at.

    Args:
        job: Names the objectives.
        suite: Its tasks and items.
        live: Config and tokenizer, for tasks of lm-eval; None where there are none.
        tokenizer: That of the merge.
        max_tokens: Most tokens per text; of a longer prompt the end is kept.
        is_causal: Whether the models continue texts.

    Raises:
        EvaluationError: A prompt cannot be built.
    """
    prompts: Mapping[str, Sequence[TokenIds]] = {}
    if suite.lm_eval is not None and live is not None:
        from evaluators.harness import prompt_tokens

        prompts = prompt_tokens(suite.lm_eval, live, "search")
    found: dict[str, list[TokenIds]] = {}
    for name, objective in job.objectives.items():
        texts = found.setdefault(name, [])
        for spec in objective.lm_eval_tasks:
            texts += [ids[-max_tokens:] for ids in prompts[spec.task]]
        for scorer in objective.scorers:
            items = suite.scorers[scorer.task].items
            strings = [
                value
                for item in suite.manifest.items("search")[scorer.task]
                for value in items[item].values()
                if isinstance(value, str)
            ]
            texts += encode_texts(tokenizer, strings, max_tokens=max_tokens, is_causal=is_causal)
    return found
