"""The worker's end of the link to its node (wire/link.py): requests with ids, notifications, and the node's requests.

At most MOST_REQUESTS of ours are under way; further ones wait their turn. A request whose asker was cancelled is
forgotten: its answer is dropped when it comes, and whether it was done is then not known to the asker. When the link is
lost every request fails with LinkLost, and so does every later one; the process has no other purpose and ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Code
from raftmft.wire import frames
from raftmft.wire import link as wire
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

MOST_REQUESTS = 384
"""Below the node's own bound of requests in work, so that notifications never wait behind requests."""
MOST_SERVED = 64
"""The node's requests in work at once; a node that asks more is broken."""

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Refused(RaftmftError):
    """The node, or the state machine, refused the request; `code` is a core.outcome.Code if it is a known one."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code: Code | str = Code(code) if code in Code._value2member_map_ else code


class LinkLost(OutcomeUnknown):
    """The node is gone; the worker ends."""


class Link(asyncio.Protocol):
    """One link. Give it to `loop.create_connection(lambda: link, sock=...)`; `on_lost` is called once at its end."""

    def __init__(self, handler: Handler, on_lost: Callable[[], None]) -> None:
        self._handler, self._on_lost = handler, on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._reader = frames.FrameReader()
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._slots = asyncio.Semaphore(MOST_REQUESTS)
        self._writable = asyncio.Event()
        self._served: set[asyncio.Task[None]] = set()
        self._is_lost = False

    async def request(self, op: str, args: dict[str, Any]) -> Any:
        """The value that the node answers.

        Refused, NoQuorum (certainly not done), OutcomeUnknown, or RaftmftError for its other answers; LinkLost if the
        node is gone.
        """
        async with self._slots:
            await self._writable.wait()
            if self._is_lost or self._transport is None:
                raise LinkLost("this node is going down: outcome unknown")
            self._next_id += 1
            number = self._next_id
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self._waiting[number] = answer
            try:
                self._transport.write(wire.request(number, op, args))
                return await answer
            finally:
                self._waiting.pop(number, None)

    def notify(self, op: str, args: dict[str, Any]) -> None:
        """Tells the node something; lost if the node is gone. What is told is bounded by the requests before it."""
        if self._transport is not None and not self._is_lost:
            self._transport.write(wire.notification(op, args))

    # --- asyncio.Protocol ------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The link is up."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's transports are no subclasses
        self._writable.set()

    def pause_writing(self) -> None:
        """The node does not read: new requests wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The node reads again."""
        if not self._is_lost:
            self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Sorts replies and serves the node's requests. Garbage ends the link."""
        try:
            for value in self._reader.feed(data):
                self._take(wire.parse(value))
        except frames.FrameError as error:
            log.error("the link to the node is garbled (%s); this worker ends", error)
            self.connection_lost(None)

    def eof_received(self) -> bool:
        """The node is gone."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Fails everything that waits, then calls `on_lost`, once."""
        if self._is_lost:
            return
        self._is_lost = True
        self._writable.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LinkLost("this node went down: outcome unknown"))
                answer.exception()  # seen: whoever waited may have been cancelled
        self._on_lost()

    # --- leaves ----------------------------------------------------------------------------------
    def _take(self, message: wire.Request | wire.Reply | wire.Notification) -> None:
        if isinstance(message, wire.Reply):
            answer = self._waiting.get(message.id)
            if answer is not None and not answer.done():
                if message.status == wire.OK:
                    answer.set_result(message.value)
                else:
                    answer.set_exception(_trouble(message))
        elif isinstance(message, wire.Request):
            if len(self._served) >= MOST_SERVED:
                raise frames.FrameError("more requests at once than a node has")
            task = asyncio.get_running_loop().create_task(self._serve(message))
            self._served.add(task)
            task.add_done_callback(self._served.discard)

    async def _serve(self, request: wire.Request) -> None:
        status, value = wire.OK, None
        try:
            value = await self._handler(request.op, request.args)
        except RaftmftError as trouble:
            status, value = wire.FAILED, str(trouble)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.exception("the node's request %s failed", request.op, extra=fields(
                request=request.op, session=request.args.get("session"), upload=request.args.get("upload")))
            status, value = wire.FAILED, f"{request.op} failed inside the worker ({type(error).__name__})"
        if self._transport is not None and not self._is_lost:
            self._transport.write(wire.reply(request.id, status, value))


def _trouble(reply: wire.Reply) -> RaftmftError:
    if reply.status == wire.REJECTED and isinstance(reply.value, dict):
        return Refused(str(reply.value.get("code")), str(reply.value.get("text")))
    kind = {wire.NO_QUORUM: NoQuorum, wire.UNKNOWN: OutcomeUnknown}.get(reply.status, RaftmftError)
    return kind(str(reply.value))
