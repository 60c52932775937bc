"""Which member a new session goes to. Pure: everything it looks at is an argument.

The score is what a member does per unit of weight: its sessions, those routed to it since its last report (so that a
burst does not herd onto a stale minimum), and more for a member that is short of CPU or moves much data. Sessions
dominate, so that on an idle, equal cluster they come out even; a busy member counts as if it had up to BUSY_SESSIONS
and BUSY_SHARE more of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from raftmft.core.membership import Load

LOCAL_SLACK_SESSIONS = 0.5
"""The local member is taken unless another is less loaded by more than this: a relay costs CPU on two hosts."""
BUSY_SESSIONS, BUSY_SHARE = 2.0, 0.25
CPU_IDLE = 0.5
"""CPU use up to here says nothing: there is enough left."""
FULL_RATE_BYTES_PER_S = 500e6
LOW_DISK_BYTES = 64 << 20
"""A member with less free space can take no uploads to speak of: only if all are so short."""
STANDARD_WEIGHT = 100
SETTLE_S = 1.5
"""How long a routed session may take to show in the reports: the relay, the report's period, and the gossip."""


class Candidate(Protocol):
    """A member as Raft lists it (core.commands.MemberSpec)."""

    @property
    def id(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def weight(self) -> int: ...


def choose(members: Sequence[Candidate], loads: Mapping[str, Load], routed_since_report: Mapping[str, int],
           self_id: str) -> str | None:
    """The member id for a new session; None if no member can serve one.

    `loads`: the last load of each member that is alive, this one's own included; who is not in it is no candidate, nor
    who has no quorum. An active member is taken before any standby; witnesses and draining members never.
    """
    order = sorted(member.id for member in members)
    after_self = {member: (at - order.index(self_id)) % len(order) if self_id in order else at
                  for at, member in enumerate(order)}
    best: tuple[bool, bool, float, int, str] | None = None
    for member in members:
        load = loads.get(member.id)
        if load is None or not load.has_quorum:
            continue
        modes = {member.mode, load.mode}
        if not modes <= {"active", "standby"}:
            continue
        value = score(load, routed_since_report.get(member.id, 0), member.weight)
        if member.id == self_id:
            value -= LOCAL_SLACK_SESSIONS * STANDARD_WEIGHT / max(1, member.weight)
        # Of equals each front door begins with its own next neighbour, so that many doors do not pick the same one.
        key = ("standby" in modes, load.disk_free < LOW_DISK_BYTES, value, after_self[member.id], member.id)
        if best is None or key < best:
            best = key
    return best[-1] if best else None


def score(load: Load, routed: int, weight: int) -> float:
    """How loaded a member is, in sessions of a member of standard weight. Lower is better."""
    sessions = load.sessions + routed
    short_of_cpu = max(0.0, min(1.0, load.cpu) - CPU_IDLE) / (1 - CPU_IDLE)
    busy = max(short_of_cpu, min(1.0, load.bytes_per_s / FULL_RATE_BYTES_PER_S))
    return (sessions + busy * (BUSY_SESSIONS + BUSY_SHARE * sessions)) * STANDARD_WEIGHT / max(1, weight)


class Routed:
    """What this front door knows better than the reports: the sessions it routed a moment ago.

    A report may or may not count a session that is on its way, so adding those to it counts some twice, and dropping
    them with each report forgets some. Instead, each routing sets a floor: what was reported then, and one for it and
    for every one since. The highest floor of the last SETTLE_S holds until reports have caught up. Times are any steady
    clock's, in s.
    """

    def __init__(self) -> None:
        self._floors: dict[str, deque[tuple[float, int]]] = {}
        self._count: dict[str, int] = {}

    def note(self, member: str, reported_sessions: int, now: float) -> None:
        """A session was just routed to `member`, whose last report says `reported_sessions`."""
        floors, count = self._floors.setdefault(member, deque()), self._count.get(member, 0)
        floor = reported_sessions - count  # less what was routed by then: so later ones raise it by themselves
        while floors and floors[-1][1] <= floor:
            floors.pop()
        floors.append((now, floor))
        self._count[member] = count + 1

    def counts(self, loads: Mapping[str, Load], now: float) -> dict[str, int]:
        """The argument `routed_since_report` of `choose` that fits `loads`."""
        missing = {}
        for member, floors in list(self._floors.items()):
            while floors and floors[0][0] < now - SETTLE_S:
                floors.popleft()
            if not floors:
                del self._floors[member], self._count[member]
            elif member in loads:
                missing[member] = max(0, floors[0][1] + self._count[member] - loads[member].sessions)
        return missing
