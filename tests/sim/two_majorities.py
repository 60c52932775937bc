"""One long play: two leaders change the same configuration of four in two ways, so that majorities need not meet.

The leader adds a fifth voter, and is cut off, with that one, before anybody else hears of it. The others choose a
leader that is told to remove the fourth, which hears nothing from then on. If it did so before an entry of its own term
is on a majority of the four (the error in Ongaro's thesis that was mended on raft-dev in 2015), then two of three are
enough for it, and first, fourth and fifth of five for the old leader.
"""

from __future__ import annotations

from collections.abc import Callable

from raftmft.raft.base import LEADER
from tests.sim.member import Member
from tests.sim.patterns import Patterns

PATIENCE_S = 6.0
APART_S = 3.0


class TwoMajorities:
    """Gives up whenever the cluster does not do its part in time: other faults go on meanwhile."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns, self.cluster = patterns, patterns.cluster
        self._cut: set[tuple[str, str]] = set()

    def begin(self) -> bool:
        """False if the cluster is not fit for it now."""
        cluster, leader = self.cluster, self.cluster.leader()
        if cluster.listed is None or leader is None or not cluster.is_settled():
            return False
        if cluster.now < self.patterns.playing_until:
            return False
        alive = [m.name for m in cluster.members.values() if not m.is_lost and m is not leader]
        while len(alive) < 4:
            alive.append(cluster.add_member().name)
        self.patterns.playing_until = cluster.now + 2 * PATIENCE_S + APART_S
        four = {leader.name, *alive[:3]}
        self.patterns.want(four)
        self._when(cluster.is_settled, lambda: self._add_fifth(four, alive[3]))
        return True

    def _when(self, holds: Callable[[], bool], then: Callable[[], None], left_s: float = PATIENCE_S) -> None:
        if holds():
            then()
        elif left_s > 0:
            self.cluster.after(0.01, lambda: self._when(holds, then, left_s - 0.01))

    def _add_fifth(self, four: set[str], fifth: str) -> None:
        cluster, leader = self.cluster, self.cluster.leader()
        if leader is None or leader.name not in four:
            return
        # The fifth cannot catch up, and so does not vote, before all the others know that it is to learn.
        self._apart({leader.name}, {fifth})
        self.patterns.want(four | {fifth})

        def all_know() -> bool:
            hosts = [cluster.members[name].replica for name in sorted(four)]
            return all(r is not None and fifth in r.engine.configuration.learners
                       and r.engine.commit_index() >= r.journal.configurations[-1][0] for r in hosts)

        self._when(all_know, lambda: self._let_vote(four, fifth, leader))
        cluster.after(2 * PATIENCE_S, self._over)

    def _let_vote(self, four: set[str], fifth: str, leader: Member) -> None:
        cluster = self.cluster
        until = cluster.now + PATIENCE_S

        def ticked(member: Member) -> None:
            if cluster.now >= until:
                cluster.on_tick = None
            elif member is leader and member.replica is not None and (
                    fifth in member.replica.engine.configuration.voters):
                # Before a word of it has left.
                self._apart({leader.name, fifth}, four - {leader.name})
                three = sorted(four - {leader.name})
                cluster.on_tick = lambda member: self._chosen(member, leader, fifth, three)

        cluster.on_tick = ticked
        cluster.cut_ways -= self._cut
        self._cut = set()

    def _chosen(self, member: Member, old: Member, fifth: str, three: list[str]) -> None:
        cluster = self.cluster
        if member.name not in three or member.replica is None or member.replica.engine.state() != LEADER:
            return
        fourth = next(name for name in reversed(three) if name != member.name)
        kept = {old.name, fifth, *three} - {fourth}
        self._apart({member.name}, {fourth})
        self.patterns.want(kept)
        cluster.on_tick = None
        cluster.coverage["two majorities"] += 1
        for delay in (0.05, 0.15, 0.3):
            cluster.after(delay, lambda: self._write(member))
        pair = set(three) - {fourth}
        cluster.after(0.5, lambda: self._together({old.name, fourth, fifth}, pair))
        for delay in (1.8, 2.4, 3.0):
            cluster.after(delay, lambda: self._write(old))

    def _write(self, member: Member) -> None:
        if member.frontend is not None and member.frontend.is_ready:
            self.patterns.clients.write(member, "play", lambda _: None)

    def _apart(self, some: set[str], others: set[str]) -> None:
        new = {(a, b) for a in some for b in others} | {(b, a) for a in some for b in others}
        self._cut |= new
        self.cluster.cut_ways |= new
        self.cluster.note(f"{sorted(some)} do not hear {sorted(others)}")

    def _together(self, some: set[str], others: set[str]) -> None:
        self.cluster.cut_ways -= self._cut
        self._cut = set()
        self._apart(some, others)

    def _over(self) -> None:
        self.cluster.cut_ways -= self._cut
        self.cluster.on_tick = None
