"""Passes a client's SFTP connection to the member that shall serve it.

The member that took the connection dials the target's peer port, says in a signed preface who the client is, and then
moves bytes both ways inside the kernel (os.splice through pipes), falling back to copying where that is not to be had.
SSH encrypts from end to end, so TLS around it would only cost.

The target checks the preface: signed with the cluster key, meant for itself, fresh, and never seen before.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from raftmft.cluster.sparse import SparseLog
from raftmft.core.addresses import address_text
from raftmft.wire import preface as wire
from raftmft.wire.frames import FrameError
from raftmft.wire.loglines import fields
from raftmft.wire.preface import LIMIT_MOST_MS, NONCE_SIZE, Preface

CONNECT_TIMEOUT_S = 3.0
FRESH_S = 30.0
"""How old a preface may be, and how far the two members' clocks may differ."""
NONCES_MAX = 65_536
"""Prefaces remembered against replay. Should more arrive within FRESH_S, the further ones are refused."""
PIPE_BYTES = 256 << 10
COPY_BYTES = 64 << 10
HALF_CLOSED_S = 60.0
"""How long the server's direction may go on after the client's has ended."""
SERVER_CLOSED_S = 2.0
"""How long the client's direction may go on after the server's has ended: an SSH server closes both at once."""
FIRST_WORD_S = 30.0
"""Within this the target must have said something (its SSH banner), or it is taken for hung."""

log = logging.getLogger(__name__)


class PrefaceGuard:
    """Judges prefaces that reach `member`. Clock: ms since the epoch."""

    def __init__(self, cluster_key: bytes, member: str, *,
                 clock_ms: Callable[[], int] = lambda: int(time.time() * 1000)) -> None:
        self._key, self._member, self._clock_ms = wire.preface_key(cluster_key), member, clock_ms
        self._seen: dict[bytes, int] = {}

    def rekey(self, cluster_key: bytes) -> None:
        """From now on prefaces are made with the new cluster key, and those of any other key are refused."""
        self._key = wire.preface_key(cluster_key)

    def make(self, target: str, address: str, port: int, limit_s: float) -> bytes:
        """The signed preface for a client at address:port that this member relays to `target`, and that has `limit_s`
        left to log in.
        """
        limit_ms = min(LIMIT_MOST_MS, max(0, int(limit_s * 1000)))
        return wire.encode_preface(self._key, Preface(address, port, self._member, target, self._clock_ms(),
                                                      secrets.token_bytes(NONCE_SIZE), limit_ms))

    def check(self, data: bytes | bytearray) -> Preface:
        """The preface, accepted once. FrameError if it is forged, stale, replayed, or meant for another member."""
        preface = wire.decode_preface(self._key, data)
        if preface.target != self._member:
            raise FrameError("a relay preface for another member")
        now = self._clock_ms()
        if abs(now - preface.stamp_ms) > FRESH_S * 1000:
            raise FrameError("a stale relay preface: check the members' clocks")
        if preface.nonce in self._seen:
            raise FrameError("a replayed relay preface")
        if len(self._seen) >= NONCES_MAX:
            # A preface is refused as stale from stamp + FRESH_S on, so that its nonce need not be known any longer.
            self._seen = {nonce: stamp for nonce, stamp in self._seen.items() if now - stamp <= FRESH_S * 1000}
            if len(self._seen) >= NONCES_MAX:
                raise FrameError("too many relayed connections within half a minute")
        self._seen[preface.nonce] = preface.stamp_ms
        return preface


class RelayDoor:
    """The target's side: `take` is the listener's `on_relay`. `on_client(sock, preface)` gets the client's stream (as
    from accept: nothing of it was read) and owns the socket from its call on.
    """

    def __init__(self, guard: PrefaceGuard, on_client: Callable[[socket.socket, Preface], Awaitable[None]]) -> None:
        self._guard, self._on_client = guard, on_client
        self._refusals = SparseLog(log)
        self.counts: Counter[str] = Counter()

    async def take(self, sock: socket.socket) -> None:
        """Reads exactly the preface and passes the socket on, or closes it. The caller limits the time. Cancelled while
        reading: closed.
        """
        source = _other_end(sock)
        try:
            head = await _read_exactly(sock, wire.HEAD_SIZE)
            preface = self._guard.check(head + await _read_exactly(sock, wire.rest_length(head)))
        except BaseException as error:
            sock.close()
            if isinstance(error, FrameError | OSError):
                self.counts["refused"] += 1
                self._refusals.say("a relayed connection was refused: %s", error, extra=fields(address=source))
                return
            raise
        self.counts["taken"] += 1
        await self._on_client(sock, preface)


async def relay(client: socket.socket, host: str, port: int, make_preface: Callable[[], bytes],
                about: Mapping[str, Any] | None = None) -> None:
    """Relays `client` (owned by this call) to the member at host:port, until both directions have ended, either broke,
    one has lasted too long without the other, or the target said nothing within FIRST_WORD_S. Both sockets are closed
    then, also on cancellation. `make_preface` is called once, when the member has taken the connection: what it says of
    time counts from there. `about` is the `extra` of log lines: whose connection it is, and which member's now.

    OSError if the member could not be reached: then `client` is open, unread, and the caller's again.
    """
    try:
        target = await _connect(host, port)
    except trio.Cancelled:
        client.close()
        raise
    try:
        client.setblocking(False)
        await _send_all(target, memoryview(make_preface()))
        await _both_ways(client, target, about)
    except OSError as error:
        log.info("a relayed connection broke: %s", error, extra=about)
    finally:
        client.close()
        target.close()


async def _connect(host: str, port: int) -> socket.socket:
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            connection = (await trio.open_tcp_stream(host, port)).socket
    except trio.TooSlowError:
        raise TimeoutError(f"the member at {host}:{port} did not answer in {CONNECT_TIMEOUT_S:g} s") from None
    sock = socket.socket(connection.family, socket.SOCK_STREAM, fileno=connection.detach())
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def _both_ways(client: socket.socket, target: socket.socket, about: Mapping[str, Any] | None) -> None:
    async with trio.open_nursery() as nursery:
        ended = 0

        async def one_way(source: socket.socket, sink: socket.socket, other_may_last_s: float) -> None:
            nonlocal ended
            try:
                if source is target:
                    with trio.fail_after(FIRST_WORD_S):
                        await trio.lowlevel.wait_readable(target)
                await _move(source, sink)
                sink.shutdown(socket.SHUT_WR)
            except trio.TooSlowError:
                log.warning("the member of a relayed connection said nothing for %.0f s; it is closed", FIRST_WORD_S,
                            extra=about)
                nursery.cancel_scope.cancel()
            except OSError:
                # Reset, or gone: no byte can be passed on truthfully in either direction.
                nursery.cancel_scope.cancel()
            ended += 1
            if ended == 1:
                nursery.cancel_scope.deadline = trio.current_time() + other_may_last_s

        nursery.start_soon(one_way, client, target, HALF_CLOSED_S)
        nursery.start_soon(one_way, target, client, SERVER_CLOSED_S)


async def _move(source: socket.socket, sink: socket.socket) -> None:
    """Everything from `source` until its end is in `sink`. OSError if either breaks."""
    try:
        pipe_out, pipe_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # out of descriptors or of the user's pipe budget
        await _copy(source, sink)
        return
    try:
        try:
            fcntl.fcntl(pipe_in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            log.debug("the pipe keeps its size: the user's pipe budget is used up")
        spliced = await _splice(source, sink, pipe_out, pipe_in)
    finally:
        os.close(pipe_out)
        os.close(pipe_in)
    if not spliced:
        await _copy(source, sink)


async def _splice(source: socket.socket, sink: socket.socket, pipe_out: int, pipe_in: int) -> bool:
    """True at the source's end; False if this kernel cannot splice these sockets (nothing was moved then)."""
    flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
    moved = False
    while True:
        try:
            count = os.splice(source.fileno(), pipe_in, PIPE_BYTES, flags=flags)
        except BlockingIOError:  # the pipe is empty here, so it is the source that has nothing
            await trio.lowlevel.wait_readable(source)
            continue
        except OSError as error:
            # Any other error is the connection's own: a reset must not pass for "cannot splice", since it is told once
            # only, and the copying that follows would take it for a clean end.
            if moved or error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            return False
        if not count:
            return True
        moved = True
        while count:
            try:
                count -= os.splice(pipe_out, sink.fileno(), count, flags=flags)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sink)
        await trio.lowlevel.checkpoint()


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    buffer = memoryview(bytearray(COPY_BYTES))
    while True:
        try:
            count = source.recv_into(buffer)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(source)
            continue
        if not count:
            return
        await _send_all(sink, buffer[:count])
        await trio.lowlevel.checkpoint()


async def _send_all(sink: socket.socket, data: memoryview) -> None:
    while data:
        try:
            data = data[sink.send(data):]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sink)


def _other_end(sock: socket.socket) -> str:
    try:
        host, port = sock.getpeername()[:2]
        return address_text(host, port)
    except (OSError, ValueError):  # gone already, or no internet socket
        return ""


async def _read_exactly(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes: not one more is taken. FrameError if the stream ends before."""
    data = b""
    while len(data) < size:
        try:
            piece = sock.recv(size - len(data))
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        if not piece:
            raise FrameError("a relay preface that ends in the middle")
        data += piece
    return data
