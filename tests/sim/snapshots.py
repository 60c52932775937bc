"""Snapshots in the simulation: a twin of Snapshotter and SnapshotFolder, with the time that transfers take."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftmft.raft.snapshots import KEPT

if TYPE_CHECKING:
    from tests.sim.member import Member

DAMAGED_SHARE = 0.1
"""Of the starts that have two snapshots: the newer one cannot be read."""


@dataclass(frozen=True, slots=True)
class SimSnapshot:
    """A whole snapshot; `data` is the state's."""

    index: int
    term: int
    configuration: bytes
    data: bytes

    @property
    def root(self) -> bytes:
        """Names it."""
        return hashlib.blake2b(repr((self.index, self.term)).encode() + self.data, digest_size=32).digest()


class Snapshots:
    """One member's. What stands in `held` is on its disk for good; what is in the making goes with the process."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.held: list[SimSnapshot] = []
        self.busy = False

    def restore(self, base_index: int, last_index: int) -> None:
        """At start: fills an empty state from the newest one that can be read and that the journal goes on from."""
        member, self.busy = self.member, False
        self.held = [snapshot for snapshot in self.held if snapshot.index <= last_index]
        if member.state.applied:
            return
        usable = [snapshot for snapshot in self.held if snapshot.index >= base_index]
        if len(usable) > 1 and member.cluster.rng.random() < DAMAGED_SHARE:
            member.cluster.coverage["damaged snapshots"] += 1
            self.held.remove(usable.pop())
        if usable:
            member.state.take(usable[-1].data)
            assert member.state.applied == usable[-1].index

    def look(self) -> None:
        """Begins what is due."""
        member = self.member
        if self.busy or member.replica is None:
            return
        compaction, rng = member.replica.compaction, member.cluster.rng
        if compaction.offered is not None:
            self.busy = True
            member.later(rng.choice((0.05, 0.3, 2.0)), self._fetch)
        elif compaction.is_due():
            self.busy = True
            index, data = member.state.applied, member.state.save()
            member.later(rng.choice((0.01, 0.2, 1.0)), lambda: self._copied(index, data))

    def _copied(self, index: int, data: bytes) -> None:
        replica = self.member.replica
        assert replica is not None
        point = replica.compaction.point(index)
        if point is None:
            self.busy = False
            return
        made = SimSnapshot(index, *point, data)
        self.member.later(self.member.cluster.rng.choice((0.01, 0.5)), lambda: self._made(made))

    def _made(self, made: SimSnapshot) -> None:
        replica = self.member.replica
        assert replica is not None
        self.busy = False
        self._adopt(made)
        replica.compaction.made(made)
        self.member.cluster.coverage["snapshots"] += 1

    def _fetch(self) -> None:
        member, cluster = self.member, self.member.cluster
        replica = member.replica
        assert replica is not None
        self.busy = False
        offered = replica.compaction.offered
        if offered is None:
            return
        source, offer = cluster.members[offered[0]], offered[1]
        found = [snapshot for snapshot in source.snapshots.held if snapshot.root == offer.root]
        if not found or source.replica is None or cluster.cuts(source.name, member.name):
            return
        snapshot = found[0]
        if replica.install(snapshot, lambda: member.load(snapshot.data)):
            self._adopt(snapshot)
            cluster.coverage["installs"] += 1
            cluster.note(f"{member.name} installs the snapshot of entry {snapshot.index}")
            member.wake()

    def _adopt(self, snapshot: SimSnapshot) -> None:
        self.held = [*(other for other in self.held if other.index < snapshot.index), snapshot][-KEPT:]
