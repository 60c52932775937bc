"""The cluster as this node sees it: members from Raft, liveness and load from gossip, standing from Raft's driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import trio

from raftmft.cluster.gossip import Gossip
from raftmft.core import placement, routing
from raftmft.core.manifest import CHUNK_SIZE
from raftmft.core.members import MemberRow
from raftmft.core.membership import Load, MemberView
from raftmft.node.datadir import Seed
from raftmft.node.roster import Roster
from raftmft.node.state import ReplicatedState
from raftmft.node.status import Facts
from raftmft.raft.driver import RaftDriver


class ClusterView:
    """Answers for the wiring: who is a member and where, who is alive, who owns a chunk, who gets a new session."""

    def __init__(self, seed: Seed, state: ReplicatedState, driver: RaftDriver, roster: Roster) -> None:
        self._seed, self._state, self._driver, self._roster = seed, state, driver, roster
        self._gossip: Gossip | None = None
        self._routed = routing.Routed()

    def listen_to(self, gossip: Gossip, my_load: Callable[[], Load], hears: Callable[[str], bool]) -> None:
        """Takes liveness and loads from here; the gossip itself asks this view for addresses, so it comes second.
        `my_load` gives this node's own load as of now, not as of its last report; `hears` whether a link talks.
        """
        self._gossip, self._my_load, self._hears = gossip, my_load, hears

    def members(self) -> tuple[MemberRow, ...]:
        """As Raft lists them, and before that, as the seed does."""
        return self._roster.rows()

    def member(self, member_id: str) -> MemberRow | None:
        """One member."""
        return next((m for m in self.members() if m.id == member_id), None)

    def storing(self) -> list[tuple[str, int]]:
        """(id, weight) of the members that store chunks."""
        return [(m.id, m.weight) for m in self.members() if m.stores]

    def replicas(self) -> int:
        """How many copies a chunk should have."""
        return max(1, min(self._wanted_replicas(), len(self.storing())))

    def write_quorum(self) -> int:
        """How many members must hold a chunk before it counts: the write quorum of the effective R. Less only where so
        few store (two and a witness) that a minority's loss would stop all writes: then those that are left, as long as
        the others are away and there is a quorum. What is told of losses (status) goes by that, too.
        """
        storing = self.storing()
        wanted = placement.write_quorum(self.replicas())
        if len(storing) == len(self.members()):
            return wanted
        status = self._driver.status()
        floor = placement.least_holders(len(storing), len(status.configuration.voters))
        if floor >= wanted or not self.has_quorum():
            return wanted
        return max(floor, min(wanted, sum(self.is_here(member) for member, _ in storing)))

    def is_here(self, member_id: str) -> bool:
        """Whether anything tells that the member lives: gossip, or its link."""
        return self.alive(member_id) or self._hears(member_id)

    def _wanted_replicas(self) -> int:
        machine = self._state.machine
        return int(machine.options.get("replicas")) if machine.is_bootstrapped else self._seed.replicas

    def ranking(self, chunk_id: bytes) -> tuple[str, ...]:
        """All storing members in the order of a chunk's rendezvous."""
        return placement.ranking(chunk_id, self.storing())

    def places(self, chunk_id: bytes) -> tuple[str, ...]:
        """All members in the order in which they are asked for a chunk: who is to store nothing any more (a leaving
        member) comes last, and may have the last copy.
        """
        ranking = self.ranking(chunk_id)
        return (*ranking, *(member.id for member in self.members() if member.id not in ranking))

    def owns(self, chunk_id: bytes) -> bool:
        """Whether this member should hold the chunk."""
        return self._seed.me in placement.owners(chunk_id, self.storing(), self.replicas())

    def alive(self, member_id: str) -> bool:
        """Whether gossip holds the member for alive."""
        return member_id == self._seed.me or self.states().get(member_id) == "alive"

    def states(self) -> dict[str, str]:
        """Member id -> alive, suspect or dead."""
        seen = {member: view.state for member, view in self._seen().items()}
        return {**seen, self._seed.me: "alive"}

    def loads(self) -> Mapping[str, Mapping[str, Any]]:
        """Member id -> its last load, as a dict."""
        return {member: asdict(view.load) for member, view in self._seen().items() if view.load is not None}

    def has_quorum(self) -> bool:
        """Whether this node is in fresh contact with a majority and knows a leader."""
        status = self._driver.status()
        return status.has_quorum and status.leader is not None

    def choose(self) -> str | None:
        """The member that gets the next session; None if nobody here or elsewhere can serve it."""
        loads = {member: view.load for member, view in self._seen().items()
                 if view.state == "alive" and view.load is not None}
        loads[self._seed.me] = self._my_load()
        now = trio.current_time()
        joined = [member for member in self.members() if member.joined]
        chosen = routing.choose(joined, loads, self._routed.counts(loads, now), self._seed.me)
        if chosen is not None:
            self._routed.note(chosen, loads[chosen].sessions, now)
        return chosen

    def _seen(self) -> Mapping[str, MemberView]:
        assert self._gossip is not None, "the view is asked before it listens to the gossip"
        return self._gossip.view()

    def dead(self) -> dict[str, float]:
        """Members that gossip holds for dead -> seconds since their last Raft acknowledgement (on the leader)."""
        contacts = self._driver.status().contacts
        dead = [member for member, state in self.states().items() if state == "dead"]
        return {member: contacts.get(member, float("inf")) for member in dead}

    def facts(self) -> Facts:
        """What `status` is made of."""
        status = self._driver.status()
        machine = self._state.machine
        files, size = machine.namespace.all_chunk_totals()
        return Facts(
            cluster=self._seed.cluster, members=self.members(), states=self.states(), loads=self.loads(),
            recorded_sessions={m.id: machine.sessions.count(m.id) for m in self.members()}, leader=status.leader,
            term=status.term, commit_index=status.commit_index, has_quorum=status.has_quorum,
            replicas=self._wanted_replicas(), voters=status.configuration.voters,
            level=machine.settings.level, chunk_count=files + size // CHUNK_SIZE)
