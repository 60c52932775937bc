"""Reads that wait until the local state holds all that was acknowledged anywhere before they came.

A read may go on once a round that began *after it came* has passed: a question to the leader (readindex.py), or a no-op
in the log that is applied here: whatever was acknowledged before stands in front of it. One round serves everyone who
came before it began; who comes later waits for the next. Synchronous: the driver and the simulation make the rounds,
and say here what became of them.
"""

from __future__ import annotations

from collections.abc import Callable

from raftmft.core.errors import NotApplied

ROUND_S = 1.0
"""A round that has not passed in this time is begun again."""
PAUSE_S = 0.02
"""Between a round that failed and the next."""
MAX_WAITERS = 16384


class Waiter:
    """One read. `index` is set when it may go on; who waits no more sets `gone`."""

    __slots__ = ("index", "gone", "_notify")

    def __init__(self, notify: Callable[[], None]) -> None:
        self.index, self.gone, self._notify = 0, False, notify


class Barriers:
    """All reads of this member that wait."""

    def __init__(self) -> None:
        self._waiting: list[Waiter] = []

    def __len__(self) -> int:
        """Who waits for a round that has not begun."""
        return len(self._waiting)

    def add(self, notify: Callable[[], None]) -> Waiter:
        """Waits for the next round; `notify` is called once it may go on. Raises NotApplied beyond MAX_WAITERS."""
        if len(self._waiting) >= MAX_WAITERS:
            raise NotApplied(f"{MAX_WAITERS} reads are waiting already: try again later")
        waiter = Waiter(notify)
        self._waiting.append(waiter)
        return waiter

    def begin(self) -> list[Waiter]:
        """Those whom a round that begins now will serve; empty if none is needed. One round at a time."""
        round_, self._waiting = [waiter for waiter in self._waiting if not waiter.gone], []
        return round_

    def passed(self, round_: list[Waiter], index: int) -> None:
        """All that was acknowledged before the round began stands at or before `index`, and is applied here."""
        for waiter in round_:
            waiter.index = index
            waiter._notify()

    def failed(self, round_: list[Waiter]) -> None:
        """The round came to nothing: they wait for the next one."""
        self._waiting += round_
