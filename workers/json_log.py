"""Log records as JSON lines, with the ids of what they are about: search, candidate, worker.

A record has the ids that its call gives in ``extra`` (``candidate``, ``split``, ``attempt``,
``worker``), those that can be told from its arguments, and in a worker's process those of what it
does just now (:func:`about`).
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from workers.outcome import EvaluationKey

FIELDS = "mergefront_fields"
"""Attribute of a record that is an event, and says itself what is in its line."""

_IDS = ("candidate", "split", "attempt", "worker")
# As pools name them, with host and pid once they are known.
_WORKER = re.compile(r"worker-\d+(@\S+)?")
# Of the process, not of a thread: a worker has one evaluation at a time, and threads help it.
_current: dict[str, object] = {}


class JsonFormatter(logging.Formatter):
    """Writes a log record as one JSON object on one line.

    Args:
        search: Id of the search that the records belong to.
    """

    def __init__(self, search: str) -> None:
        super().__init__()
        self._search = search

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields = getattr(record, FIELDS, None)
        if fields is None:
            fields = {"event": "log", "logger": record.name, "message": record.getMessage()}
            fields |= _current | _ids_in(record)
            if record.exc_info:
                fields["traceback"] = self.formatException(record.exc_info)
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "search": self._search, **fields}
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def about(**ids: object) -> Iterator[None]:
    """Say what the records of this process are about, until the context ends."""
    before = dict(_current)
    _current.update(ids)
    try:
        yield
    finally:
        _current.clear()
        _current.update(before)


def log_as_worker(search: str, worker: str) -> None:
    """Let a worker's process log JSON lines to its standard error, which Ray keeps in a file.

    Args:
        search: Id of the search.
        worker: Name of the worker.
    """
    _current["worker"] = worker
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(search))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _ids_in(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = {}
    arguments = record.args if isinstance(record.args, tuple) else ()
    for value in arguments:
        if isinstance(value, EvaluationKey):
            found |= {"candidate": value.candidate, "split": value.split}
        elif isinstance(value, str) and _WORKER.fullmatch(value):
            found["worker"] = value
    given: Mapping[str, object] = vars(record)
    return found | {name: given[name] for name in _IDS if name in given}
