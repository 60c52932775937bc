"""The feature level: what every member is known to understand, as a number in the replicated state. It never falls.

While a cluster is upgraded, members of two versions run side by side, and `apply` must give the same on all of them.
So whatever a version brings that another one would not understand belongs to a *level*, and is used only at or above
it: a command, a changed rule of `apply`, another layout of the state, another format of a file or message. A member
says at each boot, and a host as it is admitted, which level its program knows. Once all that are listed know a higher
one, the leader proposes FeatureRaise (upgrading.py); from the entry after it on what the level brings may be used.
Below its level a command is turned away by all alike, and leaves no trace in the state.

A program that knows less than the level in force takes no part: it stops before it applies what it does not know.

To add a level, append it to LEVELS. A command whose fields change is another command, with a number of its own; of a
rule that changes, `apply` has both forms, and asks `settings.level`. Levels are never taken away: a log that is
replayed from its begin passes through all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raftmft.core.command_base import Command

FIRST = 1


@dataclass(frozen=True, slots=True)
class Level:
    """`brings`: one line for people. `changes`: SQL that the entry which raises the level runs, in its transaction and
    so at the same index on every member; each statement must be quick whatever the state holds (a new table; a column
    with a default, where all INSERTs name their columns). `tables`: those that it adds, with the order of their rows in
    the digest.
    """

    number: int
    brings: str
    commands: tuple[type[Command], ...] = ()
    changes: tuple[str, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)


class Features:
    """The levels that a program knows: FIRST and those that follow, without a gap."""

    def __init__(self, levels: Sequence[Level]) -> None:
        assert [level.number for level in levels] == list(range(FIRST, FIRST + len(levels))), "levels have no gaps"
        assert not levels[0].commands and not levels[0].changes, "all begin with the first level, without being raised"
        self._levels = tuple(levels)
        self._level_of = {command: level.number for level in levels for command in level.commands}

    @property
    def newest(self) -> int:
        """The highest level that the program knows."""
        return self._levels[-1].number

    def level_of(self, command: type[Command]) -> int:
        """From which level on a command may be used."""
        return self._level_of.get(command, FIRST)

    def between(self, low: int, high: int) -> tuple[Level, ...]:
        """The levels above `low` up to `high`."""
        return tuple(level for level in self._levels if low < level.number <= high)

    def tables(self, level: int) -> dict[str, str]:
        """The tables that levels up to `level` added -> order of their rows in the digest."""
        return {name: order for step in self.between(FIRST, level) for name, order in step.tables.items()}


LEVELS: tuple[Level, ...] = (
    Level(FIRST, "all that the first release has"),
)
CURRENT = Features(LEVELS)
"""What this program knows."""


def not_yet(level: int, present: int) -> str:
    """The line for who asks for what the level in force does not have."""
    return (f"this needs feature level {level} and the cluster is at level {present}: upgrade the members that do not "
            "know it first, see raftmft member list")


def too_old(level: int, known: int) -> str:
    """The line for who knows less than the level in force."""
    return (f"the cluster is at feature level {level} and this program knows level {known} only: run a version that "
            f"knows level {level}, as the other members do (a cluster cannot go back)")
