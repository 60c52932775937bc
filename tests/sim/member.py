"""One simulated host: its disk lives on, its process (replica, machine, frontend) comes and goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.raft.base import LEADER
from raftmft.raft.journal import Journal, JournalFailed
from raftmft.raft.replica import Replica, Work
from raftmft.raft.transport import Outgoing
from tests.sim.disk import SimDisk, tear
from tests.sim.frontend import Frontend
from tests.sim.machine import State
from tests.sim.snapshots import Snapshots

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

HAND_OVER_EVERY_S = 0.25
CAUGHT_UP_ENTRIES = 5


class SimJournal(Journal):
    """Counts what the coverage asks for."""

    cluster: Cluster

    def truncate_from(self, index: int) -> None:
        """As Journal."""
        self.cluster.coverage["truncations"] += 1
        super().truncate_from(index)


class Watched:
    """A state machine whose every outcome is shown to the cluster's checkers."""

    def __init__(self, member: Member, state: State) -> None:
        self._member, self._state = member, state
        self._last = state.applied

    def load(self, data: bytes) -> None:
        """Another state takes this one's place."""
        self._state.take(data)
        self._last = self._state.applied

    @property
    def applied(self) -> int:
        """As the machine's."""
        return self._state.applied

    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]:
        """As the machine's."""
        outcomes = self._state.apply_batch(entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            assert entry.index > self._last, f"{self._member.name} applied entry {entry.index} twice"
            self._last = entry.index
            self._member.cluster.applied(self._member, entry, outcome)
        return outcomes


class Member:
    """A host. `life` is raised by whatever ends its process, so that what belonged to an earlier one does nothing."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name, self.disk = cluster, name, SimDisk()
        self.replica: Replica | None = None
        self.state: State = cluster.make_state()
        self.snapshots = Snapshots(self)
        self.frontend: Frontend | None = None
        self.life = 0
        self.was_started = self.is_lost = False
        self.syncing: Work | None = None
        self.paused_until = 0.0
        self.stall_s = 0.0
        self.wall_offset_ms = 0
        self.on_leave: Callable[[Outgoing], None] | None = None
        self._woken = False
        self._hand_over_at = 0.0

    # --- its life ----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """The process begins, with what is on the disk."""
        assert self.replica is None and not self.is_lost
        cluster, life = self.cluster, self.life
        self.was_started = True
        self.mend_disk()
        journal = SimJournal("journal", disk=self.disk)
        journal.cluster = cluster
        founders = cluster.founders if self.name in cluster.founders else []
        self.snapshots.restore(journal.base_index, journal.last_index)
        self._watched = Watched(self, self.state)
        self.replica = Replica(self.name, founders, journal, self._watched, timing=cluster.timing,
                               rng=Random(cluster.rng.random()), wall_ms=self._wall_ms, snapshots=self.snapshots.held)
        self.syncing, self._woken, self.stall_s = None, False, 0.0
        self.frontend = Frontend(self)
        for other in cluster.members.values():
            if other is not self and other.replica is not None:
                self.replica.connected(other.name)
                other.replica.connected(self.name)
        cluster.note(f"{self.name} starts: log to {journal.last_index}, term {journal.getCurrentTerm()}")
        self._timer(life)

    def load(self, data: bytes) -> None:
        """A snapshot's state takes the place of the present one."""
        self._watched.load(data)

    def _wall_ms(self) -> int:
        return int(self.cluster.now * 1000) + 10**12 + self.wall_offset_ms

    def crash(self, power: bool) -> None:
        """The process ends anywhere, also amid a write. `power`: what was not synced goes too."""
        rng = self.cluster.rng
        if self.replica is not None and self.syncing is not None and rng.random() < 0.7:
            assert self.syncing.batch is not None
            tear(self.disk, self.syncing.batch, rng.random() if rng.random() < 0.5 else 1.0)
        self._end(f"{'loses power' if power else 'is killed'}")
        if power:
            self.disk.lose_power(rng)
        self.state = self.cluster.make_state()  # after any stop that was not clean it is made again from the journal

    def stop(self) -> None:
        """A clean stop: the state's file is kept."""
        assert self.replica is not None
        if self.syncing is not None:
            self.crash(power=False)
            return
        self.replica.close()
        self._end("stops cleanly")

    def wipe(self) -> None:
        """The directory is gone, and with it who this member was: a host that joins in its place is another member."""
        if self.replica is not None:
            self._end("is wiped")
        self.is_lost, self.disk, self.snapshots = True, SimDisk(), Snapshots(self)
        self.cluster.note(f"{self.name} is lost for good")

    def _disk_failed(self, error: JournalFailed) -> None:
        """What the driver does: nothing leaves any more, and the process ends."""
        replica = self.replica
        assert replica is not None and self.syncing is not None and self.syncing.batch is not None
        self.cluster.coverage["failed syncs"] += 1
        try:
            replica.persist(self.syncing.batch)
        except JournalFailed:
            pass
        else:
            raise AssertionError(f"{self.name} wrote again after a failed sync") from error
        self._end("stops: its disk failed")
        self.mend_disk()
        self.disk.lose_power(self.cluster.rng)  # which of the dirty pages the kernel has dropped, nobody knows
        self.state = self.cluster.make_state()

    def mend_disk(self) -> None:
        """It takes writes and syncs again."""
        for file in self.disk.files.values():
            file.fail_append = file.fail_sync = False

    def _end(self, how: str) -> None:
        self.cluster.note(f"{self.name} {how}")
        self.life += 1
        self.replica, self.syncing, frontend, self.frontend = None, None, self.frontend, None
        for other in self.cluster.members.values():
            if other.replica is not None:
                other.replica.disconnected(self.name)
        if frontend is not None:
            frontend.die()

    # --- time --------------------------------------------------------------------------------------------------------
    def later(self, delay: float, step: Callable[[], None]) -> None:
        """Calls `step` in this life; a paused process only gets to it when it goes on."""
        life = self.life

        def due() -> None:
            if life != self.life:
                return
            if (left := self.paused_until - self.cluster.now) > 0:
                self.cluster.after(left + 0.0001, due)
            else:
                step()

        self.cluster.after(delay, due)

    def _timer(self, life: int) -> None:
        if life != self.life:
            return
        if self.syncing is not None and self.replica is not None and self.cluster.now >= self.paused_until:
            self._release(self.replica.beat())
        self.round(life)
        self.cluster.after(self.cluster.timing.tick_s, lambda: self._timer(life))

    def wake(self) -> None:
        """Something came in: a round soon."""
        if not self._woken and self.replica is not None:
            self._woken = True
            life = self.life
            self.cluster.after(self.cluster.rng.uniform(0, 0.0002), lambda: self._wakes(life))

    def _wakes(self, life: int) -> None:
        if life == self.life:
            self._woken = False
            self.round(life)

    # --- as the driver does ------------------------------------------------------------------------------------------
    def round(self, life: int) -> None:
        """Tick, collect, send, sync."""
        replica, cluster = self.replica, self.cluster
        if life != self.life or replica is None or self.syncing is not None or cluster.now < self.paused_until:
            return
        replica.table.expire(cluster.now)
        if cluster.listed is not None:
            self._lead(replica, cluster.listed)
        self.snapshots.look()
        replica.tick()
        cluster.check_leader(self)
        work = replica.collect()
        self._release(work.early)
        if work.batch is None:
            self._release(work.late)
            self._apply_all(replica)
            if life == self.life and replica.wants_tick():
                self.wake()
            return
        if cluster.skip_barrier:
            self._release(work.late)
            work.late = []
        self.syncing = work
        if cluster.rng.random() < 0.5:
            self._apply_all(replica)
        delay = cluster.rng.choice((0.0002, 0.0005, 0.004, 0.03)) + self.stall_s
        self.stall_s = 0.0
        cluster.after(delay, lambda: self._synced(life, work))

    def _lead(self, replica: Replica, listed: set[str]) -> None:
        """As LeaderDuties does."""
        if replica.engine.state() != LEADER:
            return
        if self.name not in listed and self.cluster.now >= self._hand_over_at:
            self._hand_over_at = self.cluster.now + HAND_OVER_EVERY_S
            replica.engine.hand_over()
        last = replica.journal.last_index
        ready = {m for m, progress in replica.engine.progress.items() if progress.match >= last - CAUGHT_UP_ENTRIES}
        replica.want_members(listed, ready)

    def _synced(self, life: int, work: Work) -> None:
        replica = self.replica
        if life != self.life or replica is None:
            return
        if (left := self.paused_until - self.cluster.now) > 0:
            self.cluster.after(left + 0.0001, lambda: self._synced(life, work))
            return
        assert work.batch is not None
        try:
            replica.persist(work.batch)
        except JournalFailed as error:
            self._disk_failed(error)
            return
        replica.persisted(work.batch)
        self.syncing = None
        self._release(work.late)
        if life == self.life:
            self._apply_all(replica)
            self.wake()

    def _apply_all(self, replica: Replica) -> None:
        life = self.life
        while life == self.life and replica.apply():
            pass

    def _release(self, box: list[Outgoing]) -> None:
        life = self.life
        for out in sorted(box, key=lambda o: o.member):
            if life != self.life:
                return
            if not self.cluster.send(self.name, out.member, out.body) and out.lost:
                out.lost()
            if self.on_leave is not None:
                self.on_leave(out)


logging.getLogger("raftmft.raft").setLevel(logging.ERROR)  # torn tails are the rule here
