"""The door on the peer port: it tells members, relayed clients and strangers apart, and lets no stranger cost much.

The first byte decides, looked at without taking it: a TLS ClientHello goes on to mutual TLS and Hello, a relay preface
to `on_relay` with the raw socket, anything else is closed, counted, and now and then logged. At most HANDSHAKES_MAX
connections may be undecided; over that the oldest is closed: members decide in milliseconds, only strangers linger.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from raftmft.cluster import hello
from raftmft.cluster.hello import HANDSHAKE_TIMEOUT_S, Directory, PeerRefused, Self
from raftmft.cluster.joining import JoinDoor, Request
from raftmft.cluster.tls import TlsStream
from raftmft.wire import joining, peer, preface
from raftmft.wire.frames import FrameError
from raftmft.wire.loglines import fields

HANDSHAKES_MAX = 128
CONNECTIONS_PER_MEMBER = 32
BACKLOG = 256
LOG_PERIOD_S = 10.0
ACCEPT_PAUSE_S = 0.1
_TLS_RECORD = b"\x16"
# accept(2): these say something about one connection or about now, not about the listening socket.
_PASSING = {errno.ECONNABORTED, errno.EPROTO, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM,
            errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP}

log = logging.getLogger(__name__)

Serve = Callable[[str, TlsStream], Awaitable[None]]
TakeRelay = Callable[[socket.socket], Awaitable[None]]


def open_port(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A TCP socket that listens (or a bound one, for UDP) on an address or a name of this host; port 0: any free one.
    On "::" it takes IPv4 too. OSError if the address cannot be had.
    """
    family, kind_, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
    opened = socket.socket(family, kind_)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_STREAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        if kind == socket.SOCK_STREAM:
            opened.listen(BACKLOG)
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


class PeerListener:
    """Serves the peer port. `on_control` and `on_bulk` get (member, stream) and run as long as the connection does;
    `on_relay` gets a raw socket that it owns, with the preface unread, and must be done with it (passed on or closed)
    within HANDSHAKE_TIMEOUT_S. `directory` is asked anew for each connection. `join_door` answers hosts that are no
    members yet.
    """

    def __init__(self, me: Self, directory: Directory, *, on_control: Serve, on_bulk: Serve,
                 on_relay: TakeRelay, join_door: JoinDoor | None = None) -> None:
        self._join_door = join_door
        self._me, self._directory = me, directory
        self._on_control, self._on_bulk, self._on_relay = on_control, on_bulk, on_relay
        self._undecided: dict[int, trio.CancelScope] = {}
        self._members: dict[str, dict[trio.CancelScope, str]] = {}
        self._next = 0
        self._logged_at, self._unlogged = float("-inf"), 0
        self.counts: Counter[str] = Counter()

    async def serve(self, listening: socket.socket, *,
                    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accepts until cancelled; then every connection and the listening socket are closed."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    accepted = await self._accept(listening)
                    if accepted is not None:
                        nursery.start_soon(self._handle, *accepted)
        finally:
            listening.close()

    def cut_off(self, member: str) -> int:
        """Closes every connection that `member` opened to us, at once; gives how many."""
        scopes = self._members.get(member, {})
        for scope in scopes:
            scope.cancel()
        return len(scopes)

    def recheck(self) -> None:
        """To be called when the directory changed: closes the connections whose certificate it no longer lists."""
        listed = self._directory()
        for member, scopes in self._members.items():
            for scope, fingerprint in scopes.items():
                if listed.get(fingerprint) != member:
                    scope.cancel()

    async def _accept(self, listening: socket.socket) -> tuple[socket.socket, str] | None:
        await trio.lowlevel.wait_readable(listening)
        try:
            sock, address = listening.accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            self._refused("accept", "the system", f"cannot accept a connection: {error.strerror}")
            await trio.sleep(ACCEPT_PAUSE_S)
            return None
        return sock, address[0]

    async def _handle(self, sock: socket.socket, address: str) -> None:
        stream: TlsStream | None = None
        request: Request | None = None
        ours = True
        try:
            with self._deciding() as scope:
                sock.setblocking(False)
                first = await _first_byte(sock)
                if first == preface.MAGIC[:1]:
                    self.counts["relay"] += 1
                    ours = False
                    await self._on_relay(sock)
                    return
                if first == joining.MAGIC[:1] and self._join_door is not None:
                    self.counts["join"] += 1
                    stream, request = await self._join_door.listen(sock)
                elif first != _TLS_RECORD:
                    self._refused("stranger", address, "spoke neither TLS nor the relay preface" if first else
                                  "closed without a word")
                    return
                else:
                    stream = TlsStream(sock, self._me.server, server_side=True)
                    member, channel = await hello.answer(self._me, stream, self._directory)
            if scope.cancelled_caught:
                self._refused("slow", address, "did not say in time who it is")
            elif request is not None and self._join_door is not None:
                await self._join_door.answer(stream, request)
            else:
                await self._serve_member(member, channel, stream, address)
        except (PeerRefused, FrameError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            self._refused("refused", address, str(error))
        finally:
            if stream is not None:
                stream.close()
            elif ours:
                sock.close()

    @contextmanager
    def _deciding(self) -> Iterator[trio.CancelScope]:
        """Counts a connection as undecided, within its time limit; makes room for it at the cost of the oldest."""
        if len(self._undecided) >= HANDSHAKES_MAX:
            oldest = next(iter(self._undecided))
            self._undecided.pop(oldest).cancel()
        key, self._next = self._next, self._next + 1
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S) as scope:
            self._undecided[key] = scope
            try:
                yield scope
            finally:
                self._undecided.pop(key, None)

    async def _serve_member(self, member: str, channel: str, stream: TlsStream, address: str) -> None:
        scopes = self._members.setdefault(member, {})
        if len(scopes) >= CONNECTIONS_PER_MEMBER:
            self._refused("crowd", address, f"{member} has {len(scopes)} connections open already")
            return
        self.counts[channel] += 1
        with trio.CancelScope() as scope:
            scopes[scope] = stream.peer_fingerprint()
            try:
                await (self._on_control if channel == peer.CONTROL else self._on_bulk)(member, stream)
            finally:
                del scopes[scope]

    def _refused(self, count: str, address: str, reason: str) -> None:
        """Counts a refusal and logs at most one line each LOG_PERIOD_S, whatever strangers do."""
        self.counts[count] += 1
        now = trio.current_time()
        if now - self._logged_at < LOG_PERIOD_S:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more refused since the last such line)" if self._unlogged else ""
        log.warning("peer port: %s %s%s", address, reason, more,
                    extra=fields(address=address if count != "accept" else "", reason=reason))
        self._logged_at, self._unlogged = now, 0


async def _first_byte(sock: socket.socket) -> bytes:
    """The connection's first byte, left unread; b"" when it was closed before."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            continue
