"""Faults that aim: short plays that lead a cluster where one forgotten rule would show."""

from __future__ import annotations

from raftmft.raft.messages import AppendEntries, RequestVote, Vote, decode
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
        self.playing_until = 0.0
        """Until then the list of members belongs to one play."""

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
            self.clients.write(member, "victim", lambda _: None)
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
        """For a while candidacies and first words of leaders come late, so that rivals stand in one term; and whoever
        has sent a vote loses power at once, and is soon back, in the same term.
        """
        cluster, leader = self.cluster, self.cluster.leader()
        if leader is None or cluster.lateness is not None:
            return False
        cluster.note("voters are hunted")
        until = cluster.now + HUNT_S

        def lateness(body: bytes) -> float:
            message = decode(body)
            if isinstance(message, RequestVote):
                return self.rng.uniform(0.0, 0.8)
            return self.rng.uniform(0.3, 1.5) if isinstance(message, AppendEntries) else 0.0

        def over() -> None:
            cluster.lateness = None

        cluster.lateness = lateness
        cluster.after(HUNT_S, over)
        for member in cluster.members.values():
            member.on_leave = lambda out, member=member: self._voted(member, out, until)
        leader.crash(power=False)
        self.restart(leader, self.rng.uniform(0.1, 2.0))
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
