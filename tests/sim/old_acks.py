"""One long play: acknowledgements of an old term arrive when their receiver leads again, in a newer one."""

from __future__ import annotations

from raftmft.raft.base import LEADER
from raftmft.raft.messages import AppendReply, decode
from raftmft.raft.transport import Outgoing
from tests.sim.member import Member
from tests.sim.patterns import Patterns

BURSTS = 8
KEPT = 20


class OldAcks:
    """Five voters are needed: with three, who acknowledged an entry cannot lose it while its leader does not lead.

    The leader and a friend are cut off; the friend takes entries, and its acknowledgements are kept back. The others
    choose a leader of their own, which cuts the friend's log back, then the old leader's. That one is handed the lead,
    hears the old acknowledgements, and has its new entries on one other disk only when its power goes.
    """

    def __init__(self, patterns: Patterns) -> None:
        self.patterns, self.cluster, self.rng = patterns, patterns.cluster, patterns.rng
        self._kept: list[bytes] = []

    def begin(self) -> bool:
        """False if the cluster is not fit for it now."""
        leader = self.cluster.leader()
        if leader is None or leader.replica is None or leader.frontend is None or not leader.frontend.is_ready:
            return False
        voters = [self.cluster.members[name] for name in leader.replica.engine.configuration.voters]
        friends = [m for m in voters if m.replica is not None and m is not leader]
        if len(voters) < 5 or len(friends) < 4:
            return False
        friend, pair_cut = self.rng.choice(friends), self.patterns.around(leader)
        pair_cut |= self.patterns.around(friend)
        pair_cut.discard((leader.name, friend.name))
        friend.on_leave = lambda out: self._keep(leader, out)
        self.cluster.cut_ways |= pair_cut
        self.cluster.note(f"acknowledgements of {friend.name} to {leader.name} are kept back")
        for _ in range(BURSTS):
            self.patterns.clients.burst(leader)
        self.cluster.after(self.rng.uniform(1.6, 2.4), lambda: self._friend_back(leader, friend, pair_cut))
        return True

    def _keep(self, leader: Member, out: Outgoing) -> None:
        if out.member == leader.name and isinstance(decode(out.body), AppendReply):
            self._kept.append(out.body)

    def _friend_back(self, leader: Member, friend: Member, pair_cut: set[tuple[str, str]]) -> None:
        friend.on_leave = None
        self.cluster.cut_ways -= pair_cut
        if leader.replica is not None:
            leader.crash(power=False)  # so that nobody asks again for what it had alone
        self.cluster.after(0.8, lambda: self._leader_back(leader, friend))

    def _leader_back(self, leader: Member, friend: Member) -> None:
        self.patterns.restart(leader, 0.0)

        def ask() -> None:
            now = self.cluster.leader()
            if now is not None and now.replica is not None and now is not leader:
                now.replica.engine.hand_over(leader.name)
                now.wake()

        for delay in (0.4, 0.6, 0.8):
            self.cluster.after(delay, ask)
        self.cluster.after(1.2, lambda: self._arrive(leader, friend))

    def _arrive(self, leader: Member, friend: Member) -> None:
        replica, cluster = leader.replica, self.cluster
        if replica is None or replica.engine.state() != LEADER or leader.frontend is None:
            return
        if not leader.frontend.is_ready:
            return
        witness = self.rng.choice([name for name in cluster.names if name not in (leader.name, friend.name)])
        cut = self.patterns.around(leader) - {(leader.name, witness), (witness, leader.name)}
        cluster.cut_ways |= cut
        cluster.note(f"old acknowledgements reach {leader.name}, whom only {witness} hears")
        self.patterns.clients.burst(leader)
        cluster.coverage["old acknowledgements"] += 1
        for body in self._kept[-KEPT:]:
            delay = self.rng.uniform(0.0, 0.1)
            cluster.after(delay, lambda body=body: cluster._deliver(friend.name, leader.name, body))
        cluster.after(0.2, lambda: self._strike(leader, witness, cut))

    def _strike(self, leader: Member, witness: str, cut: set[tuple[str, str]]) -> None:
        cluster = self.cluster
        cluster.cut_ways -= cut
        alone = self.patterns.around(cluster.members[witness])
        cluster.cut_ways |= alone
        cluster.after(2.0, lambda: cluster.cut_ways.difference_update(alone))
        if leader.replica is not None:
            leader.crash(power=True)
            self.patterns.restart(leader, 2.0)
