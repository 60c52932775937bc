"""What this node holds: the one place of the node process where chunks come in, become durable, and are read.

A chunk lies in a segment of this node's own writer or of a worker's: a worker's append is told to the node before the
worker synced it. So nothing is taken for durable because it is known: *durable* means that a sync of its segment which
began after the append has ended (`_synced` keeps, per segment, the offset up to which that is so). One sync runs at a
time, in a thread; everything that asks meanwhile shares the next one (group commit).

After a failed sync the page cache can no longer be trusted: `run` raises, and the node stops (fsyncgate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import trio
from blake3 import blake3

from raftmft.core.errors import RaftmftError
from raftmft.store.errors import ChunkCorrupt as ChunkDamaged

INLINE_BYTES = 64 << 10
"""Smaller chunks are hashed and appended on the loop (tens of microseconds); larger ones in a thread."""
READS_MAX = 8
"""How many chunks are read and verified in threads at once, for peers and repair."""

Buffer = bytes | bytearray | memoryview
WhenDurable = Callable[[str], None]
"""Called with "" once durable, else with one line that says why it will not be."""


class Place(Protocol):
    """Where a chunk lies (store.Location)."""

    @property
    def segment(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Storage(Protocol):
    """What the store does for one node (an adapter over SegmentWriter, SegmentReader and ChunkIndex).

    All but `find` and `forget` may block; `append` is called by one thread at a time, the others by any.
    """

    def find(self, chunk_id: bytes) -> Place | None:
        """Where the chunk lies, as far as the index knows."""

    def append(self, chunk_id: bytes, data: Buffer) -> Place:
        """Appends to this node's own segments and enters it in the index. OSError or RaftmftError: no space."""

    def sync(self, segments: Iterable[str]) -> None:
        """All that was appended to these segments before the call is on disk, whoever wrote it."""

    def read(self, place: Place, chunk_id: bytes) -> bytes:
        """The chunk, its hash verified; ChunkDamaged (the store's ChunkCorrupt) otherwise."""

    def forget(self, chunk_id: bytes, place: Place) -> None:
        """The copy at `place` is bad: if the index still names it, it no longer does."""


class Holdings:
    """Chunks in and out, with durability said truly. `run` must be running for anything to become durable."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._appending = trio.Lock()
        self._reading = trio.CapacityLimiter(READS_MAX)
        self._synced: dict[str, int] = {}
        self._waiting: list[tuple[Place, WhenDurable]] = []
        self._wake = trio.Event()
        self._broken = ""
        self.syncs = 0
        self.damaged = 0

    def find(self, chunk_id: bytes) -> Place | None:
        """Where the chunk lies here, durable or not; None when it is not held."""
        return self._storage.find(chunk_id)

    def touch(self, chunk_id: bytes, callback: WhenDurable) -> bool:
        """A *hit*: somebody counts on the copy that is held here without sending the bytes. False if there is none;
        else `callback` is called as by `when_durable`, after a sync that began later, as if it had just been appended.

        Every hit goes through here, and through nothing else, so that the sweep can rely on it: it must not delete a
        chunk for which this has said True, and the sync is the place where the touch becomes durable (DESIGN.md,
        "Deduplication").
        """
        place = self._storage.find(chunk_id)
        if place is None:
            return False
        if self._broken:
            callback(self._broken)
        else:
            self._waiting.append((place, callback))
            self._wake.set()
        return True

    async def add(self, chunk_id: bytes, data: Buffer, *, again: bool = False) -> Place:
        """The chunk is held here (not yet durable): it was held already, or its hash was verified and it was appended;
        if `again`, it is appended although it is held.

        ChunkDamaged if `data` does not have this id; OSError or RaftmftError if the disk refuses. `data` must not
        change until this returns. Cancelled, the chunk may be held or not; a thread at work is waited for.
        """
        if not again and (held := self._storage.find(chunk_id)) is not None:
            return held
        async with self._appending:
            if not again and (held := self._storage.find(chunk_id)) is not None:
                return held
            if len(data) <= INLINE_BYTES:
                return self._verify_and_append(chunk_id, data)
            return await trio.to_thread.run_sync(self._verify_and_append, chunk_id, data)

    def when_durable(self, place: Place, callback: WhenDurable) -> None:
        """`callback` is called once what lies at `place` is durable (at once, if it is), from the loop."""
        if self._broken:
            callback(self._broken)
        elif place.offset + place.length <= self._synced.get(place.segment, 0):
            callback("")
        else:
            self._waiting.append((place, callback))
            self._wake.set()

    async def durable(self, *places: Place) -> None:
        """What lies at all of `places` is durable, or RaftmftError. Cancelled: it may become so later."""
        left, refusal, done = len(places), "", trio.Event()

        def one(text: str) -> None:
            nonlocal left, refusal
            left, refusal = left - 1, refusal or text
            if not left:
                done.set()

        for place in places:
            self.when_durable(place, one)
        if places:
            await done.wait()
        if refusal:
            raise RaftmftError(refusal)

    async def put(self, chunk_id: bytes, data: Buffer) -> Place:
        """The chunk is held here and durable. Errors as of `add` and `durable`."""
        place = await self.add(chunk_id, data)
        await self.durable(place)
        return place

    async def read(self, chunk_id: bytes) -> bytes | None:
        """The chunk as it lies here, verified; None if it is not held. ChunkDamaged: the copy was bad, is forgotten."""
        place = self._storage.find(chunk_id)
        if place is None:
            return None
        try:
            return await trio.to_thread.run_sync(self._storage.read, place, chunk_id, limiter=self._reading)
        except ChunkDamaged:
            self.drop(chunk_id, place)
            raise

    def drop(self, chunk_id: bytes, place: Place) -> None:
        """The copy at `place` was found to be bad: it is no longer held."""
        self.damaged += 1
        self._storage.forget(chunk_id, place)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Syncs for all who wait, one sync at a time, until cancelled. Raises when a sync fails: the node must stop."""
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                batch, self._waiting = self._waiting, []
                reached: dict[str, int] = {}
                for place, _ in batch:
                    reached[place.segment] = max(reached.get(place.segment, 0), place.offset + place.length)
                try:
                    await trio.to_thread.run_sync(self._storage.sync, tuple(reached))
                except BaseException:
                    self._waiting = batch + self._waiting
                    raise
                self.syncs += 1
                for segment, end in reached.items():
                    self._synced[segment] = max(self._synced.get(segment, 0), end)
                for _, callback in batch:
                    callback("")
        finally:
            self._broken = "this member's disk failed to sync, or it is stopping: nothing was promised"
            waiting, self._waiting = self._waiting, []
            for _, callback in waiting:
                callback(self._broken)

    def _verify_and_append(self, chunk_id: bytes, data: Buffer) -> Place:
        _verify(chunk_id, data)
        return self._storage.append(chunk_id, data)


def _verify(chunk_id: bytes, data: Buffer) -> None:
    if blake3(data).digest() != chunk_id:
        raise ChunkDamaged("the chunk's bytes do not have its hash: they were damaged on the way")


__all__ = ["ChunkDamaged", "Holdings", "Place", "Storage"]
