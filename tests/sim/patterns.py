"""Faults that aim: short plays that lead a cluster where one forgotten rule would show."""

from __future__ import annotations

from raftmft.raft.messages import AppendReply, Vote, decode
from raftmft.raft.transport import Outgoing
from tests.sim.clients import Clients
from tests.sim.cluster import Cluster
from tests.sim.member import Member

HUNT_S = 5.0


class Patterns:
    """Plays, and the small steps that they and the Nemesis share."""

    def __init__(self, cluster: Cluster, clients: Clients) -> None:
        self.cluster, self.clients, self.rng = cluster, clients, cluster.rng
        self.is_replacing = False
        self._hunting_until = 0.0

    # --- steps -------------------------------------------------------------------------------------------------------
    def restart(self, member: Member, after_s: float, *, only_if_down: bool = False) -> None:
        """Starts it again, unless that happened already."""
        def start() -> None:
            if member.replica is None and not member.is_lost:
                member.start()
            elif only_if_down and member.replica is not None:
                member.mend_disk()  # nothing was written meanwhile

        self.cluster.after(after_s, start)

    def around(self, member: Member, way: str = "both") -> set[tuple[str, str]]:
        """What an isolation of one member cuts: what comes "in", what goes "out", or "both"."""
        others = [name for name in self.cluster.names if name != member.name]
        return ({(member.name, other) for other in others} if way != "in" else set()) | (
            {(other, member.name) for other in others} if way != "out" else set())

    def want(self, names: set[str]) -> bool:
        """Lists other members; those that never ran begin to."""
        cluster = self.cluster
        if names == cluster.listed:
            return False
        cluster.listed = names
        cluster.note(f"listed: {sorted(names)}")
        for name in sorted(names):
            if not cluster.members[name].was_started:
                cluster.members[name].start()
        return True

    # --- plays -------------------------------------------------------------------------------------------------------
    def lonely_leader(self) -> bool:
        """The leader is cut off with commands that nobody else has, and then lose: its log is cut back."""
        leader = self.cluster.leader()
        if leader is None or leader.frontend is None or not leader.frontend.is_ready:
            return False
        cluster, ways, life = self.cluster, self.around(leader), leader.life
        cluster.cut_ways |= ways
        cluster.note(f"{leader.name} is cut off amid a burst")
        self.clients.burst(leader)

        def step() -> None:
            if leader.life == life and self.rng.random() < 0.3:
                leader.crash(power=self.rng.random() < 0.5)
                self.restart(leader, self.rng.uniform(0.02, 1.0))

        def heal() -> None:
            cluster.cut_ways -= ways

        cluster.after(self.rng.uniform(0.01, 0.5), step)
        cluster.after(self.rng.uniform(1.5, 3.5), heal)
        return True

    def hunt_leaders(self) -> bool:
        """For a while whoever begins to lead is soon cut off or killed: terms with hardly an entry, logs that differ
        (figure 8 of the Raft paper).
        """
        if self.cluster.now < self._hunting_until:
            return False
        self._hunting_until = self.cluster.now + HUNT_S
        self.cluster.note("leaders are hunted")
        self._hunt(set(self.cluster.leaders))
        return True

    def _hunt(self, seen: set[int]) -> None:
        cluster = self.cluster
        if cluster.now >= self._hunting_until:
            return
        for term in sorted(set(cluster.leaders) - seen):
            seen.add(term)
            member = cluster.members[cluster.leaders[term]]
            cluster.after(self.rng.choice((0.0, 0.002, 0.01, 0.04)), lambda member=member: self._strike(member))
        cluster.after(0.005, lambda: self._hunt(seen))

    def _strike(self, member: Member) -> None:
        if member.replica is None:
            return
        cluster = self.cluster
        if member.frontend is not None and member.frontend.is_ready:
            self.clients.write(member, "victim", lambda: None)
        if self.rng.random() < 0.5:
            ways = self.around(member, self.rng.choice(("in", "both")))
            if self.rng.random() < 0.5:  # one other hears it still
                other = self.rng.choice([name for name in cluster.names if name != member.name])
                ways -= {(member.name, other), (other, member.name)}
            cluster.cut_ways |= ways
            cluster.note(f"{member.name} is struck: cut off")

            def heal() -> None:
                cluster.cut_ways -= ways

            cluster.after(self.rng.uniform(0.8, 2.0), heal)
        else:
            member.crash(power=self.rng.random() < 0.5)
            self.restart(member, self.rng.uniform(0.02, 1.5))

    def hunt_voters(self) -> bool:
        """For a while whoever has sent a vote loses power at once, and is soon back, in the same term."""
        leader = self.cluster.leader()
        if leader is None:
            return False
        cluster = self.cluster
        cluster.note("voters are hunted")
        until = cluster.now + HUNT_S
        for member in cluster.members.values():
            member.on_leave = lambda out, member=member: self._voted(member, out, until)
        leader.crash(power=False)
        self.restart(leader, HUNT_S / 2)
        return True

    def _voted(self, member: Member, out: Outgoing, until: float) -> None:
        if self.cluster.now >= until:
            member.on_leave = None
        elif member.replica is not None and isinstance(decode(out.body), Vote):
            life = member.life

            def strike() -> None:
                if member.life == life and member.replica is not None:
                    member.crash(power=True)
                    self.restart(member, self.rng.uniform(0.001, 0.05))

            self.cluster.after(0.0, strike)

    def old_acks(self) -> bool:
        """Acknowledgements of an old term arrive when their receiver leads again, in a newer one, and after the log of
        their sender was cut back.
        """
        cluster, leader = self.cluster, self.cluster.leader()
        if leader is None or leader.replica is None or leader.frontend is None or not leader.frontend.is_ready:
            return False
        others = [m for m in cluster.members.values() if m.replica is not None and m is not leader]
        if len(others) < 2:
            return False
        friend = self.rng.choice(others)
        kept: list[bytes] = []

        def keep(out: Outgoing) -> None:
            if out.member == leader.name and isinstance(decode(out.body), AppendReply):
                kept.append(out.body)

        pair = {leader.name, friend.name}
        ways = {(a, b) for a in cluster.names for b in cluster.names if (a in pair) != (b in pair)}
        ways |= {(friend.name, leader.name)}
        cluster.cut_ways |= ways
        friend.on_leave = keep
        cluster.note(f"acknowledgements of {friend.name} to {leader.name} are kept back")
        self.clients.burst(leader)

        def apart() -> None:
            cluster.cut_ways -= ways
            cut = self.around(leader)
            cluster.cut_ways |= cut
            friend.on_leave = None
            cluster.after(self.rng.uniform(1.0, 2.5), lambda: self._back(leader, friend, cut, kept))

        cluster.after(self.rng.uniform(0.05, 0.4), apart)
        return True

    def _back(self, leader: Member, friend: Member, cut: set[tuple[str, str]], kept: list[bytes]) -> None:
        """The old leader is back; the new one hands over to it if it can, and then the old words arrive."""
        cluster = self.cluster
        cluster.cut_ways -= cut

        def ask() -> None:
            now = cluster.leader()
            if now is not None and now.replica is not None and now is not leader:
                now.replica.engine.hand_over(leader.name)
                now.wake()

        def arrive() -> None:
            now = cluster.leader()
            if now is leader:
                others = [m for m in cluster.members.values() if m.replica is not None and m is not leader]
                ways = {(leader.name, m.name) for m in others}
                cluster.cut_ways |= ways
                self.clients.burst(leader)
                cluster.after(1.5, lambda: cluster.cut_ways.difference_update(ways))
                for body in kept[-20:]:
                    cluster.after(0.05, lambda body=body: cluster._deliver(friend.name, leader.name, body))

        cluster.after(0.4, ask)
        cluster.after(1.2, arrive)
