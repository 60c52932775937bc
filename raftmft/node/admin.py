"""The admin HTTP server: hypercorn on trio, on the data directory's Unix socket (0600, trusted) and on a TCP port
(token). Both serve the same routes.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.responses import JSONResponse

from raftmft.core.errors import ConfigError

log = logging.getLogger(__name__)

App = Callable[..., Awaitable[Any]]
OPEN_PATHS = ("/healthz", "/readyz", "/metrics")
SHUTDOWN_S = 1.0


class Guard:
    """An ASGI wrapper: lets in what comes by the Unix socket, open paths, and bearers of the token."""

    def __init__(self, app: App, token: bytes | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: dict[str, Any], receive: App, send: App) -> None:
        """ASGI."""
        if scope["type"] == "http":
            if self._token is None:
                scope["raftmft.local"] = True
            elif scope["path"] not in OPEN_PATHS and not self._allowed(scope):
                response = JSONResponse(
                    {"error": "a valid token is needed: set RAFTMFT_ADMIN_TOKEN_FILE", "code": "permission"},
                    401,
                    {"www-authenticate": "Bearer"},
                )
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _allowed(self, scope: dict[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], b"Bearer " + (self._token or b""))


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket with mode 0600; one left by an earlier run is replaced. Raises ConfigError."""
    if len(os.fsencode(path)) > 107:
        raise ConfigError(f"{path} is too long for a Unix socket (107 bytes); use a shorter data directory")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from None
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


async def run(app: App, listener: socket.socket, token: bytes | None, stop: trio.Event) -> None:
    """Serves on one listener until `stop`; requests under way get SHUTDOWN_S."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = SHUTDOWN_S
    config.shutdown_timeout = SHUTDOWN_S
    config.keep_alive_timeout = 30
    config.h11_max_incomplete_size = 64 * 1024
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    await serve(Guard(app, token), config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
