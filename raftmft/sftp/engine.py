"""One SFTP channel: bytes in, requests in order, replies out, and nothing without a bound.

Requests are done strictly in the order they came, but for those that may take minutes (check-file): they are begun in
their turn, at most MOST_ASIDE at once, and answered when they are done. One that needs no waiting, with nothing queued
before it, is done as it arrives; others are queued for the pump task. Over MOST_QUEUED requests or bytes the channel is
not read, and SSH's window (4 MiB) stops the client. Replies are gathered and written once per turn of the loop; while
the client does not take them nothing is done at all.

How it ends: `eof` (the client ends the channel in order: what was asked before is done first), or `lost` (what is
queued is dropped; a CLOSE under way is brought to its end). Either way what is still open ends without being
published. Only a client's CLOSE publishes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

from raftmft.core.errors import RaftmftError
from raftmft.sftp import opids, status
from raftmft.sftp import packets as p
from raftmft.sftp.extended import OFFERED
from raftmft.sftp.names import BadPath
from raftmft.sftp.operations import Buffers, Operations
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

MOST_QUEUED = 64
MOST_QUEUED_BYTES = 1 << 20
MOST_UNSENT_BYTES = 512 << 10
MOST_ASIDE = 4
TURNS = 32
"""After so many requests done without waiting the loop serves others."""


class Channel(Protocol):
    """What the engine needs of an SSH channel."""

    def write(self, data: bytes) -> None:
        """Sends, or keeps until the window allows."""

    def pause_reading(self) -> None:
        """No more `feed`."""

    def resume_reading(self) -> None:
        """Feeds again."""

    def exit(self, exit_status: int) -> None:
        """Ends the channel."""

    def is_closing(self) -> bool:
        """Whether it can be written to no more."""


class Traffic:
    """Bytes of file content that a worker moved, in and out, since it began."""

    def __init__(self) -> None:
        self.bytes_in = self.bytes_out = 0


class Engine:
    """Serves one channel, in a task of its own. `is_clear` is set while the connection as a whole can send."""

    def __init__(self, channel: Channel, operations: Operations, traffic: Traffic, is_clear: asyncio.Event) -> None:
        self._channel, self._operations, self._traffic = channel, operations, traffic
        self._clear = is_clear
        self._packets = p.PacketReader()
        self._queue: deque[tuple[p.Request, int]] = deque()
        self._queued_bytes = 0
        self._unsent: Buffers = []
        self._unsent_bytes = 0
        self._wake = asyncio.Event()
        self._asides: set[asyncio.Task[None]] = set()
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._is_busy = self._is_paused = self._is_ending = self._is_lost = self._is_begun = False
        self._exit_status = 0
        self.heard_s = time.monotonic()
        """When bytes last came."""
        self.task = asyncio.get_running_loop().create_task(self._run())

    # --- from the channel ------------------------------------------------------------------------
    def feed(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._is_ending or self._is_lost:
            return
        self.heard_s = time.monotonic()
        try:
            for body in self._packets.feed(data):
                self._accept(p.parse(body) if self._is_begun else self._begin(body), len(body))
        except p.PacketError as error:
            log.info("an SFTP session is ended: %s", error, extra=fields(**self._operations.about))
            self._exit_status = 1
            self.eof()
        if not self._is_paused and (len(self._queue) > MOST_QUEUED or self._queued_bytes > MOST_QUEUED_BYTES):
            self._is_paused = True
            self._channel.pause_reading()

    def eof(self) -> None:
        """The client sends no more."""
        self._is_ending = True
        self._wake.set()

    def lost(self) -> None:
        """The channel is gone."""
        self._is_lost = True
        self._queue.clear()
        self._drop_asides()
        self._operations.over()
        self._may_send.set()
        self._wake.set()

    def pause_writing(self) -> None:
        """The client does not take replies."""
        self._may_send.clear()

    def resume_writing(self) -> None:
        """It takes them again."""
        self._may_send.set()

    # --- in order --------------------------------------------------------------------------------
    def _begin(self, body: memoryview) -> p.Request:
        request = p.parse(body)
        if not isinstance(request, p.Init):
            raise p.PacketError("the first packet must be INIT")
        self._is_begun = True
        return request

    def _accept(self, request: p.Request, size: int) -> None:
        if not self._is_busy and not self._queue and self._can_send() and self._try(request):
            return
        self._queue.append((request, size))
        self._queued_bytes += size
        self._wake.set()

    def _try(self, request: p.Request) -> bool:
        """Does a request that needs no waiting."""
        try:
            if isinstance(request, p.Init):
                self._send([p.version_reply(OFFERED)])
                return True
            reply = self._operations.at_once(request)
        except (RaftmftError, BadPath, status.Answer) as trouble:
            reply = [p.status_reply(request.id, *status.status_of(trouble))]
        if reply is None:
            return False
        self._reply(request, reply)
        return True

    async def _run(self) -> None:
        turns = 0
        while not self._is_lost:
            if not self._queue:
                if self._is_ending:
                    break
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._until_sendable()
            if not self._queue:
                continue
            request, size = self._queue.popleft()
            self._queued_bytes -= size
            self._is_busy = True
            if not self._try(request) and not await self._put_aside(request):
                self._reply(request, await self._outcome(request, self._operations.serve(request)))
            self._is_busy = False
            turns += 1
            if turns % TURNS == 0:
                await asyncio.sleep(0)
            self._resume()
        await self._end()

    async def _put_aside(self, request: p.Request) -> bool:
        """Begins a request beside others, when few enough are; False if it is not of that kind."""
        aside = self._operations.aside(request)
        if aside is None:
            return False
        work, release = aside

        async def answer() -> None:
            self._reply(request, await self._outcome(request, work))

        while len(self._asides) >= MOST_ASIDE:
            await asyncio.wait(self._asides, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.get_running_loop().create_task(answer())
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)
        task.add_done_callback(lambda _: (work.close(), release()))  # also if it is cancelled before it began
        if self._is_lost:
            task.cancel()
        return True

    def _drop_asides(self) -> None:
        for task in self._asides:
            task.cancel()

    async def _outcome(self, request: p.Request, work: Coroutine[Any, Any, Buffers]) -> Buffers:
        try:
            return await work
        except (RaftmftError, BadPath, status.Answer) as trouble:
            return [p.status_reply(request.id, *status.status_of(trouble))]
        except Exception:
            # Our bug: say so loudly, answer this request, and let the session's other files live.
            log.exception("an SFTP request %s failed", type(request).__name__, extra=fields(
                request=type(request).__name__, op=opids.present(), **self._operations.about))
            return [p.status_reply(request.id, status.FAILURE, "internal error; see the server's log")]

    async def _end(self) -> None:
        self._queue.clear()
        self._drop_asides()
        try:
            await self._operations.end()
        finally:
            if not self._is_lost:
                self._flush()
                self._channel.exit(self._exit_status)

    def _resume(self) -> None:
        if self._is_paused and len(self._queue) <= MOST_QUEUED // 2 and self._queued_bytes <= MOST_QUEUED_BYTES // 2:
            self._is_paused = False
            if not self._is_lost:
                self._channel.resume_reading()

    # --- replies ---------------------------------------------------------------------------------
    def _can_send(self) -> bool:
        return self._unsent_bytes < MOST_UNSENT_BYTES and self._may_send.is_set() and self._clear.is_set()

    async def _until_sendable(self) -> None:
        while not self._can_send() and not self._is_lost:
            self._flush()
            await self._may_send.wait()
            await self._clear.wait()

    def _reply(self, request: p.Request, reply: Buffers) -> None:
        if isinstance(request, p.Write):
            self._traffic.bytes_in += len(request.data)
        elif isinstance(request, p.Read) and len(reply) > 1:
            self._traffic.bytes_out += sum(map(len, reply)) - len(reply[0])
        self._send(reply)

    def _send(self, buffers: Buffers) -> None:
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += buffers
        self._unsent_bytes += sum(map(len, buffers))

    def _flush(self) -> None:
        if self._unsent:
            data = b"".join(self._unsent)
            self._unsent, self._unsent_bytes = [], 0
            if not self._is_lost and not self._channel.is_closing():
                self._channel.write(data)
