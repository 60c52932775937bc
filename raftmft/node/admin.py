"""The admin HTTP server: hypercorn on trio, on the data directory's Unix socket (0600, trusted) and on a TCP port
(token; TLS beyond loopback). Both serve the same routes.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from raftmft.cluster.certificates import CertificateFiles
from raftmft.core.errors import ConfigError, RaftmftError
from raftmft.node.api import ADMIN, Caller, error

log = logging.getLogger(__name__)

App = Callable[..., Awaitable[Any]]
Authenticate = Callable[[bytes], Awaitable[Caller | None]]
LOCAL = Caller("local administrator", ADMIN)
OPEN_PATHS = ("/healthz", "/readyz", "/metrics")
KEEP_ALIVE_S = 30.0
MOST_CONNECTIONS = 256
LOOK_EVERY_S = 60.0
MAX_SOCKET_PATH_BYTES = 107


class Guard:
    """An ASGI wrapper: lets in what comes by the Unix socket (`authenticate` is None), open paths, and bearers of a
    token that `authenticate` knows. The application finds the Caller in scope["raftmft.caller"].
    """

    def __init__(self, app: App, authenticate: Authenticate | None) -> None:
        self._app, self._authenticate = app, authenticate

    async def __call__(self, scope: dict[str, Any], receive: App, send: App) -> None:
        """ASGI."""
        assert scope["type"] in ("http", "lifespan"), "no other gets through"
        if scope["type"] == "http":
            caller = LOCAL if self._authenticate is None else await self._bearer(self._authenticate, scope)
            if caller is None and scope["path"] not in OPEN_PATHS:
                response = error(401, "a valid token is needed: set RAFTMFT_ADMIN_TOKEN_FILE", "permission",
                                 {"www-authenticate": "Bearer"})
                await response(scope, receive, send)
                return
            scope["raftmft.caller"] = caller
        await self._app(scope, receive, send)

    @staticmethod
    async def _bearer(authenticate: Authenticate, scope: dict[str, Any]) -> Caller | None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not given[0].startswith(b"Bearer "):
            return None
        return await authenticate(given[0].removeprefix(b"Bearer "))


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket with mode 0600; one left by an earlier run is replaced. Raises ConfigError."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{path} is too long for a Unix socket ({MAX_SOCKET_PATH_BYTES} bytes); use a shorter data "
                          "directory")
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


async def serve(app: App, unix: socket.socket, tcp: socket.socket, authenticate: Authenticate,
                certificates: CertificateFiles) -> None:
    """Serves both listeners until cancelled. Beyond loopback the port speaks TLS, with this member's certificate."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, app, unix, None, Config())
        config = TlsConfig(certificates) if needs_tls(tcp.getsockname()[0]) else Config()
        nursery.start_soon(run, app, tcp, authenticate, config)
        if isinstance(config, TlsConfig):
            nursery.start_soon(config.follow_renewals)


def needs_tls(host: str) -> bool:
    """Whether what is sent to a listener at this address may leave the host."""
    return not ipaddress.ip_address(host.partition("%")[0]).is_loopback


async def run(app: App, listener: socket.socket, authenticate: Authenticate | None, config: Config) -> None:
    """Serves on one listener until cancelled.

    hypercorn's own `serve` would let whatever goes wrong in its handling of one connection (a malformed HTTP/2 upgrade
    is enough) end the server, and with it the node: here it ends the connection. At most MOST_CONNECTIONS at once.
    """
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.alpn_protocols = ["http/1.1"]
    config.h11_max_incomplete_size = 64 * 1024
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    guarded = wrap_app(Guard(app, authenticate), config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
    context, open_now = WorkerContext(None), 0

    async def handle(stream: Any) -> None:
        nonlocal open_now
        if open_now >= MOST_CONNECTIONS:
            return  # trio closes it
        open_now += 1
        try:
            await Connection(guarded, config, context, ConnectionState({}), stream)
        except* Exception as group:
            log.info("an admin connection ended: %s", _first(group))
        finally:
            open_now -= 1

    accepting: Any = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    tls = config.create_ssl_context()
    if tls is not None:
        accepting = trio.SSLListener(accepting, tls, https_compatible=True)
    await trio.serve_listeners(handle, [accepting])


class NotSpoken(RaftmftError):
    """The client wants a protocol that the admin port does not speak."""


class Connection(TCPServer):
    """hypercorn's, but for two things. It speaks HTTP/1.1 only: its HTTP/2 and websockets can be brought to fail by any
    stranger. And it ends when the client is gone and what it asked for is answered, not KEEP_ALIVE_S later.
    """

    _is_over = False

    async def protocol_send(self, event: Event) -> None:
        """What the protocol wants done."""
        if not (self._is_over and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        http11: Any = self.protocol.protocol

        async def check(request: Any) -> None:
            wanted = [value.lower() for name, value in request.headers if name.lower() == b"upgrade"]
            # A wish for h2c may be ignored (RFC 9110, 7.8).
            if request.method == b"PRI" or any(value != b"h2c" for value in wanted):
                await http11._send_error_response(400)
                raise NotSpoken("only HTTP/1.1 is spoken here")

        assert callable(http11._check_protocol)
        http11._check_protocol = check
        await super()._read_data()
        self._is_over = True
        await self.idle_task.stop()


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


class TlsConfig(Config):
    """TLS 1.3 with a member's certificate, which may be renewed while it serves."""

    def __init__(self, certificates: CertificateFiles) -> None:
        super().__init__()
        self._certificates = certificates
        self.certfile, self.keyfile = str(certificates.certificate), str(certificates.key)
        self._context: ssl.SSLContext | None = None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        """As hypercorn makes it, and kept."""
        context = super().create_ssl_context()
        if context is not None:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context = context
        return context

    async def follow_renewals(self) -> None:
        """Takes a new certificate into use within LOOK_EVERY_S; until cancelled."""
        seen = self._stamp()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now = self._stamp()
            if now != seen and self._context is not None:
                try:
                    self._context.load_cert_chain(self._certificates.certificate, self._certificates.key)
                except (OSError, ssl.SSLError) as trouble:  # between key and certificate: look again
                    log.warning("the admin port goes on with the old certificate: %s", trouble)
                    continue
                seen = now

    def _stamp(self) -> int:
        try:
            return self._certificates.certificate.stat().st_mtime_ns
        except OSError:
            return 0
