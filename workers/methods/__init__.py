"""Merge methods by name: those below, and the entry points of the group ``mergefront.methods``.

A method of your own is a :class:`MergeMethod` in an installed package, whose ``pyproject.toml``
has ``my_method = "module:OBJECT"`` under ``[project.entry-points."mergefront.methods"]``.
"""

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from configs.errors import ConfigError
from workers.methods.contract import Chunk, DropKind, MergeMethod, Option
from workers.methods.dam import DAM
from workers.methods.delta_guided import DELTA_GUIDED
from workers.methods.linear import LINEAR
from workers.methods.slerp import SLERP
from workers.methods.task_vectors import DARE_LINEAR, DELLA_LINEAR, TASK_ARITHMETIC
from workers.methods.ties import DARE_TIES, DELLA, TIES

__all__ = [
    "ENTRY_POINTS",
    "Chunk",
    "DropKind",
    "MergeMethod",
    "Option",
    "get_method",
    "method_names",
]

ENTRY_POINTS = "mergefront.methods"

_BUILT_IN = {
    method.name: method
    for method in (
        DARE_LINEAR,
        TASK_ARITHMETIC,
        LINEAR,
        TIES,
        DARE_TIES,
        DELLA,
        DELLA_LINEAR,
        SLERP,
        DELTA_GUIDED,
        DAM,
    )
}


def get_method(name: str) -> MergeMethod:
    """Return the method of that name.

    Raises:
        ConfigError: There is none, or the package that brings it does not load.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name in _plug_ins():
        return _load(_plug_ins()[name])
    names = method_names()
    close = difflib.get_close_matches(name, names, n=1)
    advice = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(names)}"
    raise ConfigError.single("merge.method", f"`{name}` is no merge method; {advice}")


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, those of installed packages last."""
    return (*_BUILT_IN, *(name for name in _plug_ins() if name not in _BUILT_IN))


@cache
def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


@cache
def _load(point: EntryPoint) -> MergeMethod:
    where = f"`{point.name}`, which is {point.value}"
    try:
        method = point.load()
    except Exception as error:
        raise ConfigError.single("merge.method", f"{where}, does not load: {error}") from error
    if not isinstance(method, MergeMethod) or method.name != point.name:
        raise ConfigError.single(
            "merge.method", f"{where}, must be a MergeMethod of that name, found {method!r:.80}"
        )
    return method
