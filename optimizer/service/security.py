"""What stands before every request: host, token, origin, size; and the headers of every answer.

- *Host*: a page of another name that resolves to this address (DNS rebinding) gets nothing.
- *Token*: ``Authorization: Bearer`` for programs, a cookie for browsers, for everything but the
  login and the files that ship with the package.
- *Origin*: browsers send cookies along whoever made them ask, so what changes something must come
  from a page of this service, or carry a header that other sites cannot send.
- *Size*: bodies are read before anything looks at them, up to a limit, and not for ever.
"""

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optimizer.service.errors import (
    BadRequestError,
    ForbiddenError,
    ServiceError,
    TooLargeError,
    UnauthorizedError,
    answer_to,
    answer_to_failure,
)
from optimizer.service.pages import login_page
from optimizer.service.settings import ServiceSettings
from optimizer.service.tokens import Keys

REQUEST_HEADER = "x-mergefront"
"""A header that only programs and pages of this origin can send, with any value."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = ("/login", "/static/")
_BODY_TIMEOUT_S = 30.0

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # Not `no-referrer`: with it browsers call the origin of this service's own forms `null`.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


def cookie_name(port: int) -> str:
    """Return the cookie of a service; browsers do not tell the ports of a host apart."""
    return f"mergefront_{port}"


class Guard:
    """ASGI middleware that lets through what may pass."""

    def __init__(self, app: ASGIApp, *, keys: Keys, settings: ServiceSettings) -> None:
        self._app = app
        self._keys = keys
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        sending = _Careful(send, scope["path"])
        try:
            self._check(scope)
            body = await _read_body(scope, receive, self._settings.max_body_bytes)
            await self._app(scope, _replayed(body, receive), sending)
        except ServiceError as error:
            await self._refusal(scope, error)(scope, receive, sending)
        except Exception as error:
            if not sending.has_begun:
                answer = answer_to_failure(scope["method"], scope["path"], error)
                await answer(scope, receive, sending)
            raise  # for the server, which breaks the connection where an answer is not whole

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        by_cookie = False
        if not scope["path"].startswith(_OPEN):
            by_cookie = self._authenticate(headers, scope)
        if scope["method"] not in _SAFE:
            _check_origin(headers, needs_header=by_cookie)

    def _check_host(self, headers: Headers) -> None:
        found = headers.getlist("host")
        name = _host_name(found[0]) if len(found) == 1 else None
        if name is None or name not in self._settings.known_hosts:
            shown = ", ".join(found) or "none"
            raise ForbiddenError(
                f"the service does not answer to the name `{shown}`; `mergefront serve "
                "--allow-host NAME` has it answer to another"
            )

    def _authenticate(self, headers: Headers, scope: Scope) -> bool:
        """Return whether a cookie, which browsers send unasked, was what let it in."""
        given = headers.get("authorization")
        if given is not None:
            scheme, _, token = given.partition(" ")
            if scheme.lower() == "bearer" and self._keys.is_token(token.strip()):
                return False
            raise UnauthorizedError(
                "the token is not this service's; it is in the file that `mergefront serve` names"
            )
        server = scope.get("server") or (None, None)
        cookie = _cookie(headers, cookie_name(server[1] or self._settings.port))
        if cookie is None:
            raise UnauthorizedError(
                "a token is needed: open the link that `mergefront serve` prints, or send "
                "`Authorization: Bearer TOKEN`"
            )
        if not self._keys.is_session(cookie):
            raise UnauthorizedError("the session is over; open the login link again")
        return True

    def _refusal(self, scope: Scope, error: ServiceError) -> Response:
        is_page = not scope["path"].startswith("/api/") and isinstance(error, UnauthorizedError)
        return login_page(error.message, 401) if is_page else answer_to(error)


def _check_origin(headers: Headers, *, needs_header: bool) -> None:
    """Refuse what another site made a browser ask for.

    Raises:
        ForbiddenError: It did.
    """
    origin = headers.get("origin")
    if origin is not None:
        if not _is_of_host(origin, headers.get("host", "")):
            raise ForbiddenError(f"a page of `{origin}` may not change anything here")
    elif headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise ForbiddenError("a page of another site may not change anything here")
    elif needs_header and REQUEST_HEADER not in headers:
        raise ForbiddenError(
            f"with a cookie, what changes something needs the header `{REQUEST_HEADER}: 1`"
        )


def _is_of_host(origin: str, host: str) -> bool:
    try:
        # The scheme is not compared: behind a proxy that ends TLS only the outside knows it.
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _host_name(text: str) -> str | None:
    try:
        return urlsplit(f"//{text}").hostname
    except ValueError:
        return None


def _cookie(headers: Headers, name: str) -> str | None:
    # Other services of this host may have set what no standard allows; it costs ours nothing.
    for line in headers.getlist("cookie"):
        if (found := cookie_parser(line).get(name)) is not None:
            return found
    return None


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        TooLargeError: It is larger than ``limit`` bytes.
        BadRequestError: It does not come, or the caller has left.
    """
    length = Headers(scope=scope).get("content-length", "0")
    too_large = TooLargeError(f"at most {limit} bytes are read of a request")
    if not length.isascii() or not length.isdigit() or int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BadRequestError("the request ended before its body did")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise BadRequestError(f"the body did not come within {_BODY_TIMEOUT_S:g} s") from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read to the application; afterwards comes what really comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


class _Careful:
    """Sends an answer with what every one says to browsers; answers may have said it themselves."""

    def __init__(self, send: Send, path: str) -> None:
        kept = b"no-cache" if path.startswith("/static/") else b"no-store"
        self._send = send
        self._headers = (*_HEADERS, (b"cache-control", kept))
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        """Send a part of it."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            there = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((name, value) for name, value in self._headers if name not in there),
            ]
        await self._send(message)
