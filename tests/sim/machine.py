"""The state machines of the simulation: one in memory, and the real one on SQLite in memory. Both hold registers.

Register `key` is written by a command that carries a number, and every number is written once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

from raftmft.core import commands as c
from raftmft.core.commands import CommandId, NoOp
from raftmft.core.machine import Entry, Machine
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.wire.commands import decode_outcome, encode_outcome

KEYS = 6


class MemoryMachine:
    """Remembers NoOp payloads, applies one command id once, survives or loses a crash. "2=17" writes register 2."""

    def __init__(self, on_entry: Callable[[Entry], None] | None = None) -> None:
        self.applied = 0
        self.payloads: list[bytes] = []
        self.outcomes: dict[CommandId, Outcome] = {}
        self.registers = [0] * KEYS
        self.epochs: dict[str, tuple[int, bytes]] = {}
        self.fail: Exception | None = None
        self._on_entry = on_entry
        self._lock = Lock()  # a copy is made in a thread, as of one moment

    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]:
        if self.fail:
            raise self.fail
        with self._lock:
            return [self._apply(entry) for entry in entries]

    def _apply(self, entry: Entry) -> Outcome:
        assert entry.index > self.applied, "applied twice"
        self.applied = entry.index
        if self._on_entry:
            self._on_entry(entry)
        command_id, command = entry.envelope.id, entry.envelope.command
        if isinstance(command, c.MemberBoot):
            epoch, nonce = self.epochs.get(command.member, (0, b""))
            if nonce != command.nonce:
                self.epochs[command.member] = epoch + 1, command.nonce
            return Outcome(entry.index, {"epoch": self.epochs[command.member][0]})
        if isinstance(command, c.ExpireMember):
            epoch, nonce = self.epochs.get(command.member, (0, b""))
            if epoch == command.epoch:
                self.epochs[command.member] = epoch + 1, nonce + b"!"
            return Outcome(entry.index)
        if command_id is None:
            return Outcome(entry.index, {"count": len(self.payloads)})
        if command_id.member in self.epochs and self.epochs[command_id.member][0] != command_id.epoch:
            return Outcome(entry.index, {}, Rejection(Code.STALE_EPOCH, "of another epoch"))
        if command_id in self.outcomes:
            return self.outcomes[command_id]
        outcome = self.outcomes[command_id] = Outcome(entry.index, {"count": len(self.payloads)})
        assert isinstance(command, NoOp)
        self.payloads.append(command.payload)
        key, _, number = command.payload.partition(b"=")
        if number:
            self.registers[int(key)] = int(number)
        return outcome


    def save(self) -> bytes:
        """The whole state as bytes."""
        with self._lock:
            state = {name: value for name, value in self.__dict__.items() if name not in ("_on_entry", "_lock")}
            return pickle.dumps(state)  # a test's own bytes, which no network or disk had in hand

    def take(self, data: bytes) -> None:
        """Becomes what `save` gave."""
        self.__dict__.update(pickle.loads(data))

    def copy_to(self, path: str) -> int:
        """As the real machine's."""
        data = self.save()
        Path(path).write_bytes(data)
        return int(pickle.loads(data)["applied"])

    def check(self, path: str) -> None:
        """There is nothing that it would not know."""

    def load(self, path: str) -> None:
        """As the real machine's."""
        self.take(Path(path).read_bytes())
        Path(path).unlink()


class State(Protocol):
    """What the simulation needs of a state machine beside applying."""

    @property
    def applied(self) -> int: ...

    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]: ...

    def save(self) -> bytes: ...

    def take(self, data: bytes) -> None: ...

    def read(self, key: int) -> int: ...

    def epoch(self, member: str) -> int: ...

    def digest(self) -> str: ...


class MemoryState(MemoryMachine):
    """The quick one."""

    @staticmethod
    def setup(names: Sequence[str]) -> list[c.Command]:
        """What is proposed before anything else."""
        return []

    @staticmethod
    def write(key: int, number: int) -> c.Command:
        """The command that writes a register."""
        return NoOp(b"%d=%d" % (key, number))

    def read(self, key: int) -> int:
        """A register."""
        return self.registers[key]

    def epoch(self, member: str) -> int:
        """A member's epoch; 0 if it never booted."""
        return self.epochs.get(member, (0, b""))[0]

    def digest(self) -> str:
        """All of the state."""
        return repr((self.applied, self.payloads, self.registers, self.epochs))


class SqliteState:
    """The machine of the real program. A register is the quota of a user: each write leaves an audit record, too."""

    def __init__(self) -> None:
        self.machine = Machine(":memory:", encode_outcome=encode_outcome, decode_outcome=decode_outcome)
        self.apply_batch = self.machine.apply_batch

    @staticmethod
    def setup(names: Sequence[str]) -> list[c.Command]:
        """Makes the cluster and the registers."""
        specs = tuple(c.MemberSpec(name, name, "127.0.0.1", 1000 + i, 2000 + i, 3000 + i, f"{i:064x}")
                      for i, name in enumerate(names))
        bootstrap = c.Bootstrap("sim", "c0ffee", specs, "ssh-ed25519 AAAA host", b"sealed host", b"sealed ca")
        return [bootstrap, *(c.UserAdd(f"u{key}") for key in range(KEYS))]

    @staticmethod
    def write(key: int, number: int) -> c.Command:
        """The command that writes a register."""
        return c.UserSet(f"u{key}", quota_bytes=number)

    @property
    def applied(self) -> int:
        """The index of the last applied entry."""
        return self.machine.applied

    def save(self) -> bytes:
        """The database."""
        return self.machine._db.serialize()

    def take(self, data: bytes) -> None:
        """Becomes what `save` gave."""
        self.machine._db.deserialize(data)
        self.machine._reload()

    def read(self, key: int) -> int:
        """A register; 0 also while it is not made."""
        row = self.machine.users.get(f"u{key}")
        return 0 if row is None else row.quota_bytes

    def epoch(self, member: str) -> int:
        """A member's epoch; 0 if it never booted or the cluster is not made."""
        return self.machine.members.epoch(member) if self.machine.is_bootstrapped else 0

    def digest(self) -> str:
        """All of the state."""
        return self.machine.digest()
