"""pysyncobj's SyncObj, made trustworthy: elections, terms, commit rule and step-down are its own; the rest is here.

What is replaced, and why (each has a test in tests/raft that shows the stock library fail):

- Appending compares first and truncates only from the first real conflict, never below the commit index; it commits and
  acknowledges no further than the last entry that the message itself verified. Stock truncates on any late message.
- Acknowledgements and votes count only in their own term, votes once per voter, and a higher term in any message makes
  a leader or candidate step down. Stock acknowledgements carry no term.
- A leader's tick runs only when its whole log is on disk, since the stock commit rule counts the leader's own copy.
- Applying is not done in the tick (replica.py does it, in slices). Compaction, pickle and membership entries are off.
- Entries are streamed within a window, by Progress. Stock sends everything again after each acknowledgement.
- A tick that comes late (the process was stopped) puts the election off, so that a live leader is not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.syncobj import _RAFT_STATE

from raftmft.raft import patches
from raftmft.raft.journal import Journal
from raftmft.raft.messages import (
    MAX_BATCH_BYTES,
    MAX_BATCH_COUNT,
    AppendEntries,
    AppendReply,
    LogEntry,
    Message,
    RequestVote,
    TimeoutNow,
    Vote,
)
from raftmft.raft.progress import Progress
from raftmft.raft.timing import Timing
from raftmft.raft.transport import Outbox

patches.install()

NO_OP = b"\x01"
LEADER, CANDIDATE, FOLLOWER = _RAFT_STATE.LEADER, _RAFT_STATE.CANDIDATE, _RAFT_STATE.FOLLOWER


class _NullPoller:
    """pysyncobj polls its sockets at the end of a tick; there are none."""

    def poll(self, timeout: float) -> None:
        """Nothing."""


class Engine(SyncObj):
    """One member's consensus. Synchronous: messages and ticks in, journal records and outbox messages out.

    `on_append` is called at the end of a tick to add commands (leader) or forward them; `on_uncertain(first)` when what
    was proposed at index `first` and beyond, or (None) what was forwarded to a leader, has lost its way.
    """

    _SyncObj__raftLeader: Node | None

    def __init__(self, member: str, peers: list[str], journal: Journal, timing: Timing, rng: Random, *,
                 on_append: Callable[[], None], on_uncertain: Callable[[int | None], None]) -> None:
        # All of this before SyncObj.__init__, which calls overridden methods and looks at every name of this class.
        self.member, self.journal, self.timing = member, journal, timing
        self.progress: dict[str, Progress] = {}
        self.heard_leader_at = float("-inf")
        self._rng, self._on_append, self._on_uncertain = rng, on_append, on_uncertain
        self._voters: tuple[int, set[str]] = (0, set())
        self._win_waits = False
        conf = SyncObjConf(
            autoTick=False, autoTickPeriod=timing.tick_s, appendEntriesUseBatch=True, commandsWaitLeader=False,
            appendEntriesPeriod=timing.heartbeat_s, raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s, leaderFallbackTimeout=timing.step_down_s,
            connectionTimeout=max(3.0, timing.election_max_s), dynamicMembershipChange=False, useFork=False,
            appendEntriesBatchSizeBytes=MAX_BATCH_BYTES, journalFile=journal, fullDumpFile=None,
        )
        others = [Node(peer) for peer in peers if peer != member]
        super().__init__(Node(member), others, conf, nodeClass=Node, transportClass=Outbox)
        patches.check_attributes(self)
        self._poller = _NullPoller()
        self.outbox: Outbox = self._SyncObj__transport
        self._last_tick = patches.monotonic()

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
            fresh = 1 + sum(age < self.timing.step_down_s for age in self.contacts().values())
            return 2 * fresh > 1 + len(self._SyncObj__otherNodes)
        return self.leader() is not None

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
        before = (self.commit_index(), journal.last_index)
        self._onTick(0.0)
        if self._isLeader() and before != (self.commit_index(), journal.last_index):
            self._replicate(heartbeat=False)

    def synced(self) -> None:
        """Everything done before is on disk. A lone member's own vote now counts."""
        if self._win_waits and self.state() == CANDIDATE:
            self._win()
        self._win_waits = False

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
        self.progress = {node.id: Progress(next_index) for node in self._SyncObj__otherNodes}
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

    # --- messages --------------------------------------------------------------------------------------------------
    def receive(self, member: str, message: Message) -> bool:
        """Takes a decoded consensus message of another member. False if it makes no sense and was dropped."""
        node = Node(member)
        if node not in self._SyncObj__otherNodes:
            return False
        self._see_term(message.term)
        if type(message) is AppendEntries:
            return self._on_append_entries(node, message)
        if type(message) is AppendReply:
            return self._on_append_reply(node, message)
        if type(message) is RequestVote:
            self._on_request_vote(node, message)
        elif type(message) is Vote:
            self._on_vote(node, message)
        elif type(message) is TimeoutNow and message.term == self.term() and self._SyncObj__raftLeader == node:
            # A heartbeat that was sent before may still come: it must not put this election off.
            self._SyncObj__transferInProgress = True
            self._SyncObj__raftElectionDeadline = float("-inf")
        return True

    def hand_over(self) -> str | None:
        """Asks the follower that has the whole log to lead; its id, None if there is none or this is no leader."""
        if self.state() != LEADER:
            return None
        last = self.journal.last_index
        ready = [m for m, p in self.progress.items() if p.match == last and self.connected_to(m)]
        if not ready:
            return None
        self.outbox.late(min(ready), TimeoutNow(self.term()))
        return min(ready)

    def _see_term(self, term: int) -> None:
        if term > self.term():
            self._SyncObj__setCurrentTerm(term, None)
            self._SyncObj__transferInProgress = False
            self._SyncObj__setState(FOLLOWER)
            self._set_leader(None)

    def _set_leader(self, node: Node | None) -> None:
        if self._SyncObj__raftLeader != node:
            self._SyncObj__raftLeader = node
            self._SyncObj__onLeaderChanged()

    def _on_request_vote(self, node: Node, message: RequestVote) -> None:
        if message.term < self.term() or self.state() == LEADER:
            return
        journal = self.journal
        if (message.last_term, message.last_index) < (journal.term_at(journal.last_index), journal.last_index):
            return
        if self._SyncObj__votedForNodeId not in (None, node.id):
            return
        self._SyncObj__setCurrentTerm(message.term, node.id)
        self._put_off_election()
        self.outbox.late(node.id, Vote(message.term))

    def _on_vote(self, node: Node, message: Vote) -> None:
        if message.term != self.term() or self.state() != CANDIDATE:
            return
        if self._voters[0] != message.term:
            self._voters = (message.term, set())
        self._voters[1].add(node.id)
        self._SyncObj__votesCount = 1 + len(self._voters[1])
        if 2 * self._SyncObj__votesCount > 1 + len(self._SyncObj__otherNodes):
            self._SyncObj__onBecomeLeader()

    def _on_append_entries(self, node: Node, message: AppendEntries) -> bool:
        journal, term = self.journal, self.term()
        if message.term < term:
            # Tells a leader that was deposed without noticing.
            self.outbox.late(node.id, AppendReply(term, False, message.prev_index, message.prev_index))
            return True
        if self.state() == LEADER:
            return False
        now = self.heard_leader_at = patches.monotonic()
        if not self._SyncObj__transferInProgress:
            self._SyncObj__raftElectionDeadline = now + self._SyncObj__generateRaftTimeout()
        self._set_leader(node)
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__leaderCommitIndex = message.commit_index
        prev, known = message.prev_index, journal.term_at(message.prev_index)
        if known != message.prev_term:
            self.outbox.late(node.id, AppendReply(term, False, prev, self._hint(prev, known)))
            return True
        self._merge(message.entries)
        verified = prev + len(message.entries)
        if min(message.commit_index, verified) > self.commit_index():
            self._set_commit(min(message.commit_index, verified))
        self.outbox.late(node.id, AppendReply(term, True, prev, verified + 1))
        return True

    def _merge(self, entries: list[LogEntry]) -> None:
        journal = self.journal
        if entries and entries[0][1] <= journal.last_index:
            fresh = len(entries)
            for at, (_, index, term) in enumerate(entries):
                known = journal.term_at(index)
                if known == term:
                    continue
                if known is not None:
                    assert index > self.commit_index(), f"the leader contradicts the committed entry {index}"
                    journal.truncate_from(index)
                    self._on_uncertain(index)
                fresh = at
                break
            entries = entries[fresh:]
        journal.extend(entries)

    def _hint(self, prev: int, known: int | None) -> int:
        """Where the leader should try next: the log's end, or the first entry of the term that does not fit."""
        journal, commit = self.journal, self.commit_index()
        if known is None:
            return journal.last_index + 1
        assert prev > commit, f"the leader contradicts the committed entry {prev}"
        while prev - 1 > commit and journal.term_at(prev - 1) == known:
            prev -= 1
        return prev

    def _on_append_reply(self, node: Node, message: AppendReply) -> bool:
        if self.state() != LEADER or message.term != self.term():
            return True
        progress, last = self.progress[node.id], self.journal.last_index
        if message.next_index > last + 1 or message.prev_index > last or (not message.ok and message.prev_index == 1):
            return False  # every log begins with the same entry 1
        self._SyncObj__lastResponseTime[node] = patches.monotonic()
        if message.ok:
            progress.acknowledged(message.next_index - 1)
            self._SyncObj__raftMatchIndex[node] = progress.match
            if progress.next <= last:
                self._send_to(node, progress, {}, heartbeat=False)
        elif progress.refused(message.prev_index, max(2, message.next_index)):
            self._send_to(node, progress, {}, heartbeat=True)
        self._SyncObj__raftNextIndex[node] = progress.next
        return True

    def _set_commit(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index
        self.journal.setRaftCommitIndex(index)

    # --- replication -------------------------------------------------------------------------------------------------
    def _SyncObj__sendAppendEntries(self) -> None:
        self._replicate(heartbeat=True)

    def _replicate(self, heartbeat: bool) -> None:
        """Sends every reachable follower what it lacks; a heartbeat also when it lacks nothing."""
        if heartbeat:
            self._SyncObj__newAppendEntriesTime = patches.monotonic() + self.timing.heartbeat_s
        shared: dict[int, AppendEntries] = {}
        for node in sorted(self._SyncObj__otherNodes & self._SyncObj__connectedNodes, key=lambda n: n.id):
            progress = self.progress[node.id]
            if heartbeat:
                progress.heartbeat()
            self._send_to(node, progress, shared, heartbeat)

    def _send_to(self, node: Node, progress: Progress, shared: dict[int, AppendEntries], heartbeat: bool) -> None:
        journal = self.journal
        last, commit, told = journal.last_index, self.commit_index(), False
        while not told or (progress.next <= last and progress.may_send()):
            entries_too = progress.next <= last and progress.may_send()
            if not entries_too and not heartbeat and progress.commit_told >= commit:
                return
            key = progress.next if entries_too else -progress.next
            message = shared.get(key)
            if message is None:
                entries = self._batch(progress.next) if entries_too else []
                prev = progress.next - 1
                prev_term = journal.term_at(prev)
                assert prev_term is not None
                message = shared[key] = AppendEntries(self.term(), commit, prev, prev_term, entries)
            if message.entries:
                progress.sent(message.entries[-1][1], sum(len(entry[0]) for entry in message.entries))
            progress.commit_told = commit
            told = True
            self.outbox.early(node.id, message, progress.lost)

    def _batch(self, first: int) -> list[LogEntry]:
        entries = self.journal.slice(first, min(self.journal.last_index, first + MAX_BATCH_COUNT - 1))
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry[0])
            if size > MAX_BATCH_BYTES and count:
                return entries[:count]
        return entries

    # --- links -------------------------------------------------------------------------------------------------------
    def _SyncObj__onNodeConnected(self, node: Node) -> None:
        super()._SyncObj__onNodeConnected(node)
        self._link_changed(node)

    def _SyncObj__onNodeDisconnected(self, node: Node) -> None:
        super()._SyncObj__onNodeDisconnected(node)
        self._link_changed(node)
        if node == self._SyncObj__raftLeader:
            self._on_uncertain(None)

    def _link_changed(self, node: Node) -> None:
        if progress := self.progress.get(node.id):
            progress.lost()
            progress.heartbeat()
