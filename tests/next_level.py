"""A version of the program that knows one feature level more than the present one, for tests of upgrades.

Its level brings all kinds of things that a level may bring: a command (directories are made by MarkedMkdir), a table
and a column, and a rule of `apply` that changes (who is removed leaves a mark). `NextMachine` is its state machine;
`install` turns a whole process into that version, before all else of raftmft is imported (tests/e2e/test_upgrade.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from raftmft.core import commands as c
from raftmft.core import features, machine
from raftmft.core.command_base import Command, Path
from raftmft.core.features import LEVELS, Features, Level
from raftmft.core.machine import Machine

NEXT = LEVELS[-1].number + 1
VERSION = "99.0"
NUMBER = 999


@dataclass(frozen=True, slots=True)
class MarkedMkdir(Command):
    """Mkdir, and a row in `marks`. Value: {}."""

    session: int
    path: Path
    mode: int | None
    mark: str


FEATURES = Features((*LEVELS, Level(
    NEXT, "marks", (MarkedMkdir,),
    ("CREATE TABLE marks (idx INTEGER PRIMARY KEY, text TEXT NOT NULL)",
     "ALTER TABLE members ADD COLUMN site TEXT NOT NULL DEFAULT 'here'"), {"marks": "idx"})))


def teach(made: Machine) -> None:
    """Makes a machine of the present version one of the next, but for the levels that it knows."""
    mkdir, remove = made._handlers[c.Mkdir], made._handlers[c.UserRemove]

    def mark(text: str) -> None:
        made._state.db.execute("INSERT INTO marks VALUES (?, ?)", (made._state.index, text))

    def marked_mkdir(command: MarkedMkdir) -> dict[str, Any]:
        value = mkdir(c.Mkdir(command.session, command.path, command.mode))
        mark(command.mark)
        return value

    def user_remove(command: c.UserRemove) -> dict[str, Any]:
        value = remove(command)
        if made.settings.level >= NEXT:
            mark(f"{command.name} went")
        return value

    made._handlers[MarkedMkdir], made._handlers[c.UserRemove] = marked_mkdir, user_remove


class NextMachine(Machine):
    """The state machine of that version."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, known=FEATURES, **options)
        teach(self)


def install() -> None:
    """Makes this process one of the next version."""
    assert "raftmft.wire.commands" not in sys.modules, "too late: the codecs are made"
    import raftmft

    raftmft.__version__ = VERSION
    features.CURRENT = FEATURES
    c.COMMANDS[NUMBER] = MarkedMkdir
    machine.Machine = NextMachine  # type: ignore[misc]

    from raftmft.node.epoch import Epoch

    execute = Epoch.execute

    async def with_marks(self: Epoch, command: Command, **options: Any) -> Any:
        if isinstance(command, c.Mkdir) and self._level() >= NEXT:
            command = MarkedMkdir(command.session, command.path, command.mode, "made")
        return await execute(self, command, **options)

    Epoch.execute = with_marks  # type: ignore[method-assign]
