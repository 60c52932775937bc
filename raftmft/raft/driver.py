"""Drives a Replica with trio: ticks, the journal's sync in a thread, links, proposals with deadlines, read barriers.

The loop runs when something came in (a message, a proposal, a link) or every `tick_s`. One round is: tick, send what
may leave at once, one sync for all that was written, send the rest. Applying happens between rounds, or beside a sync.
Everything that came in while a sync was under way is handled by the next round as one batch: group commit by itself.

After a failed write, fsync or apply the driver raises and nothing is acknowledged any more: the node must stop.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TypeVar

import trio

from raftmft.core.commands import Envelope, NoOp
from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.raft import patches
from raftmft.raft.barriers import PAUSE_S, ROUND_S, Barriers
from raftmft.raft.compaction import Compaction
from raftmft.raft.engine import LEADER
from raftmft.raft.journal import Batch
from raftmft.raft.messages import MAX_PAYLOAD_BYTES
from raftmft.raft.proposals import Proposal, Stage
from raftmft.raft.replica import RaftStatus, Replica
from raftmft.raft.syncing import SyncThread
from raftmft.raft.transport import Outgoing
from raftmft.wire.commands import encode_envelope
from raftmft.wire.frames import FrameError

logger = logging.getLogger(__name__)
T = TypeVar("T")

EXPIRE_EVERY_S = 0.05
"""How far beyond its deadline a proposal may end."""
HAND_OVER_AGAIN_S = 0.1
"""A request to lead that had no effect in this time is made again, perhaps to another follower."""

class RaftDriver:
    """One member's Raft, to be run as one task. `send(member, body)` puts a message on the control link without
    blocking; False means that it certainly never leaves.
    """

    def __init__(self, replica: Replica, send: Callable[[str, bytes], bool]) -> None:
        self._replica, self._send = replica, send
        self._wake, self._apply_wake = trio.Event(), trio.Event()
        self._fatal: BaseException | None = None
        self._stopped = self._syncing = False
        self._barriers, self._timed_barriers = Barriers(), Barriers()
        self._barrier_wakes = {self._barriers: trio.Event(), self._timed_barriers: trio.Event()}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled, or raises what stopped it. A sync under way is finished first. Then the journal is
        closed, and every open proposal has ended: as NotApplied if it never left this member's queue, else unknown.
        """
        thread = SyncThread()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire)
                nursery.start_soon(self._apply_beside_sync)
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._run_barriers, self._barriers, self._ask_leader)
                nursery.start_soon(self._run_barriers, self._timed_barriers, self._pass_log)
                task_status.started()
                await self._rounds(thread)
                nursery.cancel_scope.cancel()
        finally:
            self._stopped = True
            thread.close()
            try:
                self._replica.close()
            except Exception as error:  # the journal's last write failed: nothing was promised with it
                self._fatal = self._fatal or error
        if self._fatal is not None:
            raise self._fatal

    # --- what others call ------------------------------------------------------------------------------------------
    def receive(self, member_id: str, body: bytes) -> None:
        """One Raft message from a peer. Never raises; what comes after a fatal error is ignored."""
        if self._fatal is None and not self._stopped:
            self._guard(partial(self._receive, member_id, body))

    def _receive(self, member_id: str, body: bytes) -> None:
        if self._replica.receive(member_id, body):
            self._wake.set()

    def peer_connected(self, member_id: str) -> None:
        """A control link to the member stands."""
        self._guard(partial(self._replica.connected, member_id))
        self._wake.set()

    def peer_disconnected(self, member_id: str) -> None:
        """The control link is gone: commands forwarded over it end as unknown, unless their place is known."""
        self._guard(partial(self._replica.disconnected, member_id))
        self._wake.set()

    @property
    def compaction(self) -> Compaction:
        """The replica's; to look at. What changes it goes through `alter`."""
        return self._replica.compaction

    def alter(self, step: Callable[[Replica], T]) -> T | None:
        """Runs `step` on the replica, between rounds or beside a sync. An exception of it stops the node: None then."""
        result: list[T] = []
        self._guard(lambda: result.append(step(self._replica)))
        self._wake.set()
        return result[0] if result else None

    def status(self) -> RaftStatus:
        """Role, leader, term, indexes, contact."""
        return self._replica.status()

    def want_members(self, listed: Collection[str], ready: Collection[str]) -> None:
        """See Replica.want_members."""
        self._replica.want_members(listed, ready)
        self._wake.set()

    async def propose(self, envelope: Envelope, *, timeout_s: float) -> Outcome:
        """The outcome of the command, once it is durable on a majority and applied here.

        Raises NotApplied (NoQuorum when `timeout_s` passed) if it certainly never happens, OutcomeUnknown if it may.
        A command that is too large gives a rejection with index 0. Cancelled: as OutcomeUnknown.
        """
        try:
            payload = encode_envelope(envelope)
        except FrameError as error:
            return Outcome(0, rejection=Rejection(Code.INVALID, str(error)))
        assert len(payload) <= MAX_PAYLOAD_BYTES, "encode_envelope keeps a lower limit"
        if self._stopped or self._fatal is not None:
            raise NotApplied("this node stops")
        task = trio.lowlevel.current_task()
        proposal = Proposal(payload, patches.monotonic() + timeout_s, partial(trio.lowlevel.reschedule, task),
                            envelope)
        self._replica.propose(proposal)
        self._wake.set()

        def withdraw(_: Callable[[], None]) -> trio.lowlevel.Abort:
            self._replica.table.withdraw(proposal)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(withdraw)
        if proposal.error is not None:
            raise proposal.error
        assert proposal.outcome is not None and proposal.stage == Stage.DONE
        return proposal.outcome

    async def hand_over(self, to: str | None = None) -> None:
        """Returns when this member does not lead: at once, or when a follower that it asked (`to`, if given) has taken
        over. Waits for a follower with the whole log as long as it takes: give it a time limit. Cancelled: nothing is
        promised.
        """
        while self._replica.engine.state() == LEADER:
            self._replica.engine.hand_over(to)
            self._wake.set()
            await trio.sleep(HAND_OVER_AGAIN_S)

    async def barrier(self, *, timeout_s: float, timed: bool = False) -> int:
        """Returns an index once the local state holds everything that was acknowledged anywhere before the call; if
        `timed`, also the cluster's present time.

        One round serves everyone who called before it began: a question to the leader (readindex.py), or, if `timed`,
        a no-op in the log. Raises NoQuorum after `timeout_s`.
        """
        if self._stopped or self._fatal is not None:
            raise NotApplied("this node stops")
        may_go_on = trio.Event()
        barriers = self._timed_barriers if timed else self._barriers
        waiter = barriers.add(may_go_on.set)
        self._barrier_wakes[barriers].set()
        with trio.move_on_after(timeout_s):
            try:
                await may_go_on.wait()
            finally:
                waiter.gone = True
        if not waiter.index:
            raise NoQuorum("no quorum: no majority confirmed the read in time")
        return waiter.index

    # --- the loop ----------------------------------------------------------------------------------------------------
    async def _rounds(self, thread: SyncThread) -> None:
        replica = self._replica
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            self._guard(replica.tick)
            if self._fatal is not None:
                return
            work = replica.collect()
            self._release(work.early)
            if work.batch is not None:
                if replica.can_apply():
                    self._apply_wake.set()
                await self._sync(thread, work.batch)
                if self._fatal is not None:
                    return
            self._release(work.late)
            if work.batch is None and replica.can_apply():
                self._guard(replica.apply)
            if replica.wants_tick() or replica.can_apply():
                self._wake.set()

    async def _sync(self, thread: SyncThread, batch: Batch) -> None:
        # Shielded: a batch that was taken must reach the disk, or the journal is of no more use.
        self._syncing = True
        with trio.CancelScope(shield=True):
            try:
                await thread.run(partial(self._replica.persist, batch))
            except Exception as error:
                self._stop(error)
                return
            finally:
                self._syncing = False
        self._guard(partial(self._replica.persisted, batch))

    def _release(self, box: list[Outgoing]) -> None:
        for out in box:
            if not self._send(out.member, out.body) and out.lost is not None:
                out.lost()

    async def _apply_beside_sync(self) -> None:
        """While a sync is under way, applies what is already committed and on disk, a slice at a time."""
        while True:
            await self._apply_wake.wait()
            self._apply_wake = trio.Event()
            while self._fatal is None and self._replica.can_apply():
                self._guard(self._replica.apply)
                await trio.lowlevel.checkpoint()

    async def _keep_time(self) -> None:
        """A round every tick; while a sync takes longer than that, keeps up what needs no disk."""
        tick_s = self._replica.engine.timing.tick_s
        while True:
            await trio.sleep(tick_s)
            if not self._syncing:
                self._wake.set()
            elif self._fatal is None:
                self._guard(self._beat)

    def _beat(self) -> None:
        self._release(self._replica.beat())

    async def _expire(self) -> None:
        while True:
            await trio.sleep(EXPIRE_EVERY_S)
            self._replica.table.expire(patches.monotonic())

    def _guard(self, step: Callable[[], object]) -> None:
        if self._fatal is not None:
            return
        try:
            step()
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        if self._fatal is None:
            logger.error("raft stops: %s", str(error) or type(error).__name__,
                         exc_info=error if isinstance(error, AssertionError) else None)
            self._fatal = error
        self._wake.set()

    # --- read barriers -----------------------------------------------------------------------------------------------
    async def _run_barriers(self, barriers: Barriers, pass_round: Callable[[], Awaitable[int]]) -> None:
        while True:
            await self._barrier_wakes[barriers].wait()
            self._barrier_wakes[barriers] = trio.Event()
            while round_ := barriers.begin():
                if index := await pass_round():
                    barriers.passed(round_, index)
                else:
                    barriers.failed(round_)
                    await trio.sleep(PAUSE_S)

    async def _pass_log(self) -> int:
        """The index of a no-op that is applied here; 0 if that cannot be known within ROUND_S."""
        try:
            return (await self.propose(Envelope(NoOp()), timeout_s=ROUND_S)).index
        except (NotApplied, OutcomeUnknown):
            return 0

    async def _ask_leader(self) -> int:
        """What ReadIndex.ask tells; 0 after ROUND_S."""
        answered, index = trio.Event(), 0

        def told(through: int) -> None:
            nonlocal index
            index = through
            answered.set()

        reads = self._replica.reads
        self._guard(lambda: reads.ask(told))
        self._wake.set()
        with trio.move_on_after(ROUND_S):
            try:
                await answered.wait()
            finally:
                reads.forget()
        return index
