"""This member's part in Raft: messages, proposals and ticks in; messages, journal batches and outcomes out.

Synchronous, without a loop, thread or real clock of its own, so that a simulation can drive it step by step. Whoever
drives it (driver.py, tests/sim) keeps this order, which is the outbox barrier of design.md section 4:

    tick() -> work = collect() -> send work.early -> persist(work.batch), in a thread -> persisted() -> send work.late
    apply() at any time between; receive() at any time, also while the batch is being persisted; no tick() meanwhile,
    but beat() about every tick_s, so that a disk that takes its time silences nobody.

So no vote, term or acknowledgement leaves before what it promises is on disk. Entries leave before the leader's own
sync, and the engine counts the leader's copy only after it. Only entries that are on this disk are ever applied.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from raftmft.core.commands import Envelope
from raftmft.core.errors import CorruptFile
from raftmft.core.machine import Entry
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.raft import patches, stamped
from raftmft.raft.clocks import Clocks
from raftmft.raft.compaction import Compaction, SnapshotPoint, StateMachine
from raftmft.raft.configuration import Configuration
from raftmft.raft.engine import CANDIDATE, LEADER, Engine
from raftmft.raft.journal import Batch, Journal
from raftmft.raft.messages import (
    MAX_BATCH_BYTES,
    MAX_BATCH_COUNT,
    AppendReply,
    Forward,
    ForwardReply,
    LogEntry,
    decode,
)
from raftmft.raft.proposals import Proposal, ProposalTable
from raftmft.raft.readindex import ReadIndex, ReadMessage
from raftmft.raft.segment import ANEW
from raftmft.raft.timing import Timing
from raftmft.raft.transport import Outgoing
from raftmft.wire.frames import FrameError
from raftmft.wire.loglines import fields

logger = logging.getLogger(__name__)

MAX_TICK_COUNT = 4096
MAX_TICK_BYTES = 4 << 20
"""Commands that one tick adds to the log or forwards."""
MAX_UNCOMMITTED_BYTES = 32 << 20
"""Beyond this a leader leaves commands in the queue until a majority has caught up."""
APPLY_SLICE_S = 0.005
MIN_APPLY, MAX_APPLY = 16, 1024
"""Entries in one batch for the state machine; fitted to APPLY_SLICE_S between these bounds."""


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """A snapshot. On a leader, `contacts`: seconds since each other member answered; `matched`: how far each is."""

    member: str
    role: str
    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    has_quorum: bool
    contacts: dict[str, float] = field(default_factory=dict)
    matched: dict[str, int] = field(default_factory=dict)
    dropped_messages: int = 0
    configuration: Configuration = Configuration()
    is_settled: bool = False


@dataclass(slots=True)
class Work:
    """What `collect` found: messages for now, bytes for the disk, messages for after them."""

    early: list[Outgoing]
    batch: Batch | None
    late: list[Outgoing]


class Replica:
    """One member; `founders` as in Engine; `snapshots`: those on disk, oldest first. Raises CorruptFile if the machine
    holds more than the journal (the journal was lost or replaced), or less than it needs to go on.
    """

    def __init__(self, member: str, founders: Sequence[str], journal: Journal, machine: StateMachine, *,
                 timing: Timing | None = None, rng: Random | None = None, snapshots: Sequence[SnapshotPoint] = (),
                 wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        rng = rng or Random()
        self.member, self.journal, self.machine = member, journal, machine
        self.table = ProposalTable()
        self.engine = Engine(member, list(founders), journal, timing or Timing(), rng,
                             on_append=self._take_commands, on_uncertain=self._uncertain)
        self.reads = ReadIndex(self.engine, rng.getrandbits(48))
        if machine.applied > journal.last_index:
            raise CorruptFile(
                f"{journal.path} ends at entry {journal.last_index} but the state holds entry {machine.applied}: the "
                f"journal was lost or replaced; {ANEW}"
            )
        self.engine.set_applied(max(1, machine.applied))
        self.compaction = Compaction(self.engine, journal, machine, snapshots)
        self.clocks = Clocks(wall_ms)
        self.engine.outbox.clock_ms = self.clocks.own_ms
        self._boot = rng.getrandbits(48)
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._uncommitted: deque[tuple[int, int]] = deque()
        self._uncommitted_bytes = 0
        self._apply_count = 64
        self._own: dict[int, tuple[bytes, Envelope]] = {}
        self._more_commands = False
        self._persisting_since = 0.0
        self._wanted: tuple[Collection[str], Collection[str]] | None = None
        self._dropped, self._dropped_logged_at = 0, float("-inf")

    # --- driven from outside -----------------------------------------------------------------------------------------
    def tick(self) -> None:
        """One step of the engine. Never while a batch is being persisted."""
        self._more_commands = False
        self.engine.tick()

    def collect(self) -> Work:
        """Takes what this and the calls before have produced."""
        outbox, engine = self.engine.outbox, self.engine
        batch = self.journal.take()
        engine.taken()
        if batch is None:
            engine.synced()
        else:
            self._persisting_since = patches.monotonic()
        return Work(outbox.take_early(), batch, outbox.take_late())

    def beat(self) -> list[Outgoing]:
        """While a batch is being persisted: what may leave meanwhile. See Engine.beat."""
        self.engine.beat(patches.monotonic() - self._persisting_since)
        return self.engine.outbox.take_early()

    def persist(self, batch: Batch) -> None:
        """Blocks until the batch is on disk. For a thread. Raises JournalFailed: then the node must stop."""
        self.journal.put(batch)

    def persisted(self, batch: Batch) -> None:
        """To be called after `persist` returned, before the late messages leave."""
        self.journal.settle(batch)
        self.engine.synced()

    def wants_tick(self) -> bool:
        """Whether a tick would find work at once, without any message or proposal coming in."""
        engine = self.engine
        if engine.state() == LEADER:
            alone = engine.is_alone and engine.commit_index() < self.journal.last_index
            return self._more_commands or alone or self.journal.durable_index < self.journal.last_index
        return self._more_commands

    def can_apply(self) -> bool:
        """Whether there are entries that are committed, on this disk, and not applied."""
        return min(self.engine.commit_index(), self.journal.durable_index) > self.engine.applied()

    def propose(self, proposal: Proposal) -> None:
        """Queues for the next tick. Raises NotApplied when too much waits already."""
        self.table.add(proposal)

    def want_members(self, listed: Collection[str], ready: Collection[str]) -> None:
        """If this member leads, its next tick takes one step, if one may be taken, towards a configuration in which
        those `listed` are members and those `ready` among them vote. To be said again and again: nothing is kept.
        """
        self._wanted = (listed, ready)

    def install(self, snapshot: SnapshotPoint, load: Callable[[], None]) -> bool:
        """See Compaction.install."""
        if not self.compaction.install(snapshot, load):
            return False
        self._own.clear()
        return True

    def connected(self, member: str) -> None:
        """A link to `member` stands."""
        self.engine.outbox.connected(member)

    def disconnected(self, member: str) -> None:
        """The link to `member` is gone; what was under way on it may be lost."""
        self.engine.outbox.disconnected(member)

    def receive(self, member: str, body: bytes) -> bool:
        """Takes a message that `member` (by its certificate) sent. What makes no sense is dropped and counted. False if
        it gave nothing to do that could not wait for the next tick: so do all acknowledgements of an entry but the one
        that makes the majority.

        AssertionError if an honest member contradicts what is committed: then the node must stop.
        """
        try:
            message = decode(body)
        except FrameError as error:
            self._drop(member, str(error))
            return False
        if not self.engine.receive(member, message):
            self._drop(member, "it is no member, or says what cannot be")
        elif type(message) is AppendReply:
            if message.clock_ms:
                self.clocks.heard(member, message.clock_ms, patches.monotonic())
            return self.engine.outbox.is_pending or self.engine.may_commit(member)
        elif type(message) is Forward:
            self._on_forward(member, message)
        elif type(message) is ForwardReply:
            for request, index in message.placed:
                self.table.answered(request, index, message.term, self.engine.applied())
        elif isinstance(message, ReadMessage) and not self.reads.receive(member, message):
            self._drop(member, "it confirms a term that this member leads")
        return True

    def _drop(self, member: str, reason: str) -> None:
        self._dropped += 1
        now = patches.monotonic()
        if now - self._dropped_logged_at >= 10.0:
            self._dropped_logged_at = now
            logger.warning("dropped a raft message of %.64r: %s (%d so far)", member, reason, self._dropped,
                           extra=fields(member=member, count=self._dropped))

    def status(self) -> RaftStatus:
        """How this member sees the cluster now."""
        engine = self.engine
        state = engine.state()
        role = "leader" if state == LEADER else "candidate" if state == CANDIDATE else "follower"
        return RaftStatus(
            self.member, role, engine.leader(), engine.term(), engine.commit_index(), engine.applied(),
            self.journal.last_index, engine.has_quorum(), engine.contacts(),
            {member: progress.match for member, progress in engine.progress.items()}, self._dropped,
            engine.configuration, engine.is_settled(),
        )

    def close(self) -> None:
        """Ends every proposal and closes the journal."""
        self.table.stop("this node stops")
        self.journal.close()

    # --- commands --------------------------------------------------------------------------------------------------
    def _uncertain(self, first: int | None) -> None:
        self.table.uncertain(first)
        if first is None:
            self.reads.lost()

    def _take_commands(self) -> None:
        """The end of a tick: the leader adds queued commands to the log, a follower forwards them; questions go out."""
        self.reads.tick()
        engine, leader = self.engine, self.engine.leader()
        if engine.state() == LEADER:
            self._append_commands()
            return
        self._uncommitted.clear()
        self._uncommitted_bytes = 0
        self._wanted = None
        refused: dict[str, list[tuple[int, int]]] = {}
        for member, request, _ in self.table.drain_remote():
            refused.setdefault(member, []).append((request, 0))
        self._answer(refused)
        if leader is not None and engine.connected_to(leader):
            self._forward_commands(leader)

    def _append_commands(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self.engine.step_towards(*wanted)
        commit, term = self.engine.commit_index(), self.engine.term()
        while self._uncommitted and self._uncommitted[0][0] <= commit:
            self._uncommitted_bytes -= self._uncommitted.popleft()[1]
        if not self.table.has_queued() or self._uncommitted_bytes >= MAX_UNCOMMITTED_BYTES:
            return
        stamp_ms = self.clocks.stamp_ms(self.engine.configuration.voters, self.member, patches.monotonic())
        if stamp_ms is None:
            if self.journal.term_at(commit) != term:
                return  # a majority is yet to acknowledge this leader's first entry, and tells its clocks with it
            stamp_ms = self.clocks.own_ms()
        index, size = self.journal.last_index, 0
        head = stamped.head(stamp_ms)
        entries: list[LogEntry] = []
        placed: dict[str, list[tuple[int, int]]] = {}
        for item in self.table.drain(MAX_TICK_COUNT, MAX_TICK_BYTES):
            index += 1
            if isinstance(item, Proposal):
                command = head + item.payload
                self.table.place(item, index, term)
                if item.envelope is not None:
                    self._own[index] = command, item.envelope
            else:
                command = head + item[2]
                placed.setdefault(item[0], []).append((item[1], index))
            entries.append((command, index, term))
            size += len(command)
        self.journal.extend(entries)
        self._uncommitted.append((index, size))
        self._uncommitted_bytes += size
        self._answer(placed)
        self._more_commands = self.table.has_queued()

    def _forward_commands(self, leader: str) -> None:
        pairs: list[tuple[int, bytes]] = []
        size = 0
        for item in self.table.drain(MAX_TICK_COUNT, MAX_TICK_BYTES):
            assert isinstance(item, Proposal)
            if pairs and (size + len(item.payload) > MAX_BATCH_BYTES or len(pairs) == MAX_BATCH_COUNT):
                self._send_forward(leader, pairs)
                pairs, size = [], 0
            pairs.append((self.table.forward(item), item.payload))
            size += len(item.payload)
        if pairs:
            self._send_forward(leader, pairs)
        self._more_commands = self.table.has_queued()

    def _send_forward(self, leader: str, pairs: list[tuple[int, bytes]]) -> None:
        lost = partial(self.table.not_sent, [request for request, _ in pairs])
        self.engine.outbox.early(leader, Forward(self.engine.term(), self._boot, pairs), lost)

    def _on_forward(self, member: str, message: Forward) -> None:
        """Every request id is answered at most once in a term, whatever the network repeats or reorders.

        A message of another term is not answered at all: in its own term it may have been placed already. Its sender
        learns of the new leader and reports the outcome as unknown.
        """
        term = self.engine.term()
        if message.term != term:
            return
        seen_term, seen_boot, last = self._seen.get(member, (0, 0, 0))
        if (seen_term, seen_boot) != (term, message.boot):
            last = 0
        leads = self.engine.state() == LEADER
        refused: list[tuple[int, int]] = []
        for request, payload in message.commands:
            if request <= last:
                continue
            last = request
            if not (leads and self.table.add_remote(member, request, payload)):
                refused.append((request, 0))
        self._seen[member] = (term, message.boot, last)
        if refused:
            self._answer({member: refused})

    def _answer(self, placed: dict[str, list[tuple[int, int]]]) -> None:
        term = self.engine.term()
        for member, pairs in placed.items():
            for at in range(0, len(pairs), MAX_BATCH_COUNT):
                self.engine.outbox.early(member, ForwardReply(term, pairs[at : at + MAX_BATCH_COUNT]))

    # --- applying ----------------------------------------------------------------------------------------------------
    def apply(self) -> bool:
        """Applies for about APPLY_SLICE_S and releases the outcomes; True if more waits.

        An exception of the machine passes through: nothing of the batch was released, and the node must stop.
        """
        engine, journal = self.engine, self.journal
        started = time.perf_counter()
        while (first := engine.applied() + 1) <= (limit := min(engine.commit_index(), journal.durable_index)):
            begun = time.perf_counter()
            last = min(limit, first + self._apply_count - 1)
            self._apply_entries(journal.slice(first, last))
            now = time.perf_counter()
            if now - begun > APPLY_SLICE_S:
                self._apply_count = max(MIN_APPLY, self._apply_count // 2)
            elif last - first + 1 == self._apply_count and now - begun < APPLY_SLICE_S / 2:
                self._apply_count = min(MAX_APPLY, self._apply_count * 2)
            if now - started > APPLY_SLICE_S:
                break
        self.reads.applied()
        return self.can_apply()

    def _apply_entries(self, log: list[LogEntry]) -> None:
        entries: list[Entry] = []
        outcomes: dict[int, Outcome] = {}
        newer_than = self.machine.applied
        for command, index, _ in log:
            if index <= newer_than or not stamped.is_for_machine(command):
                continue
            try:
                stamp_ms = stamped.stamp_of(command)
                # What this member encoded itself need not be decoded again, if that is what was committed here.
                own = self._own.pop(index, None)
                envelope = own[1] if own is not None and own[0] is command else stamped.envelope_of(command)
                entries.append(Entry(index, stamp_ms, envelope))
            except FrameError as error:
                # The same bytes give the same rejection on every member.
                outcomes[index] = Outcome(index, rejection=Rejection(Code.INVALID, f"not a command: {error}"))
        if entries:
            results = self.machine.apply_batch(entries)
            assert len(results) == len(entries), "the machine owes an outcome for every entry"
            if self.table.any_placed():
                for entry, outcome in zip(entries, results, strict=True):
                    outcomes[entry.index] = outcome
        self.engine.set_applied(log[-1][1])
        if self.table.any_placed():
            for _, index, term in log:
                self.table.applied(index, term, outcomes.get(index))
