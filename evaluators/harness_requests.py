"""Frozen requests: the prompts and token ids of a task's items, built once and kept.

What does not depend on the weights is done here and never again: few-shot examples, templates,
lm-eval's instances, tokenizing, truncation. Encoding follows ``HFLM`` of lm-eval 0.4.13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from configs.errors import EvaluationError
from evaluators.backend import Prompt
from evaluators.harness_tasks import LoadedTask
from evaluators.loglikelihood import Continuation
from evaluators.reference import continuation_of

if TYPE_CHECKING:
    from evaluators.evaluator import LiveModel

# The seed with which the stock command draws few-shot examples.
_FEWSHOT_SEED = 1234
# Settings of a model's generation_config that change greedy decoding and are not implemented.
_DECODING_FIELDS: Mapping[str, object] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": None,
    "max_time": None,
    "min_length": 0,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
}


@dataclass(frozen=True, slots=True)
class FrozenRequest:
    """One request of lm-eval with its tokens.

    ``instance`` is lm-eval's own, without responses. Either ``prompt`` is to be continued, or the
    ``windows`` are to be scored: one for a log-likelihood, any number for a rolling one.
    """

    instance: Instance
    prompt: Prompt | None = None
    windows: tuple[Continuation, ...] = ()

    @property
    def read_tokens(self) -> tuple[int, ...]:
        """What the model reads before it answers; of a rolling log-likelihood, the first window."""
        if self.prompt is not None:
            return self.prompt.token_ids
        first = self.windows[0]
        is_rolling = self.instance.request_type == "loglikelihood_rolling"
        return first.context_ids + (first.token_ids if is_rolling else ())


@dataclass(frozen=True, slots=True)
class FrozenItem:
    """One item, ready to be run: a multiple choice has one request per choice.

    ``target`` asks for the likelihood of the reference answer, of ``target_bytes`` bytes, where
    the job wants it.
    """

    item_id: str
    doc: Mapping[str, object]
    requests: tuple[FrozenRequest, ...]
    target: FrozenRequest | None = None
    target_bytes: int = 0

    @property
    def all_requests(self) -> tuple[FrozenRequest, ...]:
        """What is asked of the model, the likelihood of the reference answer last."""
        return self.requests if self.target is None else (*self.requests, self.target)

    @property
    def instances(self) -> list[Instance]:
        """lm-eval's requests, in the order of the choices."""
        return [request.instance for request in self.requests]


class Encoder:
    """Turns texts into tokens as the stock ``hf`` model does.

    Args:
        live: The model, for its length limit and generation settings, and the tokenizer; its
            weights are not looked at.
        apply_chat_template: Whether prompts are conversations.

    Raises:
        EvaluationError: The model's generation settings ask for what greedy decoding lacks, or
            there is no chat template to apply.
    """

    def __init__(self, live: LiveModel, *, apply_chat_template: bool) -> None:
        if apply_chat_template and not live.tokenizer.chat_template:
            raise EvaluationError(
                "`evaluation.apply_chat_template` is true, but the tokenizer has no chat "
                "template; set it to false or add one to the base model's directory"
            )
        self.applies_chat_template = apply_chat_template
        self._tokenizer: Any = live.tokenizer
        self._config: Any = live.model.config
        self._generation: Any = live.model.generation_config
        self.max_length: int = resolve_max_length(live.model.config, live.tokenizer)
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        self._prefix_id: int | None = eos if bos is None else bos
        self._prefix = None if self._prefix_id is None else self._text_of(self._prefix_id)
        self._eos_text = None if eos is None else self._text_of(eos)
        self._check_generation()

    def serves(self, live: LiveModel) -> bool:
        """Whether texts of this encoder are right for a live model."""
        return live.tokenizer is self._tokenizer and live.model.config is self._config

    def prompt(self, text: str, generation_kwargs: Mapping[str, Any], task: str) -> Prompt:
        """Encode the prompt of a ``generate_until`` request, leaving room for its budget."""
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(generation_kwargs)))
        budget = int(kwargs["max_gen_toks"])
        if budget >= self.max_length:
            raise EvaluationError(
                f"`{task}` asks for {budget} new tokens, but the model sees only "
                f"{self.max_length} tokens; lower `max_gen_toks` in the task's generation_kwargs"
            )
        with_bos = has_bos_prefix(text, self._tokenizer.bos_token)
        ids = self._encode(text, {"add_special_tokens": False} if with_bos else {})
        if not ids:
            raise EvaluationError(
                f"`{task}` has an empty prompt, and the tokenizer begins texts with no token"
            )
        penalty = kwargs.get(
            "repetition_penalty", getattr(self._generation, "repetition_penalty", None)
        )
        return Prompt(
            token_ids=tuple(ids[-(self.max_length - budget) :]),
            # transformers lets this setting of the model win over the task's budget.
            max_new_tokens=getattr(self._generation, "max_new_tokens", None) or budget,
            stops=tuple(handle_stop_sequences(list(kwargs["until"]), self._eos_text)),
            repetition_penalty=1.0 if penalty is None else float(penalty),
        )

    def continuation(self, context: str, text: str, task: str) -> Continuation:
        """Encode the (context, continuation) pair of a ``loglikelihood`` request."""
        if context:
            spaces = len(context) - len(context.rstrip())
            head, tail = (context[:-spaces], context[-spaces:]) if spaces else (context, "")
            before = self._encode_guarded(head)
            after = self._encode_guarded(head + tail + text)[len(before) :]
        else:
            before, after = (
                self._prefix_ids(task),
                self._encode(text, {"add_special_tokens": False}),
            )
            if after[:1] == before:
                before, after = after[:1], after[1:]
        if not before or not after or len(after) > self.max_length:
            raise EvaluationError(
                f"`{task}`: an answer of {len(after)} tokens after a context of {len(before)} "
                f"cannot be scored; both need a token, and an answer at most {self.max_length}"
            )
        return Continuation(tuple(before), tuple(after))

    def windows(self, text: str, task: str) -> tuple[Continuation, ...]:
        """Cut a text into the windows of a rolling log-likelihood; every token counts once."""
        pairs = get_rolling_token_windows(
            token_list=self._encode_guarded(text),
            prefix_token=self._prefix_ids(task)[0],
            max_seq_len=self.max_length,
            context_len=1,
        )
        disjoint = map(make_disjoint_window, pairs)
        return tuple(Continuation(tuple(before), tuple(after)) for before, after in disjoint)

    def chat(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation with the tokenizer's template, without a system turn if it must."""
        arguments = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self._tokenizer.apply_chat_template(history, **arguments))
        except TemplateError:
            history = [message for message in history if message["role"] != "system"]
            return str(self._tokenizer.apply_chat_template(history, **arguments))

    def _encode_guarded(self, text: str) -> list[int]:
        # A text that already begins with the beginning-of-text token gets no second one.
        with_prefix = self._prefix is not None and has_bos_prefix(text, self._prefix)
        return self._encode(text, {"add_special_tokens": False} if with_prefix else {})

    def _encode(self, text: str, arguments: dict[str, bool]) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, **arguments)
        return ids

    def _prefix_ids(self, task: str) -> list[int]:
        if self._prefix_id is None:
            raise EvaluationError(
                f"`{task}` scores texts without a context, but the tokenizer has neither a "
                "beginning-of-text nor an end-of-text token to put before them"
            )
        return [self._prefix_id]

    def _text_of(self, token_id: int) -> str:
        return str(self._tokenizer.decode(token_id, skip_special_tokens=False))

    def _check_generation(self) -> None:
        found = [
            f"{name}={value!r}"
            for name, neutral in _DECODING_FIELDS.items()
            if (value := getattr(self._generation, name, None)) not in (None, neutral)
        ]
        if found:
            raise EvaluationError(
                f"the model's generation_config sets {', '.join(found)}, which the greedy decoder "
                "does not implement; remove it from generation_config.json"
            )


def freeze_split(
    loaded: LoadedTask,
    item_ids: Sequence[str],
    encoder: Encoder,
) -> dict[str, FrozenItem]:
    """Build and encode the requests of a split of a task.

    Few-shot examples are drawn as the stock command draws them for exactly these items
    (``--samples`` with their positions, ascending), so an item's prompt depends on its split and
    not on what is evaluated.

    Returns:
        Item id -> its frozen requests.

    Raises:
        EvaluationError: An item cannot be encoded, or is not among the task's documents.
    """
    if missing := [item for item in item_ids if item not in loaded.indices]:
        raise EvaluationError(
            f"`{loaded.name}` has no item `{missing[0]}` ({len(missing)} of {len(item_ids)} are "
            "missing): its data changed since the job was checked; restore it or start a new search"
        )
    wanted = {loaded.indices[item]: item for item in item_ids}
    task = loaded.task
    task.set_fewshot_seed(_FEWSHOT_SEED)
    documents = loaded.documents
    frozen = {}
    for position in sorted(wanted):
        item, document = wanted[position], documents[position]
        frozen[item] = _frozen_item(loaded, item, document, position, encoder)
    return frozen


def _frozen_item(
    loaded: LoadedTask,
    item: str,
    document: Mapping[str, object],
    position: int,
    encoder: Encoder,
) -> FrozenItem:
    task, reference = loaded.task, loaded.reference
    apply_chat_template = encoder.applies_chat_template
    context = _context(task, document, encoder)
    requests: tuple[FrozenRequest, ...] = ()
    if reference is None or not reference.is_objective:
        instances = _instances(
            task, document, context, position, encoder.chat if apply_chat_template else None
        )
        requests = tuple(_freeze(instance, encoder, loaded.name) for instance in instances)
    if reference is None:
        return FrozenItem(item, document, requests)
    answer = continuation_of(
        task, reference, document, context, apply_chat_template=apply_chat_template
    )
    instance = Instance("loglikelihood", dict(document), (context, answer), len(requests))
    target = _freeze(instance, encoder, loaded.name)
    # As lm-eval does it, space at the end of the prompt is scored with what follows.
    scored = context[len(context.rstrip()) :] + answer
    size = len(scored.encode("utf-8", "surrogatepass"))
    return FrozenItem(item, document, requests, target, size)


def _context(task: Task, doc: Mapping[str, object], encoder: Encoder) -> str:
    """Build the prompt of one document, its few-shot examples included."""
    apply_chat_template = encoder.applies_chat_template
    context: str = task.fewshot_context(
        doc,
        num_fewshot=task.config.num_fewshot or 0,
        system_instruction=None,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=apply_chat_template,
        chat_template=encoder.chat if apply_chat_template else None,
        gen_prefix=task.doc_to_prefix(doc),
    )
    return context


def _instances(
    task: Task,
    doc: Mapping[str, object],
    context: str,
    position: int,
    chat_template: Callable[..., str] | None,
) -> list[Instance]:
    """Do for one document what ``Task.build_all_requests`` does for all."""
    built = task.construct_requests(
        doc=doc,
        ctx=context,
        metadata=(task.config.task, position, task.config.repeats),
        apply_chat_template=chat_template is not None,
        chat_template=chat_template,
    )
    instances = built if isinstance(built, list) else [built]
    return sorted(instances, key=lambda instance: instance.idx)


def _freeze(instance: Instance, encoder: Encoder, task: str) -> FrozenRequest:
    match instance.request_type:
        case "generate_until":
            text, kwargs = instance.args
            return FrozenRequest(instance, prompt=encoder.prompt(text, kwargs, task))
        case "loglikelihood":
            context, text = instance.args
            return FrozenRequest(instance, windows=(encoder.continuation(context, text, task),))
        case _:
            return FrozenRequest(instance, windows=encoder.windows(instance.args[0], task))
