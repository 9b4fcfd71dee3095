"""Routes that start, continue and end searches."""

from typing import Annotated

from fastapi import APIRouter, Query

from optimizer.service.errors import BadRequestError
from optimizer.service.models import (
    Deleted,
    ForkRequest,
    ResumeRequest,
    SearchSummary,
    StopRequest,
    SubmitRequest,
    ValidateAnswer,
    ValidateRequest,
)
from optimizer.service.services import Parts, TheSearch, errors

router = APIRouter(tags=["jobs"])


@router.post("/validate", responses=errors(413, 422, 429))
def validate_job(parts: Parts, request: ValidateRequest) -> ValidateAnswer:
    """Say everything that is wrong with a job; starts nothing."""
    return parts.checker.check(request)


@router.post("/searches", status_code=201, responses=errors(404, 409, 413, 422, 429, 502))
def submit_search(parts: Parts, request: SubmitRequest) -> SearchSummary:
    """Start a search; it is checked further once it runs, and fails with what is wrong."""
    start = None if request.start_from is None else parts.searches.find(request.start_from)
    files = parts.runner.begin(request.job, request.changes, start_from=start)
    return parts.views.summary(files)


@router.post(
    "/searches/{search}/fork", status_code=201, responses=errors(404, 409, 413, 422, 429, 502)
)
def fork_search(parts: Parts, files: TheSearch, request: ForkRequest) -> SearchSummary:
    """Start a search that begins with what this one learnt."""
    text = parts.runner.job_text(files) if request.job is None else request.job
    begun = parts.runner.begin(text, request.changes, start_from=files)
    return parts.views.summary(begun)


@router.post("/searches/{search}/resume", responses=errors(404, 409, 413, 422, 429, 502))
def resume_search(parts: Parts, files: TheSearch, request: ResumeRequest) -> SearchSummary:
    """Go on with a search, with another budget where one is given."""
    parts.runner.resume(files, request.changes)
    return parts.views.summary(files)


@router.post("/searches/{search}/stop", responses=errors(404, 409, 413, 422, 502))
def stop_search(parts: Parts, files: TheSearch, request: StopRequest) -> SearchSummary:
    """End a search; what is under way is finished first, unless it is forced."""
    parts.runner.stop(files, force=request.force)
    return parts.views.summary(files)


@router.delete("/searches/{search}", responses=errors(400, 404, 409, 422))
def delete_search(
    parts: Parts,
    files: TheSearch,
    confirm: Annotated[str, Query(description="The id once more.", max_length=300)],
) -> Deleted:
    """Delete a search with its archive and exports, for good."""
    if confirm != files.key:
        raise BadRequestError(f"to delete it, repeat its id: `confirm={files.key}`")
    parts.runner.delete(files)
    return Deleted(deleted=files.key)
