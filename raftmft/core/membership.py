"""Who is alive, and how loaded: SWIM, without sockets, clocks or randomness of its own.

Every probe_interval_s a member pings the next other one, in a random order that comes round to each. Without an answer
it asks `helpers` others to ping for it; without any answer by the end of the interval the target is *suspect*, and
*dead* if it does not refute that within suspicion_s. What changes travels as rumours on pings and answers. A member's
word about itself carries its *incarnation*, which only itself raises, to refute what is said of it: alive beats suspect
and dead only at a higher incarnation; suspect beats alive, and dead beats both, at the same. (Das, Gupta, Motivala
2002.)

Where this departs from the paper: members come from Raft, never from gossip; every message carries its sender's own
record with its Load; a ping tells its target what is held of it, and suspects are pinged every interval, so that a
refutation takes one round trip; the dead are still probed, so that a healed partition shows; and a pause of our own is
not counted as the silence of others (the local clock advances at most MAX_STEP_S a tick).

A driver calls `tick` at least every MAX_STEP_S and `receive` for each message that is authentic, fresh and addressed to
this member, sends what they return, and then looks at `take_events`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

MAX_STEP_S = 0.25
MAX_RUMOURS = 5
"""Records in one message, the sender's own included: as many as surely fit a datagram (wire/gossip.py)."""
RUMOUR_FACTOR = 3
"""A rumour is sent RUMOUR_FACTOR * ceil(log2(members + 1)) times by each member."""
RELAYS_MAX = 256
"""Pings made for others that wait for an answer; the oldest goes first."""
STARTING_GRACE_S = 3.0
"""How long a member of which nothing was heard since our start is suspect before it is held for dead."""
MAX_INCARNATION = (1 << 62) - 1


class State(IntEnum):
    """What is held of a member. Greater beats smaller at one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2


class Kind(IntEnum):
    """What a message is."""

    PING = 0
    PING_REQUEST = 1
    ACK = 2


@dataclass(frozen=True, slots=True)
class Load:
    """What a member says of itself. cpu: 0..1 of all it may use; disk_free in bytes; mode as in MemberSpec, or what it
    is about to be ("draining"); missing_chunks: copies that it
    knows to lack, or of which it knows that others do; has_quorum: it can serve sessions.
    """

    sessions: int = 0
    bytes_per_s: int = 0
    cpu: float = 0.0
    disk_free: int = 0
    mode: str = "active"
    applied_index: int = 0
    missing_chunks: int = 0
    version: str = ""
    has_quorum: bool = False


@dataclass(frozen=True, slots=True)
class Rumour:
    """What is held of `member` as of `incarnation`. Its load counts if (incarnation, load_seq) is newer than the
    known.
    """

    member: str
    state: State
    incarnation: int
    load_seq: int = 0
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """PING: answer with an ACK of the same number. PING_REQUEST: ping `subject`, and pass on its answer. ACK: `subject`
    answered the ping of this number.
    """

    kind: Kind
    number: int
    subject: str
    rumours: tuple[Rumour, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds. With the defaults a dead member of a small cluster is held for dead within about 2 s."""

    probe_interval_s: float = 0.3
    ack_timeout_s: float = 0.12
    suspicion_s: float = 1.2
    helpers: int = 2


@dataclass(frozen=True, slots=True)
class MemberView:
    """What is held of a member now. load_age_s: since its load came in."""

    state: str
    incarnation: int
    load: Load | None
    load_age_s: float


@dataclass(frozen=True, slots=True)
class Event:
    """`what` is the state a member came to have ("alive", "suspect", "dead"), or "load": a new report of it came in."""

    member: str
    what: str


class Chance(Protocol):
    """random.Random, or what a simulation replays."""

    def shuffle(self, x: list[str], /) -> None: ...


@dataclass(slots=True)
class _Peer:
    """The mutable record of another member. `sent`: how often its present rumour was passed on. `behind`: it spoke of
    itself at a lower incarnation than the known, so it was restarted with its clock set back, and has to be told.
    """

    state: State
    deadline: float
    incarnation: int = 0
    load: Load | None = None
    load_version: tuple[int, int] = (0, -1)
    load_at: float = 0.0
    sent: int = 1 << 30
    behind: bool = False


@dataclass(slots=True)
class _Probe:
    """The probe of this interval."""

    target: str
    number: int
    help_at: float
    deadline: float
    helped: bool = False
    answered: bool = False


Outgoing = list[tuple[str, Message]]
"""(member id, message) each, to be sent at once. Any may be lost."""


class Membership:
    """One member's opinion of the others. Not thread-safe; nothing here waits."""

    def __init__(self, me: str, *, incarnation: int, chance: Chance, timing: Timing | None = None) -> None:
        """`incarnation` should be greater than in any earlier life (milliseconds since the epoch at boot, say): then a
        restart shows at once. If it is not, the first contact corrects it.
        """
        self.me = me
        self.incarnation = max(1, min(incarnation, MAX_INCARNATION - (1 << 32)))
        self._chance, self._timing = chance, timing or Timing()
        self._load: Load | None = None
        self._load_seq = 0
        self._peers: dict[str, _Peer] = {}
        self._round: list[str] = []
        self._clock = 0.0
        self._last_now: float | None = None
        self._next_probe = 0.0
        self._number = 0
        self._probe: _Probe | None = None
        self._relays: dict[int, tuple[str, int, str]] = {}
        self._events: list[Event] = []

    # --- what the driver tells --------------------------------------------------------------------
    def set_members(self, members: Collection[str]) -> None:
        """The members as Raft lists them. New ones are suspect until heard of; others than these are ignored."""
        for member in members:
            if member != self.me and member not in self._peers:
                self._peers[member] = _Peer(State.SUSPECT, self._clock + STARTING_GRACE_S)
        for member in set(self._peers) - set(members):
            del self._peers[member]

    def set_load(self, load: Load) -> None:
        """What this member says of itself from now on."""
        self._load, self._load_seq = load, self._load_seq + 1
        self._events.append(Event(self.me, "load"))

    # --- what the driver asks ---------------------------------------------------------------------
    def view(self) -> Mapping[str, MemberView]:
        """What is held of every member, this one included (which is always alive to itself)."""
        views = {self.me: MemberView("alive", self.incarnation, self._load, 0.0)}
        for member, peer in self._peers.items():
            views[member] = MemberView(peer.state.name.lower(), peer.incarnation, peer.load, self._clock - peer.load_at)
        return views

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def tick(self, now: float) -> Outgoing:
        """What is due by `now` (any steady clock, in s)."""
        self._advance(now)
        out: Outgoing = []
        for member, peer in self._peers.items():
            if peer.state is State.SUSPECT and self._clock >= peer.deadline:
                self._become(member, peer, State.DEAD, peer.incarnation)
        self._follow_probe(out)
        if self._clock >= self._next_probe:
            self._next_probe = self._clock + self._timing.probe_interval_s
            self._begin_probe(out)
        return out

    def receive(self, sender: str, message: Message, now: float) -> Outgoing:
        """Takes a message that `sender` surely wrote for this member in its present life; returns the answers."""
        self._advance(now)
        if sender not in self._peers:
            return []
        for rumour in message.rumours:
            if rumour.member == sender:
                self._peers[sender].behind = rumour.incarnation < self._peers[sender].incarnation
            self._hear(rumour)
        match message.kind:
            case Kind.PING:
                return [(sender, self._say(sender, Kind.ACK, message.number, self.me))]
            case Kind.PING_REQUEST:
                return self._help(sender, message)
            case Kind.ACK:
                return self._answered(sender, message)

    # --- probing ----------------------------------------------------------------------------------
    def _advance(self, now: float) -> None:
        step = 0.0 if self._last_now is None else now - self._last_now
        self._last_now = now
        self._clock += min(max(step, 0.0), MAX_STEP_S)

    def _begin_probe(self, out: Outgoing) -> None:
        target = self._next_target()
        if target is None:
            self._probe = None
            return
        message = self._ping(target)
        self._probe = _Probe(target, message.number, self._clock + self._timing.ack_timeout_s, self._next_probe)
        out.append((target, message))
        out += [(member, self._ping(member)) for member, peer in self._peers.items()
                if peer.state is State.SUSPECT and member != target]

    def _follow_probe(self, out: Outgoing) -> None:
        probe = self._probe
        if probe is None or probe.answered or probe.target not in self._peers:
            return
        if self._clock >= probe.deadline:
            self._probe = None
            peer = self._peers[probe.target]
            if peer.state is State.ALIVE:
                self._become(probe.target, peer, State.SUSPECT, peer.incarnation)
                out.append((probe.target, self._ping(probe.target)))
        elif self._clock >= probe.help_at and not probe.helped:
            probe.helped = True
            helpers = [m for m, p in self._peers.items() if m != probe.target and p.state is not State.DEAD]
            self._chance.shuffle(helpers)
            out += [(helper, self._say(helper, Kind.PING_REQUEST, probe.number, probe.target))
                    for helper in helpers[:self._timing.helpers]]

    def _next_target(self) -> str | None:
        while self._round:
            target = self._round.pop()
            if target in self._peers:
                return target
        self._round = list(self._peers)
        self._chance.shuffle(self._round)
        return self._round.pop() if self._round else None

    def _help(self, sender: str, message: Message) -> Outgoing:
        if message.subject not in self._peers:
            return []
        ping = self._ping(message.subject)
        while len(self._relays) >= RELAYS_MAX:
            del self._relays[next(iter(self._relays))]
        self._relays[ping.number] = (sender, message.number, message.subject)
        return [(message.subject, ping)]

    def _answered(self, sender: str, message: Message) -> Outgoing:
        probe = self._probe
        if probe is not None and (message.number, message.subject) == (probe.number, probe.target):
            probe.answered = True
        relay = self._relays.get(message.number)
        if relay is None or sender != relay[2]:
            return []
        del self._relays[message.number]
        origin, number, target = relay
        return [(origin, self._say(origin, Kind.ACK, number, target))] if origin in self._peers else []

    # --- rumours ----------------------------------------------------------------------------------
    def _hear(self, rumour: Rumour) -> None:
        if rumour.member == self.me:
            worse = rumour.state is not State.ALIVE and rumour.incarnation >= self.incarnation
            if worse or rumour.incarnation > self.incarnation:  # the latter is said of an earlier life of ours
                self.incarnation = min(rumour.incarnation + 1, MAX_INCARNATION)
            return
        peer = self._peers.get(rumour.member)
        if peer is None:
            return
        if (rumour.incarnation, rumour.state) > (peer.incarnation, peer.state):
            if rumour.incarnation > peer.incarnation:
                peer.load, peer.load_version = None, (rumour.incarnation, -1)  # it was of an earlier life
                if self._probe is not None and self._probe.target == rumour.member:
                    self._probe.answered = True  # an earlier life was asked; this one has just spoken
            self._become(rumour.member, peer, rumour.state, rumour.incarnation)
        version = (rumour.incarnation, rumour.load_seq)
        if rumour.load is not None and version > peer.load_version:
            peer.load, peer.load_version, peer.load_at, peer.sent = rumour.load, version, self._clock, 0
            self._events.append(Event(rumour.member, "load"))

    def _become(self, member: str, peer: _Peer, state: State, incarnation: int) -> None:
        changed = state is not peer.state
        peer.state, peer.incarnation, peer.sent = state, incarnation, 0
        if state is State.SUSPECT:
            peer.deadline = self._clock + self._timing.suspicion_s
        if changed:
            self._events.append(Event(member, state.name.lower()))

    def _ping(self, target: str) -> Message:
        self._number += 1
        return self._say(target, Kind.PING, self._number, target)

    def _say(self, to: str, kind: Kind, number: int, subject: str) -> Message:
        """A message with this member's own record, what is held of the addressee if that is bad, and the newest
        rumours.
        """
        rumours = [Rumour(self.me, State.ALIVE, self.incarnation, self._load_seq, self._load)]
        addressee = self._peers.get(to)
        if addressee is not None and (addressee.state is not State.ALIVE or addressee.behind):
            rumours.append(self._rumour(to, addressee))
        limit = RUMOUR_FACTOR * len(self._peers).bit_length()
        fresh = sorted((m for m, p in self._peers.items() if p.sent < limit and m != to),
                       key=lambda m: (self._peers[m].sent, m))
        for member in fresh[:MAX_RUMOURS - len(rumours)]:
            self._peers[member].sent += 1
            rumours.append(self._rumour(member, self._peers[member]))
        return Message(kind, number, subject, tuple(rumours))

    @staticmethod
    def _rumour(member: str, peer: _Peer) -> Rumour:
        return Rumour(member, peer.state, peer.incarnation, max(0, peer.load_version[1]), peer.load)
