"""Bulk links, answering side: keeps the chunks that peers put here and gives them those they ask for.

A Put is read into one of a few reusable buffers, verified, appended, and acknowledged when its segment was synced after
that: one sync serves all that arrived meanwhile, and their acknowledgements leave in one write. While a thread hashes
and appends one large chunk, the next is decrypted. All is bounded: RECEIVE_BUFFERS chunks being stored and GETS_MAX
being read per connection; beyond that the connection is not read, and TCP holds the peer back.

What is held already is appended again, unless content may be shared by all users (`shares`): else whoever uploads could
tell by the time and by the room on the disk what others have. A put of what its own user has is not even sent
(node/hits.py).

A put that names further members is passed on to them at the same time (passing.py).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable

import trio

from raftmft.cluster.holdings import INLINE_BYTES, ChunkDamaged, Holdings
from raftmft.cluster.passing import Passing
from raftmft.cluster.tls import TlsStream
from raftmft.core.errors import RaftmftError
from raftmft.wire import peer
from raftmft.wire.frames import FrameError
from raftmft.wire.loglines import fields

RECEIVE_BUFFERS = 3
GETS_MAX = 4
UNSYNCED_MAX_BYTES = 64 << 20
"""How much one connection may have appended without its sync having ended: then it is not read until one has."""

log = logging.getLogger(__name__)


class BulkServer:
    """Serves bulk connections of peers out of `holdings`; `serve` is the listener's `on_bulk`.

    on_damaged(chunk_id) is told of chunks whose copy here turned out to be bad: repair them. `other` is asked for what
    is no chunk: the parts of snapshots. `shares()`: whether a put of what is held here is a hit (dedup.scope).
    Without `passing` nothing is passed on.
    """

    def __init__(self, holdings: Holdings, *, on_damaged: Callable[[bytes], None] = lambda chunk_id: None,
                 other: Callable[[bytes], Awaitable[bytes | None]] | None = None,
                 shares: Callable[[], bool] = lambda: False, passing: Passing | None = None) -> None:
        self._holdings, self._on_damaged, self._other, self._shares = holdings, on_damaged, other, shares
        self.passing = passing
        self.counts: Counter[str] = Counter()

    async def serve(self, member: str, stream: TlsStream) -> None:
        """Serves until the peer closes or misbehaves. Cancelled: what was appended but not acknowledged may stay."""
        await _Served(self, member, stream).run()

    # --- what a connection does with the store ------------------------------------------------------------------------
    async def keep(self, served: _Served, put: peer.Put, data: memoryview) -> None:
        """Stores one chunk and acknowledges when it is durable, or refuses."""
        seq, size = put.seq, len(data)

        def acknowledge(refusal: str) -> None:
            served.acknowledge(seq, size, refusal)

        if self._shares() and self._holdings.touch(put.chunk_id, acknowledge):
            self.counts["hits"] += 1
            return
        try:
            place = await self._holdings.add(put.chunk_id, data, again=True)
        except (ChunkDamaged, RaftmftError, OSError) as error:
            self.counts["refused"] += 1
            acknowledge(str(error) or "the chunk could not be stored")
            return
        self.counts["kept"] += 1
        self._holdings.when_durable(place, acknowledge)

    async def find(self, get: peer.Get) -> bytes:
        """The chunk, or b"" when it is not held here or was found to be bad."""
        try:
            data = await self._holdings.read(get.chunk_id) or b""
            if not data and self._other is not None:
                data = await self._other(get.chunk_id) or b""
        except (ChunkDamaged, OSError) as error:
            self.counts["damaged"] += 1
            log.error("chunk %s cannot be read and is not served: %s", get.chunk_id.hex()[:16], error,
                      extra=fields(chunk=get.chunk_id))
            self._on_damaged(get.chunk_id)
            return b""
        self.counts["served" if data else "missed"] += 1
        return data


_Outgoing = tuple[bytes, bytes, trio.Event | None]
"""Head, body, and what is set when they have left."""


class _Served:
    """One bulk connection that a peer dialled."""

    def __init__(self, server: BulkServer, member: str, stream: TlsStream) -> None:
        self._server, self._member, self._stream = server, member, stream
        self._free: deque[bytearray] = deque()
        self._buffers = trio.Semaphore(RECEIVE_BUFFERS)
        self._gets = trio.Semaphore(GETS_MAX)
        self._out: list[_Outgoing] = []
        self._wake = trio.Event()
        self._unsynced_bytes = 0
        self._synced = trio.Event()
        self._ended = False

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guarded, self._write, nursery)
                await self._guarded(lambda: self._read(nursery), nursery)
        finally:
            self._ended = True

    def acknowledge(self, seq: int, size: int, refusal: str) -> None:
        """The answer to a Put of `size` bytes leaves with the next write. After the connection ended, none does."""
        self._unsynced_bytes -= size
        self._synced.set()
        if not self._ended:
            self._send(peer.encode_bulk(peer.Ack(seq, refusal)))

    async def _guarded(self, part: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        try:
            await part()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.info("bulk connection of %s ended: %s", self._member, error, extra=fields(member=self._member))
        except FrameError as error:
            self._server.counts["malformed"] += 1
            log.warning("bulk connection of %s dropped: %s", self._member, error, extra=fields(member=self._member))
        nursery.cancel_scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        stream, prefix = self._stream, memoryview(bytearray(peer.BULK_PREFIX.size))
        while await stream.receive_exactly_into(prefix):
            header_length, body_length = peer.bulk_lengths(prefix)
            header = memoryview(bytearray(header_length))
            await self._exactly(header)
            message = peer.decode_bulk(header, body_length)
            if isinstance(message, peer.Put):
                await self._take_put(message, body_length, nursery)
            elif isinstance(message, peer.Get):
                await self._gets.acquire()
                nursery.start_soon(self._answer_get, message)
            elif isinstance(message, peer.Unknown):
                await self._refuse_unknown(message, body_length)
            else:
                raise FrameError("an answer from a peer that was not asked")

    async def _take_put(self, put: peer.Put, size: int, nursery: trio.Nursery) -> None:
        while self._unsynced_bytes > UNSYNCED_MAX_BYTES:
            self._synced = trio.Event()
            await self._synced.wait()
        await self._buffers.acquire()
        buffer = self._free.pop() if self._free else bytearray(peer.BULK_BODY_LIMIT)
        body = memoryview(buffer)[:size]
        await self._exactly(body)
        self._unsynced_bytes += size
        kept, free = trio.Event(), self._free.append
        if put.then and await self._passes_on(put):
            nursery.start_soon(self._pass_on, put, body, buffer, kept)
            free = _left_to_another
        if size <= INLINE_BYTES:
            await self._keep(put, body, buffer, kept, free)
        else:
            nursery.start_soon(self._keep, put, body, buffer, kept, free)

    async def _passes_on(self, put: peer.Put) -> bool:
        passing = self._server.passing
        why_not = passing.begin(self._member, put.then) if passing else "this member passes nothing on"
        if why_not:
            sent = trio.Event()
            for number, member in enumerate(put.then, 1):
                self._send(peer.encode_bulk(peer.Passed(put.seq, member, why_not)), b"",
                           sent if number == len(put.then) else None)
            await sent.wait()  # not read meanwhile: who asks and never reads costs no memory
        return not why_not

    async def _refuse_unknown(self, message: peer.Unknown, size: int) -> None:
        self._server.counts["unknown_kind"] += 1
        await self._exactly(memoryview(bytearray(size)))
        sent = trio.Event()
        self._send(peer.encode_bulk(peer.Ack(message.seq, "this member does not know such a request")), b"", sent)
        await sent.wait()  # as in _passes_on

    async def _keep(self, put: peer.Put, body: memoryview, buffer: bytearray, kept: trio.Event,
                    free: Callable[[bytearray], None]) -> None:
        await self._server.keep(self, put, body)
        kept.set()
        free(buffer)
        self._buffers.release()

    async def _pass_on(self, put: peer.Put, body: memoryview, buffer: bytearray, kept: trio.Event) -> None:
        assert self._server.passing is not None
        await self._server.passing.run(put, body, lambda member, refusal: self._send(
            peer.encode_bulk(peer.Passed(put.seq, member, refusal))))
        await kept.wait()
        if len(self._free) < RECEIVE_BUFFERS:
            self._free.append(buffer)

    async def _answer_get(self, get: peer.Get) -> None:
        data = await self._server.find(get)
        # Not freed before the answer left: what waits to leave is bounded by GETS_MAX chunks.
        sent = trio.Event()
        self._send(peer.encode_bulk(peer.Found(get.seq), len(data)), data, sent)
        await sent.wait()
        self._gets.release()

    async def _exactly(self, view: memoryview) -> None:
        if not await self._stream.receive_exactly_into(view):
            raise FrameError("the peer closed in the middle of a message")

    def _send(self, head: bytes, body: bytes = b"", sent: trio.Event | None = None) -> None:
        self._out.append((head, body, sent))
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._out:
                batch, self._out = self._out, []
                await self._stream.send_all(*_gathered(batch))
                for _, _, sent in batch:
                    if sent is not None:
                        sent.set()


def _left_to_another(buffer: bytearray) -> None:
    """The buffer is still read by another task, which frees it."""


def _gathered(batch: list[_Outgoing]) -> list[bytes]:
    """The buffers to send: runs of heads without a body (acknowledgements) joined, bodies as they are."""
    buffers: list[bytes] = []
    heads: list[bytes] = []
    for head, body, _ in batch:
        heads.append(head)
        if body:
            buffers += (b"".join(heads), body)
            heads = []
    return [*buffers, b"".join(heads)]
