"""Merge methods by name: those below, and the entry points of the group ``mergefront.methods``.

A method of your own is a :class:`MergeMethod` in an installed package, whose ``pyproject.toml``
has ``my_method = "module:OBJECT"`` under ``[project.entry-points."mergefront.methods"]``.
"""

from configs.plug_ins import Registry
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
    return _METHODS.get(name)


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, those of installed packages last."""
    return _METHODS.names()


def _as_method(name: str, loaded: object) -> MergeMethod:
    if isinstance(loaded, MergeMethod) and loaded.name == name:
        return loaded
    raise ValueError(f"must be a MergeMethod of that name, found {loaded!r:.80}")


_METHODS = Registry(
    _BUILT_IN, group=ENTRY_POINTS, path="merge.method", kind="merge method", convert=_as_method
)
