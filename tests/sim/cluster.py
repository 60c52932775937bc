"""A whole Raft cluster in virtual time: real Replicas and Journals, simulated disks, network, clients and power.

Everything random comes from one seed, so that a failing seed replays exactly. What must hold at every moment is checked
as it runs: the same entry and outcome at the same index on every member, one leader a term, one effect a command.
What must hold in the end stands in checks.py.
"""

from __future__ import annotations

from collections.abc import Callable

from raftmft.core.commands import CommandId, Envelope, NoOp
from raftmft.core.errors import NotApplied
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.raft.base import LEADER
from raftmft.raft.configuration import Configuration, decode
from raftmft.raft.messages import decode as decode_message
from raftmft.raft.proposals import Proposal
from raftmft.raft.timing import Timing
from raftmft.wire.commands import encode_envelope
from tests.sim.machine import MemoryState, SqliteState
from tests.sim.member import Member
from tests.sim.world import World

TICK_S = Timing().tick_s


class Cluster(World):
    """`size` founders, and `joiners` more that may become members: `listed` says who shall be one."""

    def __init__(self, seed: int, size: int = 3, *, loss: float = 0.02, repeat: float = 0.02,
                 skip_barrier: bool = False, joiners: int = 0, timing: Timing | None = None,
                 machine: type[MemoryState] | type[SqliteState] = MemoryState) -> None:
        super().__init__(seed)
        self.loss, self.repeat, self.skip_barrier = loss, repeat, skip_barrier
        self.late, self.late_by_s = 0.05, 0.4
        self.is_healed = False
        self.on_tick: Callable[[Member], None] | None = None
        self.lateness: Callable[[bytes], float] | None = None
        self.timing, self.make_state = timing or Timing(), machine
        self.founders = [f"n{i}" for i in range(size)]
        self.names = [f"n{i}" for i in range(size + joiners)]
        # Who shall be a member (None: that never changes). Those removed are not cut off: they may disturb as they can.
        self.listed: set[str] | None = set(self.founders) if joiners else None
        self.cut: set[frozenset[str]] = set()
        self.cut_ways: set[tuple[str, str]] = set()
        self.entries: dict[int, tuple[Entry, Outcome]] = {}
        self.effects: dict[CommandId, int] = {}
        self.leaders: dict[int, str] = {}
        self.acknowledged: dict[CommandId, Outcome] = {}
        self.refused: set[CommandId] = set()
        self.proposed = self._last_change = 0
        self.members: dict[str, Member] = {}
        for name in self.names:
            self.members[name] = Member(self, name)

    def add_member(self) -> Member:
        """A host that was not there before."""
        name = f"n{len(self.names)}"
        self.names.append(name)
        self.members[name] = Member(self, name)
        return self.members[name]

    # --- network ----------------------------------------------------------------------------------------------------
    def send(self, source: str, target: str, body: bytes) -> bool:
        """Loses, delays, repeats and reorders. False if there is no link."""
        if self.members[target].replica is None:
            return False
        if self.cuts(source, target) or self.rng.random() < self.loss:
            return True
        for _ in range(2 if self.rng.random() < self.repeat else 1):
            late = self.rng.random() < self.late
            delay = self.rng.uniform(0.01, self.late_by_s) if late else self.rng.uniform(0.0001, 0.002)
            if self.lateness is not None:
                delay += self.lateness(body)
            self.after(delay, lambda: self._deliver(source, target, body))
        return True

    def cuts(self, source: str, target: str) -> bool:
        """Whether nothing gets from `source` to `target`."""
        return (source, target) in self.cut_ways or frozenset((source, target)) in self.cut

    def _deliver(self, source: str, target: str, body: bytes) -> None:
        member = self.members[target]
        if member.replica is None:
            return
        if self.now < member.paused_until:
            self.after(member.paused_until - self.now + 0.001, lambda: self._deliver(source, target, body))
            return
        self.saw(body)
        if self.verbose:
            self.note(f"{source} -> {target} {decode_message(body)}"[:300])
        member.replica.receive(source, body)
        assert member.replica._dropped == 0, "an honest message was dropped"
        member.wake()

    def break_link(self, one: str, other: str, for_s: float) -> None:
        """Both ends see their link go, and another one come."""
        for a, b in ((one, other), (other, one)):
            member, life = self.members[a], self.members[a].life
            if member.replica is not None:
                member.replica.disconnected(b)
                self.after(for_s, lambda member=member, life=life, b=b: self._link_again(member, life, b))

    def _link_again(self, member: Member, life: int, other: str) -> None:
        if member.life == life and member.replica is not None and self.members[other].replica is not None:
            member.replica.connected(other)

    # --- what must hold ---------------------------------------------------------------------------------------------
    def applied(self, member: Member, entry: Entry, outcome: Outcome) -> None:
        """Called for each entry that any member applies."""
        known = self.entries.setdefault(entry.index, (entry, outcome))
        assert known[0] == entry, f"{member.name} applied another entry {entry.index}: {entry}, not {known[0]}"
        assert known[1] == outcome, f"{member.name} got another outcome of {entry.index}: {outcome}, not {known[1]}"
        identity = entry.envelope.id
        if identity is not None and outcome.index == entry.index and outcome.rejection is None:
            first = self.effects.setdefault(identity, entry.index)
            assert first == entry.index, f"{identity} had its effect at entry {first} and again at {entry.index}"

    def check_leader(self, member: Member) -> None:
        """Called after each tick: never two leaders in a term."""
        assert member.replica is not None
        if self.on_tick is not None:
            self.on_tick(member)
        if member.replica.engine.state() == LEADER:
            term = member.replica.engine.term()
            if term not in self.leaders:
                self.leaders[term] = member.name
                self.note(f"{member.name} leads in term {term}")
            assert self.leaders[term] == member.name, f"two leaders in term {term}: {self.leaders[term]}, {member.name}"
            index, configuration = member.replica.engine._configurations[-1]
            if self._last_change < index <= member.replica.engine.commit_index():
                self._last_change = index
                self.coverage["membership changes"] += 1
                self.note(f"committed at {index}: {configuration}")

    def check_members(self) -> None:
        """Called now and then: each member goes by the last configuration in its log."""
        for member in self.members.values():
            if member.replica is None:
                continue
            engine, journal = member.replica.engine, member.replica.journal
            founders = tuple(sorted(self.founders)) if member.name in self.founders else ()
            index, last = 0, Configuration(founders)
            if journal.configurations:
                index, command = journal.configurations[-1]
                last = decode(command)
            assert engine.configuration == last, (
                f"{member.name} goes by {engine.configuration} and its log says {last} at entry {index}")
            assert engine.commit_index() <= journal.last_index, f"{member.name} has committed what it has not"

    def leader(self) -> Member | None:
        """Who leads in the highest term, as far as that member knows."""
        up = [m for m in self.members.values() if m.replica is not None and m.replica.engine.state() == LEADER]
        return max(up, key=lambda m: m.replica.engine.term() if m.replica else 0, default=None)

    def is_settled(self) -> bool:
        """Whether the leader's configuration is committed, and is what is listed."""
        leader = self.leader()
        if leader is None or leader.replica is None or self.listed is None:
            return False
        engine = leader.replica.engine
        wanted = Configuration(tuple(sorted(self.listed)))
        return engine.is_settled() and engine.has_quorum() and engine.configuration == wanted

    # --- a client of its own ------------------------------------------------------------------------------------------
    def propose(self, name: str, timeout_s: float = 1.0, retries: int = 3) -> CommandId | None:
        """One command through a member, retried under its id. Returns that."""
        member = self.members[name]
        if member.replica is None:
            return None
        self.proposed += 1
        identity = CommandId(f"client-{name}", member.life, self.proposed)
        envelope = Envelope(NoOp(b"%d" % self.proposed), identity)
        self._attempt(member, member.life, envelope, timeout_s, retries, False)
        return identity

    def _attempt(self, member: Member, life: int, envelope: Envelope, timeout_s: float, retries: int,
                 maybe: bool) -> None:
        if member.life != life or member.replica is None:
            return
        identity = envelope.id
        assert identity is not None

        def ended() -> None:
            if member.life != life:
                return
            if proposal.outcome is not None:
                self.acknowledged[identity] = proposal.outcome
                return
            unsure = maybe or not isinstance(proposal.error, NotApplied)
            if retries:
                self.after(0.02, lambda: self._attempt(member, life, envelope, timeout_s, retries - 1, unsure))
            elif not unsure:
                self.refused.add(identity)

        proposal = Proposal(encode_envelope(envelope), self.now + timeout_s, ended)
        try:
            member.replica.propose(proposal)
        except NotApplied:
            return
        member.wake()

    # --- the end ----------------------------------------------------------------------------------------------------
    def heal(self) -> None:
        """Ends every trouble, and restarts who is down."""
        self.is_healed = True
        self.cut.clear()
        self.cut_ways.clear()
        self.loss = self.repeat = self.late = 0.0
        self.lateness = self.on_tick = None
        for member in self.members.values():
            member.paused_until = member.stall_s = 0.0
            member.on_leave = None
            wanted = member.was_started or (self.listed is None or member.name in self.listed)
            if member.replica is None and wanted and not member.is_lost:
                member.start()
            member.mend_disk()

    def settle(self) -> None:
        """Heals everything, and checks that all come to agree and that nothing acknowledged is missing."""
        from tests.sim import checks
        self.note("everything heals")
        self.heal()
        if self.listed is not None:
            assert self.run(60.0, self._agreed), "the healed cluster does not come to the members that are listed"
        members = [m for m in self.members.values() if not m.is_lost and (self.listed is None or m.name in self.listed)]
        front = members[0].frontend
        assert front is not None
        assert self.run(30.0, lambda: front.is_ready), "the healed cluster makes no progress"
        last: list[Outcome] = []
        self.proposed += 1
        front.execute(self.make_state.write(0, self.proposed),
                      lambda result, _: last.append(result) if isinstance(result, Outcome) else None)

        def done() -> bool:
            return bool(last) and all(m.state.applied >= last[0].index for m in members)

        assert self.run(10.0, done), "the healed cluster does not apply a command everywhere"
        self.run(2.0)
        checks.check_end(self, members)

    def _agreed(self) -> bool:
        done = self.is_settled()
        if done:  # as the links do once the list says so
            assert self.listed is not None
            gone = [name for name in self.names if name not in self.listed]
            self.cut = {frozenset((a, b)) for a in gone for b in self.names if a != b}
        return done


