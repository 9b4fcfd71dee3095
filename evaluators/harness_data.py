"""The items of a task in local files: where they are looked for, and what may be wrong with them.

A task's YAML names a dataset of the hub. Where the job has a ``data_dir`` that holds a folder of
that dataset, its JSONL files are read instead and nothing is fetched; prompts, metrics and filters
stay those of the YAML. Every line is looked at before a task is built: what lm-eval says of a
column that is missing names neither the file nor the line, and a bare column name that is not
there is taken for the prompt itself. Start at :func:`with_local_data` and :func:`file_problems`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, UndefinedError, meta
from lm_eval.utils import env

from evaluators.harness_problems import TaskProblemError, cause_of

# Builders of `datasets` that read files; anything else is a dataset of the hub or a directory.
_FILE_FORMATS = frozenset({"json", "csv", "text", "parquet", "arrow", "pandas", "webdataset"})
# Configurations that stand for the whole of a dataset, so that its folder needs no part for them.
_WHOLE = frozenset({None, "main", "default", "full", "all"})
_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix")
_BARE_NAME = re.compile(r"[A-Za-z_]\w*")
_UNDEFINED_NAME = re.compile(r"'(\w+)' is undefined")
_LONGEST_TEMPLATE = 60

Config = dict[str, Any]
Row = Mapping[str, Any]


def dataset_folder(dataset_path: str) -> str:
    """Name the folder of a dataset: its name on the hub in lower case, without its owner's.

    ``openai/gsm8k`` is ``gsm8k``, ``google/IFEval`` is ``ifeval``, and ``openai/openai_humaneval``
    is ``humaneval``.
    """
    owner, _, name = dataset_path.lower().rpartition("/")
    return name.removeprefix(f"{owner}_") if owner else name


def with_local_data(config: Config, data_dir: str | None, *, num_fewshot: int) -> Config:
    """Point a task at the local files of its items, where there are any.

    Relative ``data_files`` are resolved against ``data_dir``. A dataset of the hub is replaced
    by ``data_dir/FOLDER/SPLIT.jsonl`` (:func:`dataset_folder`) where FOLDER exists; one part of a
    dataset (its ``dataset_name``) by ``FOLDER/PART/SPLIT.jsonl`` or ``FOLDER/PART_SPLIT.jsonl``.

    Args:
        config: A task's configuration; not modified.
        data_dir: The job's ``evaluation.data_dir``; None leaves all as it is.
        num_fewshot: Examples in a prompt: without any, no split is wanted but the scored one.

    Raises:
        TaskProblemError: The folder lacks the file of a split that the task reads.
    """
    if data_dir is None:
        return config
    arguments = config.get("dataset_kwargs") or {}
    if "data_files" in arguments:
        files = _resolved(arguments["data_files"], data_dir)
        return {**config, "dataset_kwargs": {**arguments, "data_files": files}}
    folder = hub_folder(config, data_dir)
    if folder is None or not folder.is_dir():
        return config
    config = dict(config)
    wanted = _splits_of(config, num_fewshot)
    found = {split: _split_file(folder, config.get("dataset_name"), split) for split in wanted}
    if missing := [path for path in found.values() if not path.is_file()]:
        raise TaskProblemError(
            "",
            f"its data file {missing[0]} does not exist; `evaluation.data_dir` has the folder of "
            f"`{config['dataset_path']}`, so its splits ({', '.join(wanted)}) are read there",
        )
    if not num_fewshot:
        config = _without_other_splits(config, wanted)
    return config | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path) for split, path in found.items()}},
    }


def hub_folder(config: Row, data_dir: str) -> Path | None:
    """Return where ``data_dir`` would hold the dataset of a task; None if it is none of the hub."""
    path = config.get("dataset_path")
    if not path or path in _FILE_FORMATS or config.get("custom_dataset") or Path(path).exists():
        return None
    return Path(data_dir, dataset_folder(path)).resolve()


def _split_file(folder: Path, part: str | None, split: str) -> Path:
    """Return the file of a split, the first of its possible names if there is none."""
    names = [f"{split}.jsonl"] if part in _WHOLE else []
    names += [f"{part}/{split}.jsonl", f"{part}_{split}.jsonl"] if part else []
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def scored_split(config: Row) -> str | None:
    """Return the split whose items are scored, by lm-eval's rule."""
    return config.get("test_split") or config.get("validation_split")


def _example_split(config: Row) -> str | None:
    """Return the split that lm-eval draws examples from; None where they are written out."""
    fewshot = config.get("fewshot_config") or {}
    if split := fewshot.get("split") or config.get("fewshot_split"):
        return str(split)
    if fewshot.get("samples") is not None:
        return None
    return config.get("training_split") or config.get("validation_split")


def _splits_of(config: Row, num_fewshot: int) -> list[str]:
    """Return the splits that are needed, the scored one first."""
    wanted = [scored_split(config), _example_split(config) if num_fewshot else None]
    return list(dict.fromkeys(split for split in wanted if split))


def _without_other_splits(config: Config, wanted: Sequence[str]) -> Config:
    """Leave out splits that lm-eval would load for examples that are not asked for."""
    keys = ("training_split", "validation_split", "test_split", "fewshot_split")
    config |= {key: None for key in keys if config.get(key) not in wanted}
    fewshot = config.get("fewshot_config")
    if fewshot and fewshot.get("split") not in (None, *wanted):
        config["fewshot_config"] = {k: v for k, v in fewshot.items() if k != "split"}
    return config


def _resolved(data_files: object, directory: str) -> object:
    """Make the relative local paths of a ``data_files`` value absolute, whatever its shape."""
    if isinstance(data_files, dict):
        return {split: _resolved(files, directory) for split, files in data_files.items()}
    if isinstance(data_files, list):
        return [_resolved(files, directory) for files in data_files]
    if "://" in str(data_files):
        return data_files
    return str((Path(directory) / str(data_files)).resolve())


def data_files(config: Row) -> dict[str, list[str]]:
    """Return split -> local paths and addresses of a task; empty where it has no data files."""
    found = (config.get("dataset_kwargs") or {}).get("data_files")
    if found is None:
        return {}
    by_split = found if isinstance(found, dict) else {"train": found}
    return {split: list(_flat(files)) for split, files in by_split.items()}


def _flat(value: object) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _flat(part)
    elif value is not None:
        yield str(value)


def file_problems(config: Row, *, num_fewshot: int, has_data_dir: bool) -> list[str]:
    """List what is wrong with the local data files of a task, without building it.

    Files that are missing; for JSONL also lines that are not JSON, files without items and,
    where no ``process_docs`` changes the items, columns that the task's templates want.
    """
    files = data_files(config)
    where = "`evaluation.data_dir`" if has_data_dir else "the working directory"
    problems = [
        f"its data file {path} does not exist; relative paths are looked up in {where}"
        for paths in files.values()
        for path in paths
        if not _is_pattern(path) and not Path(path).is_file()
    ]
    wanted = _splits_of(config, num_fewshot)
    if files and (absent := [split for split in wanted if split not in files]):
        listed = ", ".join(f"`{split}`" for split in files)
        problems.append(f"reads split `{absent[0]}`, but its data_files have only {listed}")
    if config.get("dataset_path") != "json":
        return problems
    for split in wanted:
        columns = _Columns(config, examples=split != wanted[0])
        for path in map(Path, files.get(split, [])):
            if path.suffix == ".jsonl" and path.is_file():
                problems += _line_problems(path, columns)
    return problems


def columns_of(config: Row) -> str:
    """Say which columns the JSONL files of a task have; empty where there are none."""
    for path in (Path(path) for paths in data_files(config).values() for path in paths):
        if path.suffix == ".jsonl" and path.is_file():
            try:
                with path.open(encoding="utf-8") as lines:
                    first = json.loads(next(lines))
            except (ValueError, StopIteration):
                continue
            return f"; {path} has the columns {_listed(first)}"
    return ""


def _is_pattern(path: str) -> bool:
    return "://" in path or any(sign in path for sign in "*?[")


def _line_problems(path: Path, columns: _Columns) -> list[str]:
    """Read a JSONL file, and return the first thing that is wrong with it."""
    rows: list[tuple[int, Row]] = []
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        found = type(row).__name__
                        return [f"{path}, line {number} is a {found}; each line is one object"]
                    rows.append((number, row))
    except json.JSONDecodeError as error:
        return [f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}"]
    except UnicodeDecodeError as error:
        return [f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"]
    if not rows:
        return [f"{path} is empty: there are no items to score or to show"]
    return columns.problems(path, rows)


@dataclass(frozen=True, slots=True)
class _Template:
    """One template of a task, and how it renders a row."""

    key: str
    text: str
    column: str | None
    """The column that it is, where it is no template but a bare name."""
    render: Callable[[Row], object]


class _Columns:
    """The columns that a task's templates want of its items.

    Args:
        config: The task; one whose ``process_docs`` makes other columns wants none.
        examples: Look at the templates of few-shot examples, not at those of scored items.
    """

    def __init__(self, config: Row, *, examples: bool) -> None:
        fewshot = config.get("fewshot_config") or {}
        process = (fewshot.get("process_docs") if examples else None) or config.get("process_docs")
        own = fewshot if examples else {}
        self._texts: dict[str, str] = {}
        if process is None and config.get("use_prompt") is None:
            values = {key: own.get(key) or config.get(key) for key in _TEMPLATES}
            if config.get("process_results") is not None:
                # Its own scorer decides what a reference is; a target may then be any text.
                del values["doc_to_target"]
            self._texts = {k: v for k, v in values.items() if isinstance(v, str) and v}

    def problems(self, path: Path, rows: Sequence[tuple[int, Row]]) -> list[str]:
        """Return what the templates miss in the rows of a file, one line per template."""
        known = dict.fromkeys(column for _, row in rows for column in row)
        found = []
        for template in (_template(key, text, known) for key, text in self._texts.items()):
            misses = [(number, _missing(template, known, row)) for number, row in rows]
            misses = [(number, text) for number, text in misses if text]
            if misses:
                number, text = misses[0]
                more = f" (and {len(misses) - 1} more lines)" if len(misses) > 1 else ""
                found.append(
                    f"{path}, line {number}{more}: {text}, which `{template.key}: "
                    f"{_shortened(template.text)}` wants; it has {_listed(known)}"
                )
        return found


def _template(key: str, text: str, known: Row) -> _Template:
    """Read a template as lm-eval does: the name of a column is that column."""
    # lm-eval would take a bare name that is no column for the text itself.
    if text in known or (_BARE_NAME.fullmatch(text) and key != "gen_prefix"):
        return _Template(key, text, text, lambda row: row[text])
    return _Template(key, text, None, _STRICT.from_string(text).render)


def _missing(template: _Template, known: Row, row: Row) -> str:
    """Say what one row lacks; empty if it has all."""
    if template.column is not None:
        if template.column not in known:
            return f"there is no column `{template.column}`"
        return "" if row.get(template.column) is not None else f"no `{template.column}`"
    try:
        # Rows of one file get all its columns, null where they have none of their own.
        template.render({**dict.fromkeys(known), **row})
    except _NullValueError:
        names = meta.find_undeclared_variables(_STRICT.parse(template.text))
        empty = sorted(name for name in names if row.get(name) is None)
        return "no " + (", ".join(f"`{name}`" for name in empty) or "value")
    except UndefinedError as error:
        name = _UNDEFINED_NAME.search(str(error))
        return f"there is no column `{name[1]}`" if name else str(error)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        return cause_of(error)
    return ""


class _NullValueError(Exception):
    """A template would print ``None``."""


def _not_null(value: object) -> object:
    if value is None:
        raise _NullValueError
    return value


# lm-eval's own environment, but for printing nulls.
_STRICT = env.overlay(finalize=_not_null)


def _shortened(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= _LONGEST_TEMPLATE else shown[:_LONGEST_TEMPLATE] + "..."


def _listed(names: Row) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
