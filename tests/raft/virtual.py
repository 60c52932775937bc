"""A few members in virtual time, for questions of timing: who leads, which term, how long nothing was written.

Nothing is random but the election timeouts. A message takes one step, a sync none, unless the test says otherwise: any
direction between two members may be cut, any member may be stopped, and any disk may hang. Safety in storms is the
business of tests/sim.
"""

from __future__ import annotations

from collections import deque
from random import Random

from raftmft.core.commands import CommandId, Envelope, NoOp
from raftmft.raft.engine import LEADER
from raftmft.raft.journal import Journal
from raftmft.raft.proposals import Proposal
from raftmft.raft.replica import Replica, Work
from raftmft.raft.timing import Timing
from raftmft.raft.transport import Outgoing
from raftmft.wire.commands import encode_envelope
from tests.sim.disk import SimDisk
from tests.sim.machine import MemoryMachine

STEP_S = 0.01
TICK_STEPS = 2


class Member:
    def __init__(self, world: Virtual, name: str) -> None:
        self.world, self.name = world, name
        self.machine = MemoryMachine()
        self.wall_jump_s = 0.0
        self.stopped = self.hangs = False
        self.syncing: Work | None = None
        self.inbox: deque[tuple[str, bytes]] = deque()
        self.replica = Replica(name, world.names, Journal("journal", disk=SimDisk()), self.machine, timing=Timing(),
                               rng=Random(world.rng.random()), wall_ms=self.wall_ms)

    def wall_ms(self) -> int:
        return int((self.world.now + self.wall_jump_s) * 1000)

    @property
    def leads(self) -> bool:
        return self.replica.engine.state() == LEADER

    def step(self, tick: bool) -> None:
        """What the driver's loop does in a step. A stopped member finds its messages when it goes on, after a tick."""
        if self.stopped:
            return
        replica = self.replica
        if self.syncing is not None and not self.hangs:
            assert self.syncing.batch is not None
            replica.persist(self.syncing.batch)
            replica.persisted(self.syncing.batch)
            self.world.send(self, self.syncing.late)
            self.syncing = None
        if tick:
            replica.table.expire(self.world.now)
            self._round()
        for _ in range(len(self.inbox)):
            replica.receive(*self.inbox.popleft())
        self._round()
        while replica.apply():
            pass

    def _round(self) -> None:
        replica = self.replica
        if self.syncing is not None:
            self.world.send(self, replica.beat())
            return
        replica.tick()
        work = replica.collect()
        self.world.send(self, work.early)
        if work.batch is not None and self.hangs:
            self.syncing = work
            return
        if work.batch is not None:
            replica.persist(work.batch)
            replica.persisted(work.batch)
        self.world.send(self, work.late)


class Virtual:
    """To be used within `patches.use_clock(lambda: world.now)`."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.now, self.rng = 1000.0, Random(seed)
        self.names = [chr(ord("a") + at) for at in range(size)]
        self.cut: set[tuple[str, str]] = set()
        """(from, to)"""
        self.members: dict[str, Member] = {}
        self.written: dict[str, list[float]] = {name: [] for name in self.names}
        """When commands through a member were acknowledged."""
        self._steps = self._seq = 0
        self.writers: set[str] = set()

    def start(self) -> Virtual:
        for name in self.names:
            self.members[name] = Member(self, name)
        for member in self.members.values():
            for other in self.names:
                if other != member.name:
                    member.replica.connected(other)
        return self

    def run(self, seconds: float) -> None:
        """Time passes. Every writer proposes a command every 0.2 s, which ends within 1 s."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now += STEP_S
            self._steps += 1
            if self._steps % 20 == 0:
                for name in sorted(self.writers):
                    self.propose(name, 1.0)
            for at, member in enumerate(self.members.values()):
                member.step(tick=(self._steps + at) % TICK_STEPS == 0)

    def propose(self, name: str, timeout_s: float) -> Proposal:
        self._seq += 1
        envelope = Envelope(NoOp(b"%d" % self._seq), CommandId(name, 1, self._seq))
        proposal = Proposal(encode_envelope(envelope), self.now + timeout_s, lambda: self._ended(name, proposal))
        self.members[name].replica.propose(proposal)
        return proposal

    def _ended(self, name: str, proposal: Proposal) -> None:
        if proposal.outcome is not None:
            self.written[name].append(self.now)

    def send(self, source: Member, box: list[Outgoing]) -> None:
        for out in box:
            if (source.name, out.member) not in self.cut:
                self.members[out.member].inbox.append((source.name, out.body))

    def cut_both(self, one: str, other: str) -> None:
        self.cut |= {(one, other), (other, one)}

    def isolate(self, name: str) -> None:
        for other in self.names:
            if other != name:
                self.cut_both(name, other)

    def settle(self) -> Member:
        """Until one leads; it is the one that all follow."""
        for _ in range(100):
            self.run(0.1)
            leaders = [m for m in self.members.values() if m.leads]
            if len(leaders) == 1 and all(m.replica.engine.leader() == leaders[0].name for m in self.members.values()):
                return leaders[0]
        raise AssertionError("no leader in 10 s")

    def terms(self) -> list[int]:
        return [member.replica.engine.term() for member in self.members.values()]

    def longest_pause(self, name: str, since: float) -> float:
        """The longest time in which nothing was acknowledged through `name`."""
        times = [since, *(at for at in self.written[name] if at > since), self.now]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))
