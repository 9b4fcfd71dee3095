"""What the routes work with, put together once, and how a route gets at it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Path, Request

from optimizer.service.beliefs import Beliefs
from optimizer.service.checking import JobChecker
from optimizer.service.errors import STATUSES, BusyError
from optimizer.service.events import EventStreams
from optimizer.service.exports import Exports
from optimizer.service.models import ErrorAnswer
from optimizer.service.runner import Runner
from optimizer.service.search_files import SearchFiles
from optimizer.service.searches import Searches
from optimizer.service.settings import ServiceSettings
from optimizer.service.views import SearchViews


class Services:
    """The parts of the service.

    Args:
        settings: What the operator decided.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.searches = Searches(settings.archive_dir)
        self.runner = Runner(self.searches, settings)
        self.views = SearchViews(self.searches, self.runner)
        self.beliefs = Beliefs()
        self.exports = Exports(self.searches, self.runner)
        self.checker = JobChecker(self.searches, self.runner)
        self.events = EventStreams(self.searches, self.views, self.beliefs)
        self._num_streams = 0
        self._counting = threading.Lock()

    def refuse_more_streams(self) -> None:
        """Raise where as many streams of events are open as may be.

        Raises:
            BusyError: They are.
        """
        if self._num_streams >= self.settings.max_streams:
            raise BusyError(
                f"{self._num_streams} event streams are open, which is the most; close one"
            )

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Count a stream of events while it lasts."""
        with self._counting:
            self._num_streams += 1
        try:
            yield
        finally:
            with self._counting:
                self._num_streams -= 1

    def close(self) -> None:
        """Close archives; searches and exports go on."""
        self.beliefs.close()
        self.searches.close()


def services_of(request: Request) -> Services:
    """Return the parts of the service that a request came to."""
    found: Services = request.app.state.services
    return found


def search_of(
    request: Request,
    search: Annotated[str, Path(description="Id of the search.", max_length=300)],
) -> SearchFiles:
    """Return the search that a path names.

    Raises:
        NotFoundError: There is none.
    """
    return services_of(request).searches.find(search)


Parts = Annotated[Services, Depends(services_of)]
TheSearch = Annotated[SearchFiles, Depends(search_of)]
Index = Annotated[int, Path(ge=0, le=10**9, description="Index of the candidate.")]


def errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Describe the errors that a route answers, beside those that all have."""
    every = sorted({400, 401, 403, *statuses})
    return {status: {"model": ErrorAnswer, "description": STATUSES[status]} for status in every}
