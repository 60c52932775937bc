"""Control links: one TLS connection per pair of members, for small messages that must not wait.

Of two members the one with the greater id dials; a newer connection replaces an older one (which is then surely dead
or dying). Who is left alone dials out of turn (turns.py); when two dial each other at once both keep the link that was
dialled in turn.

`send` never blocks: a message goes straight to the kernel when the link is idle; messages that follow before
the link's writer has run are sent together in one TLS write. A link that lags by more than BUFFER_MAX_BYTES is dropped:
Raft and requests know how to lose messages, memory does not know how to lose bytes.

A peer that says nothing for SILENCE_LIMIT_S is taken for dead; both sides ping. Should this process itself have been
stopped meanwhile, the peer is given another chance, as its pings lie unread in the socket.

Requests (`request`, `handle`) ride on the same link; each link runs at most REQUESTS_MAX of the peer's at once.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio

from raftmft.cluster.hello import (
    DIAL_TIMEOUT_S,
    Directory,
    PeerRefused,
    PeerRemovedUs,
    PeerUnreachable,
    Self,
    dial,
)
from raftmft.cluster.tls import TlsStream
from raftmft.cluster.turns import Turns
from raftmft.core.addresses import address_text
from raftmft.core.errors import RaftmftError
from raftmft.wire import peer
from raftmft.wire.frames import FrameError, FrameReader
from raftmft.wire.loglines import fields

PING_PERIOD_S = 0.5
SILENCE_LIMIT_S = 2.5
HEARD_WITHIN_S = 3 * PING_PERIOD_S
"""A member from which nothing was heard for this long is not reachable now, though its link may yet be kept."""
BUFFER_MAX_BYTES = 64 << 20
WRITE_MAX_BYTES = 1 << 20
READ_BYTES = 256 << 10
BACKOFF_MIN_S = 0.05
MEMBERS_PERIOD_S = 0.5
REQUESTS_MAX = 64

log = logging.getLogger(__name__)

OnMessage = Callable[[str, bytes], None]
Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]
Addresses = Callable[[], Mapping[str, tuple[str, int]]]
"""The other members' peer addresses: member id -> (host, port)."""

_PING = peer.encode_control(peer.PING, b"")


class RequestFailed(RaftmftError):
    """The peer did not do what was asked, and said so in one line."""


class RequestLost(RaftmftError):
    """No answer came: the peer may or may not have done what was asked."""


class PeerLinks:
    """This member's control links. `run` must be running; `serve` is the listener's `on_control`.

    on_up(member), on_down(member) and message callbacks are called synchronously and must not block. A callback that
    raises FrameError (what it was given is malformed) drops the link; any other exception is a bug and stops the node.
    While `dial_all()` holds this member dials all: it moved, and the others look for it elsewhere. `on_removed()` is
    called when a listed member says that this one was removed: the others cut it off with the entry that removes it, so
    that it may never see that committed.
    """

    def __init__(self, me: Self, addresses: Addresses, directory: Directory, *,
                 on_up: Callable[[str], None] = lambda member: None,
                 on_down: Callable[[str], None] = lambda member: None,
                 dial_all: Callable[[], bool] = lambda: False,
                 on_removed: Callable[[], object] = lambda: None) -> None:
        self._me, self._addresses, self._directory = me, addresses, directory
        self._on_up, self._on_down, self._dial_all, self._on_removed = on_up, on_down, dial_all, on_removed
        self._links: dict[str, _Link] = {}
        self._dialling: dict[str, trio.CancelScope] = {}
        self._callbacks: dict[str, OnMessage] = {}
        self._handlers: dict[str, Handler] = {}
        self._asked: dict[int, tuple[_Link, trio.Event, list[Any]]] = {}
        self._next_seq = 0
        self._turns = Turns(me.member)
        self._changed = trio.Event()
        self.counts: Counter[str] = Counter()

    # --- what others use ----------------------------------------------------------------------------------------------
    def on_message(self, kind: str, callback: OnMessage) -> None:
        """`callback(member, body)` gets every message of this kind. One callback a kind, set before `run`."""
        assert kind not in self._callbacks and kind not in (peer.PING, peer.ASK, peer.ANSWER), kind
        self._callbacks[kind] = callback

    def handle(self, op: str, handler: Handler) -> None:
        """`await handler(member, args)` answers requests for `op`. Its RaftmftError or ValueError: RequestFailed."""
        assert op not in self._handlers, op
        self._handlers[op] = handler

    def connected(self) -> frozenset[str]:
        """The members that a link is up to."""
        return frozenset(self._links)

    def hears(self, member: str) -> bool:
        """Whether the member is reachable: a link is up, and something came over it within HEARD_WITHIN_S. A busy
        member is, a stopped one or one behind a cut cable is not. Just after a pause of this process it may be False.
        """
        link = self._links.get(member)
        return link is not None and trio.current_time() - link.heard_at <= HEARD_WITHIN_S

    def send(self, member: str, kind: str, body: bytes) -> bool:
        """Takes the message for sending, in order, without blocking. False: no link, or it was just dropped. True is no
        promise that it arrives.
        """
        link = self._links.get(member)
        return link is not None and link.send(peer.encode_control(kind, body))

    async def request(self, member: str, op: str, args: dict[str, Any] | None = None, *, timeout_s: float = 5.0) -> Any:
        """The value with which `member`'s handler of `op` answered.

        PeerUnreachable: certainly not asked. RequestFailed: it refused or failed. RequestLost: the link broke or
        `timeout_s` passed; it may have been done. Cancelled: likewise unknown.
        """
        link = self._links.get(member)
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        if link is None or not link.send(peer.encode_control(peer.ASK, peer.encode_ask(seq, op, args or {}))):
            raise PeerUnreachable(f"{member} is not connected: see `raftmft status`")
        done, answer = trio.Event(), list[Any]()
        self._asked[seq] = (link, done, answer)
        try:
            with trio.move_on_after(timeout_s):
                await done.wait()
        finally:
            del self._asked[seq]
        if not answer:
            raise RequestLost(f"{member} did not answer {op} in {timeout_s:g} s" if not link.down else
                              f"the link to {member} broke while it was asked for {op}")
        status, value = answer
        if status != peer.OK:
            raise RequestFailed(f"{member}: {value}")
        return value

    def cut_off(self, member: str) -> None:
        """Closes the link to `member` at once. It comes back only if the directory still lists the member."""
        if link := self._links.get(member):
            self._drop(link, "cut off")

    def refresh(self) -> None:
        """To be called when members or addresses changed: links to those no longer listed are closed at once."""
        self._changed.set()
        listed = self._directory()
        for link in list(self._links.values()):
            if listed.get(link.fingerprint) != link.member:
                self._drop(link, "no longer listed")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the links up that are ours to dial, until cancelled; then all of them are closed."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    self._changed = trio.Event()
                    wanted = self._turns.wanted(trio.current_time(), self._addresses(), self._links,
                                                is_moved=self._dial_all())
                    for member in wanted - set(self._dialling):
                        self._dialling[member] = trio.CancelScope()
                        nursery.start_soon(self._keep_dialling, member, self._dialling[member])
                    for member in set(self._dialling) - wanted:
                        if member not in self._links or member not in self._addresses():
                            self._dialling[member].cancel()
                    with trio.move_on_after(MEMBERS_PERIOD_S):
                        await self._changed.wait()
        finally:
            for link in list(self._links.values()):
                self._drop(link, "stopping")

    async def serve(self, member: str, stream: TlsStream) -> None:
        """Makes `stream`, which `member` opened, the link to it and serves it until it is down; it is closed then."""
        await self._serve(member, stream, is_in_turn=not self._turns.is_mine(member))

    # --- within -------------------------------------------------------------------------------------------------------
    async def _serve(self, member: str, stream: TlsStream, *, is_in_turn: bool) -> None:
        if older := self._links.get(member):
            if older.is_in_turn and not is_in_turn and trio.current_time() - older.opened_at < DIAL_TIMEOUT_S:
                return  # they crossed: the other side decides likewise
            self._drop(older, "replaced by a newer connection")
        link = _Link(member, stream, is_in_turn)
        try:
            async with trio.open_nursery() as nursery:
                link.scope = nursery.cancel_scope
                self._links[member] = link
                self._on_up(member)
                nursery.start_soon(self._guarded, link, link.write)
                nursery.start_soon(self._guarded, link, link.watch)
                await self._guarded(link, lambda: self._read(link, nursery))
                nursery.cancel_scope.cancel()
        finally:
            self._drop(link, "closed")

    async def _keep_dialling(self, member: str, scope: trio.CancelScope) -> None:
        is_in_turn = self._turns.is_mine(member)
        with scope:
            backoff_s, complaint = BACKOFF_MIN_S, ""
            try:
                while (address := self._addresses().get(member)) is not None:
                    if member in self._links:  # it dialled this one: only one that does not find it must be dialled
                        if not is_in_turn:
                            return
                        await trio.sleep(MEMBERS_PERIOD_S)
                        continue
                    try:
                        stream = await dial(self._me, member, address, peer.CONTROL, self._directory)
                    except (PeerUnreachable, PeerRefused) as error:
                        self.counts["dial_failed"] += 1
                        if isinstance(error, PeerRemovedUs):
                            self._on_removed()
                        if str(error) != complaint:  # once per reason, not once per attempt
                            complaint = str(error)
                            log.warning("%s", complaint, extra=fields(member=member, address=address_text(*address)))
                        await trio.sleep(backoff_s * random.uniform(0.5, 1.0))
                        backoff_s = min(backoff_s * 2,
                                        self._turns.backoff_max_s(member, is_moved=self._dial_all()))
                        continue
                    backoff_s, complaint = BACKOFF_MIN_S, ""
                    try:
                        await self._serve(member, stream, is_in_turn=is_in_turn)
                    finally:
                        stream.close()
                    if not is_in_turn:
                        return  # `run` starts it again if it is wanted still
                    await trio.sleep(BACKOFF_MIN_S)
            finally:
                del self._dialling[member]

    async def _guarded(self, link: _Link, part: Callable[[], Awaitable[None]]) -> None:
        """One part of a link's work: what can go wrong with a peer ends the link, nothing else."""
        try:
            await part()
            reason = "the peer closed it"
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as error:
            reason = str(error)
        self._drop(link, reason)

    def _drop(self, link: _Link, reason: str) -> None:
        if link.down:
            return
        link.down = True
        link.stream.close()
        link.scope.cancel()
        self.counts["dropped"] += 1
        log.info("link to %s is down: %s", link.member, reason, extra=fields(member=link.member, reason=reason))
        for owner, done, _ in self._asked.values():
            if owner is link:
                done.set()
        if self._links.get(link.member) is link:
            del self._links[link.member]
            self._on_down(link.member)

    async def _read(self, link: _Link, nursery: trio.Nursery) -> None:
        reader = FrameReader(peer.CONTROL_LIMIT)
        buffer = memoryview(bytearray(READ_BYTES))
        while count := await link.stream.receive_into(buffer):
            link.heard_at = trio.current_time()
            for value in reader.feed(buffer[:count]):
                kind, body = peer.decode_control(value)
                callback = self._callbacks.get(kind)
                if callback is not None:
                    callback(link.member, body)
                elif kind == peer.ASK:
                    self._take_request(link, body, nursery)
                elif kind == peer.ANSWER:
                    self._take_answer(link, body)
                elif kind != peer.PING:
                    self.counts["unknown_kind"] += 1
                if link.down:
                    return

    def _take_answer(self, link: _Link, body: bytes) -> None:
        seq, status, value = peer.decode_answer(body)
        owner, done, answer = self._asked.get(seq, (None, None, None))
        # Late answers are dropped, and so are answers by a member that was not asked.
        if owner is link and done is not None and answer is not None and not answer:
            answer += (status, value)
            done.set()

    def _take_request(self, link: _Link, body: bytes, nursery: trio.Nursery) -> None:
        seq, op, args = peer.decode_ask(body)
        handler = self._handlers.get(op)
        if handler is None:
            self._answer(link, seq, peer.FAILED, f"this member knows no request {op!r}")
        elif link.requests >= REQUESTS_MAX:
            self.counts["busy"] += 1
            self._answer(link, seq, peer.BUSY, "too many requests at once, ask again")
        else:
            link.requests += 1
            nursery.start_soon(self._run_request, link, handler, seq, args)

    async def _run_request(self, link: _Link, handler: Handler, seq: int, args: dict[str, Any]) -> None:
        try:
            self._answer(link, seq, peer.OK, await handler(link.member, args))
        except (RaftmftError, ValueError, KeyError, TypeError) as error:
            text = str(error)
            if not isinstance(error, RaftmftError | ValueError):  # what a handler meets in arguments of a wrong shape
                text = f"wrong arguments ({type(error).__name__}: {error})"
                log.warning("a request by %s failed", link.member, exc_info=True, extra=fields(member=link.member))
            self._answer(link, seq, peer.FAILED, text[: peer.TEXT_LIMIT])
        finally:
            link.requests -= 1

    @staticmethod
    def _answer(link: _Link, seq: int, status: str, value: Any) -> None:
        link.send(peer.encode_control(peer.ANSWER, peer.encode_answer(seq, status, value)))


class _Link:
    """One connection's outgoing side and its liveness."""

    def __init__(self, member: str, stream: TlsStream, is_in_turn: bool) -> None:
        self.member, self.stream, self.is_in_turn = member, stream, is_in_turn
        self.fingerprint = stream.peer_fingerprint()
        self.scope = trio.CancelScope()
        self.opened_at = self.heard_at = trio.current_time()
        self.down = self._failing = False
        self.requests = 0
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._resting = True
        self._wake = trio.Event()

    def send(self, frame: bytes) -> bool:
        if self.down or self._failing:
            return False
        if self._resting and self.stream.idle:
            # The first message of a burst leaves at once, without waiting for a task to be scheduled; the writer, woken
            # here, takes all that follow until then in one write.
            self._resting = False
            self._wake.set()
            try:
                self.stream.send_now(frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return self._fail()
            return True
        self._queued_bytes += len(frame)
        self._queue.append(frame)
        self._resting = False
        self._wake.set()
        if self._queued_bytes > BUFFER_MAX_BYTES:
            log.warning("the link to %s lags by more than %d MiB and is dropped", self.member, BUFFER_MAX_BYTES >> 20,
                        extra=fields(member=self.member))
            return self._fail()
        return True

    def _fail(self) -> bool:
        """The link ends, but not within the sender's call: on_down must not surprise somebody who is sending."""
        self._failing = True
        self.scope.cancel()
        return False

    async def write(self) -> None:
        while True:
            await self._wake.wait()
            while self._queue or not self.stream.idle:
                await self.stream.send_all(*self._batch())
            self._wake = trio.Event()
            self._resting = True

    def _batch(self) -> Iterable[bytes]:
        batch: list[bytes] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0]) <= WRITE_MAX_BYTES):
            batch.append(self._queue.popleft())
            size += len(batch[-1])
        self._queued_bytes -= size
        return (b"".join(batch),) if batch else ()

    async def watch(self) -> None:
        """Pings, and breaks the link when nothing was heard for SILENCE_LIMIT_S."""
        while True:
            slept_at = trio.current_time()
            await trio.sleep(PING_PERIOD_S)
            now = trio.current_time()
            if now - slept_at > 2 * PING_PERIOD_S:
                self.heard_at = now
            if now - self.heard_at > SILENCE_LIMIT_S:
                raise trio.BrokenResourceError(f"nothing heard for {SILENCE_LIMIT_S:g} s")
            self.send(_PING)


__all__ = ["PeerLinks", "PeerRefused", "PeerUnreachable", "RequestFailed", "RequestLost"]
