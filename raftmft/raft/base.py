"""pysyncobj's SyncObj under names of our own: what it knows, its members, and its tick. engine.py adds the messages.

Which of its private names are overridden or read, and that they exist, is checked in patches.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from random import Random
from typing import Any

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.syncobj import _RAFT_STATE

from raftmft.raft import configuration, patches
from raftmft.raft.configuration import Configuration
from raftmft.raft.journal import Journal
from raftmft.raft.messages import MAX_BATCH_BYTES, LogEntry, SnapshotOffer
from raftmft.raft.progress import Progress
from raftmft.raft.timing import Timing
from raftmft.raft.transport import Outbox

patches.install()

LEADER, CANDIDATE, FOLLOWER = _RAFT_STATE.LEADER, _RAFT_STATE.CANDIDATE, _RAFT_STATE.FOLLOWER


class _NullPoller:
    """pysyncobj polls its sockets at the end of a tick; there are none."""

    def poll(self, timeout: float) -> None:
        """Nothing."""


class BaseEngine(SyncObj):
    """One member's elections, commit rule and configuration.

    `founders` are the voters before the log holds a configuration; none for a host that joined later.
    `on_append` is called at the end of a tick to add commands (leader) or forward them; `on_uncertain(first)` when what
    was proposed at index `first` and beyond, or (None) what was forwarded to a leader, has lost its way.
    """

    _SyncObj__raftLeader: Node | None

    def __init__(self, member: str, founders: list[str], journal: Journal, timing: Timing, rng: Random, *,
                 on_append: Callable[[], None], on_uncertain: Callable[[int | None], None]) -> None:
        # All of this before SyncObj.__init__, which calls overridden methods and looks at every name of this class.
        self.member, self.journal, self.timing = member, journal, timing
        self.progress: dict[str, Progress] = {}
        self.heard_leader_at = float("-inf")
        self.durable_term = self._taken_term = journal.getCurrentTerm()
        self._rng, self._on_append, self._on_uncertain = rng, on_append, on_uncertain
        self._voters: tuple[int, set[str]] = (0, set())
        self._win_waits = False
        self.offer: SnapshotOffer | None = None
        """What this member as a leader offers to who is too far behind; of term 0, to be stamped."""
        self.offered: tuple[str, SnapshotOffer] | None = None
        """What this member as a follower was offered last and does not have yet, and by whom."""
        conf = SyncObjConf(
            autoTick=False, autoTickPeriod=timing.tick_s, appendEntriesUseBatch=True, commandsWaitLeader=False,
            appendEntriesPeriod=timing.heartbeat_s, raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s, leaderFallbackTimeout=timing.step_down_s,
            connectionTimeout=max(3.0, timing.election_max_s), dynamicMembershipChange=False, useFork=False,
            appendEntriesBatchSizeBytes=MAX_BATCH_BYTES, journalFile=journal, fullDumpFile=None,
        )
        base = Configuration(tuple(sorted(founders)))
        self._configurations = [(0, base), *_configurations_in(journal)]
        others = [Node(voter) for voter in self.configuration.voters if voter != member]
        super().__init__(Node(member), others, conf, nodeClass=Node, transportClass=Outbox)
        patches.check_attributes(self)
        self._poller = _NullPoller()
        self.outbox: Outbox = self._SyncObj__transport
        self._last_tick = patches.monotonic()

    # --- members -----------------------------------------------------------------------------------------------------
    @property
    def configuration(self) -> Configuration:
        """The latest one in the log, committed or not."""
        return self._configurations[-1][1]

    @property
    def is_alone(self) -> bool:
        """Whether no other member's vote or acknowledgement is needed."""
        return not self._SyncObj__otherNodes

    def is_settled(self) -> bool:
        """Whether this leader may append another configuration: the last one and an entry of its term are committed."""
        commit = self.commit_index()
        return (self.state() == LEADER and self._configurations[-1][0] <= commit
                and self.journal.term_at(commit) == self.term())

    def step_towards(self, listed: Collection[str], ready: Collection[str]) -> bool:
        """Appends the next configuration towards `listed`, if this leader may and one is wanted."""
        if not self.is_settled():
            return False
        step = configuration.next_step(self.configuration, self.member, listed, ready)
        if step is None:
            return False
        self.append([(step.encode(), self.journal.last_index + 1, self.term())])
        return True

    def append(self, entries: list[LogEntry]) -> None:
        """Adds entries that directly follow the log's end; a configuration among them counts from here on."""
        known = len(self.journal.configurations)
        self.journal.extend(entries)
        if found := self.journal.configurations[known:]:
            self._configurations += [(index, configuration.decode(command)) for index, command in found]
            self._adopt()

    def configuration_at(self, index: int) -> Configuration:
        """The one that was in force for a log that ended at `index`, which is at or behind the base."""
        return next(value for at, value in reversed(self._configurations) if at <= index)

    def begin_behind(self, index: int, term: int, configured: bytes) -> None:
        """The state machine holds all up to (index, term), of which this log knew nothing: it begins there anew."""
        assert self.state() == FOLLOWER and index > self.commit_index()
        self.journal.reset_to(index, term, configured)
        self._configurations = [self._configurations[0], *_configurations_in(self.journal)]
        self._adopt()
        self.set_applied(index)
        self._on_uncertain(0)
        self._on_uncertain(None)

    def _cut_off(self, index: int) -> None:
        self.journal.truncate_from(index)
        if self._configurations[-1][0] >= index:
            self._configurations = [pair for pair in self._configurations if pair[0] < index]
            self._adopt()

    def _adopt(self) -> None:
        """Takes the present configuration for what pysyncobj counts by."""
        others = {Node(voter) for voter in self.configuration.voters if voter != self.member}
        if self.member not in self.configuration.voters:
            self._SyncObj__raftElectionDeadline = math.inf
        elif self._SyncObj__raftElectionDeadline == math.inf:
            self._put_off_election()
        self._SyncObj__otherNodes = others
        if self.state() != LEADER:
            return
        now, wanted = patches.monotonic(), {node.id for node in others} | set(self.configuration.learners)
        for member in self.progress.keys() - wanted:
            del self.progress[member]
        for member in wanted - self.progress.keys():
            self.progress[member] = Progress(self.journal.last_index + 1)
        for member in wanted:
            node = Node(member)
            self._SyncObj__raftMatchIndex[node] = self.progress[member].match
            self._SyncObj__raftNextIndex[node] = self.progress[member].next
            self._SyncObj__lastResponseTime.setdefault(node, now)
        for node in list(self._SyncObj__lastResponseTime):
            if node.id not in wanted:
                del self._SyncObj__lastResponseTime[node]

    # --- what it knows -----------------------------------------------------------------------------------------------
    def state(self) -> int:
        """LEADER, CANDIDATE or FOLLOWER."""
        return self._SyncObj__raftState

    def leader(self) -> str | None:
        """The leader's member id, if it was heard lately; may be this member."""
        node = self._SyncObj__raftLeader
        if node is None or (node.id != self.member and not self._heard_lately()):
            return None
        return node.id

    def _heard_lately(self) -> bool:
        return patches.monotonic() - self.heard_leader_at < self.timing.election_max_s

    def term(self) -> int:
        """The current term."""
        return self._SyncObj__raftCurrentTerm

    def commit_index(self) -> int:
        """Everything up to here is committed."""
        return self._SyncObj__raftCommitIndex

    def applied(self) -> int:
        """Everything up to here was handed to the state machine."""
        return self._SyncObj__raftLastApplied

    def set_applied(self, index: int) -> None:
        """Called after applying; at start it may raise the commit index too: only committed entries are applied."""
        self._SyncObj__raftLastApplied = index
        if index > self._SyncObj__raftCommitIndex:
            self._set_commit(index)

    def connected_to(self, member: str) -> bool:
        """Whether a link to `member` stands."""
        return Node(member) in self._SyncObj__connectedNodes

    def contacts(self) -> dict[str, float]:
        """Seconds since each other member last answered this leader in its term; empty if it does not lead."""
        if self.state() != LEADER:
            return {}
        now = patches.monotonic()
        return {node.id: now - at for node, at in self._SyncObj__lastResponseTime.items()}

    def has_quorum(self) -> bool:
        """Leader: a majority answered within step_down_s. Follower: its leader was heard within election_max_s."""
        if self.state() == LEADER:
            return self._majority_within(self.timing.step_down_s)
        return self.leader() is not None

    def _majority_within(self, seconds: float, own: int = 1) -> bool:
        """Whether a majority of the voters answered this leader lately; `own` is 0 if it shall not count itself."""
        contacts = self.contacts()
        fresh = own + sum(contacts.get(node.id, math.inf) < seconds for node in self._SyncObj__otherNodes)
        return 2 * fresh > 1 + len(self._SyncObj__otherNodes)

    # --- the tick --------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """Elections, commits, heartbeats, new commands. A leader with unsynced entries waits: see the module's head."""
        now = patches.monotonic()
        if now - self._last_tick > self.timing.election_min_s / 2:
            self._put_off_election()
        self._last_tick = now
        journal = self.journal
        if self._isLeader() and journal.durable_index < journal.last_index:
            return
        if self.member not in self.configuration.voters:
            self._SyncObj__raftElectionDeadline = math.inf
        before = (self.commit_index(), journal.last_index)
        self._onTick(0.0)
        if not self._isLeader():
            return
        if before != (self.commit_index(), journal.last_index):
            # News of a commit leave at once: what a command acknowledged shall be true on every node at once, and a
            # member that a commit removes from the configuration would hear of it never.
            self._replicate(heartbeat=False)

    def taken(self) -> None:
        """What was done so far is on its way to the disk; `synced` tells of its arrival."""
        self._taken_term = self.term()

    def synced(self) -> None:
        """Everything done before `taken` is on disk. A lone member's own vote now counts."""
        self.durable_term = self._taken_term
        if self._win_waits and self.state() == CANDIDATE:
            self._win()
        self._win_waits = False

    def _step_down(self) -> None:
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None
        self._SyncObj__onLeaderChanged()

    def _put_off_election(self) -> None:
        self._SyncObj__raftElectionDeadline = patches.monotonic() + self._SyncObj__generateRaftTimeout()

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self._rng.uniform(self.timing.election_min_s, self.timing.election_max_s)

    def _SyncObj__applyLogEntries(self) -> bool:
        return False

    def _SyncObj__tryLogCompaction(self) -> None:
        return None

    def _checkCommandsToApply(self) -> None:
        self._on_append()

    def _SyncObj__onBecomeLeader(self) -> None:
        if self._SyncObj__otherNodes:
            self._win()
        else:
            # A lone member wins within the tick of its candidacy, when its vote is not on disk yet: see `synced`.
            self._win_waits = True

    def _win(self) -> None:
        next_index = self.journal.last_index + 1
        others = [node.id for node in self._SyncObj__otherNodes]
        self.progress = {member: Progress(next_index) for member in [*others, *self.configuration.learners]}
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__setState(self, new_state: int) -> None:
        if self.state() == LEADER and new_state != LEADER:
            self.progress = {}
            self._put_off_election()
        super()._SyncObj__setState(new_state)

    def _SyncObj__onLeaderChanged(self) -> None:
        self._on_uncertain(None)

    def _SyncObj__onMessageReceived(self, node: Node, message: Any) -> None:
        raise AssertionError("messages come through Engine.receive")


def _configurations_in(journal: Journal) -> list[tuple[int, Configuration]]:
    """(index, configuration) of every one in the log, and of the one in force at its base."""
    return [(index, configuration.decode(command)) for index, command in journal.configurations]
