"""The node's end of the link to one worker: requests both ways over a local stream socket (wire/link.py).

At most MOST_REQUESTS of the
worker's requests are in work; beyond that the link is not read, which is the worker's backpressure.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Outcome
from raftmft.wire import frames
from raftmft.wire import link as wire
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

MOST_REQUESTS = 512
READ_BYTES = 1 << 18


class Rejected(RaftmftError):
    """A request was refused for a reason that its sender can act on: code of core/outcome.py, and a line."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = str(code)


def value_of(outcome: Outcome) -> dict[str, Any]:
    """The outcome's value; raises Rejected if there is a rejection."""
    if outcome.rejection is not None:
        raise Rejected(outcome.rejection.code, outcome.rejection.text)
    return outcome.value


class Link:
    """One link. `run` serves it until the worker is gone; `request` and `notify` go the other way."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self._next_id = 0
        self._replies: dict[int, list[Any]] = {}
        self._arrived: dict[int, trio.Event] = {}
        self._gone = False

    async def run(self, handler: Callable[[str, dict[str, Any]], Awaitable[Any]]) -> None:
        """Serves requests until EOF, an error or cancellation; requests in work are cancelled then."""
        reader = frames.FrameReader()
        slots = trio.Semaphore(MOST_REQUESTS)
        try:
            async with trio.open_nursery() as nursery:
                while data := await self._stream.receive_some(READ_BYTES):
                    for message in reader.feed(data):
                        await self._take(message, handler, nursery, slots)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the worker died with bytes on the way: the same as EOF
        except* frames.FrameError as group:
            log.error("a worker's link is garbled, it is ended: %s", group.exceptions[0])
        finally:
            self._gone = True
            for event in self._arrived.values():
                event.set()
            with trio.CancelScope(shield=True):
                await self._stream.aclose()

    async def request(self, op: str, args: dict[str, Any]) -> Any:
        """Asks the worker; trio.BrokenResourceError if it is gone, RaftmftError if it failed. Cancelled: the answer
        is dropped when it comes.
        """
        if self._gone:
            raise trio.BrokenResourceError("the worker is gone")
        self._next_id += 1
        number = self._next_id
        event = self._arrived[number] = trio.Event()
        try:
            await self._send(wire.request(number, op, args))
            await event.wait()
            if number not in self._replies:
                raise trio.BrokenResourceError("the worker is gone")
            status, value = self._replies[number]
            if status != wire.OK:
                raise RaftmftError(str(value))
            return value
        finally:
            self._arrived.pop(number, None)
            self._replies.pop(number, None)

    async def _take(self, message: Any, handler: Callable[[str, dict[str, Any]], Awaitable[Any]],
                    nursery: trio.Nursery, slots: trio.Semaphore) -> None:
        match wire.parse(message):
            case wire.Request(number, op, args):
                await slots.acquire()
                nursery.start_soon(self._serve, number, op, args, handler, slots)
            case wire.Reply(number, status, value):
                if number in self._arrived:
                    self._replies[number] = [status, value]
                    self._arrived[number].set()
            case wire.Notification(op, args):
                # In order and before anything that was sent later: a read's end precedes its session's end.
                await slots.acquire()
                await self._serve(None, op, args, handler, slots)

    async def _serve(self, number: int | None, op: str, args: dict[str, Any],
                     handler: Callable[[str, dict[str, Any]], Awaitable[Any]], slots: trio.Semaphore) -> None:
        status, value = wire.OK, None
        try:
            value = await handler(op, args)
        except Rejected as refusal:
            status, value = wire.REJECTED, {"code": refusal.code, "text": str(refusal)}
        except NoQuorum as trouble:
            status, value = wire.NO_QUORUM, str(trouble)
        except OutcomeUnknown as trouble:
            status, value = wire.UNKNOWN, str(trouble)
        except RaftmftError as trouble:
            status, value = wire.FAILED, str(trouble)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # Either the worker sent nonsense or we have a bug: say so loudly, answer, and live.
            log.exception("request %s from a worker failed", op, extra=fields(
                request=op, op=args.get("op") or "", session=args.get("session"), upload=args.get("upload")))
            status, value = wire.FAILED, f"{op} failed inside the node ({type(error).__name__}); see its log"
        finally:
            slots.release()
        if number is not None:
            await self._send(wire.reply(number, status, value))

    async def _send(self, frame: bytes) -> None:
        async with self._sending:
            # A frame cut by cancellation would garble the link, so it is sent whole; a worker that does not read is
            # bounded by its own request window.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10) as scope:
                await self._stream.send_all(frame)
            if scope.cancelled_caught:
                await self._stream.aclose()
                raise trio.BrokenResourceError("the worker does not read its link")
