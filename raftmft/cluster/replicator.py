"""Puts each chunk where it belongs: to its other owners, and to stand-ins for those that do not answer.

`put` returns as soon as `need` other members hold the chunk durably; the remaining owner's copy goes on in the
background. What the background may hold in memory is bounded per member (BACKGROUND_MAX_BYTES): over it a copy is
abandoned, and that owner's repairer fetches the chunk later, as it does for all that was published while it was away. A
stand-in's copy counts like an owner's; what is then owed to the owner, its repairer fetches in the same way.

Two questions are kept apart. Whether a member is *worth trying* now, gossip says, quickly and sometimes wrongly; and a
bulk connection may not come up in its time because a machine is busy. Whether it is *reachable* its control link says:
it talks, or it does not. Only if too few members are reachable is there no quorum; slowness is waited for.

Fan-out: every copy leaves from here. (A chain loads the ingesting node less; it is a later step.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import trio

from raftmft.cluster.bulk import PutRefused
from raftmft.cluster.hello import PeerRefused, PeerUnreachable
from raftmft.core.errors import RaftmftError

RETRY_S = 0.25
"""How often a waiting put looks for members that came back, and the pause before one that failed is tried again."""
UNREACHABLE_DEADLINE_S = 2.5
"""How long fewer than `need` members may be reachable before `put` gives up. That a member is gone, its silent link
tells 1.5 s after the fact (links.HEARD_WITHIN_S), and the contract grants 5 s in all."""
LOOK_MAX_S = 2 * RETRY_S
"""As much as one look at who is reachable may add to that: a pause of this process is not the silence of others."""
PUT_DEADLINE_S = 60.0
"""How long a put may take although enough members are reachable: they are slow then, or their disks are full."""
STALL_S = 2.0
"""An owner that has not answered for this long gets a stand-in beside it."""
BACKGROUND_MAX_BYTES = 16 << 20

Buffer = bytes | bytearray | memoryview
PutTo = Callable[[str, bytes, Buffer], Awaitable[None]]


class NotEnoughHolders(RaftmftError):
    """Too few other members could keep the chunk. The text contains "no quorum" when too few were reachable."""

    retry_is_safe = True


class Replicator:
    """Copies of chunks on other members. `run` must be running.

    `put_to(member, id, data)` returns once durable there (BulkPool.put); `alive(member)` says whether it is worth
    trying, `reachable(member)` whether anything was heard from it just now (PeerLinks.hears); `ranking(id)` gives all
    members that store, in rendezvous order (the owners first).
    """

    def __init__(self, me: str, put_to: PutTo, alive: Callable[[str], bool],
                 reachable: Callable[[str], bool], ranking: Callable[[bytes], Sequence[str]]) -> None:
        self._me, self._put_to, self._ranking = me, put_to, ranking
        self._alive, self._reachable = alive, reachable
        self._nursery: trio.Nursery | None = None
        self._background: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carries the copies until cancelled; copies under way are then abandoned, and puts fail."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def put(self, chunk_id: bytes, load: Callable[[], Buffer], owners: Sequence[str],
                  need: int | Callable[[], int]) -> tuple[str, ...]:
        """At least `need` members other than this one hold the chunk durably; gives which did by then.

        `owners` are the chunk's owners (this member among them or not): all others of them are sent a copy. `load` is
        called once and reads the chunk (from the page cache: it was appended just now). NotEnoughHolders otherwise. If
        `need` is a function, it is asked again and again: fewer may do once others are known to be away. Cancelled,
        copies already under way may arrive.
        """
        if self._nursery is None:
            raise NotEnoughHolders("this member is stopping; upload again through another")
        remote = [owner for owner in owners if owner != self._me]
        wanted = need if callable(need) else lambda: need
        if not remote and wanted() <= 0:
            return ()
        job = _Job(chunk_id, load(), wanted())
        try:
            await self._gather(job, remote, wanted)
        finally:
            job.settle(self._background)
        return tuple(job.held_by)

    # --- within -------------------------------------------------------------------------------------------------------
    async def _gather(self, job: _Job, owners: list[str], wanted: Callable[[], int]) -> None:
        """Starts copies, and stand-ins as needed, until enough are held. All decisions of a put are taken here."""
        started = trio.current_time()
        alone = Alone(started)
        for owner in owners:
            if self._alive(owner):
                self._start(job, owner)
        while len(job.held_by) < job.need:
            now = trio.current_time()
            candidates = [m for m in self._ranking(job.chunk_id) if m != self._me]
            reachable = {m for m in candidates if self._reachable(m)}
            alone_s = alone.look(now, len(reachable | job.held_by.keys()) < job.need)
            # An owner that is dead, failed or has stalled gets the next in rank to stand in for it.
            hopeful = sum(1 for m, copy in job.copies.items()
                          if m in job.held_by or (copy.running and now - copy.started_at < STALL_S))
            for member in candidates:
                if hopeful >= max(job.need, len(owners)):
                    break
                if self._alive(member) and job.may_start(member, now):
                    if member not in owners:
                        self.counts["stood_in"] += 1
                    self._start(job, member)
                    hopeful += 1
            if alone_s > UNREACHABLE_DEADLINE_S:
                raise NotEnoughHolders(f"no quorum: {len(job.held_by)} of {job.need} other members keep the chunk; "
                                       f"check `raftmft status`{job.complaints()}")
            if now - started > PUT_DEADLINE_S:
                raise NotEnoughHolders(f"{len(job.held_by)} of {job.need} other members kept the chunk in "
                                       f"{PUT_DEADLINE_S:g} s; check their disks{job.complaints()}")
            if self._nursery is None:
                raise NotEnoughHolders("this member is stopping; upload again through another")
            job.changed = trio.Event()
            with trio.move_on_after(RETRY_S):
                await job.changed.wait()
            job.need = wanted()

    def _start(self, job: _Job, member: str) -> None:
        assert self._nursery is not None
        copy = job.copies[member] = _Copy(trio.current_time())
        self._nursery.start_soon(self._deliver, job, member, copy)

    async def _deliver(self, job: _Job, member: str, copy: _Copy) -> None:
        try:
            with copy.scope:
                await self._put_to(member, job.chunk_id, job.data)
                job.answered(member)
                self.counts["copies"] += 1
        except (PeerUnreachable, PeerRefused) as error:
            job.unreachable[member] = str(error)
            copy.failed_at = trio.current_time()
        except PutRefused as error:
            job.answered(member, str(error))
            copy.failed_at = trio.current_time()
        finally:
            copy.running = False
            if copy.background:
                self._background[member] -= len(job.data)
                if member not in job.held_by:
                    self.counts["left_to_repair"] += 1
            job.changed.set()


class Alone:
    """For how long too few members have been reachable. Pauses of this process itself are not counted."""

    def __init__(self, now: float) -> None:
        self._looked_at, self._alone_s = now, 0.0

    def look(self, now: float, is_alone: bool) -> float:
        """Seconds of it until `now`, at most LOOK_MAX_S of them since the last look; 0.0 as soon as enough are."""
        step = min(now - self._looked_at, LOOK_MAX_S)
        self._looked_at = now
        self._alone_s = self._alone_s + step if is_alone else 0.0
        return self._alone_s


class _Copy:
    """One attempt to put the chunk to one member."""

    def __init__(self, started_at: float) -> None:
        self.started_at, self.failed_at = started_at, float("-inf")
        self.running, self.background = True, False
        self.scope = trio.CancelScope()


class _Job:
    """One put, as long as any of its copies is under way."""

    def __init__(self, chunk_id: bytes, data: Buffer, need: int) -> None:
        self.chunk_id, self.data, self.need = chunk_id, data, need
        self.copies: dict[str, _Copy] = {}
        self.held_by: dict[str, None] = {}
        self.unreachable: dict[str, str] = {}
        self.refusals: dict[str, str] = {}
        self.changed = trio.Event()

    def may_start(self, member: str, now: float) -> bool:
        """Not while a copy is under way or there, nor right after it failed."""
        copy = self.copies.get(member)
        return copy is None or not (copy.running or member in self.held_by or now - copy.failed_at < RETRY_S)

    def answered(self, member: str, refusal: str = "") -> None:
        """The member spoke: what was said of it before is out of date."""
        self.unreachable.pop(member, None)
        self.refusals.pop(member, None)
        if refusal:
            self.refusals[member] = refusal
        else:
            self.held_by[member] = None

    def settle(self, background: Counter[str]) -> None:
        """Nobody waits any more: copies still under way go on in the background as far as its bound allows."""
        for member, copy in self.copies.items():
            if not copy.running:
                continue
            copy.background = True
            background[member] += len(self.data)
            if background[member] > BACKGROUND_MAX_BYTES:
                copy.scope.cancel()

    def complaints(self) -> str:
        """What went wrong with whom, for the one line that people see."""
        said = {**self.unreachable, **self.refusals}
        return f" ({'; '.join(said[member] for member in sorted(said))})" if said else ""
