"""When a snapshot is due, what log it makes superfluous, and beginning anew behind one that came from another member.

Synchronous, as the replica, whose part it is. Making, sending and fetching snapshots is snapshotter.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from raftmft.core.errors import CorruptFile
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.raft.engine import Engine
from raftmft.raft.journal import Journal
from raftmft.raft.messages import SnapshotOffer
from raftmft.raft.segment import ANEW

SNAPSHOT_ENTRIES = 100_000
SNAPSHOT_BYTES = 64 << 20
"""So much of log since the last snapshot makes another one due: it bounds what a start has to apply again."""
KEEP_BYTES = 128 << 20
"""Log that is kept for followers that lag, although a snapshot holds what it says."""


class SnapshotPoint(Protocol):
    """What must be known of a snapshot here: see snapshots.py."""

    @property
    def index(self) -> int:
        """The last entry that it holds."""

    @property
    def term(self) -> int:
        """That entry's term."""

    @property
    def configuration(self) -> bytes:
        """The configuration command in force there."""

    @property
    def root(self) -> bytes:
        """What it is asked for by."""


class StateMachine(Protocol):
    """What entries are applied to. See core/machine.py."""

    @property
    def applied(self) -> int:
        """The index of the last applied entry."""

    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]:
        """One outcome an entry, in order, committed together with `applied`."""


class Compaction:
    """`snapshots`: those on disk, oldest first. Raises CorruptFile if the machine holds less than the journal begins
    with.
    """

    def __init__(self, engine: Engine, journal: Journal, machine: StateMachine,
                 snapshots: Sequence[SnapshotPoint]) -> None:
        if machine.applied < journal.base_index:
            raise CorruptFile(
                f"{journal.path} begins behind entry {journal.base_index} but the state holds entry {machine.applied} "
                f"only, and no sound snapshot bridges them; {ANEW}"
            )
        self._engine, self._journal, self._machine = engine, journal, machine
        self._indexes = [snapshot.index for snapshot in snapshots]
        self._log_bytes = journal.bytes_written
        if snapshots:
            self._offer(snapshots[-1])

    @property
    def latest_index(self) -> int:
        """The last entry that the newest snapshot holds; 0 if there is none."""
        return self._indexes[-1] if self._indexes else 0

    @property
    def offered(self) -> tuple[str, SnapshotOffer] | None:
        """A snapshot that the leader offers because it has no log any more for this member; and the leader."""
        return self._engine.offered

    def is_due(self) -> bool:
        """Whether enough was applied since the last snapshot, or the start, to make one."""
        new = self._machine.applied - max(self.latest_index, self._journal.base_index)
        return new >= SNAPSHOT_ENTRIES or (
            new > 0 and self._journal.bytes_written - self._log_bytes >= SNAPSHOT_BYTES)

    def point(self, index: int) -> tuple[int, bytes] | None:
        """The term of entry `index` and the configuration command in force there; None if the log begins behind it."""
        term = self._journal.term_at(index)
        return None if term is None else (term, self._engine.configuration_at(index).encode())

    def made(self, snapshot: SnapshotPoint) -> None:
        """This member's disk surely holds a sound snapshot. Drops the log that is of no more use: of two snapshots the
        older one keeps what follows it, should the newer one be damaged.
        """
        if snapshot.index <= self.latest_index:
            return
        self._indexes = [*self._indexes[-1:], snapshot.index]
        self._log_bytes = self._journal.bytes_written
        self._offer(snapshot)
        if len(self._indexes) > 1:
            self._journal.compact(self._indexes[0], KEEP_BYTES)

    def install(self, snapshot: SnapshotPoint, load: Callable[[], None]) -> bool:
        """Takes an offered snapshot that is on this disk: `load` makes the machine hold it. False, and nothing was
        changed, if it is of no use any more. An exception of `load` passes through, and the node must stop.
        """
        if not self._engine.install(snapshot.index, snapshot.term, snapshot.configuration):
            return False
        load()
        assert self._machine.applied == snapshot.index
        self._indexes = [snapshot.index]
        self._log_bytes = self._journal.bytes_written
        self._offer(snapshot)
        return True

    def _offer(self, snapshot: SnapshotPoint) -> None:
        self._engine.offer = SnapshotOffer(0, snapshot.index, snapshot.term, snapshot.root)
