"""Banned addresses, for the whole cluster: hosts and networks that may neither connect nor log in.

A ban is a network in its one canonical form ("192.0.2.7/32", "2001:db8::/32"); IPv4 in IPv6's clothes
(::ffff:a.b.c.d) is IPv4. The front doors look up each client; `Sessions.login` has the last word, in the order of the
log, so that no session begins after a ban was acknowledged, whatever a member that lags behind let in.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import BanAdd, BanRemove
from raftmft.core.names import clipped
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse, State

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_BANS = 10_000
MAX_REASON_CHARS = 200
MAX_UNTIL_MS = 253_370_764_800_000
"""The year 9999: what times can be written with."""
EXPIRE_AT_ONCE = 256
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_LOOPBACK = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
Rows = list["BanRow"]


@dataclass(frozen=True, slots=True)
class BanRow:
    """A ban. `until_ms` 0: for ever."""

    network: str
    until_ms: int
    reason: str
    actor: str
    since_ms: int

    def holds(self, now_ms: int) -> bool:
        """Whether it is in force at this time."""
        return not self.until_ms or self.until_ms > now_ms


def parse_network(text: str) -> Network:
    """The network that "192.0.2.7", "10.0.0.0/8", or an IPv6 one like them names. ValueError of one line."""
    if not text.isascii() or "%" in text:
        raise ValueError(f"'{clipped(text, 64)}' is no address and no network like 192.0.2.0/24")
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            wide = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"'{clipped(text, 64)}' is no address and no network like 192.0.2.0/24") from None
        raise ValueError(f"'{clipped(text, 64)}' has bits set behind its prefix; the network is {wide}") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        low = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((low, network.prefixlen - 96))
    return network


def parse_host(text: str) -> Address | None:
    """The address in "192.0.2.7", "192.0.2.7:22", "2001:db8::1" or "[2001:db8::1]:22"; None if there is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def covers(network: Network, address: Address | None) -> bool:
    """Whether the address is in the network; no network covers None."""
    return address is not None and address.version == network.version and address in network


def danger_of(network: Network) -> str | None:
    """Why a ban of this network could lock its maker out, or None."""
    if not network.prefixlen:
        return f"{network} is every address there is"
    if any(own.version == network.version and own.overlaps(network) for own in _LOOPBACK):
        return f"{network} covers this host's own loopback addresses"
    return None


class Bans:
    """Read side, and what Sessions and the sweep need. Look-ups are answered from memory."""

    def __init__(self, state: State, audit: AuditWriter) -> None:
        self._state, self._audit = state, audit
        self._index: dict[tuple[int, int], dict[int, BanRow]] | None = None

    def list(self) -> Rows:
        """The bans in force, by their text."""
        rows = self._state.db.execute("SELECT network, until_ms, reason, actor, since_ms FROM bans ORDER BY network")
        return [ban for ban in (BanRow(*row) for row in rows) if ban.holds(self._state.now_ms)]

    def match(self, address: Address | None, now_ms: int) -> BanRow | None:
        """A ban of this address that is in force, or None. Costs a look-up for each length of prefix in use."""
        if address is None:
            return None
        value = int(address)
        for (version, shift), bans in self._look_up().items():
            if version == address.version:
                ban = bans.get(value >> shift)
                if ban is not None and ban.holds(now_ms):
                    return ban
        return None

    def forget(self) -> None:
        """Drops what is held in memory, after a rollback."""
        self._index = None

    # --- apply ---------------------------------------------------------------------------------------------------
    def add(self, command: BanAdd) -> Network:
        """Bans a network, or changes the time and reason of its ban. Its live sessions are for sessions.py to end."""
        state = self._state
        try:
            network = parse_network(command.network)
        except ValueError as error:
            raise Refuse(Code.INVALID, str(error)) from None
        if command.until_ms and not state.now_ms < command.until_ms <= MAX_UNTIL_MS:
            raise Refuse(Code.INVALID, "a ban must end in the future")
        (count,) = state.db.execute("SELECT count(*) FROM bans WHERE network != ?", (str(network),)).fetchone()
        if count >= MAX_BANS:
            raise Refuse(Code.LIMIT, f"there are {MAX_BANS} bans already; remove some, or ban whole networks")
        reason = clipped(command.reason, MAX_REASON_CHARS)
        state.db.execute("INSERT OR REPLACE INTO bans VALUES (?,?,?,?,?)",
                         (str(network), command.until_ms, reason, clipped(command.actor), state.now_ms))
        self._index = None
        until = f" until {datetime.fromtimestamp(command.until_ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
        self._audit.admin(f"ban add {network}{until if command.until_ms else ''}{': ' if reason else ''}{reason}",
                          actor=command.actor)
        return network

    def remove(self, command: BanRemove) -> dict[str, str]:
        """Lifts the ban of exactly this network."""
        try:
            network = str(parse_network(command.network))
        except ValueError as error:
            raise Refuse(Code.INVALID, str(error)) from None
        if not self._state.db.execute("DELETE FROM bans WHERE network = ?", (network,)).rowcount:
            raise Refuse(Code.NOT_FOUND, f"there is no ban of {network}; see raftmft ban list")
        self._index = None
        self._audit.admin(f"ban remove {network}", actor=command.actor)
        return {"network": network}

    def sweep(self) -> bool:
        """Removes bans that are over, EXPIRE_AT_ONCE at most; True if there may be more."""
        done = self._state.db.execute(
            "DELETE FROM bans WHERE network IN (SELECT network FROM bans WHERE until_ms > 0 AND until_ms <= ? "
            "ORDER BY until_ms, network LIMIT ?)", (self._state.now_ms, EXPIRE_AT_ONCE)).rowcount
        if done:
            self._index = None
        return done == EXPIRE_AT_ONCE

    def _look_up(self) -> dict[tuple[int, int], dict[int, BanRow]]:
        if self._index is None:
            self._index = {}
            rows = self._state.db.execute("SELECT network, until_ms, reason, actor, since_ms FROM bans")
            for ban in (BanRow(*row) for row in rows):
                network = ipaddress.ip_network(ban.network)
                shift = network.max_prefixlen - network.prefixlen
                self._index.setdefault((network.version, shift), {})[int(network.network_address) >> shift] = ban
        return self._index
