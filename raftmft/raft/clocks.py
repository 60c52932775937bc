"""What time the leader writes into entries: the median of the voters' clocks, so that no single clock moves the state.

Followers say their clock in each acknowledgement. The leader remembers how far each is ahead of its own monotonic
clock. Of an even number the lower middle counts: a clock that is ahead never wins a tie, one that is behind makes time
stand still at worst, since entries are applied with the greatest stamp yet. How long a message takes is neglected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

HEARD_WITHIN_S = 5.0
"""A clock that was not heard for so long counts no more: it may have been set."""


class Clocks:
    """The voters' clocks as this member, if it leads, knows them. `wall_ms` is its own: ms since the epoch."""

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._heard: dict[str, tuple[float, float]] = {}

    def heard(self, member: str, clock_ms: int, now_s: float) -> None:
        """`member` says that it is `clock_ms` now; `now_s` is the monotonic clock here."""
        self._heard[member] = (now_s, clock_ms - 1000 * now_s)

    def stamp_ms(self, voters: Collection[str], me: str, now_s: float) -> int | None:
        """The median; None while fewer than a majority of the voters' clocks are known."""
        fresh = [1000 * now_s + ahead for member, (at, ahead) in self._heard.items()
                 if member in voters and now_s - at <= HEARD_WITHIN_S]
        if me in voters:
            fresh.append(self._wall_ms())
        if 2 * len(fresh) <= len(voters):
            return None
        fresh.sort()
        return max(0, round(fresh[(len(fresh) - 1) // 2]))

    def own_ms(self) -> int:
        """This member's clock; never before 1970."""
        return max(0, self._wall_ms())
