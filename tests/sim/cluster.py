"""A whole Raft cluster in virtual time: real Replicas and Journals, simulated disks, network, clients and power.

Everything random comes from one seed, so that a failing seed replays exactly. The invariants are checked as it runs:
the same entry at the same index on every member, one leader a term, nothing acknowledged is ever lost or applied twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

from raftmft.core.commands import CommandId, Envelope, NoOp
from raftmft.core.errors import NotApplied
from raftmft.core.machine import Entry
from raftmft.raft.engine import LEADER
from raftmft.raft.journal import Journal
from raftmft.raft.proposals import Proposal
from raftmft.raft.replica import Replica, Work
from raftmft.raft.transport import Outgoing
from raftmft.wire.commands import encode_envelope
from tests.sim.disk import SimDisk, tear
from tests.sim.machine import MemoryMachine

TICK_S = 0.02


class Member:
    """One simulated host: its disk lives on, its replica and machine come and go."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name, self.disk = cluster, name, SimDisk()
        self.replica: Replica | None = None
        self.machine = MemoryMachine()
        self.life = 0
        self.syncing: Work | None = None
        self.paused_until = 0.0
        self.woken = False

    def start(self) -> None:
        cluster, life = self.cluster, self.life
        journal = Journal("journal", disk=self.disk)
        self.machine._on_entry = lambda entry: cluster.on_entry(self, entry)
        founders = cluster.founders if self.name in cluster.founders else []
        self.replica = Replica(self.name, founders, journal, self.machine, rng=Random(cluster.rng.random()),
                               wall_ms=lambda: int(cluster.now * 1000))
        self.syncing = None
        for other in cluster.members.values():
            if other is not self and other.replica is not None:
                self.replica.connected(other.name)
                other.replica.connected(self.name)
        self._timer(life)

    def crash(self, power: bool) -> None:
        """The process ends anywhere, also amid a write. `power`: what was not synced and the machine go too."""
        rng, self.life = self.cluster.rng, self.life + 1
        if self.replica is not None and self.syncing is not None and rng.random() < 0.7:
            assert self.syncing.batch is not None
            tear(self.disk, self.syncing.batch, rng.random() if rng.random() < 0.5 else 1.0)
        if power:
            self.disk.lose_power(rng)
        if power or rng.random() < 0.3:
            self.machine = MemoryMachine()
        self.replica, self.syncing = None, None
        for other in self.cluster.members.values():
            if other.replica is not None:
                other.replica.disconnected(self.name)

    def _timer(self, life: int) -> None:
        if life == self.life:
            self.round(life)
            self.cluster.after(TICK_S, lambda: self._timer(life))

    def wake(self) -> None:
        if not self.woken and self.replica is not None:
            self.woken = True
            life = self.life
            self.cluster.after(self.cluster.rng.uniform(0, 0.0002), lambda: self._woken(life))

    def _woken(self, life: int) -> None:
        self.woken = False
        self.round(life)

    def round(self, life: int) -> None:
        replica, cluster = self.replica, self.cluster
        if life != self.life or replica is None or self.syncing is not None or cluster.now < self.paused_until:
            return
        replica.table.expire(cluster.now)
        if cluster.listed is not None:
            last = replica.journal.last_index
            ready = {m for m, match in replica.status().matched.items() if match >= last - 5}
            replica.want_members(cluster.listed, ready)
        replica.tick()
        cluster.check_leader(self)
        work = replica.collect()
        self.release(work.early)
        if work.batch is None:
            self.release(work.late)
            self._apply_all(replica)
            if replica.wants_tick():
                self.wake()
            return
        if cluster.skip_barrier:
            self.release(work.late)
            work.late = []
        self.syncing = work
        if cluster.rng.random() < 0.5:
            self._apply_all(replica)
        cluster.after(cluster.rng.choice((0.0002, 0.0005, 0.004, 0.03)), lambda: self._synced(life, work))

    def _synced(self, life: int, work: Work) -> None:
        replica = self.replica
        if life != self.life or replica is None:
            return
        assert work.batch is not None
        replica.persist(work.batch)
        replica.persisted(work.batch)
        self.syncing = None
        self.release(work.late)
        self._apply_all(replica)
        self.wake()

    def _apply_all(self, replica: Replica) -> None:
        while replica.apply():
            pass

    def release(self, box: list[Outgoing]) -> None:
        for out in sorted(box, key=lambda o: o.member):
            if not self.cluster.send(self.name, out.member, out.body) and out.lost:
                out.lost()


class Cluster:
    def __init__(self, seed: int, size: int = 3, *, loss: float = 0.02, repeat: float = 0.02,
                 skip_barrier: bool = False, joiners: int = 0) -> None:
        self.seed, self.rng, self.now = seed, Random(seed), 1000.0
        self.loss, self.repeat, self.skip_barrier = loss, repeat, skip_barrier
        self.founders = [f"n{i}" for i in range(size)]
        self.names = [f"n{i}" for i in range(size + joiners)]
        # Who shall be a member (None: that never changes). Those removed are not cut off: they may disturb as they can.
        self.listed: set[str] | None = set(self.founders) if joiners else None
        self.changes = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.cut: set[frozenset[str]] = set()
        self.entries: dict[int, Entry] = {}
        self.leaders: dict[int, str] = {}
        self.acknowledged: dict[bytes, int] = {}
        self.refused: set[bytes] = set()
        self.proposed = 0
        self.members: dict[str, Member] = {}
        for name in self.names:
            self.members[name] = Member(self, name)

    # --- time -------------------------------------------------------------------------------------------------------
    def after(self, delay: float, step: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, step))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            if until():
                return True
            self.now, _, step = heapq.heappop(self._events)
            step()
        self.now = end
        return until()

    # --- network ----------------------------------------------------------------------------------------------------
    def send(self, source: str, target: str, body: bytes) -> bool:
        if self.members[target].replica is None:
            return False
        if frozenset((source, target)) in self.cut or self.rng.random() < self.loss:
            return True
        for _ in range(2 if self.rng.random() < self.repeat else 1):
            delay = self.rng.uniform(0.0001, 0.002) if self.rng.random() < 0.95 else self.rng.uniform(0.01, 0.4)
            self.after(delay, lambda: self._deliver(source, target, body))
        return True

    def _deliver(self, source: str, target: str, body: bytes) -> None:
        member = self.members[target]
        if member.replica is None:
            return
        if self.now < member.paused_until:
            self.after(member.paused_until - self.now + 0.001, lambda: self._deliver(source, target, body))
            return
        member.replica.receive(source, body)
        assert member.replica._dropped == 0, "an honest message was dropped"
        member.wake()

    # --- what must hold ---------------------------------------------------------------------------------------------
    def on_entry(self, member: Member, entry: Entry) -> None:
        same = self.entries.setdefault(entry.index, entry) == entry
        assert same, f"{member.name} applied another entry {entry.index}"

    def check_leader(self, member: Member) -> None:
        assert member.replica is not None
        if member.replica.engine.state() == LEADER:
            term = member.replica.engine.term()
            assert self.leaders.setdefault(term, member.name) == member.name, f"two leaders in term {term}"

    def leader(self) -> Member | None:
        up = [m for m in self.members.values() if m.replica is not None and m.replica.engine.state() == LEADER]
        return max(up, key=lambda m: m.replica.engine.term() if m.replica else 0, default=None)

    # --- clients ----------------------------------------------------------------------------------------------------
    def propose(self, name: str, timeout_s: float = 1.0, retries: int = 3) -> bytes | None:
        """One command through a member, retried under its id as a Proposer does. Returns its payload."""
        member = self.members[name]
        if member.replica is None:
            return None
        self.proposed += 1
        payload = b"%d" % self.proposed
        envelope = Envelope(NoOp(payload), CommandId(name, member.life, self.proposed))
        self._attempt(member, member.life, payload, encode_envelope(envelope), timeout_s, retries, False)
        return payload

    def _attempt(self, member: Member, life: int, payload: bytes, data: bytes, timeout_s: float, retries: int,
                 maybe: bool) -> None:
        if member.life != life or member.replica is None:
            return

        def ended() -> None:
            if member.life != life:
                return
            if proposal.outcome is not None:
                self.acknowledged[payload] = proposal.outcome.index
                return
            unsure = maybe or not isinstance(proposal.error, NotApplied)
            if retries:
                self.after(0.02, lambda: self._attempt(member, life, payload, data, timeout_s, retries - 1, unsure))
            elif not unsure:
                self.refused.add(payload)

        proposal = Proposal(data, self.now + timeout_s, ended)
        try:
            member.replica.propose(proposal)
        except NotApplied:
            return
        member.wake()

    # --- the end ----------------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Heals everything, restarts who is down, and checks that all agree and nothing acknowledged is missing."""
        self.cut.clear()
        self.loss = self.repeat = 0.0
        for member in self.members.values():
            member.paused_until = 0.0
            if member.replica is None:
                member.start()
        if self.listed is not None:
            assert self.run(60.0, self._agreed), "the healed cluster does not come to the members that are listed"
        members = [m for m in self.members.values() if self.listed is None or m.name in self.listed]
        last = self.propose(members[0].name, timeout_s=5.0, retries=1000)
        assert last is not None

        def done() -> bool:
            return all(last in member.machine.payloads for member in members)

        assert self.run(30.0, done), "the healed cluster makes no progress"
        self.run(2.0)
        states = [member.machine.payloads for member in members]
        assert all(state == states[0] for state in states), "members differ"
        assert len(set(states[0])) == len(states[0]), "a command was applied twice"
        lost = [payload for payload in self.acknowledged if payload not in set(states[0])]
        assert not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged commands are lost"
        lied = self.refused & set(states[0])
        assert not lied, f"{len(lied)} commands were reported as not applied and were"

    def _agreed(self) -> bool:
        assert self.listed is not None
        leader = self.leader()
        if leader is None or leader.replica is None:
            return False
        if leader.name not in self.listed:
            leader.replica.engine.hand_over()
            leader.wake()
        engine = leader.replica.engine
        done = engine.is_settled() and set(engine.configuration.voters) == self.listed
        if done:  # as the links do once the list says so
            gone = [name for name in self.names if name not in self.listed]
            self.cut = {frozenset((a, b)) for a in gone for b in self.names if a != b}
        return done
