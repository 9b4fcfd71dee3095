"""The application: everything that is served, behind the guard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.staticfiles import StaticFiles

from optimizer.archive.schema import mergefront_version
from optimizer.service import (
    errors,
    routes_exports,
    routes_jobs,
    routes_pages,
    routes_results,
    routes_searches,
)
from optimizer.service.security import Guard
from optimizer.service.services import Services
from optimizer.service.settings import ServiceSettings
from optimizer.service.tokens import Keys

API = "/api/v1"
STATIC = Path(__file__).parent / "static"

_DESCRIPTION = """Searches of merges: see them, steer them, take the result away.

Programs send `Authorization: Bearer TOKEN`. Every error has the shape of `ErrorAnswer`."""


def create_app(settings: ServiceSettings, token: str) -> FastAPI:
    """Build the application.

    Args:
        settings: What the operator decided.
        token: The secret that lets requests in.
    """
    services = Services(settings)
    keys = Keys(token, session_s=settings.session_s)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        services.close()

    app = FastAPI(
        title="mergefront",
        version=mergefront_version(),
        description=_DESCRIPTION,
        openapi_url=f"{API}/openapi.json",
        # Their scripts would come from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_name_of,
    )
    app.state.services = services
    app.state.keys = keys
    # The guard checks it, and cookies; this says so in the OpenAPI.
    scheme = HTTPBearer(auto_error=False, description="The token that `mergefront serve` names.")
    for routes in (routes_searches, routes_jobs, routes_results, routes_exports):
        app.include_router(routes.router, prefix=API, dependencies=[Security(scheme)])
    app.include_router(routes_pages.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    errors.install(app)
    app.add_middleware(Guard, keys=keys, settings=settings)
    return app


def _name_of(route: APIRoute) -> str:
    return route.name
