"""The admin HTTP server: hypercorn on trio, on the data directory's Unix socket (0600, trusted) and on a TCP port
(token). Both serve the same routes.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from raftmft.core.errors import ConfigError
from raftmft.node.api import ADMIN, Caller, error

log = logging.getLogger(__name__)

App = Callable[..., Awaitable[Any]]
Authenticate = Callable[[bytes], Caller | None]
LOCAL = Caller("local administrator", ADMIN)
OPEN_PATHS = ("/healthz", "/readyz", "/metrics")
SHUTDOWN_S = 1.0


class Guard:
    """An ASGI wrapper: lets in what comes by the Unix socket (`authenticate` is None), open paths, and bearers of a
    token that `authenticate` knows. The application finds the Caller in scope["raftmft.caller"].
    """

    def __init__(self, app: App, authenticate: Authenticate | None) -> None:
        self._app, self._authenticate = app, authenticate

    async def __call__(self, scope: dict[str, Any], receive: App, send: App) -> None:
        """ASGI."""
        if scope["type"] == "http":
            caller = LOCAL if self._authenticate is None else self._bearer(self._authenticate, scope)
            if caller is None and scope["path"] not in OPEN_PATHS:
                response = error(401, "a valid token is needed: set RAFTMFT_ADMIN_TOKEN_FILE", "permission",
                                 {"www-authenticate": "Bearer"})
                await response(scope, receive, send)
                return
            scope["raftmft.caller"] = caller
        await self._app(scope, receive, send)

    @staticmethod
    def _bearer(authenticate: Authenticate, scope: dict[str, Any]) -> Caller | None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not given[0].startswith(b"Bearer "):
            return None
        return authenticate(given[0].removeprefix(b"Bearer "))


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


async def run(app: App, listener: socket.socket, authenticate: Authenticate | None, stop: trio.Event) -> None:
    """Serves on one listener until `stop`; requests under way get SHUTDOWN_S."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = SHUTDOWN_S
    config.shutdown_timeout = SHUTDOWN_S
    config.keep_alive_timeout = 30
    config.h11_max_incomplete_size = 64 * 1024
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    await serve(Guard(app, authenticate), config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
