"""Pages for browsers: the login, the list of searches, and one page per search."""

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from optimizer.service.errors import NotFoundError
from optimizer.service.pages import (
    login_page,
    missing_page,
    search_page,
    searches_page,
    welcome_page,
)
from optimizer.service.security import cookie_name
from optimizer.service.services import Parts
from optimizer.service.tokens import Keys

router = APIRouter(include_in_schema=False)


@router.get("/login")
def log_in(request: Request, token: str = "") -> Response:
    """Exchange the token of a link for a cookie."""
    if not token:
        return login_page("Open the link that `mergefront serve` printed, or give the token.", 200)
    return _logged_in(request, token)


@router.post("/login")
async def log_in_by_form(request: Request) -> Response:
    """Exchange a token that was typed for a cookie."""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
    return _logged_in(request, fields.get("token", [""])[0].strip())


@router.post("/logout")
def log_out(request: Request) -> Response:
    """Forget the cookie; the session itself ends by its time."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(cookie_name(_port(request)), path="/")
    return answer


@router.get("/")
def first_page() -> Response:
    """Show which searches there are."""
    return searches_page()


@router.get("/searches/{search}")
def page_of_search(parts: Parts, search: str) -> Response:
    """Show one search."""
    try:
        files = parts.searches.find(search)
    except NotFoundError as error:
        return missing_page(error.message)
    return search_page(files.key, parts.views.summary(files).name)


def _logged_in(request: Request, token: str) -> Response:
    keys: Keys = request.app.state.keys
    if not keys.is_token(token):
        return login_page("That is not the token of this service.", 401)
    answer = welcome_page()
    answer.set_cookie(
        cookie_name(_port(request)),
        keys.new_session(),
        max_age=int(request.app.state.services.settings.session_s),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


def _port(request: Request) -> int:
    server = request.scope.get("server") or (None, None)
    return int(server[1] or request.app.state.services.settings.port)
