"""Which texts each checkpoint learns from: items of the job's search split, or files."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError, Problem
from configs.recipe import Vocabulary
from configs.schema import JobConfig
from workers.architecture import is_causal
from workers.checkpoint import CheckpointReader
from workers.learning.texts import (
    TokenIds,
    encode_texts,
    load_tokenizer,
    longest_text,
    pad_id_of,
    read_texts,
)
from workers.sources import Sources
from workers.vocabulary import companion

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class Texts:
    """What is learned from, as tokens.

    Attributes:
        by_checkpoint: Checkpoint -> all of its texts.
        by_origin: Label -> texts of each origin that some checkpoint has.
        pad_id: A token to pad with.
        max_length: Most tokens that the model sees.
    """

    by_checkpoint: Mapping[str, Sequence[TokenIds]]
    by_origin: Mapping[str, Sequence[TokenIds]]
    pad_id: int
    max_length: int


def gather_texts(
    job: JobConfig,
    sources: Sources,
    vocabulary: Vocabulary | None,
    suite: "JobSuite",
    origins: Mapping[str, Sequence[Origin]],
    *,
    max_tokens: int,
) -> Texts:
    """Turn the texts of all origins into tokens of the merge's tokenizer; loads no weights.

    Args:
        job: Names the objectives.
        sources: Whose tokenizer it is.
        vocabulary: Of the merge.
        suite: The tasks and items of the job.
        origins: From :func:`assign_data`.
        max_tokens: Most tokens per text, >= 1; a model that sees fewer gets fewer.

    Raises:
        ConfigError: An origin has no text.
        CheckpointError: The config or the tokenizer cannot be loaded.
        EvaluationError: A prompt cannot be built.
    """
    directory = sources.reference.directory
    with CheckpointReader(directory) as reader:
        causal = is_causal(reader.config)
    from workers.job import WorkerSpec, load_skeleton

    live = load_skeleton(WorkerSpec(job, sources, suite.manifest)) if causal else None
    home = companion(sources, vocabulary).directory
    tokenizer = live.tokenizer if live is not None else load_tokenizer(home)
    longest = longest_text(directory, tokenizer)
    encode = partial(encode_texts, tokenizer, max_tokens=min(max_tokens, longest), is_causal=causal)
    by_objective = _objective_tokens(job, suite, live, encode, min(max_tokens, longest))
    used = {origin.label: origin for own in origins.values() for origin in own}
    by_origin = {
        label: by_objective[origin.name] if origin.texts is None else encode(origin.texts)
        for label, origin in used.items()
    }
    if empty := [label for label, texts in by_origin.items() if not texts]:
        raise ConfigError(
            "the texts to learn from cannot be used",
            [Problem(_FLAG, f"{label} has no text with a token; name others") for label in empty],
        )
    by_checkpoint = {
        name: [text for origin in own for text in by_origin[origin.label]]
        for name, own in origins.items()
    }
    return Texts(by_checkpoint, by_origin, pad_id_of(tokenizer), longest)


def _objective_tokens(
    job: JobConfig,
    suite: "JobSuite",
    live: "LiveModel | None",
    encode: Callable[[Sequence[str]], list[TokenIds]],
    max_tokens: int,
) -> dict[str, list[TokenIds]]:
    """Return what stands in the search items of every objective, without answers, as tokens.

    Of lm-eval's tasks that is the prompt of each item. Of a scorer's item, which can have any
    form, it is every text in it: each value that is a string. No other split is looked at.
    """
    prompts: Mapping[str, Sequence[TokenIds]] = {}
    if suite.lm_eval is not None and live is not None:
        from evaluators.harness import prompt_tokens

        prompts = prompt_tokens(suite.lm_eval, live, "search")
    found: dict[str, list[TokenIds]] = {}
    for name, objective in job.objectives.items():
        texts = found.setdefault(name, [])
        for task in objective.lm_eval_tasks:
            texts += [ids[-max_tokens:] for ids in prompts.get(task.task, ())]
        for scorer in objective.scorers:
            items = suite.scorers[scorer.task].items
            for item in suite.manifest.items("search")[scorer.task]:
                texts += encode([v for v in items[item].values() if isinstance(v, str)])
    return found
