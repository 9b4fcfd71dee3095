"""Starting the service: its token, its address, and the link that is printed."""

import logging
import socket
import sys
from urllib.parse import quote

import uvicorn

from configs.errors import ConfigError, Problem
from optimizer.service.app import create_app
from optimizer.service.settings import ServiceSettings, is_any_address, token_path
from optimizer.service.tokens import find_or_make_token

_STOP_S = 3
_MAX_CONNECTIONS = 256


def serve(settings: ServiceSettings) -> None:
    """Serve until the process is asked to end; searches and exports go on without it.

    Raises:
        ConfigError: The token cannot be used, or the address cannot be bound.
    """
    path = token_path(settings.archive_dir)
    token = find_or_make_token(path)
    listening = _listen(settings)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if is_any_address(host):
        shown = socket.gethostname()
    app = create_app(settings, token)
    sys.stderr.write(
        f"archives of {settings.archive_dir}; the token is in {path}\n"
        f"log in: http://{shown}:{port}/login?token={quote(token)}\n"
    )
    sys.stderr.flush()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        log_level="warning",
        # It would write the token of login links into logs.
        access_log=False,
        server_header=False,
        # What a proxy says of a caller decides nothing here.
        proxy_headers=False,
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_S,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _listen(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Only of sockets that name TCP does asyncio turn off Nagle's algorithm: without that, each
    # answer waits 40 ms for the caller's acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        where = f"{settings.host}:{settings.port}"
        problem = Problem("--port", f"{where} cannot be bound: {error.strerror or error}")
        raise ConfigError("the service cannot be started", [problem]) from error
    listening.listen(128)
    return listening
