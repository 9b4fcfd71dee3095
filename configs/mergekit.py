"""Reading mergekit's configuration files, and refusing, with all reasons, what cannot be done here.

Nothing here knows a tensor or a recipe: ``optimizer.publish.mergekit_import`` makes a recipe of
what is read here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from configs.errors import ConfigError, Problem
from configs.job_yaml import Lines, read_yaml
from configs.mergekit_form import METHODS, MergekitConfig
from configs.schema import DtypeName


def read_mergekit(path: Path) -> tuple[MergekitConfig, Lines]:
    """Read a mergekit configuration.

    Returns:
        Its content, and the line of every key.

    Raises:
        ConfigError: It cannot be read, is not of mergekit's form, or asks for what mergefront
            cannot do; lists every reason, with its line.
    """
    content, lines = read_yaml(path, kind="mergekit configuration")
    return mergekit_of(content, name=str(path), lines=lines), lines


def mergekit_of(
    content: Mapping[str, object], *, name: str = "the configuration", lines: Lines | None = None
) -> MergekitConfig:
    """Validate the content of a mergekit configuration; ``read_mergekit`` for files.

    Raises:
        ConfigError: As ``read_mergekit``.
    """
    try:
        config = MergekitConfig.model_validate(content)
    except ValidationError as error:
        problems = [
            Problem(_dotted(detail["loc"]), detail["msg"].removeprefix("Value error, "))
            for detail in error.errors(include_url=False)
        ]
        raise refusal(problems, name=name, lines=lines) from error
    if problems := list(_refused(config)):
        raise refusal(problems, name=name, lines=lines)
    return config


def refusal(problems: Sequence[Problem], *, name: str, lines: Lines | None = None) -> ConfigError:
    """Build the error that lists why a configuration cannot be used, with lines."""
    known = lines or {}
    placed = [
        Problem(path, f"{text} (line {known[path]})" if path in known else text)
        for path, text in dict.fromkeys(problems)
    ]
    count = "1 reason" if len(placed) == 1 else f"{len(placed)} reasons"
    return ConfigError(f"{name} cannot be merged here, for {count}", placed, path=name)


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    return path


def _refused(config: MergekitConfig) -> Iterator[Problem]:
    """Yield every reason that can be told without the models."""
    form = METHODS.get(config.merge_method)
    if form is None:
        yield Problem(
            "merge_method", f"there is no `{config.merge_method}` here; use {', '.join(METHODS)}"
        )
    given = [key for key in ("models", "slices", "modules") if getattr(config, key)]
    if len(given) != 1:
        found = " and ".join(f"`{key}`" for key in given) or "none"
        yield Problem("", f"give either `models` or `slices`; found {found}")
    if config.modules:
        yield Problem("modules", "models of several modules are not read; use `models`")
    if form is not None and form.needs_base and config.base is None:
        yield Problem("base_model", f"`{config.merge_method}` needs a base model; name it")
    yield from _refused_models(config)
    yield from _refused_slices(config)
    yield from _refused_output(config)


def _refused_models(config: MergekitConfig) -> Iterator[Problem]:
    places = [("base_model", config.base_model)]
    lists = [("models", config.models or ())]
    for index, part in enumerate(config.slices or ()):
        places.append((f"slices[{index}].base_model", part.base_model))
        lists.append((f"slices[{index}].sources", part.sources))
    for where, entries in lists:
        seen: set[str] = set()
        for index, entry in enumerate(entries):
            places.append((f"{where}[{index}].model", entry.model))
            if entry.model in seen:
                yield Problem(
                    f"{where}[{index}].model",
                    f"`{entry.model}` is named twice; mergekit would take the last one only",
                )
            seen.add(entry.model)
    for path, model in places:
        if model and "+" in model and not Path(model).exists():
            base, _, adapter = model.partition("+")
            yield Problem(
                path, f"merge the LoRA adapter `{adapter}` into `{base}` first, and name the result"
            )
    if config.merge_method == "slerp" and config.models:
        others = {entry.model for entry in config.models} - {config.base}
        if len(others) != 1:
            yield Problem(
                "models", f"`slerp` merges the base with one other model, found {len(others)}"
            )


def _refused_slices(config: MergekitConfig) -> Iterator[Problem]:
    end = 0
    for index, part in enumerate(config.slices or ()):
        where = f"slices[{index}]"
        ranges = {source.layer_range for source in part.sources}
        if len(ranges) > 1:
            found = ", ".join(f"{low}-{high}" for low, high in sorted(ranges))
            yield Problem(
                f"{where}.sources",
                f"layers of different places cannot be merged into one (found {found}): all "
                "sources of a slice need the same layer_range",
            )
        low, high = part.sources[0].layer_range
        if low != end or high <= low:
            yield Problem(
                f"{where}.sources[0].layer_range",
                f"slices must hold the layers of one model in order, each once: expected a range "
                f"that begins at {end}, found {low}-{high}",
            )
        end = high
        if part.residual_weight is not None:
            yield Problem(f"{where}.residual_weight", "has no counterpart here; remove it")
        if part.base_model not in (None, config.base):
            yield Problem(f"{where}.base_model", f"all slices must have one base, `{config.base}`")
        members = {source.model for source in part.sources}
        if config.base is not None and config.base not in members and _needs_base(config):
            yield Problem(
                f"{where}.sources", f"the base `{config.base}` must be one of them, as for mergekit"
            )
        if config.merge_method == "slerp" and len(members | {config.base}) != 2:
            yield Problem(f"{where}.sources", "`slerp` merges the base with one other model")


def _needs_base(config: MergekitConfig) -> bool:
    form = METHODS.get(config.merge_method)
    return form is not None and form.needs_base


def _refused_output(config: MergekitConfig) -> Iterator[Problem]:
    for key in ("dtype", "out_dtype"):
        name = getattr(config, key)
        if name is not None and name.removeprefix("torch.") not in get_args(DtypeName):
            yield Problem(key, f"must be float32, bfloat16 or float16, found `{name}`")
    source = config.tokenizer_source
    if source is not None and source not in ("base", config.base):
        yield Problem(
            "tokenizer_source",
            f"the tokenizer is that of the base, or of the first model; found `{source}`. Use "
            "`base`, or remove it; vocabularies are not united",
        )
    if config.tokenizer:
        yield Problem("tokenizer", "tokens cannot be mapped or added here; remove it")
    if config.chat_template:
        yield Problem("chat_template", "that of the base is kept; remove it")
