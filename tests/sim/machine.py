"""A state machine in memory: remembers NoOp payloads, applies one command id once, survives or loses a crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raftmft.core.commands import CommandId, NoOp
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome


class MemoryMachine:
    def __init__(self, on_entry: Callable[[Entry], None] | None = None) -> None:
        self.applied = 0
        self.payloads: list[bytes] = []
        self.outcomes: dict[CommandId, Outcome] = {}
        self.fail: Exception | None = None
        self._on_entry = on_entry

    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]:
        if self.fail:
            raise self.fail
        return [self._apply(entry) for entry in entries]

    def _apply(self, entry: Entry) -> Outcome:
        assert entry.index > self.applied, "applied twice"
        self.applied = entry.index
        if self._on_entry:
            self._on_entry(entry)
        command_id, command = entry.envelope.id, entry.envelope.command
        if command_id in self.outcomes:
            return self.outcomes[command_id]
        outcome = Outcome(entry.index, {"count": len(self.payloads)})
        if command_id is not None:
            self.outcomes[command_id] = outcome
            assert isinstance(command, NoOp)
            self.payloads.append(command.payload)
        return outcome
