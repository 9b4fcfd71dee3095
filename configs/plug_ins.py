"""Things that a job names: our own, and those that installed packages bring as entry points."""

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from configs.errors import ConfigError

Thing = TypeVar("Thing")


class Registry(Generic[Thing]):
    """Finds a thing by its name; own ones are not replaced by those of packages.

    Args:
        own: Ours, by name.
        group: Entry points of packages.
        path: Where a job names one, for messages.
        kind: What it is called, for messages.
        convert: Returns what an entry point of a name loaded as the thing that it is; raises
            ValueError with what it must be.
    """

    def __init__(
        self,
        own: Mapping[str, Thing],
        *,
        group: str,
        path: str,
        kind: str,
        convert: Callable[[str, object], Thing],
    ) -> None:
        self._own = own
        self._group = group
        self._path = path
        self._kind = kind
        self._convert = convert

    def names(self) -> tuple[str, ...]:
        """Return all names, those of installed packages last."""
        return (*self._own, *(name for name in brought(self._group) if name not in self._own))

    def get(self, name: str) -> Thing:
        """Return the thing of a name.

        Raises:
            ConfigError: There is none, or the package that brings it does not load.
        """
        if name in self._own:
            return self._own[name]
        if name in (points := brought(self._group)):
            return self._load(points[name])
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        raise ConfigError.single(
            self._path, f"`{name}` is no {self._kind}; {hint}there are {', '.join(names)}"
        )

    def _load(self, point: EntryPoint) -> Thing:
        where = f"`{point.name}`, which is {point.value}"
        try:
            loaded = point.load()
        except Exception as error:  # a package may raise anything while it is imported
            raise ConfigError.single(self._path, f"{where}, does not load: {error}") from error
        try:
            return self._convert(point.name, loaded)
        except ValueError as error:
            raise ConfigError.single(self._path, f"{where}, {error}") from error


@cache
def brought(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by their names."""
    return {point.name: point for point in entry_points(group=group)}
