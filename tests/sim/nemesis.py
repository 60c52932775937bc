"""What goes wrong, one fault after another, several of them at once. Each seed has its own taste in faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from raftmft.core.commands import ExpireMember
from tests.sim.clients import Clients
from tests.sim.cluster import Cluster
from tests.sim.member import Member
from tests.sim.old_acks import OldAcks
from tests.sim.patterns import Patterns
from tests.sim.two_majorities import TwoMajorities

HOUR_MS = 3_600_000
PLAYS = ("old acks", "two majorities", "leader hunt", "voter hunt")
PLAYS_ONLY = 0.2
"""Of the seeds: a play comes to its end more often when little else happens."""


class Nemesis:
    """Draws faults until it is told to stop. A fault that finds nothing to do does not count."""

    def __init__(self, cluster: Cluster, clients: Clients) -> None:
        self.cluster, self.clients, self.rng = cluster, clients, cluster.rng
        self.patterns = Patterns(cluster, clients)
        self.done: Counter[str] = Counter()
        self.stopped = False
        patterns = self.patterns
        faults: dict[str, tuple[float, Callable[[], bool]]] = {
            "kill": (3, lambda: self.crash(power=False)), "power": (3, lambda: self.crash(power=True)),
            "blackout": (1, self.blackout), "clean stop": (1, self.clean_stop), "pause": (3, self.pause),
            "partition": (2, self.partition), "one way": (2, self.one_way), "bridge": (2, self.bridge),
            "isolate": (2, self.isolate), "storm": (2, self.storm), "molasses": (2, self.molasses),
            "failing sync": (1, self.failing_sync), "stall": (2, self.stall), "link": (2, self.link),
            "wipe": (1.5, self.wipe), "members": (4, self.change_members), "hand over": (1, self.hand_over),
            "clock": (1, self.clock), "expire": (2, self.expire),
            "lonely leader": (3, patterns.lonely_leader), "leader hunt": (1.5, patterns.hunt_leaders),
            "voter hunt": (3, patterns.hunt_voters), "two majorities": (1.5, lambda: TwoMajorities(patterns).begin()),
            "old acks": (3, lambda: OldAcks(patterns).begin()),
        }
        # Swarm testing: some faults are left out, so that the others meet more often.
        kept = [name for name in faults if self.rng.random() < 0.7]
        if self.rng.random() < PLAYS_ONLY:
            kept = list(PLAYS)
        for name in ("kill", "members", "lonely leader"):
            if name not in kept:
                kept.append(name)
        self.faults = {name: faults[name] for name in kept}

    def begin(self) -> None:
        """The first fault comes soon."""
        self.cluster.after(self.rng.uniform(0.5, 3.0), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        self.cluster.check_members()
        names = list(self.faults)
        (name,) = self.rng.choices(names, [self.faults[name][0] for name in names])
        if self.faults[name][1]():
            self.done[name] += 1
        quick = self.rng.random() < 0.4
        self.cluster.after(self.rng.uniform(0.05, 0.8) if quick else self.rng.uniform(1.5, 4.5), self._next)

    # --- hosts -------------------------------------------------------------------------------------------------------
    def _up(self) -> list[Member]:
        return [m for m in self.cluster.members.values() if m.replica is not None]

    def _any(self) -> Member | None:
        """One that is up; the leader more often than its share."""
        up = self._up()
        leader = self.cluster.leader()
        if leader is not None and self.rng.random() < 0.3:
            return leader
        return self.rng.choice(up) if up else None

    def crash(self, power: bool) -> bool:
        """One process ends."""
        member = self._any()
        if member is None:
            return False
        member.crash(power)
        self.patterns.restart(member, self.rng.choice((0.02, 0.3, 1.0, 4.0)))
        return True

    def blackout(self) -> bool:
        """All lose power at once."""
        up = self._up()
        for member in up:
            member.crash(power=True)
            self.patterns.restart(member, self.rng.uniform(0.1, 2.0))
        return bool(up)

    def clean_stop(self) -> bool:
        """One is stopped and started again."""
        member = self._any()
        if member is None:
            return False
        member.stop()
        self.patterns.restart(member, self.rng.uniform(0.1, 1.0))
        return True

    def pause(self) -> bool:
        """One is stopped amid whatever it does, and goes on."""
        member = self._any()
        if member is None:
            return False
        seconds = self.rng.choice((0.1, 0.6, 1.5, 5.0))
        member.paused_until = self.cluster.now + seconds
        self.cluster.note(f"{member.name} pauses for {seconds} s")
        return True

    def failing_sync(self) -> bool:
        """One disk refuses to sync, or is full: the member must stop."""
        member = self._any()
        if member is None:
            return False
        for file in member.disk.files.values():
            if self.rng.random() < 0.7:
                file.fail_sync = True
            else:
                file.fail_append = True
        self.cluster.note(f"{member.name}'s disk fails")
        self.patterns.restart(member, self.rng.uniform(1.0, 4.0), only_if_down=True)
        return True

    def stall(self) -> bool:
        """One sync takes long."""
        member = self._any()
        if member is None:
            return False
        member.stall_s = self.rng.choice((0.1, 0.7, 3.0, 8.0))
        self.cluster.note(f"{member.name}'s disk stalls for {member.stall_s} s")
        return True

    def clock(self) -> bool:
        """One wall clock jumps."""
        member = self._any()
        if member is None:
            return False
        member.wall_offset_ms += self.rng.choice((-HOUR_MS, -1000, 1000, HOUR_MS))
        self.cluster.note(f"{member.name}'s clock is off by {member.wall_offset_ms} ms")
        return True

    def expire(self) -> bool:
        """The leader holds one for dead, rightly or not: its epoch is over."""
        leader, member = self.cluster.leader(), self._any()
        if leader is None or leader.frontend is None or member is None or not leader.state.epoch(member.name):
            return False
        if member is not leader and member.frontend is not None and member.frontend.is_ready:
            # Amid a burst whose answers do not arrive: it asks again under an epoch that is over.
            self.clients.burst(member)
            self._for_a_while({(leader.name, member.name)}, f"silence of {leader.name} towards {member.name}")

        def say() -> None:
            if leader.frontend is not None and (epoch := leader.state.epoch(member.name)):
                self.cluster.note(f"{leader.name} holds {member.name} for dead")
                leader.frontend.propose_bare(ExpireMember(member.name, epoch))

        self.cluster.after(0.1, say)
        return True

    # --- network -----------------------------------------------------------------------------------------------------
    def _for_a_while(self, ways: set[tuple[str, str]], what: str) -> bool:
        cluster, seconds = self.cluster, self.rng.choice((0.3, 1.2, 2.5, 6.0))
        cluster.cut_ways |= ways
        cluster.note(f"{what} for {seconds} s")

        def heal() -> None:
            cluster.cut_ways -= ways
            cluster.note(f"{what}: healed")

        cluster.after(seconds, heal)
        return bool(ways)

    def partition(self) -> bool:
        """Two groups that do not hear each other."""
        names = self.cluster.names
        group = set(self.rng.sample(names, self.rng.randrange(1, len(names))))
        ways = {(a, b) for a in names for b in names if (a in group) != (b in group)}
        return self._for_a_while(ways, f"partition of {sorted(group)} from the rest")

    def isolate(self) -> bool:
        """One hears nobody, or nobody hears it, or both."""
        member = self._any()
        if member is None:
            return False
        return self._for_a_while(self.patterns.around(member, self.rng.choice(("in", "out", "both"))),
                                 f"isolation of {member.name}")

    def one_way(self) -> bool:
        """Some messages pass in one direction only."""
        names = self.cluster.names
        ways = {(a, b) for a in names for b in names if a != b and self.rng.random() < 0.3}
        return self._for_a_while(ways, f"one-way cuts {sorted(ways)}")

    def bridge(self) -> bool:
        """Two halves that both hear one member, and not each other."""
        names = self.cluster.names
        middle = self.rng.choice(names)
        left = {name for name in names if name != middle and self.rng.random() < 0.5}
        right = set(names) - left - {middle}
        ways = {(a, b) for a in left for b in right} | {(b, a) for a in left for b in right}
        return self._for_a_while(ways, f"bridge over {middle}: {sorted(left)}, {sorted(right)}")

    def storm(self) -> bool:
        """Much is lost and repeated."""
        cluster = self.cluster
        cluster.loss, cluster.repeat = self.rng.choice((0.1, 0.4)), self.rng.choice((0.02, 0.4))
        cluster.note(f"loss {cluster.loss}, repetition {cluster.repeat}")

        def over() -> None:
            cluster.loss = cluster.repeat = 0.02

        cluster.after(self.rng.uniform(0.5, 4.0), over)
        return True

    def molasses(self) -> bool:
        """Some messages come seconds late."""
        cluster = self.cluster
        cluster.late, cluster.late_by_s = self.rng.choice((0.05, 0.3)), self.rng.choice((1.5, 6.0))
        cluster.note(f"{cluster.late:.0%} of the messages come up to {cluster.late_by_s} s late")

        def over() -> None:
            cluster.late, cluster.late_by_s = 0.05, 0.4

        cluster.after(self.rng.uniform(0.5, 4.0), over)
        return True

    def link(self) -> bool:
        """A link breaks and is made again."""
        up = self._up()
        if len(up) < 2:
            return False
        one, other = self.rng.sample(up, 2)
        self.cluster.break_link(one.name, other.name, self.rng.uniform(0.01, 1.0))
        self.cluster.note(f"the link between {one.name} and {other.name} breaks")
        return True

    # --- members -----------------------------------------------------------------------------------------------------
    def change_members(self) -> bool:
        """Other members are wanted. Not while a lost one is being replaced: that takes the others' votes."""
        cluster = self.cluster
        if cluster.listed is None or (self.patterns.is_replacing and not cluster.is_settled()):
            return False
        if cluster.now < self.patterns.playing_until:
            return False
        self.patterns.is_replacing = False
        names = [m.name for m in cluster.members.values() if not m.is_lost]
        wanted = set(self.rng.sample(names, self.rng.randrange(1, len(names) + 1)))
        if self.rng.random() < 0.6 and len(wanted) < 3:
            wanted |= set(self.rng.sample(names, min(3, len(names))))
        return self.patterns.want(wanted)

    def wipe(self) -> bool:
        """A directory is lost, and another host takes the lost member's place."""
        cluster = self.cluster
        if cluster.listed is None or len(cluster.listed) < 3 or not cluster.is_settled():
            return False
        if cluster.now < self.patterns.playing_until:
            return False
        if sum(m.is_lost for m in cluster.members.values()) >= 3:
            return False
        lost = cluster.members[self.rng.choice(sorted(cluster.listed))]
        lost.wipe()
        self.patterns.is_replacing = True
        return self.patterns.want((cluster.listed - {lost.name}) | {cluster.add_member().name})

    def hand_over(self) -> bool:
        """The leader asks another to lead."""
        leader = self.cluster.leader()
        if leader is None or leader.replica is None:
            return False
        chosen = leader.replica.engine.hand_over()
        self.cluster.note(f"{leader.name} hands over to {chosen}")
        leader.wake()
        return chosen is not None
