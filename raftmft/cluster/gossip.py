"""The UDP socket and the clock around core/membership.py (what is held of whom) and wire/gossip.py (what is believed).

Nothing here waits for the network: a datagram that cannot be sent at once is lost, as any datagram may be. Names of
hosts are resolved in threads, at start, again while they fail, and every RESOLVE_EVERY_S, so that a member whose
address changed is found again.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping

import trio

from raftmft.core.addresses import address_text
from raftmft.core.membership import Chance, Event, Load, Membership, MemberView, Outgoing, Timing
from raftmft.wire.gossip import MAX_DATAGRAM, GossipCodec
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

TICK_S = 0.05
RESOLVE_EVERY_S, RESOLVE_FAILED_EVERY_S, RESOLVE_TIMEOUT_S = 30.0, 1.0, 5.0
BURST = 64
"""Datagrams taken from the socket before others of this process get their turn."""
ERROR_PAUSE_S = 0.05
BUFFER_BYTES = 1 << 20
_CLOSED = {errno.EBADF, errno.ENOTSOCK, errno.EINVAL}

Directory = Callable[[], Mapping[str, tuple[str, int]]]
"""The present members, this one included: member id -> host and gossip port."""
Watcher = Callable[[str, str], None]
"""Called from the loop as watcher(member id, what): "alive", "suspect", "dead", or "load" when a new report came in."""


class Gossip:
    """This member's part in the gossip. All methods but `run` return at once; use them from the trio loop only."""

    def __init__(self, me: str, bind: tuple[str, int], key: bytes, directory: Directory, *,
                 incarnation: int | None = None, timing: Timing | None = None, chance: Chance | None = None) -> None:
        """`bind`: host and UDP port to listen on (port 0: any free one, see `port`). `key`: the cluster's secret."""
        self._me, self._bind, self._directory = me, bind, directory
        self._membership = Membership(
            me, incarnation=time.time_ns() // 1_000_000 if incarnation is None else incarnation,
            chance=chance or random.SystemRandom(), timing=timing)
        self._codec = GossipCodec(me, key)
        self._addresses: dict[str, tuple[str, int]] = {}
        self._resolved: dict[tuple[str, int], tuple[str, int]] = {}
        self._unresolvable: set[str] = set()
        self._watchers: list[Watcher] = []
        self._socket: socket.socket | None = None
        self._heard = trio.Event()
        self.lost: Counter[str] = Counter()
        """Datagrams that were not sent or received, by the reason (an errno's name, or "unresolved")."""
        self._refresh_members()

    @property
    def port(self) -> int:
        """The bound port, once `run` has started; before, the wanted one."""
        return self._bind[1] if self._socket is None else self._socket.getsockname()[1]

    @property
    def dropped(self) -> Counter[str]:
        """Received datagrams that were not believed, by the reason (wire/gossip.py)."""
        return self._codec.dropped

    def rekey(self, key: bytes) -> None:
        """Another cluster key is in force: datagrams of any other are not believed any more."""
        self._codec.rekey(key)

    def set_load(self, load: Load) -> None:
        """What this member says of itself from its next datagram on."""
        self._membership.set_load(load)
        self._publish()

    def view(self) -> Mapping[str, MemberView]:
        """What is held of every member: `.state` (alive, suspect, dead), `.load` (None if none came), `.load_age_s`."""
        return self._membership.view()

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Calls `watcher` on every change from now on; returns what ends that. A watcher must not raise nor block."""
        self._watchers.append(watcher)

        def end() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return end

    async def changed(self) -> None:
        """Returns after the next change that a subscriber would be told of. Cancelled: nothing is left behind."""
        await self._heard.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gossips until cancelled; the socket is closed then. OSError if the port cannot be bound."""
        family, bind = await _resolve_bind(self._bind)
        raw = socket.socket(family, socket.SOCK_DGRAM)
        try:
            raw.setblocking(False)
            if family == socket.AF_INET6:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                raw.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            raw.bind(bind)
            self._socket = raw
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._resolve_names)
                nursery.start_soon(self._receive)
                nursery.start_soon(self._tick)
                task_status.started()
        finally:
            self._socket = None
            raw.close()

    async def _tick(self) -> None:
        while True:
            self._refresh_members()
            self._send(self._membership.tick(trio.current_time()))
            self._publish()
            await trio.sleep(TICK_S)

    async def _receive(self) -> None:
        raw = self._socket
        assert raw is not None
        while True:
            await trio.lowlevel.wait_readable(raw)
            for _ in range(BURST):
                try:
                    datagram = raw.recv(MAX_DATAGRAM + 1)
                except BlockingIOError:
                    break
                except OSError as error:  # an ICMP error of an earlier send, or no buffers: the socket still works
                    if error.errno in _CLOSED:
                        raise
                    self._lose(error)
                    await trio.sleep(ERROR_PAUSE_S)
                    break
                self._take(datagram)
            await trio.lowlevel.checkpoint()

    def _take(self, datagram: bytes) -> None:
        now = trio.current_time()
        received = self._codec.decode(datagram, self._addresses, now)
        for to, reply in received.replies:
            self._send_datagram(to, reply)
        if received.message is not None:
            self._send(self._membership.receive(received.sender, received.message, now))
            self._publish()

    def _send(self, outgoing: Outgoing) -> None:
        for to, message in outgoing:
            self._send_datagram(to, self._codec.encode(to, message))

    def _send_datagram(self, to: str, datagram: bytes) -> None:
        wanted = self._addresses.get(to)
        address = None if wanted is None else self._resolved.get(wanted)
        if address is None or self._socket is None:
            self.lost["unresolved"] += 1
            return
        try:
            # A socket on "::" reaches IPv4 members under their mapped addresses.
            mapped = self._socket.family == socket.AF_INET6 and ":" not in address[0]
            self._socket.sendto(datagram, (f"::ffff:{address[0]}", address[1]) if mapped else address)
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost[errno.errorcode.get(error.errno or 0, "other")] += 1

    def _publish(self) -> None:
        events = self._membership.take_events()
        if not events:
            return
        self._heard.set()
        self._heard = trio.Event()
        for event in events:
            self._log(event)
            for watcher in tuple(self._watchers):
                watcher(event.member, event.what)

    def _log(self, event: Event) -> None:
        if event.what != "load" and event.member in self._addresses:
            log.log(logging.INFO if event.what == "alive" else logging.WARNING,
                    "gossip: member %s is %s", event.member, event.what, extra=fields(member=event.member))

    def _refresh_members(self) -> None:
        """Takes the members as the directory has them now. Numeric addresses need no resolving."""
        addresses = dict(self._directory())
        addresses.pop(self._me, None)
        if addresses == self._addresses:
            return
        for member in self._addresses.keys() - addresses.keys():
            self._codec.forget(member)
        self._addresses = addresses
        for host, port in addresses.values():
            if _is_numeric(host):
                self._resolved[host, port] = (host, port)
        for gone in self._resolved.keys() - set(addresses.values()):
            del self._resolved[gone]
        self._membership.set_members(addresses)

    async def _resolve_names(self) -> None:
        """Keeps the names of hosts resolved, one after another."""
        due: dict[tuple[str, int], float] = {}
        while True:
            wanted = {address for address in self._addresses.values() if not _is_numeric(address[0])}
            due = {address: due.get(address, 0.0) for address in wanted}
            for address, at in due.items():
                if trio.current_time() >= at:
                    found = await self._resolve(address)
                    due[address] = trio.current_time() + (RESOLVE_EVERY_S if found else RESOLVE_FAILED_EVERY_S)
            await trio.sleep(RESOLVE_FAILED_EVERY_S)

    async def _resolve(self, address: tuple[str, int]) -> bool:
        """Keeps the last known address when the name cannot be resolved now."""
        assert self._socket is not None
        host, port = address
        try:
            with trio.fail_after(RESOLVE_TIMEOUT_S):
                found = await trio.socket.getaddrinfo(host, port, self._socket.family, socket.SOCK_DGRAM,
                                                      flags=socket.AI_V4MAPPED)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            if host not in self._unresolvable:
                self._unresolvable.add(host)
                log.warning("gossip: the host name %s cannot be resolved (%s)", host, error or "time-out",
                            extra=fields(address=address_text(host, port)))
            return address in self._resolved
        self._unresolvable.discard(host)
        if address in self._addresses.values():
            self._resolved[address] = (str(found[0][4][0]), port)
        return True


async def _resolve_bind(bind: tuple[str, int]) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The family and numeric address to bind to. OSError."""
    found = await trio.socket.getaddrinfo(*bind, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    return found[0][0], (str(found[0][4][0]), bind[1])


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
