"""Gossip datagrams: SWIM messages under a keyed BLAKE3 MAC, believed only if they are fresh. Sans-IO.

    datagram   "RMG" | u8 version | 16 B MAC of all else | msgpack body, at most 1400 B in all
    body       [sender, to, boot, to_boot, seq, issued, echo, kind, number, subject, rumours]

Freshness needs no clocks. Each process has a random *boot* id. To each boot of a peer that it hears of, a receiver
issues a random *token*; the peer echoes it in all it sends. A message is taken only if it echoes the token issued to
its boot, and its `seq` was not seen under that token. So it was written in the receiver's present life, by the peer's
present life, for this receiver, and is taken once: a datagram captured before a restart of either side proves nothing.
`issued` is bound to the boot it was issued to (`to_boot`), and learnt by no other.

What echoes no valid token is answered with a HELLO that issues one, to the member's own address and at a bounded rate;
a HELLO that echoes a valid one is answered with a WELCOME. Four datagrams make two members known to each other:

    A: PING, no echo        -> B: HELLO, issues b to A's boot
    A: HELLO, issues a, echoes b  -> B believes A: WELCOME, echoes a  -> A believes B

A token becomes the current one when it is first echoed, and then the one before it is void for ever.
"""

from __future__ import annotations

import hmac
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import msgpack
from blake3 import blake3

from raftmft.core.membership import MAX_INCARNATION, MAX_RUMOURS, Kind, Load, Message, Rumour, State
from raftmft.wire.frames import FrameError, unpack

VERSION = 1
MAX_DATAGRAM = 1400
MAX_ID, MAX_VERSION_TEXT, MAX_MODE = 64, 32, 16
TOKEN_SIZE, BOOT_SIZE, MAC_SIZE = 16, 8, 16
WINDOW = 64
"""A message may arrive this many behind the newest."""
PENDING_MAX = 4
"""Boots of one peer with a token that was not echoed yet; the oldest goes first."""
HELLO_BURST, HELLO_RATE_PER_S = 8.0, 20.0
_PREFIX = b"RMG" + bytes([VERSION])
_HEAD = len(_PREFIX) + MAC_SIZE
_MAC_CONTEXT = "raftmft 2026 gossip datagram mac v1"
_HELLO, _WELCOME = 16, 17
_BIG = 1 << 63


@dataclass(slots=True)
class _Session:
    """A token issued to one boot of a peer, and what was received under it."""

    boot: bytes
    token: bytes
    highest: int = 0
    seen: int = 0

    def fresh(self, seq: int) -> bool:
        """Whether `seq` comes for the first time; it counts as seen from then on."""
        ahead = seq - self.highest
        if ahead > 0:
            self.seen = (self.seen << min(ahead, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self.highest = seq
            return True
        if -ahead >= WINDOW or self.seen >> -ahead & 1:
            return False
        self.seen |= 1 << -ahead
        return True


@dataclass(slots=True)
class _Peer:
    """What is known of a member. `theirs`: the token to echo to it."""

    current: _Session | None = None
    pending: OrderedDict[bytes, _Session] = field(default_factory=OrderedDict)
    theirs: bytes = b""
    credit: float = HELLO_BURST
    credited_at: float = -math.inf


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a datagram. `message`: believed, from `sender`. `replies`: datagrams to send, by member id."""

    sender: str = ""
    message: Message | None = None
    replies: tuple[tuple[str, bytes], ...] = ()


NOTHING = Received()


class GossipCodec:
    """One member's datagrams out and in. Neither direction ever raises for what came from the network."""

    def __init__(self, me: str, key: bytes, *, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """`key`: the cluster's secret, of any length; the MAC's key is derived from it."""
        self._me = me
        self._key = blake3(key, derive_key_context=_MAC_CONTEXT).digest()
        self._random = random_bytes
        self._boot = random_bytes(BOOT_SIZE)
        self._seq = 0
        self._peers: dict[str, _Peer] = {}
        self.dropped: Counter[str] = Counter()
        """Why datagrams were dropped: version, mac, malformed, stranger, misaddressed, unproven, replayed."""

    def rekey(self, key: bytes) -> None:
        """From now on datagrams are made with this cluster key, and those of any other key are dropped."""
        self._key = blake3(key, derive_key_context=_MAC_CONTEXT).digest()

    def encode(self, to: str, message: Message) -> bytes:
        """The datagram that carries `message` to a member. Rumours that do not fit are left out, the last ones
        first.
        """
        rumours = [_rumour_out(rumour) for rumour in message.rumours[:MAX_RUMOURS]]
        while True:
            datagram = self._seal(to, self._peer(to).theirs, message.kind, message.number, message.subject, rumours)
            if len(datagram) <= MAX_DATAGRAM or not rumours:
                return datagram
            rumours.pop()

    def decode(self, datagram: bytes, members: Container[str], now: float) -> Received:
        """Checks one datagram; `members` are those it may come from, `now` any steady clock in s."""
        if len(datagram) < _HEAD or len(datagram) > MAX_DATAGRAM or datagram[:len(_PREFIX)] != _PREFIX:
            return self._drop("version")
        body = datagram[_HEAD:]
        if not hmac.compare_digest(datagram[len(_PREFIX):_HEAD], self._mac(body)):
            return self._drop("mac")
        try:
            parsed = _parse(body)
        except (FrameError, ValueError):
            return self._drop("malformed")
        if parsed.to != self._me:
            return self._drop("misaddressed")
        if parsed.sender == self._me or parsed.sender not in members:
            return self._drop("stranger")
        return self._judge(parsed, now)

    def forget(self, member: str) -> None:
        """The member was removed."""
        self._peers.pop(member, None)

    def _judge(self, m: _Parsed, now: float) -> Received:
        """The freshness rule of the module's docstring."""
        peer = self._peer(m.sender)
        awaited = peer.pending.get(m.boot)
        if awaited is not None and awaited.token == m.echo:
            del peer.pending[m.boot]
            peer.current = awaited
        session = peer.current
        if session is None or session.boot != m.boot or session.token != m.echo:
            self.dropped["unproven"] += 1
            return self._hello(m, peer, now)
        if not session.fresh(m.seq):
            return self._drop("replayed")
        if m.to_boot == self._boot and m.issued:
            peer.theirs = m.issued
        if m.kind == _HELLO:
            return Received(m.sender, None, ((m.sender, self._seal(m.sender, peer.theirs, _WELCOME, 0, "", [])),))
        if m.kind == _WELCOME:
            return Received(m.sender)
        return Received(m.sender, Message(Kind(m.kind), m.number, m.subject, m.rumours))

    def _hello(self, m: _Parsed, peer: _Peer, now: float) -> Received:
        """Issues a token to a boot that has shown none, unless such answers come too fast."""
        peer.credit = min(HELLO_BURST, peer.credit + max(0.0, now - peer.credited_at) * HELLO_RATE_PER_S)
        peer.credited_at = now
        if peer.credit < 1:
            return NOTHING
        peer.credit -= 1
        session = peer.current if peer.current is not None and peer.current.boot == m.boot else peer.pending.get(m.boot)
        if session is None:
            if len(peer.pending) >= PENDING_MAX:
                peer.pending.popitem(last=False)
            session = peer.pending[m.boot] = _Session(m.boot, self._random(TOKEN_SIZE))
        echo = m.issued if m.to_boot == self._boot else b""
        return Received(m.sender, None, ((m.sender, self._seal(m.sender, echo, _HELLO, 0, "", [], session)),))

    def _seal(self, to: str, echo: bytes, kind: int, number: int, subject: str, rumours: list[Any],
              session: _Session | None = None) -> bytes:
        peer = self._peer(to)
        if session is None:
            session = peer.current or next(reversed(peer.pending.values()), None)
        to_boot, issued = (session.boot, session.token) if session is not None else (b"", b"")
        self._seq += 1
        body = msgpack.packb([self._me, to, self._boot, to_boot, self._seq, issued, echo, int(kind), number, subject,
                              rumours], use_bin_type=True)
        return _PREFIX + self._mac(body) + body

    def _mac(self, body: bytes) -> bytes:
        return blake3(_PREFIX + body, key=self._key).digest(MAC_SIZE)

    def _peer(self, member: str) -> _Peer:
        peer = self._peers.get(member)
        if peer is None:
            peer = self._peers[member] = _Peer()
        return peer

    def _drop(self, why: str) -> Received:
        self.dropped[why] += 1
        return NOTHING


@dataclass(frozen=True, slots=True)
class _Parsed:
    sender: str
    to: str
    boot: bytes
    to_boot: bytes
    seq: int
    issued: bytes
    echo: bytes
    kind: int
    number: int
    subject: str
    rumours: tuple[Rumour, ...]


def _parse(body: bytes) -> _Parsed:
    """The fields of a body, all checked; FrameError or ValueError."""
    match unpack(body):
        case [sender, to, boot, to_boot, seq, issued, echo, kind, number, subject, rumours] if (
            _text(sender, MAX_ID) and sender and _text(to, MAX_ID) and _text(subject, MAX_ID)
            and _bytes(boot, BOOT_SIZE) and boot and _bytes(to_boot, BOOT_SIZE)
            and _bytes(issued, TOKEN_SIZE) and _bytes(echo, TOKEN_SIZE)
            and _count(seq) and _count(kind) and _count(number)
            and isinstance(rumours, list) and len(rumours) <= MAX_RUMOURS
        ):
            if kind not in (_HELLO, _WELCOME):
                Kind(kind)
            return _Parsed(sender, to, boot, to_boot, seq, issued, echo, kind, number, subject,
                           tuple([_rumour_in(rumour) for rumour in rumours]))
    raise FrameError("no gossip body")


def _rumour_out(rumour: Rumour) -> list[Any]:
    load = rumour.load
    return [rumour.member, int(rumour.state), rumour.incarnation, rumour.load_seq, None if load is None else [
        _clamp(load.sessions), _clamp(load.bytes_per_s), load.cpu if math.isfinite(load.cpu) else 1.0,
        _clamp(load.disk_free), load.mode[:MAX_MODE], _clamp(load.applied_index), _clamp(load.missing_chunks),
        load.version[:MAX_VERSION_TEXT], bool(load.has_quorum)]]


def _rumour_in(value: Any) -> Rumour:
    """A later version may append fields; they are ignored."""
    match value:
        case [member, state, incarnation, load_seq, load, *_] if (
            _text(member, MAX_ID) and member and _count(state) and _count(load_seq)
            and _count(incarnation) and incarnation <= MAX_INCARNATION
        ):
            return Rumour(member, State(state), incarnation, load_seq, None if load is None else _load_in(load))
    raise FrameError("no rumour")


def _load_in(value: Any) -> Load:
    """A later version may append fields; they are ignored."""
    match value:
        case [sessions, rate, cpu, disk_free, mode, applied, missing, version, has_quorum, *_] if (
            all(_count(n) for n in (sessions, rate, disk_free, applied, missing)) and _text(mode, MAX_MODE)
            and _text(version, MAX_VERSION_TEXT) and isinstance(has_quorum, bool)
            and isinstance(cpu, int | float) and math.isfinite(cpu)
        ):
            return Load(sessions, rate, float(cpu), disk_free, mode, applied, missing, version, has_quorum)
    raise FrameError("no load")


def _clamp(number: float) -> int:
    return max(0, min(int(number), _BIG - 1))


def _text(value: Any, limit: int) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= limit


def _bytes(value: Any, size: int) -> TypeGuard[bytes]:
    """`size` bytes, or none."""
    return isinstance(value, bytes) and len(value) in (0, size)


def _count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _BIG
