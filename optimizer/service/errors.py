"""Errors as HTTP has them: a status, and one shape of JSON for all of them.

``{"error": {"kind": ..., "message": ..., "problems": [{"path": ..., "message": ...}]}}``
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from configs.errors import (
    ArchiveError,
    ArchiveNotFoundError,
    CheckpointError,
    CheckpointNotFoundError,
    ClusterError,
    ConfigError,
    EvaluationError,
    MergefrontError,
    Problem,
    SearchError,
    WorkerError,
)

LOGGER = logging.getLogger(__name__)


class ServiceError(MergefrontError):
    """A request that cannot be answered as it was asked."""

    status: ClassVar[int] = 400


class BadRequestError(ServiceError):
    """What was asked makes no sense."""


class UnauthorizedError(ServiceError):
    """The token is missing, wrong, or the session is over."""

    status = 401


class ForbiddenError(ServiceError):
    """Another site asked, or under a name that is not this service's."""

    status = 403


class NotFoundError(ServiceError):
    """There is no such search, candidate or export."""

    status = 404


class ConflictError(ServiceError):
    """It cannot be done in the state that the search is in."""

    status = 409


class TooLargeError(ServiceError):
    """The body is larger than the service reads."""

    status = 413


class BusyError(ServiceError):
    """As much runs already as the operator allows."""

    status = 429


# The first class that fits decides.
_STATUS: tuple[tuple[type[MergefrontError], int], ...] = (
    (ConfigError, 422),
    (CheckpointNotFoundError, 404),
    (CheckpointError, 409),
    (EvaluationError, 422),
    (ClusterError, 502),
    (WorkerError, 503),
    (ArchiveNotFoundError, 404),
    (ArchiveError, 409),
    (SearchError, 409),
)

STATUSES: Mapping[int, str] = {
    400: "What was asked makes no sense.",
    401: "The token is missing or wrong, or the session is over.",
    403: "Another site asked, or under a name that is not this service's.",
    404: "There is no such thing.",
    405: "That cannot be done with this address.",
    409: "It cannot be done in the state that the search is in.",
    413: "The body is too large.",
    422: "The request or the job has problems; all of them are listed.",
    429: "As much runs already as the operator allows.",
    502: "The cluster cannot be reached, or refuses.",
}

# Options of the command line, as requests call them.
_OPTIONS = {"--prefer": "prefer", "--at-least": "floors", "--knee": "knee", "--id": "recipe_id"}
# What stands in backquotes is the caller's own text.
_OPTION = re.compile(rf"`[^`]*`|(?:{'|'.join(_OPTIONS)})(?![\w-])")


def status_of(error: MergefrontError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, ServiceError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_content(kind: str, message: str, problems: list[Problem] | None = None) -> dict[str, Any]:
    """Return the one shape of errors."""
    listed = [
        {"path": _requested(problem.path), "message": _requested(problem.message)}
        for problem in problems or []
    ]
    return {"error": {"kind": kind, "message": _requested(message), "problems": listed}}


def answer_to(error: MergefrontError) -> JSONResponse:
    """Return the answer that says an error."""
    content = error_content(error.kind, error.message, error.listed)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else None
    return JSONResponse(content, status_of(error), headers)


def answer_to_failure(method: str, path: str, error: Exception) -> JSONResponse:
    """Return the answer after a fault of our own, whose details go into the log alone."""
    LOGGER.error("%s %s failed", method, path, exc_info=error)
    text = "the service failed to answer; its log says more"
    return JSONResponse(error_content("internal", text), 500)


def install(app: FastAPI) -> None:
    """Have all errors of an application answered in that shape."""

    @app.exception_handler(MergefrontError)
    def _ours(_request: Request, error: MergefrontError) -> JSONResponse:
        return answer_to(error)

    @app.exception_handler(RequestValidationError)
    def _request(_request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [
            Problem(".".join(str(part) for part in found["loc"]), str(found["msg"]))
            for found in error.errors()
        ]
        text = "the request cannot be read"
        return JSONResponse(error_content("request", text, problems), 422)

    @app.exception_handler(HTTPException)
    def _http(_request: Request, error: HTTPException) -> JSONResponse:
        kinds = {404: "not_found", 405: "method_not_allowed"}
        kind = kinds.get(error.status_code, "request")
        content = error_content(kind, str(error.detail))
        return JSONResponse(content, error.status_code, error.headers)


def _requested(text: str) -> str:
    # What was sent may hold what UTF-8 does not: unpaired surrogates.
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _OPTION.sub(lambda found: _OPTIONS.get(found[0], found[0]), plain)
