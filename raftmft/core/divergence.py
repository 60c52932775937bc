"""Do all members hold the same state? What each claims is compared; who differs from a majority must stop.

At every *point* (the first command at or beyond a multiple of POINT_EVERY entries of the log) each member knows a value
that must be the same on all: the *chain*, a rolling digest over every command's encoded outcome, time, counters and the
audit log's head, kept with the clock in the state. It costs about a microsecond a command, at any size. It shows a
difference once an outcome or an audit record shows it. What no outcome has shown yet only a digest of every row finds:
that costs a second or so per million rows, so it is made in a thread, on a reader that is pinned at the point, and as
often as `Pace` lets it.

Members tell each other their *claims* about points. A member whose value differs from the one that more than half of
the voters share is the odd one: it stops. Where no value has more than half (two against two, or one against one with
the third away) nobody can know who is right: then all say so loudly and go on, since stopping everybody would turn a
doubt into an outage, and stopping one half by a guess might stop the half that is right.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

POINT_EVERY = 10_000
KEPT_POINTS = 8
"""Of each member. A claim that comes later than this is compared with nothing."""
MOST_MEMBERS = 256
DUTY = 50
"""A digest of everything may take one part in DUTY of the time."""
MOST_STRIDE = 1 << 20


@dataclass(frozen=True, slots=True)
class Claim:
    """What a member says of its state at `point`. `rows` is empty if it made no digest of every row there."""

    point: int
    chain: bytes
    rows: bytes = b""


@dataclass(frozen=True, slots=True)
class Difference:
    """`differing` hold another value than this member and `agreeing`; `is_odd`: a majority of voters holds another."""

    point: int
    what: str
    differing: tuple[str, ...]
    agreeing: tuple[str, ...]
    is_odd: bool


class Jury:
    """The latest claims of all members, this one's among them."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._claims: dict[str, dict[int, Claim]] = {me: {}}
        self._told: set[tuple[int, str, tuple[str, ...]]] = set()

    def add(self, member: str, claim: Claim) -> None:
        """Takes a claim; the newest KEPT_POINTS of a member are kept. A later claim of a point replaces the earlier."""
        if member not in self._claims and len(self._claims) >= MOST_MEMBERS:
            return
        claims = self._claims.setdefault(member, {})
        claims[claim.point] = claim
        while len(claims) > KEPT_POINTS:
            del claims[min(claims)]

    def own(self) -> list[Claim]:
        """What this member claims, oldest first."""
        return [claim for _, claim in sorted(self._claims[self._me].items())]

    def judge(self, voters: Collection[str]) -> list[Difference]:
        """What differs from this member's claims and was not told before."""
        for member in self._claims.keys() - set(voters) - {self._me}:
            del self._claims[member]
        found: list[Difference] = []
        for claim in self.own():
            for what in ("outcomes", "rows"):
                if (difference := self._compare(claim, what, voters)) is not None:
                    key = (claim.point, what, difference.differing)
                    if difference.is_odd or key not in self._told:
                        self._told.add(key)
                        found.append(difference)
        points = self._claims[self._me]
        self._told = {key for key in self._told if key[0] in points}
        return found

    def _compare(self, mine: Claim, what: str, voters: Collection[str]) -> Difference | None:
        groups: dict[bytes, list[str]] = {}
        for member in sorted(self._claims):
            claim = self._claims[member].get(mine.point)
            if claim is not None and (value := _value(claim, what)):
                groups.setdefault(value, []).append(member)
        own_value = _value(mine, what)
        if not own_value or len(groups) < 2:
            return None
        agreeing = groups.pop(own_value)
        most = max(sum(member in voters for member in group) for group in groups.values())
        differing = tuple(sorted(member for group in groups.values() for member in group))
        return Difference(mine.point, what, differing, tuple(agreeing), 2 * most > len(voters))


def _value(claim: Claim, what: str) -> bytes:
    return claim.chain if what == "outcomes" else claim.rows


class Pace:
    """At which points a digest of every row is made, given how long the last one took.

    Members differ in speed, and only digests of the same point can be compared. So the points are the multiples of a
    stride that doubles and halves: those of a slow member are among those of a quick one. A member that catches up
    makes none before the last point it knows to be committed: it has better things to do than to halve its own speed.
    """

    def __init__(self) -> None:
        self.stride = 1
        self._began_s, self._took_s = float("-inf"), 0.0

    def is_due(self, point: int, committed: int, now_s: float) -> bool:
        """Whether to make one at `point`, while entries through `committed` are known to be committed."""
        if point // POINT_EVERY % self.stride or committed // POINT_EVERY > point // POINT_EVERY:
            return False
        rested, wanted = now_s - self._began_s, DUTY * self._took_s
        if rested < wanted:
            self.stride = min(2 * self.stride, MOST_STRIDE)
            return False
        if rested > 4 * wanted:
            self.stride = max(1, self.stride // 2)
        return True

    def ended(self, began_s: float, took_s: float) -> None:
        """One was made."""
        self._began_s, self._took_s = began_s, took_s
