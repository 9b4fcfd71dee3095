"""Routes that say which searches there are, how they are, and what happens in them."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import PlainTextResponse, StreamingResponse

from optimizer.archive.schema import mergefront_version
from optimizer.service.models import SearchList, SearchStatus, ServiceFacts
from optimizer.service.result_models import Convergence, Progress
from optimizer.service.services import Parts, TheSearch, errors
from optimizer.service.views import convergence_answer, progress_answer

router = APIRouter(tags=["searches"])


@router.get("/service", responses=errors())
def describe_service(parts: Parts) -> ServiceFacts:
    """Say what this service is, and what jobs may use."""
    settings = parts.settings
    return ServiceFacts(
        version=mergefront_version(),
        archive_dir=str(settings.archive_dir),
        cluster=None if settings.cluster is None else settings.cluster.address,
        model_roots=[*map(str, settings.model_roots), *settings.model_urls],
        hub=list(settings.hub),
        scorers=[*map(str, settings.scorers)],
        task_dirs=[*map(str, settings.task_dirs)],
        allow_code_execution=settings.allow_code_execution,
        max_searches=settings.max_searches,
    )


@router.get("/searches", responses=errors())
def list_searches(parts: Parts) -> SearchList:
    """List all searches of the directory, the newest first."""
    found = [parts.views.summary(files) for files in parts.searches.all().values()]
    # Those that just begin have no time yet.
    return SearchList(searches=sorted(found, key=lambda one: one.created_at or "~", reverse=True))


@router.get("/searches/{search}", responses=errors(404, 422))
def show_search(parts: Parts, files: TheSearch) -> SearchStatus:
    """Say how one search is: job, state, cost, workers, and the verdict once there is one."""
    return parts.views.status(files)


@router.get("/searches/{search}/progress", responses=errors(404, 409, 422))
def show_progress(parts: Parts, files: TheSearch) -> Progress:
    """Return the hypervolume over evaluations, items and model seconds."""
    with parts.searches.reading(files) as opened:
        return opened.kept("progress", progress_answer)


@router.get("/searches/{search}/convergence", responses=errors(404, 409, 422))
def show_convergence(parts: Parts, files: TheSearch) -> Convergence:
    """Return how the step size and the axes of CMA-ES went."""
    with parts.searches.reading(files) as opened:
        return opened.kept("convergence", convergence_answer)


@router.get(
    "/searches/{search}/log", responses=errors(404, 422, 502), response_class=PlainTextResponse
)
def show_log(parts: Parts, files: TheSearch) -> str:
    """Return the end of what a search printed, here or on the cluster, as text."""
    return parts.runner.last_output(files)


@router.get(
    "/searches/{search}/events",
    response_class=StreamingResponse,
    responses={
        **errors(404, 422, 429),
        200: {
            "description": "Events `status`, `candidate`, `belief` and `deleted`, with JSON data.",
            "content": {"text/event-stream": {}},
        },
    },
)
async def follow_search(
    parts: Parts,
    files: TheSearch,
    after: Annotated[
        int | None,
        Query(ge=0, le=10**9, description="How many finished candidates are known already."),
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="The same, as browsers send it.", max_length=20)
    ] = None,
) -> StreamingResponse:
    """Follow a search as server-sent events."""
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        after = int(last_event_id)
    settings = parts.settings
    parts.refuse_more_streams()

    async def stream() -> AsyncIterator[str]:
        # Counted here: who leaves before it begins is never counted.
        with parts.streaming():
            async for event in parts.events.follow(
                files, after=after, poll_s=settings.poll_s, stream_s=settings.stream_s
            ):
                yield event

    return StreamingResponse(
        stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )
