"""What happens in a search, as server-sent events: told by its archive, not by its process.

Whoever watches gets ``status`` (the summary, whenever it changed), ``candidate`` (one row per
finished candidate, whose id counts them), ``belief`` (a newer posterior is there, so fronts are
worth asking for again) and ``deleted``. A browser that lost the connection sends the last id it
saw, and gets what it missed.
"""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

import anyio.to_thread
from pydantic import BaseModel

from configs.errors import ArchiveError
from optimizer.archive.reader import ArchiveCounters
from optimizer.service.beliefs import Beliefs
from optimizer.service.candidates import candidate_table
from optimizer.service.models import SearchSummary
from optimizer.service.result_models import CandidateRow
from optimizer.service.search_files import SearchFiles
from optimizer.service.searches import Searches
from optimizer.service.views import SearchViews

_KEEP_ALIVE_S = 15.0
_MAX_AT_ONCE = 200


@dataclass(slots=True)
class _Seen:
    """What a watcher was told."""

    finished: int | None
    summary: str = ""
    believed: ArchiveCounters | None = None


@dataclass(slots=True)
class _News:
    """What is new: the events, as they are sent."""

    events: list[str] = field(default_factory=list)
    is_over: bool = False


class EventStreams:
    """Makes streams of events.

    Args:
        searches: Where searches are found.
        views: Says how they are.
        beliefs: Says when a posterior is new.
    """

    def __init__(self, searches: Searches, views: SearchViews, beliefs: Beliefs) -> None:
        self._searches = searches
        self._views = views
        self._beliefs = beliefs

    async def follow(
        self, files: SearchFiles, *, after: int | None, poll_s: float, stream_s: float
    ) -> AsyncIterator[str]:
        """Yield the events of a search until it is deleted, or for a while.

        Args:
            files: The search.
            after: How many finished candidates the watcher knows; None begins with what comes.
            poll_s: Seconds between two looks.
            stream_s: Seconds until the stream ends.
        """
        seen = _Seen(finished=after)
        end = spoken = time.monotonic()
        end += stream_s
        # How long a browser waits before it asks again.
        yield "retry: 2000\n\n"
        while True:
            news = await anyio.to_thread.run_sync(partial(self._news, files, seen))
            for event in news.events:
                yield event
            if news.is_over or time.monotonic() >= end:
                return
            if news.events:
                spoken = time.monotonic()
            elif time.monotonic() - spoken > _KEEP_ALIVE_S:
                spoken = time.monotonic()
                yield ": still here\n\n"
            await anyio.sleep(min(poll_s, max(0.0, end - time.monotonic())))

    def _news(self, files: SearchFiles, seen: _Seen) -> _News:
        """Look at a search, and note what is told now."""
        if not files.is_there:
            return _News([event("deleted", {"id": files.key})], is_over=True)
        found = _News()
        summary = self._views.summary(files)
        text = _lasting(summary)
        if text != seen.summary:
            seen.summary = text
            found.events.append(event("status", summary))
        try:
            with self._searches.reading(files) as opened:
                believed = self._beliefs.of(opened)
                finished = [seen_of.candidate.index for seen_of in opened.archive.observations()]
                first = len(finished) if seen.finished is None else seen.finished
                new = finished[first : first + _MAX_AT_ONCE]
                table: list[CandidateRow] = []
                if new:
                    table = candidate_table(opened, believed)
        except ArchiveError:
            return found  # there is none yet
        for number, index in enumerate(new, start=first + 1):
            found.events.append(event("candidate", table[index], number))
        seen.finished = first + len(new)
        is_posterior = believed.belief.state in {"current", "stale"}
        if is_posterior and believed.counters != seen.believed:
            seen.believed = believed.counters
            found.events.append(event("belief", believed.belief))
        return found


def event(name: str, content: BaseModel | dict[str, str], number: int | None = None) -> str:
    """Write an event; JSON has no line breaks, so its data is one line."""
    data = content.model_dump_json() if isinstance(content, BaseModel) else json.dumps(content)
    key = "" if number is None else f"id: {number}\n"
    return f"{key}event: {name}\ndata: {data}\n\n"


def _lasting(summary: SearchSummary) -> str:
    """Return what of a summary is worth an event; its clocks run on by themselves."""
    return summary.model_dump_json(exclude={"elapsed_s", "eta_s"})
