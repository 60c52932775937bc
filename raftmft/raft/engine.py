"""pysyncobj's SyncObj, made trustworthy: elections, terms, commit rule and step-down are its own; the rest is here.

What is replaced, and why (each has a test in tests/raft that shows the stock library fail):

- Appending compares first and truncates only from the first real conflict, never below the commit index; it commits and
  acknowledges no further than the last entry that the message itself verified. Stock truncates on any late message.
- A member asks before it stands, and does not hear candidates while it hears its leader: elections.py.
- Acknowledgements and votes count only in their own term, votes once per voter, and a higher term in any message makes
  a leader or candidate step down. Stock acknowledgements carry no term.
- A leader's tick runs only when its whole log is on disk, since the stock commit rule counts the leader's own copy.
- Applying is not done in the tick (replica.py does it, in slices). Compaction and pickle are off.
- Membership is configuration.py's: the latest configuration in the log. Stock applies changes without a guard.
- Entries are streamed within a window, by Progress. Stock sends everything again after each acknowledgement.
- A tick that comes late (the process was stopped) puts the election off, so that a live leader is not disturbed.
"""

from __future__ import annotations

from dataclasses import replace

from pysyncobj.node import Node

from raftmft.raft import patches
from raftmft.raft.base import CANDIDATE, FOLLOWER, LEADER
from raftmft.raft.elections import Elections
from raftmft.raft.messages import (
    MAX_BATCH_BYTES,
    MAX_BATCH_COUNT,
    AppendEntries,
    AppendReply,
    LogEntry,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    SnapshotOffer,
    TimeoutNow,
    Vote,
)
from raftmft.raft.progress import Progress


class Engine(Elections):
    """One member's consensus. Synchronous: messages and ticks in, journal records and outbox messages out."""

    _verified = (0, 0)
    """(term, index): how far its leader's messages have shown this log to be the leader's."""
    _alive_at = float("-inf")
    _answered = (0, 0, float("-inf"))
    """(term, index, when) of the last acknowledgement that an append message got."""

    # --- messages --------------------------------------------------------------------------------------------------
    def receive(self, member: str, message: Message) -> bool:
        """Takes a decoded consensus message of another member. False if it makes no sense and was dropped.

        That the sender is in this log's configuration is not asked: a leader that this log does not know yet is one
        all the same (thesis, 4.2.2). The links let in only those whom the state lists.
        """
        node = Node(member)
        if member == self.member:
            return False
        if type(message) is PreVote:
            self._on_pre_vote(node, message)
            return True
        if type(message) is RequestVote and self._disturbs(message):
            return True
        self._see_term(message.term)
        if type(message) is AppendEntries:
            return self._on_append_entries(node, message)
        if type(message) is AppendReply:
            return self._on_append_reply(node, message)
        if type(message) is SnapshotOffer:
            return self._on_snapshot_offer(node, message)
        if type(message) is RequestVote:
            self._on_request_vote(node, message)
        elif type(message) is Vote:
            self._on_vote(node, message)
        elif type(message) is PreVoteReply:
            self._on_pre_vote_reply(node, message)
        elif type(message) is TimeoutNow:
            self._on_timeout_now(node, message)
        return True

    def _on_append_entries(self, node: Node, message: AppendEntries) -> bool:
        journal, term = self.journal, self.term()
        if message.term < term:
            # Tells a leader that was deposed without noticing.
            self.outbox.late(node.id, AppendReply(term, False, message.prev_index, message.prev_index))
            return True
        if self.state() == LEADER:
            return False
        self._heard(node)
        self._SyncObj__leaderCommitIndex = message.commit_index
        prev, known = message.prev_index, journal.term_at(message.prev_index)
        if prev < journal.base_index:
            # Older than this log's base, and so the same in both: goes on from what is surely the same.
            self.outbox.late(node.id, AppendReply(term, True, prev, self.commit_index() + 1))
            return True
        if known != message.prev_term:
            self.outbox.late(node.id, AppendReply(term, False, prev, self._hint(prev, known)))
            return True
        self._merge(message.entries)
        verified = prev + len(message.entries)
        if self._verified[0] != term or verified > self._verified[1]:
            self._verified = (term, verified)
        if min(message.commit_index, verified) > self.commit_index():
            self._set_commit(min(message.commit_index, verified))
        if message.entries or self._owes_answer(term, verified):
            self._answered = (term, verified, patches.monotonic())
            self.outbox.late(node.id, AppendReply(term, True, prev, verified + 1))
        return True

    def _owes_answer(self, term: int, verified: int) -> bool:
        """Whether a message without entries is to be answered: not if all it could say was said a moment ago."""
        said_term, said, at = self._answered
        return (said_term, said) < (term, verified) or patches.monotonic() - at > self.timing.heartbeat_s / 2

    def _heard(self, node: Node) -> None:
        """The leader of this term spoke."""
        self.heard_leader_at = patches.monotonic()
        if not self._SyncObj__transferInProgress:
            self._put_off_election()
        self._set_leader(node)
        self._SyncObj__setState(FOLLOWER)

    def _on_snapshot_offer(self, node: Node, message: SnapshotOffer) -> bool:
        """Counts as a heartbeat. The snapshot itself is fetched and installed by others: see `offered`."""
        journal, term, index = self.journal, self.term(), message.index
        if message.term < term:
            self.outbox.late(node.id, AppendReply(term, False, index, index))
            return True
        if self.state() == LEADER:
            return False
        self._heard(node)
        if index <= self.commit_index() or journal.term_at(index) == message.index_term:
            self.offered = None
            self.outbox.late(node.id, AppendReply(term, True, index, max(index, self.commit_index()) + 1))
        else:
            self.offered = (node.id, message)
            # Its own end may lie beyond all that the leader has: a tail of an older term, still to be cut off.
            self.outbox.late(node.id, AppendReply(term, False, index, min(index, journal.last_index + 1)))
        return True

    def install(self, index: int, term: int, configured: bytes) -> bool:
        """The state machine is about to hold all up to (index, term): the log shall begin there. False, and nothing is
        changed, if this member leads, stands for election, or has that entry by now.
        """
        self.offered = None
        if self.state() != FOLLOWER or index <= self.commit_index() or self.journal.term_at(index) == term:
            return False
        leader = self._SyncObj__raftLeader
        self.begin_behind(index, term, configured)
        self._verified = (self.term(), index)
        if leader is not None:
            self.outbox.late(leader.id, AppendReply(self.term(), True, index, index + 1))
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
                    self._cut_off(index)
                    self._on_uncertain(index)
                fresh = at
                break
            entries = entries[fresh:]
        self.append(entries)

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
        progress, last = self.progress.get(node.id), self.journal.last_index
        if progress is None:
            return True  # it was taken out of the configuration meanwhile
        if not message.ok and message.prev_index > last:
            return True  # it answers what this member said when it led an earlier term
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

    def may_commit(self, member: str) -> bool:
        """Whether what `member` acknowledged may let this leader commit more."""
        progress = self.progress.get(member)
        return progress is not None and progress.match > self.commit_index()

    def _set_commit(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index
        self.journal.setRaftCommitIndex(index)

    # --- while the disk takes its time ---------------------------------------------------------------------------
    def beat(self, syncing_s: float) -> None:
        """To be called about every tick_s while a sync is under way, for `syncing_s` by now: then no tick may run.

        What needs no disk goes on: a leader's heartbeats, its sending of entries, its step-down; a follower's sign of
        life, which says again what is on its disk. From `stall_s` on a leader makes room for another, if the others
        can do without its vote, and a follower is silent: a disk that is dead must not hold anybody up for ever.
        """
        stalled, now = syncing_s >= self.timing.stall_s, patches.monotonic()
        if self.state() == LEADER:
            if not self._majority_within(self.timing.step_down_s):
                self._step_down()
            elif stalled and self._majority_within(self.timing.election_min_s, own=0):
                self.hand_over()
                self._step_down()
            elif now >= self._SyncObj__newAppendEntriesTime:
                self._replicate(heartbeat=True)
        elif not stalled and now >= self._alive_at + self.timing.heartbeat_s:
            self._alive_at = now
            self._say_alive()

    def _say_alive(self) -> None:
        leader = self._SyncObj__raftLeader
        term, index = self._verified[0], min(self._verified[1], self.journal.durable_index)
        if leader is not None and index and self._hears_leader() and term == self.term() == self.durable_term:
            self.outbox.early(leader.id, AppendReply(term, True, index, index + 1))

    # --- replication -------------------------------------------------------------------------------------------------
    def _SyncObj__sendAppendEntries(self) -> None:
        self._replicate(heartbeat=True)

    def _replicate(self, heartbeat: bool) -> None:
        """Sends every reachable follower what it lacks; a heartbeat also when it lacks nothing."""
        if heartbeat:
            self._SyncObj__newAppendEntriesTime = patches.monotonic() + self.timing.heartbeat_s
        shared: dict[int, AppendEntries] = {}
        for member in sorted(self.progress):
            node, progress = Node(member), self.progress[member]
            if node not in self._SyncObj__connectedNodes:
                continue
            if heartbeat:
                progress.heartbeat()
            self._send_to(node, progress, shared, heartbeat)

    def _send_to(self, node: Node, progress: Progress, shared: dict[int, AppendEntries], heartbeat: bool) -> None:
        journal = self.journal
        if progress.next <= journal.base_index:
            if heartbeat and self.offer is not None:
                self.outbox.early(node.id, replace(self.offer, term=self.term()))
            return
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
        self._answered = (0, 0, float("-inf"))  # what was said may not have arrived
        if progress := self.progress.get(node.id):
            progress.lost()
            progress.heartbeat()


__all__ = ["CANDIDATE", "FOLLOWER", "LEADER", "Engine"]
