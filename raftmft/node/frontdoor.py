"""Where SFTP connections come in: who is it, may it try, which member serves it.

In this order, and each step within a bound: the PROXY header, which a trusted balancer must send and nobody else is
asked for; bans, closed without a byte; the rate of the client's address, which delays before it refuses; the early drop
while many have not logged in (sshd's MaxStartups); then the member is picked, and the socket goes to a local worker or
the stream is relayed. All of that counts in the time in which a client must have logged in, wherever it does.

Without a quorum here the connection is sent on to a member that has one, else refused before authentication with
SSH_MSG_DISCONNECT, SERVICE_NOT_AVAILABLE (contract 7).
"""

from __future__ import annotations

import errno
import logging
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from raftmft.cluster.sparse import SparseLog
from raftmft.core.bans import Address, Network, covers, parse_host
from raftmft.node.doorrules import DoorRules
from raftmft.node.refusal import refusal
from raftmft.node.throttle import AddressRates, drop_chance
from raftmft.node.workers import Workers
from raftmft.wire.frames import FrameError
from raftmft.wire.loglines import fields
from raftmft.wire.proxy_header import MOST_BYTES, HeaderReader

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 4000
"""Accepted connections that are being handed over, refused or relayed at once; more wait in the kernel's backlog."""
MOST_DELAYED = 1000
"""Connections that wait because their address makes too many; further ones are refused."""
PROXY_LIMIT_S = 5.0
"""Within this a trusted balancer must have sent its header."""
PATIENCE_S = 3.0
LOOK_AGAIN_S = 0.05
REFUSAL_LIMIT_S = 2.0
OUT_OF_DESCRIPTORS_PAUSE_S = 0.1
_TRANSIENT = {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.EAGAIN}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_WHY = {"banned": "connections of banned addresses are closed, the last from %s",
        "proxy": "a trusted balancer at %s sent no good PROXY header: %s",
        "rate": "connections of addresses that make too many are refused, the last from %s",
        "dropped": "too many clients have not logged in yet (login.max_startups): the connection of %s is dropped",
        "slow": "the connection of %s took too long at the front door"}


class FrontDoor:
    """`choose` names the member for a new connection (None: nobody can serve it); `relay` carries one to another
    member, owning it: when that member answers it asks, once, for the seconds that the client has left to log in, and
    tells them; it raises OSError, with the connection open and unread, if the member does not answer.
    """

    def __init__(self, me: str, workers: Workers, rules: DoorRules, choose: Callable[[], str | None],
                 relay: Callable[[socket.socket, str, str, Callable[[], float]], Awaitable[None]],
                 draw: Callable[[], float] = random.random) -> None:
        self._me, self._workers, self._rules, self._choose, self._relay = me, workers, rules, choose, relay
        self._draw = draw
        self._open = True
        self._rates = AddressRates()
        self._delayed = self._deciding = 0
        self._held: dict[trio.CancelScope, Address | None] = {}
        self._says = {what: SparseLog(log, logging.INFO if what == "banned" else logging.WARNING) for what in _WHY}
        self.accepted = self.refused = self.relayed = 0
        self.counts: Counter[str] = Counter()
        """Closed connections by reason, the keys of _WHY."""

    @property
    def half_open(self) -> int:
        """Connections on this node that have not logged in: those in hand, and those that workers have. One relayed
        elsewhere counts there.
        """
        return self._deciding + sum(worker.waiting for worker in self._workers.live.values())

    def close(self) -> None:
        """Takes no more sessions: new connections are sent on or refused (drain)."""
        self._open = False

    def cut(self, network: Network) -> None:
        """Closes what is held or relayed here for clients of a network (a new ban)."""
        for scope, address in list(self._held.items()):
            if covers(network, address):
                scope.cancel()

    async def run(self, listener: trio.socket.SocketType) -> None:
        """Accepts until cancelled."""
        slots = trio.Semaphore(MOST_CONNECTIONS)
        async with trio.open_nursery() as nursery:
            while True:
                await slots.acquire()
                try:
                    connection, address = await listener.accept()
                except OSError as error:
                    slots.release()
                    if error.errno in _EXHAUSTED:
                        log.error("no connection can be accepted: %s; raise the limit of open files", error.strerror)
                        await trio.sleep(OUT_OF_DESCRIPTORS_PAUSE_S)
                    elif error.errno not in _TRANSIENT:
                        raise
                    continue
                bare = socket.socket(connection.family, connection.type, fileno=connection.detach())
                bare.setblocking(False)
                self.accepted += 1
                nursery.start_soon(self._serve, bare, (address[0], address[1]), slots)

    async def arrived(self, connection: socket.socket, address: tuple[str, int], left_s: float) -> None:
        """A connection that another member relayed here; `address` is the client's, and `left_s` what that member left
        it to log in: never more than a client of this door would have. It is served here or refused, never sent on, so
        that no connection goes in circles.
        """
        try:
            client = format_address(address)
            if not self._is_let_in(connection, client):
                return
            with self._decide():
                await self._here(connection, client, trio.current_time() + min(left_s, self._rules.limit_s()))
        finally:
            connection.close()

    async def _serve(self, connection: socket.socket, peer: tuple[str, int], slots: trio.Semaphore) -> None:
        limit_s = self._rules.limit_s()
        client = format_address(peer)
        try:
            with trio.move_on_after(limit_s) as scope:
                self._held[scope] = parse_host(client)
                given = await self._client(connection, peer)
                if given is None:
                    return
                client = format_address(given)
                self._held[scope] = parse_host(client)
                if not await self._waits_its_turn(client) or not self._is_let_in(connection, client):
                    return
                await self._pick(connection, client, scope)
            if scope.cancelled_caught and trio.current_time() >= scope.deadline:
                self._closes("slow", client)
        finally:
            self._held.pop(scope, None)
            connection.close()
            slots.release()

    async def _pick(self, connection: socket.socket, client: str, scope: trio.CancelScope) -> None:
        deadline = scope.deadline

        def left_s() -> float:
            scope.deadline = float("inf")  # the target counts from here on, and a session lasts as long as it does
            return deadline - trio.current_time()

        with self._decide():
            target = await self._target()
        if target is not None and target != self._me:
            try:
                self.relayed += 1
                await self._relay(connection, client, target, left_s)
                return
            except OSError as error:
                self.relayed -= 1
                log.warning("member %s did not take a connection (%s); trying here", target, error,
                            extra=fields(member=target, address=client))
                target = self._me if self._choose() is not None else None
        with self._decide():
            if target is None:
                await self.refuse(connection)
            else:
                await self._here(connection, client, deadline)

    # --- may it try? ------------------------------------------------------------------------------
    async def _client(self, connection: socket.socket, peer: tuple[str, int]) -> tuple[str, int] | None:
        """Whose connection it is. None: a trusted balancer did not say it in time and form."""
        host = parse_host(peer[0])
        if not any(covers(network, host) for network in self._rules.trusted()):
            return peer
        try:
            with trio.fail_after(PROXY_LIMIT_S):
                return await _read_proxy_header(connection) or peer
        except trio.TooSlowError:
            self._closes("proxy", format_address(peer), f"not within {PROXY_LIMIT_S:g} s")
        except (FrameError, OSError) as error:
            self._closes("proxy", format_address(peer), error)
        return None

    async def _waits_its_turn(self, client: str) -> bool:
        """False if the address makes too many connections. A banned one is not even counted."""
        address = parse_host(client)
        if address is None or self._rules.is_banned(address):
            return True
        wait_s = self._rates.take(address, self._rules.rate_per_address(), trio.current_time())
        if wait_s == 0:
            return True
        if wait_s is None or self._delayed >= MOST_DELAYED:
            self._closes("rate", client)
            return False
        self._delayed += 1
        try:
            await trio.sleep(wait_s)
        finally:
            self._delayed -= 1
        return True

    def _is_let_in(self, connection: socket.socket, client: str) -> bool:
        """False if the client is banned (nothing is answered) or dropped (it is told why)."""
        if self._rules.is_banned(parse_host(client)):
            self._closes("banned", client)
            return False
        chance = drop_chance(self.half_open, self._rules.startups())
        if chance > 0 and self._draw() < chance:
            self._closes("dropped", client)
            _turn_away(connection, "too many clients are logging in: try again in a moment")
            return False
        return True

    def _closes(self, why: str, address: str, *values: object) -> None:
        self.counts[why] += 1
        self._says[why].say(_WHY[why], address, *values, extra=fields(address=address, reason=why))

    # --- who serves it? ---------------------------------------------------------------------------
    @contextmanager
    def _decide(self) -> Iterator[None]:
        self._deciding += 1
        try:
            yield
        finally:
            self._deciding -= 1

    async def _target(self) -> str | None:
        """Who serves the next session. An election takes a moment, so "nobody" is only believed after PATIENCE_S."""
        with trio.move_on_after(PATIENCE_S):
            while (target := self._choose()) is None:
                await trio.sleep(LOOK_AGAIN_S)
            return target
        return None

    async def _here(self, connection: socket.socket, client: str, deadline: float) -> None:
        worker = self._workers.least_loaded() if self._open else None
        if worker is None:
            await self.refuse(connection)
            return
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await worker.hand_over(connection, client, deadline)
        except OSError as error:
            log.warning("worker %d did not take a connection: %s", worker.number, error,
                        extra=fields(worker=worker.number, address=client))
            connection.close()

    async def refuse(self, connection: socket.socket) -> None:
        """Says why, then closes; a client that does not read costs at most REFUSAL_LIMIT_S."""
        self.refused += 1
        with trio.move_on_after(REFUSAL_LIMIT_S):
            try:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
                await stream.send_all(refusal())
                await stream.send_eof()
                while await stream.receive_some(4096):
                    pass  # read what the client sends, so that the close is no reset that eats our message
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass
        connection.close()


def format_address(address: tuple[str, int]) -> str:
    """HOST:PORT, with brackets around IPv6; IPv4 in IPv6's clothes as IPv4, as which it is banned and counted."""
    host, port = str(parse_host(address[0]) or address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _read_proxy_header(connection: socket.socket) -> tuple[str, int] | None:
    """The client's address, None if the connection is the balancer's own. Exactly the header is taken."""
    reader = HeaderReader()
    while reader.header is None:
        try:
            seen = connection.recv(MOST_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(connection)
            continue
        if not seen:
            raise FrameError("the connection ended")
        # What was looked at and is the header's is there to be taken whole; an incomplete header is taken all, so that
        # the next look waits for more of it.
        connection.recv(reader.feed(seen))
        await trio.lowlevel.checkpoint()
    return reader.header.client


def _turn_away(connection: socket.socket, text: str) -> None:
    """Says why as far as that needs no waiting: there may be very many to say it to."""
    try:
        connection.send(refusal(text), socket.MSG_DONTWAIT)
        connection.shutdown(socket.SHUT_WR)
        # Mostly its banner: left unread, our message would be lost in a reset.
        connection.recv(4096, socket.MSG_DONTWAIT)
    except OSError:
        pass
