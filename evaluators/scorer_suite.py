"""Finding a job's own scorers and their items, and everything that can be wrong with them.

Nothing is scored here and no model is loaded; the modules of the scorers are imported. Start at
:func:`load_scorers`.
"""

import difflib
import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from configs.errors import Problem
from configs.evaluation import EvaluationSettings, Objective
from configs.scorers import ScorerSpec
from evaluators.evaluator import TaskDescription
from evaluators.manifest import item_id
from evaluators.rng_guard import preserved_rng_state

_MOST_BAD_LINES = 3


class _ScorerProblemError(Exception):
    """Carries what is wrong with one scorer to the place that lists all problems."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.problem = (key, message)


@dataclass(frozen=True, slots=True)
class LoadedScorer:
    """A scorer of the job, found and importable.

    Attributes:
        objective: Name of the objective that it belongs to.
        spec: What the job says of it.
        function: See ``evaluators.python_scorer.Scorer``.
        items: Item id -> item, in the order of the file; repeated items count once.
        definition: Hash of what a score means: function, options and the source of its module,
            16 hexadecimal digits. Modules that it imports do not count.
    """

    objective: str
    spec: ScorerSpec
    function: Callable[..., object]
    items: Mapping[str, dict[str, Any]]
    definition: str

    @property
    def path(self) -> str:
        """Where it stands in the job, for messages."""
        return f"objectives.{self.objective}.{self.spec.task}"

    def describe(self) -> TaskDescription:
        """Describe it as ``mergefront check`` prints it."""
        return TaskDescription(
            objective=self.objective,
            task=self.spec.task,
            metric=self.spec.metric,
            output_type="scorer",
            num_items=len(self.items),
            num_fewshot=0,
            max_new_tokens=0,
            higher_is_better=True,
        )


def load_scorers(
    objectives: Mapping[str, Objective], settings: EvaluationSettings
) -> tuple[list[LoadedScorer], list[Problem]]:
    """Import the scorers of all objectives, read their items, and list everything that is wrong."""
    loaded: list[LoadedScorer] = []
    problems: list[Problem] = []
    for name, objective in objectives.items():
        for spec in objective.scorers:
            path = f"objectives.{name}.{spec.task}"
            function, definition, items = None, "", None
            try:
                with preserved_rng_state():
                    function, definition = _find(spec)
            except _ScorerProblemError as error:
                problems.append(_placed(path, error))
            try:
                items = _read_items(Path(settings.data_dir or "", spec.items), settings)
            except _ScorerProblemError as error:
                problems.append(_placed(path, error))
            if function is not None and items is not None:
                loaded.append(LoadedScorer(name, spec, function, items, definition))
    return loaded, problems


def _placed(path: str, error: _ScorerProblemError) -> Problem:
    key, message = error.problem
    return Problem(f"{path}.{key}", message)


def _find(spec: ScorerSpec) -> tuple[Callable[..., object], str]:
    """Return the function and the hash of what it means."""
    module, source = _module_of_file(Path(spec.module)) if spec.is_file else _imported(spec.module)
    function = _attribute(module, spec)
    if not callable(function):
        raise _ScorerProblemError(
            "scorer", f"`{spec.metric}` is a {type(function).__name__}, not a function"
        )
    _check_signature(function, spec)
    defined_in = inspect.getmodule(_innermost(function))
    elsewhere = b"" if defined_in in (None, module) else _source_of(defined_in)
    content = {"function": spec.function, "options": spec.options}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for part in (source, elsewhere):
        digest.update(hashlib.sha256(part).digest())
    return function, digest.hexdigest()[:16]


class _BytesLoader(importlib.machinery.SourceFileLoader):
    """Runs bytes that were read from a file, and whose digest was taken.

    The usual way would read the file again, or trust a cached one of the same second and size.
    """

    def __init__(self, fullname: str, path: Path, source: bytes) -> None:
        super().__init__(fullname, str(path))
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compile the bytes."""
        return self.source_to_code(self._source, self.get_filename(fullname))


def _module_of_file(path: Path) -> tuple[ModuleType, bytes]:
    """Run a file as a module of a name that no other has; equal files are run once.

    What stands beside it can be imported, after everything that is installed.
    """
    try:
        path = path.resolve()
        source = path.read_bytes()
    except OSError as error:
        raise _ScorerProblemError(
            "scorer", f"{path} cannot be read: {error.strerror}; relative paths are looked up in "
            "the working directory"
        ) from error  # fmt: skip
    digest = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()
    name = f"mergefront_scorer_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name], source
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise _ScorerProblemError("scorer", f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        _BytesLoader(name, path, source).exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _ScorerProblemError(
            "scorer", f"{path} cannot be imported: {_cause(error)}"
        ) from error
    return module, source


def _imported(name: str) -> tuple[ModuleType, bytes]:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _ScorerProblemError("scorer", f"`{name}` cannot be imported: {error}") from error
        file = Path(*name.split(".")).with_suffix(".py")
        hint = f"; did you mean `{file}:...`?" if file.is_file() else ""
        raise _ScorerProblemError(
            "scorer",
            f"there is no module `{name}` among the installed ones{hint or '; name its file'} "
            "(`file.py:function`), or install it where the workers run",
        ) from error
    except (Exception, SystemExit) as error:
        raise _ScorerProblemError(
            "scorer", f"`{name}` cannot be imported: {_cause(error)}"
        ) from error
    return module, _source_of(module)


def _attribute(module: ModuleType, spec: ScorerSpec) -> object:
    found: object = module
    for part in spec.function.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if callable(getattr(found, name, None))]
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise _ScorerProblemError(
                "scorer", f"there is no `{spec.function}` in {spec.module}{hint}"
            )
        found = getattr(found, part)
    return found


def _check_signature(function: Callable[..., object], spec: ScorerSpec) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some compiled functions do not tell
        return
    given = "".join(f", {name}=..." for name in spec.options)
    try:
        signature.bind(None, None, [], batch_size=1, **spec.options)
    except TypeError as error:
        raise _ScorerProblemError(
            "options" if spec.options else "scorer",
            f"`{spec.metric}` cannot be called as {spec.function}(model, tokenizer, items, "
            f"batch_size=...{given}): {error}; it is {spec.function}{signature}",
        ) from error


def _innermost(function: object) -> object:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    # An object that can be called is defined where its class is.
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def _source_of(module: ModuleType | None) -> bytes:
    file = None if module is None else getattr(module, "__file__", None)
    return Path(file).read_bytes() if file and Path(file).is_file() else b""


def _read_items(path: Path, settings: EvaluationSettings) -> dict[str, dict[str, Any]]:
    """Read a JSONL file of objects; blank lines do not count."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = file.readlines()
    except OSError as error:
        where = "`evaluation.data_dir`" if settings.data_dir else "the working directory"
        raise _ScorerProblemError(
            "items",
            f"{path} cannot be read: {error.strerror}; relative paths are looked up in {where}",
        ) from error
    except UnicodeDecodeError as error:
        raise _ScorerProblemError("items", f"{path} is not UTF-8 text: {error}") from error
    bad: list[str] = []
    items = {item_id(item): item for item in _parsed(lines, bad)}
    if bad:
        more = f"; {len(bad) - _MOST_BAD_LINES} more" if len(bad) > _MOST_BAD_LINES else ""
        shown = "; ".join(bad[:_MOST_BAD_LINES])
        raise _ScorerProblemError(
            "items", f"{path}: every line must be a JSON object, found {shown}{more}"
        )
    if not items:
        raise _ScorerProblemError("items", f"{path} has no items; write one JSON object per line")
    return items


def _parsed(lines: Sequence[str], bad: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            bad.append(f"{error} in line {number}")
            continue
        if isinstance(item, dict):
            yield item
        else:
            bad.append(f"a {type(item).__name__} in line {number}")


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
