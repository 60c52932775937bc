"""Puts each chunk where it belongs: to its other owners, and to stand-ins for those that do not answer.

`put` returns as soon as `need` other members hold the chunk durably; the remaining owner's copy goes on in the
background. What the background may hold in memory is bounded per member (BACKGROUND_MAX_BYTES). A member that is slow
but gets on holds up who puts when that is full: so a slow replica slows the client. One that does not, or not for
ROOM_WAIT_S, is left to itself: the copy is abandoned, and that owner's repairer fetches the chunk later, as it does for
all that was published while it was away. A stand-in's copy counts like an owner's; what is then owed to the owner, its
repairer fetches in the same way.

Two questions are kept apart. Whether a member is *worth trying* now, gossip says, quickly and sometimes wrongly; and a
bulk connection may not come up in its time because a machine is busy. Whether it is *reachable* its control link says:
it talks, or it does not. Only if too few members are reachable is there no quorum; slowness is waited for.

Ways out. A full chunk for two owners or more goes along a *chain*: it leaves this member once, and each owner passes it
on to the next while it stores it. Everything smaller fans out: there latency counts, and the bytes are few. Each member
of a chain is answered for by itself, so that one behind a slow one costs no more than with fan-out; who cannot be
reached through the chain, for whatever reason, is sent its copy from here, and a chain whose first member is silent for
CHAIN_PATIENCE_S is no longer waited for. What is decided here is the same for both ways.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from raftmft.cluster.bulk import Told
from raftmft.cluster.hello import PeerRefused, PeerUnreachable
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE
from raftmft.wire.peer import MOST_PASSED_ON

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
BEHIND_BYTES = 4 << 20
"""A member that is behind by so much more than another comes after it in chains."""
ROOM_WAIT_S = 2.0
"""How long a put waits for room in the background of a member that got on within STALL_S."""
CHAIN_PATIENCE_S = 1.0
SLOW_FIRST_S = 5.0
"""For how long nothing is chained through a member that cost others CHAIN_PATIENCE_S."""
TOLD_S, MOST_TOLD = 10.0, 10_000
"""For how long, and how many, copies left to others' repairers count as `owed`. Then those count them by themselves."""

Buffer = bytes | bytearray | memoryview
Chain = Callable[[Sequence[str], bytes, Buffer, Told], Awaitable[None]]


class NotEnoughHolders(RaftmftError):
    """Too few other members could keep the chunk. The text contains "no quorum" when too few were reachable."""

    retry_is_safe = True


class Replicator:
    """Copies of chunks on other members. `run` must be running.

    `chain(members, id, data, told)` puts a chunk to one member or along several (BulkPool.chain); `alive(member)` says
    whether it is worth trying, `reachable(member)` whether anything was heard from it just now (PeerLinks.hears);
    `ranking(id)` gives all members that store, in rendezvous order (the owners first). Nothing is chained unless
    `chains`.
    """

    def __init__(self, me: str, chain: Chain, alive: Callable[[str], bool],
                 reachable: Callable[[str], bool], ranking: Callable[[bytes], Sequence[str]]) -> None:
        self._me, self._chain, self._ranking = me, chain, ranking
        self._alive, self._reachable = alive, reachable
        self._nursery: trio.Nursery | None = None
        self._background: Counter[str] = Counter()
        self._shrank = trio.Event()
        self._moved_at: dict[str, float] = {}  # a copy was answered well, or the first one fell behind
        self._slow_until: dict[str, float] = {}
        self.chains = True
        self._left_at: deque[float] = deque(maxlen=MOST_TOLD)
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

    @property
    def owed(self) -> int:
        """How many copies were lately left to their owners' repairers, which may not have looked yet."""
        late = trio.current_time() - TOLD_S
        while self._left_at and self._left_at[0] < late:
            self._left_at.popleft()
        return len(self._left_at)

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
            await self._find_room(job)
        finally:
            self._settle(job)
        return tuple(job.held_by)

    # --- within -------------------------------------------------------------------------------------------------------
    async def _gather(self, job: _Job, owners: list[str], wanted: Callable[[], int]) -> None:
        """Starts copies, and stand-ins as needed, until enough are held. All decisions of a put are taken here."""
        started = trio.current_time()
        alone = Alone(started)
        self._start_all(job, [owner for owner in owners if self._alive(owner)])
        while len(job.held_by) < job.need:
            now = trio.current_time()
            candidates = [m for m in self._ranking(job.chunk_id) if m != self._me]
            reachable = {m for m in candidates if self._reachable(m)}
            alone_s = alone.look(now, len(reachable | job.held_by.keys()) < job.need)
            self._look_at_chains(job, now)
            # An owner that is dead, failed or has stalled gets the next in rank to stand in for it.
            hopeful = sum(1 for m, copy in job.copies.items()
                          if m in job.held_by or (copy.running and now - copy.started_at < STALL_S))
            for member in candidates:
                if hopeful >= max(job.need, len(owners)):
                    break
                if self._alive(member) and job.may_start(member, now):
                    if member not in owners:
                        self.counts["stood_in"] += 1
                    self._start(job, (member,))
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

    def _start_all(self, job: _Job, owners: Sequence[str]) -> None:
        """The first copies: along a chain, or to each of the owners."""
        # Who is behind goes last: nobody is to wait for it.
        owners = sorted(owners, key=lambda owner: self._background[owner] // BEHIND_BYTES)
        if self.chains and job.size == CHUNK_SIZE and len(owners) > 1 and (
                self._slow_until.get(owners[0], 0.0) <= trio.current_time()):
            chained, owners = owners[: 1 + MOST_PASSED_ON], owners[1 + MOST_PASSED_ON :]
            self.counts["chained"] += 1
            self._start(job, tuple(chained))
        for owner in owners:
            self._start(job, (owner,))

    def _look_at_chains(self, job: _Job, now: float) -> None:
        """Who waits behind a silent first member is sent its copy from here."""
        for route in {copy.route for copy in job.copies.values() if copy.running}:
            first, *then = route.members
            if then and first in route.left and now - route.started_at >= CHAIN_PATIENCE_S:
                self._slow_until[first] = now + SLOW_FIRST_S
                for member in [m for m in then if m in route.left]:
                    self._leave(job, member)
                    self._start(job, (member,))

    def _start(self, job: _Job, members: tuple[str, ...]) -> None:
        assert self._nursery is not None
        route = _Route(members, trio.current_time())
        for member in members:
            job.copies[member] = _Copy(route)
        self._nursery.start_soon(self._deliver, job, route)

    async def _deliver(self, job: _Job, route: _Route) -> None:
        try:
            with route.scope:
                await self._chain(route.members, job.chunk_id, job.data,
                                  lambda member, refusal: self._told(job, route, member, refusal))
        except (PeerUnreachable, PeerRefused) as error:
            first = route.members[0]
            for member in sorted(route.left):
                if member == first:
                    job.unreachable[member] = str(error)
                    job.copies[member].failed_at = trio.current_time()
                self._over(job, route, member, is_own=member == first)
        finally:
            for member in sorted(route.left):
                self._over(job, route, member, is_own=True)

    def _told(self, job: _Job, route: _Route, member: str, refusal: str) -> None:
        """A member of a route answered, or another for it."""
        if not refusal:
            self.counts["copies"] += 1
            self._moved_at[member] = trio.current_time()
            job.answered(member)
        elif member in route.left:
            job.answered(member, f"{member}: {refusal}")
        if member in route.left:
            if refusal and member == route.members[0]:
                job.copies[member].failed_at = trio.current_time()
            self._over(job, route, member, is_own=not refusal or member == route.members[0])
        job.changed.set()

    def _over(self, job: _Job, route: _Route, member: str, *, is_own: bool) -> None:
        """Nothing more comes of this copy. If that is not the member's `own` doing, it is sent one from here."""
        background = self._leave(job, member)
        if not is_own and self._nursery is not None and self._alive(member):
            self.counts["sent_instead"] += 1
            self._start(job, (member,))
            if background:
                self._put_behind(job, member)
        elif background and member not in job.held_by:
            self._leave_to_repair()
        if background:
            job.let_go()
        job.changed.set()

    def _leave(self, job: _Job, member: str) -> bool:
        """The member's copy is not under way any more; True if it was in the background."""
        copy = job.copies[member]
        copy.route.left.discard(member)
        copy.running = False
        if copy.background:
            copy.background = False
            self._background[member] -= job.size
            self._shrank.set()
            self._shrank = trio.Event()
            return True
        return False

    def _leave_to_repair(self) -> None:
        self.counts["left_to_repair"] += 1
        self._left_at.append(trio.current_time())

    async def _find_room(self, job: _Job) -> None:
        """Returns when the copies still under way fit into the background, or when that is not to be waited for."""
        give_up = trio.current_time() + ROOM_WAIT_S
        while (now := trio.current_time()) < give_up and any(
                copy.running and self._background[member] + job.size > BACKGROUND_MAX_BYTES
                and now - self._moved_at.get(member, 0.0) < STALL_S
                for member, copy in job.copies.items()):
            self.counts["held_up"] += 1
            with trio.move_on_after(RETRY_S):
                await self._shrank.wait()

    def _settle(self, job: _Job) -> None:
        """Nobody waits any more: copies still under way go on in the background as far as its bound allows."""
        for member, copy in list(job.copies.items()):
            if copy.running:
                self._put_behind(job, member)
        job.let_go()

    def _put_behind(self, job: _Job, member: str) -> None:
        copy = job.copies[member]
        copy.background = True
        if not self._background[member]:
            self._moved_at[member] = trio.current_time()
        self._background[member] += job.size
        if self._background[member] > BACKGROUND_MAX_BYTES:
            route = copy.route
            self._leave(job, member)
            self._leave_to_repair()
            if not route.left:
                route.scope.cancel()


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


class _Route:
    """One way that a chunk goes: to one member, or along a chain. `left` are those not answered for yet."""

    def __init__(self, members: tuple[str, ...], started_at: float) -> None:
        self.members, self.started_at = members, started_at
        self.left = set(members)
        self.scope = trio.CancelScope()


class _Copy:
    """The latest attempt to put the chunk to one member."""

    def __init__(self, route: _Route) -> None:
        self.route, self.started_at, self.failed_at = route, route.started_at, float("-inf")
        self.running, self.background = True, False


class _Job:
    """One put, as long as any of its copies is under way."""

    def __init__(self, chunk_id: bytes, data: Buffer, need: int) -> None:
        self.chunk_id, self.data, self.size, self.need = chunk_id, data, len(data), need
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

    def let_go(self) -> None:
        """Nobody waits any more: the bytes are not needed once no copy is under way. Late answers may still come."""
        if not any(copy.running for copy in self.copies.values()):
            self.data = b""

    def complaints(self) -> str:
        """What went wrong with whom, for the one line that people see."""
        said = {**self.unreachable, **self.refusals}
        return f" ({'; '.join(said[member] for member in sorted(said))})" if said else ""
