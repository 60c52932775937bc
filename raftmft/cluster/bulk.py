"""Bulk links, asking side: chunks to and from other members, on connections apart from the control link.

A put may name members that the asked one passes the chunk on to (a chain): each is answered for by itself, as soon as
it holds the chunk or is known not to. What is unanswered by the first one counts in its budget, no longer than that.

Each peer has up to CONNECTIONS_PER_PEER connections, dialled when needed; many requests are under way on each, matched
by number. IN_FLIGHT_MAX_BYTES bounds what may be unanswered per peer: over it, callers wait their turn. A request
belongs to its connection, not to its caller: a caller that is cancelled just no longer waits.

A connection is retired after RETIRE_BYTES, long before AES-GCM's limit on records under one key (RFC 8446, 5.5).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from raftmft.cluster.hello import PeerRefused, PeerUnreachable
from raftmft.cluster.tls import TlsStream
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE
from raftmft.wire import peer
from raftmft.wire.frames import FrameError
from raftmft.wire.loglines import fields

CONNECTIONS_PER_PEER = 2
IN_FLIGHT_MAX_BYTES = 32 << 20
REQUEST_COST_BYTES = 1 << 10
"""What a request counts beside its body, so that tiny chunks are bounded in number too (32,768 a peer)."""
SECOND_CONNECTION_BYTES = 12 << 20
"""A further connection is dialled when the least busy one has more than this under way: more than one upload's window.
Two that take turns cost a tenth more CPU than one (bench/links.py: their buffers do not stay in the caches)."""
RETIRE_BYTES = 128 << 30
DIAL_PAUSE_S = 0.25
"""After a failed dial, requests fail at once for this long instead of dialling again."""
WRITE_MAX_BYTES = 1 << 20
PROGRESS_LIMIT_S = 30.0
"""A connection on which something is asked and nothing moves for this long is given up (a peer that is only stopped
keeps its connections alive; that it is silent, the control link tells much sooner: see `cut_off`)."""
PROGRESS_LOOK_S = 1.0

log = logging.getLogger(__name__)
Buffer = bytes | bytearray | memoryview
Told = Callable[[str, str], None]
"""(member, "" if the chunk is durable there, else one line that says why not)"""


class PutRefused(RaftmftError):
    """The peer answered that it does not hold the chunk durably, and why."""


class BulkPool:
    """Puts chunks to peers and gets chunks from them. `run` must be running. `dial(member)` opens a bulk stream, or
    raises PeerUnreachable or PeerRefused.
    """

    def __init__(self, dial: Callable[[str], Awaitable[TlsStream]]) -> None:
        self._dial = dial
        self._peers: dict[str, _Peer] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the pool's connections until cancelled; requests under way then fail with PeerUnreachable."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def put(self, member: str, chunk_id: bytes, data: Buffer) -> None:
        """The chunk is durable at `member`. PutRefused: it said no; PeerUnreachable: no connection, or it broke (the
        chunk may be there: putting it again is safe). `data` must never change: a cancelled put may still be sent.
        """
        refusals: list[str] = []
        await self.chain((member,), chunk_id, data, lambda _, refusal: refusals.append(refusal))
        if refusals != [""]:
            raise PutRefused(f"{member}: {''.join(refusals)}")

    async def chain(self, members: Sequence[str], chunk_id: bytes, data: Buffer, told: Told) -> None:
        """Puts the chunk to the first of `members`, which passes it on to the second, and so on. `told` is called once
        for each of them, as they answer or are given up by those before them; returns when it was for all.
        PeerUnreachable: it was not for some, and never will be. `data` as in `put`; cancelled, `told` may be called
        later.
        """
        first, *then = members
        await self._ask(first, peer.Put(0, chunk_id, tuple(then)), data, len(data), told)

    async def get(self, member: str, chunk_id: bytes) -> bytearray | None:
        """The bytes that `member` says are the chunk (unverified!), None if it has none. PeerUnreachable as of `put`.

        Cancelled, the answer is thrown away when it comes.
        """
        return await self._ask(member, peer.Get(0, chunk_id), b"", CHUNK_SIZE) or None

    def cut_off(self, member: str) -> None:
        """Closes all connections to `member` at once: it is no longer listed, or was found dead."""
        if known := self._peers.get(member):
            for connection in list(known.connections):
                connection.fail(f"{member} was cut off")

    def in_flight_bytes(self, member: str) -> int:
        """How much is unanswered by `member` now."""
        known = self._peers.get(member)
        return known.budget.used if known else 0

    async def _ask(self, member: str, message: peer.Put | peer.Get, body: Buffer, cost: int,
                   told: Told = lambda member, refusal: None) -> bytearray:
        known = self._peers.setdefault(member, _Peer())
        cost += REQUEST_COST_BYTES
        await known.budget.take(cost)
        try:
            connection = await self._connection(member, known)
            request = connection.start(message, body, lambda: known.budget.give(cost), told)
        except BaseException:
            known.budget.give(cost)
            raise
        await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.body

    async def _connection(self, member: str, known: _Peer) -> _Connection:
        """The least busy connection; dials one if there is none, or if all are busy and more are allowed."""
        async with known.dialling:
            usable = [c for c in known.connections if c.usable]
            least = min(usable, key=lambda c: c.waiting_bytes, default=None)
            full = len(usable) >= CONNECTIONS_PER_PEER
            if least is not None and (full or least.waiting_bytes <= SECOND_CONNECTION_BYTES):
                return least
            if trio.current_time() >= known.dial_again_at:
                try:
                    stream = await self._dial(member)
                except (PeerUnreachable, PeerRefused) as error:
                    known.dial_again_at, known.complaint = trio.current_time() + DIAL_PAUSE_S, str(error)
                else:
                    if self._nursery is None:
                        stream.close()
                        raise PeerUnreachable("this member is stopping")
                    least = _Connection(member, stream)
                    known.connections.append(least)
                    self._nursery.start_soon(self._run_connection, known, least)
            if least is None or not least.usable:
                raise PeerUnreachable(known.complaint or f"{member} is not reachable")
            return least

    @staticmethod
    async def _run_connection(known: _Peer, connection: _Connection) -> None:
        try:
            await connection.run()
        finally:
            known.connections.remove(connection)
            connection.fail("this member is stopping")


class _Peer:
    def __init__(self) -> None:
        self.budget = ByteBudget(IN_FLIGHT_MAX_BYTES)
        self.dialling = trio.Lock()
        self.connections: list[_Connection] = []
        self.dial_again_at, self.complaint = float("-inf"), ""


class _Request:
    """One request, until the asked member and all that it passes the chunk on to have answered."""

    __slots__ = ("body", "done", "error", "release", "size", "told", "waits_for", "wants_body")

    def __init__(self, member: str, message: peer.Put | peer.Get, size: int, release: Callable[[], None],
                 told: Told) -> None:
        self.size, self.release, self.told = size, release, told
        self.wants_body = isinstance(message, peer.Get)
        self.waits_for = {member} if isinstance(message, peer.Get) else {member, *message.then}
        self.done, self.body = trio.Event(), bytearray()
        self.error: RaftmftError | None = None

    def answered(self, member: str, first: str, refusal: str) -> bool:
        """`member` answered; True if it was the last one. `first` is the one that was asked."""
        self.waits_for.remove(member)
        if member == first:
            self.release()
        self.told(member, refusal)
        if not self.waits_for:
            self.done.set()
        return not self.waits_for

    def fail(self, first: str, error: RaftmftError) -> None:
        """Nobody will answer any more."""
        self.error = error
        if first in self.waits_for:
            self.release()
        self.done.set()


class _Connection:
    """One bulk connection that we dialled."""

    def __init__(self, member: str, stream: TlsStream) -> None:
        self.member, self._stream = member, stream
        self._requests: dict[int, _Request] = {}
        self._queue: deque[tuple[bytes, Buffer]] = deque()
        self._wake = trio.Event()
        self._next_seq = 0
        self._failed = False
        self._unanswered = 0
        self.waiting_bytes = 0
        self._scope = trio.CancelScope()

    @property
    def usable(self) -> bool:
        return not self._failed and self._stream.moved_bytes < RETIRE_BYTES

    def start(self, message: peer.Put | peer.Get, body: Buffer, release: Callable[[], None], told: Told) -> _Request:
        if self._failed:
            raise PeerUnreachable(f"the connection to {self.member} broke")
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        request = _Request(self.member, message, len(body), release, told)
        self._requests[seq] = request
        self._unanswered += 1
        self.waiting_bytes += request.size
        numbered = replace(message, seq=seq)
        self._queue.append((peer.encode_bulk(numbered, len(body)), body))
        self._wake.set()
        return request

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            if self._failed:
                return
            nursery.start_soon(self._guarded, self._write)
            nursery.start_soon(self._guarded, self._watch)
            await self._guarded(self._read)

    async def _guarded(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
            self.fail("the peer closed the connection")
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        if self._failed:
            return
        self._failed = True
        self._stream.close()
        self._scope.cancel()
        self._queue.clear()
        requests, self._requests = self._requests, {}
        if requests:
            log.info("bulk connection to %s failed with %d requests under way: %s", self.member, len(requests), reason,
                     extra=fields(member=self.member, count=len(requests), reason=reason))
        for request in requests.values():
            request.fail(self.member, PeerUnreachable(f"the connection to {self.member} broke: {reason}"))

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._queue:
                batch: list[Buffer] = []
                size = 0
                while self._queue and size < WRITE_MAX_BYTES:
                    head, body = self._queue.popleft()
                    # Small ones share a TLS record; a large body is not copied.
                    batch += (head, body) if len(body) > 4096 else (b"".join((head, body)),)
                    size += len(body)
                await self._stream.send_all(*batch)

    async def _watch(self) -> None:
        moved, moved_at = -1, 0.0
        while True:
            now = trio.current_time()
            if moved != self._stream.moved_bytes or not self._unanswered:
                moved, moved_at = self._stream.moved_bytes, now
            elif now - moved_at > PROGRESS_LIMIT_S:
                raise trio.BrokenResourceError(f"nothing moved for {PROGRESS_LIMIT_S:g} s")
            await trio.sleep(PROGRESS_LOOK_S)

    async def _read(self) -> None:
        stream, prefix = self._stream, memoryview(bytearray(peer.BULK_PREFIX.size))
        while await stream.receive_exactly_into(prefix):
            header_length, body_length = peer.bulk_lengths(prefix)
            header, body = bytearray(header_length), bytearray(body_length)
            if not (await stream.receive_exactly_into(memoryview(header))
                    and (not body or await stream.receive_exactly_into(memoryview(body)))):
                raise FrameError("the peer closed in the middle of an answer")
            message = peer.decode_bulk(header, body_length)
            request = self._requests.get(message.seq)
            member = message.member if isinstance(message, peer.Passed) else self.member
            if request is None or member not in request.waits_for or (
                    member == self.member) is isinstance(message, peer.Passed) or (
                    request.wants_body is not isinstance(message, peer.Found)) or (
                    not isinstance(message, peer.Ack | peer.Found | peer.Passed)):
                raise FrameError(f"{self.member} answered nonsense")
            if member == self.member:
                self._unanswered -= 1
                self.waiting_bytes -= request.size
                request.body = body
            refusal = "" if isinstance(message, peer.Found) else message.refusal
            if request.answered(member, self.member, refusal):
                del self._requests[message.seq]
            if not self.usable and not self._requests:
                return


class ByteBudget:
    """At most `limit` bytes are taken at once; who asks for more waits, in order. One single ask may exceed the limit
    when nothing else is taken.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._queue: deque[tuple[int, trio.Event]] = deque()

    async def take(self, size: int) -> None:
        """`size` bytes are taken; give them back. Cancelled: nothing was taken."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._queue and self._fits(size):
            self.used += size
            return
        entry = (size, trio.Event())
        self._queue.append(entry)
        try:
            await entry[1].wait()
        except BaseException:
            if entry[1].is_set():
                self.give(size)
            else:
                self._queue.remove(entry)
                self._admit()
            raise

    def give(self, size: int) -> None:
        """Gives `size` bytes back and admits whom they suffice."""
        self.used -= size
        assert self.used >= 0, "more was given back than taken"
        self._admit()

    def _fits(self, size: int) -> bool:
        return self.used + size <= self.limit or not self.used

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            size, event = self._queue.popleft()
            self.used += size
            event.set()
