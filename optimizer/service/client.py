"""A client of the service, for programs and notebooks: the same models as the service's own.

One is a context manager::

    with ServiceClient("http://127.0.0.1:8642", token) as service:
        search = service.submit(Path("job.yaml").read_text())
        for name, event in service.follow(search.id):
            ...
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from configs.errors import MergefrontError, Problem
from configs.evaluation import SplitName
from configs.schema import DtypeName
from optimizer.service.models import (
    Deleted,
    ExportAnswer,
    ExportList,
    SearchList,
    SearchStatus,
    SearchSummary,
    ServiceFacts,
    ValidateAnswer,
)
from optimizer.service.result_models import (
    CandidateDetail,
    CandidatePage,
    CandidateRow,
    CompareAnswer,
    Convergence,
    FrontAnswer,
    ItemsAnswer,
    Points,
    Progress,
)

Answer = TypeVar("Answer", bound=BaseModel)
Query = Mapping[str, Any]
Changes = Mapping[str, object]

_TIMEOUT_S = 60.0
# A whole check reads checkpoints and asks the model.
_CHECK_S = 620.0
_CHUNK = 1 << 20


class ServiceRefusedError(MergefrontError):
    """The service answered with an error.

    Attributes:
        status: Of HTTP.
        kind_there: The kind of the error there, such as ``not_found`` or ``config``.
        problems: All that is wrong, where the service lists several things.
    """

    def __init__(self, status: int, kind: str, message: str, problems: list[Problem]) -> None:
        super().__init__(message, status=status, kind=kind, problems=problems)
        self.status = status
        self.kind_there = kind
        self.problems = problems


class ServiceClient:
    """Asks a service; a context manager that closes its connections.

    Args:
        url: Where it is, such as ``http://127.0.0.1:8642``.
        token: Its token.
        http: What sends the requests; None makes one. Given in tests.
    """

    def __init__(self, url: str, token: str, *, http: httpx2.Client | None = None) -> None:
        self._http = httpx2.Client(timeout=_TIMEOUT_S) if http is None else http
        self._url = f"{url.rstrip('/')}/api/v1"
        self._headers = {"Authorization": f"Bearer {token}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def service(self) -> ServiceFacts:
        """Return what the service is and allows."""
        return self._get(ServiceFacts, "/service")

    def searches(self) -> list[SearchSummary]:
        """Return all searches, the newest first."""
        return self._get(SearchList, "/searches").searches

    def search(self, search: str) -> SearchStatus:
        """Return all that is known of a search as a whole."""
        return self._get(SearchStatus, _at(search))

    def progress(self, search: str) -> Progress:
        """Return the hypervolume over what it took."""
        return self._get(Progress, _at(search, "progress"))

    def convergence(self, search: str) -> Convergence:
        """Return how the step size and the axes of CMA-ES went."""
        return self._get(Convergence, _at(search, "convergence"))

    def log(self, search: str) -> str:
        """Return the end of what the process of a search printed."""
        return self._send("GET", _at(search, "log")).text

    def validate(
        self, job: str, changes: Changes | None = None, *, depth: str = "full"
    ) -> ValidateAnswer:
        """Return everything that is wrong with the text of a job."""
        body = {"job": job, "changes": dict(changes or {}), "depth": depth}
        timeout_s = None if depth == "form" else _CHECK_S
        return self._post(ValidateAnswer, "/validate", body, timeout_s=timeout_s)

    def submit(
        self, job: str, changes: Changes | None = None, *, start_from: str | None = None
    ) -> SearchSummary:
        """Start a search."""
        body = {"job": job, "changes": dict(changes or {}), "start_from": start_from}
        return self._post(SearchSummary, "/searches", body)

    def fork(
        self, search: str, *, job: str | None = None, changes: Changes | None = None
    ) -> SearchSummary:
        """Start a search that begins with what another learnt."""
        body = {"job": job, "changes": dict(changes or {})}
        return self._post(SearchSummary, _at(search, "fork"), body)

    def resume(self, search: str, changes: Changes | None = None) -> SearchSummary:
        """Go on with a search; keys of ``budget`` and ``validation`` may change."""
        body = {"changes": dict(changes or {})}
        return self._post(SearchSummary, _at(search, "resume"), body)

    def stop(self, search: str, *, force: bool = False) -> SearchSummary:
        """Ask a search to end."""
        return self._post(SearchSummary, _at(search, "stop"), {"force": force})

    def delete(self, search: str) -> None:
        """Delete a search with all that belongs to it."""
        answer = self._send("DELETE", _at(search), params={"confirm": search})
        Deleted.model_validate_json(answer.content)

    def front(
        self,
        search: str,
        *,
        split: SplitName = "search",
        prefer: Mapping[str, float] | None = None,
        floors: Mapping[str, float] | None = None,
        knee: bool = False,
        raw: bool = False,
        fresh: bool = True,
    ) -> FrontAnswer:
        """Return the front, what is wanted most first.

        Args:
            search: Id of the search.
            split: Whose scores.
            prefer: Objective -> weight of the mean that is maximized.
            floors: Objective -> smallest acceptable score.
            knee: Take the knee.
            raw: Go by raw scores.
            fresh: Wait for the posterior of all that is recorded.
        """
        query: dict[str, Any] = {"split": split, "knee": knee, "raw": raw, "fresh": fresh}
        query["prefer"] = [f"{name}={value!r}" for name, value in (prefer or {}).items()]
        query["floor"] = [f"{name}={value!r}" for name, value in (floors or {}).items()]
        return self._get(FrontAnswer, _at(search, "front"), query)

    def candidates(self, search: str, **query: object) -> CandidatePage:
        """Return some candidates; ``state``, ``kind``, ``sort``, ``descending``, ``offset``..."""
        return self._get(CandidatePage, _at(search, "candidates"), query)

    def every_candidate(self, search: str, *, page: int = 500) -> Iterator[CandidateRow]:
        """Yield all candidates by index, a page at a time."""
        start = 0
        while True:
            found = self.candidates(search, offset=start, limit=page)
            yield from found.items
            start += page
            if start >= found.total:
                return

    def points(self, search: str, *, fresh: bool = False) -> Points:
        """Return all scored candidates as columns."""
        return self._get(Points, _at(search, "points"), {"fresh": fresh})

    def candidate(self, search: str, index: int) -> CandidateDetail:
        """Return all that is recorded of a candidate."""
        return self._get(CandidateDetail, _at(search, "candidates", index))

    def items(self, search: str, index: int, split: SplitName = "search") -> ItemsAnswer:
        """Return the scores of a candidate item by item."""
        path = _at(search, "candidates", index, "items")
        return self._get(ItemsAnswer, path, {"split": split})

    def compare(self, search: str, a: int, b: int, **query: object) -> CompareAnswer:
        """Return a minus b, item by item; ``split``, ``which``, ``offset`` and ``limit``."""
        return self._get(CompareAnswer, _at(search, "compare"), {"a": a, "b": b, **query})

    def export(
        self,
        search: str,
        *,
        recipe_id: str | None = None,
        prefer: Mapping[str, float] | None = None,
        floors: Mapping[str, float] | None = None,
        knee: bool = False,
        dtype: DtypeName | None = None,
        max_shard_size: str = "5GB",
    ) -> ExportAnswer:
        """Start an export; without a wish it is of the merge that the search chose."""
        body = {
            "recipe_id": recipe_id,
            "prefer": None if prefer is None else dict(prefer),
            "floors": None if floors is None else dict(floors),
            "knee": knee,
            "dtype": dtype,
            "max_shard_size": max_shard_size,
        }
        return self._post(ExportAnswer, _at(search, "exports"), body)

    def exports(self, search: str) -> list[ExportAnswer]:
        """Return the exports of a search, the newest first."""
        return self._get(ExportList, _at(search, "exports")).exports

    def wait_for_export(
        self, search: str, export: str, *, timeout_s: float = 3600.0, poll_s: float = 1.0
    ) -> ExportAnswer:
        """Wait until an export is finished or has failed.

        Raises:
            TimeoutError: It is still being written.
        """
        end = time.monotonic() + timeout_s
        while True:
            found = self._get(ExportAnswer, _at(search, "exports", export))
            if found.state != "running":
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"export {export} is not finished after {timeout_s:g} s")
            time.sleep(poll_s)

    def download(self, search: str, export: str, target: Path) -> Path:
        """Download a finished export as a tar into a file, which is replaced."""
        path = self._url + _at(search, "exports", export, "download")
        part = target.with_name(f".{target.name}.part")
        with self._http.stream("GET", path, headers=self._headers) as answer:
            if answer.status_code >= 400:
                answer.read()
            _raise_for(answer)
            with part.open("wb") as file:
                for chunk in answer.iter_bytes(_CHUNK):
                    file.write(chunk)
        return part.replace(target)

    def follow(
        self, search: str, *, after: int | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events of a search as name and content, until the service ends the stream."""
        path, query = self._url + _at(search, "events"), _given({"after": after})
        with self._http.stream("GET", path, params=query, headers=self._headers) as answer:
            if answer.status_code >= 400:
                answer.read()
            _raise_for(answer)
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    def _get(self, kind: type[Answer], path: str, query: Query | None = None) -> Answer:
        answer = self._send("GET", path, params=_given(query or {}))
        return kind.model_validate_json(answer.content)

    def _post(
        self, kind: type[Answer], path: str, body: Query, *, timeout_s: float | None = None
    ) -> Answer:
        longer = {} if timeout_s is None else {"timeout": timeout_s}
        answer = self._send("POST", path, json=body, **longer)
        return kind.model_validate_json(answer.content)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        headers = {**self._headers, "X-Mergefront": "1"}
        answer = self._http.request(method, f"{self._url}{path}", headers=headers, **arguments)
        _raise_for(answer)
        return answer


def _at(search: str, *parts: str | int) -> str:
    """Return the path of something of a search; what it is made of may be called anything."""
    return "/".join(["/searches", *(quote(str(part), safe="") for part in (search, *parts))])


def _given(query: Query) -> dict[str, Any]:
    """Leave out what was not said; HTTP has no None, and its booleans are words."""
    return {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in query.items()
        if value is not None
    }


def _raise_for(answer: httpx2.Response) -> None:
    if answer.status_code < 400:
        return
    try:
        error = answer.json()["error"]
        problems = [Problem(found["path"], found["message"]) for found in error["problems"]]
        kind, message = error["kind"], error["message"]
    except (ValueError, KeyError, TypeError):
        kind, message, problems = "unknown", answer.text[:500], []
    raise ServiceRefusedError(answer.status_code, kind, message, problems)
