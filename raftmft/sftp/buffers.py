"""What the open uploads of one session keep in memory, and which bytes of an upload are contiguous from its start.

A slot that is being written lies in memory as a `Slot`, at most 1 MiB. All slots of a session together, those on their
way to the store included, are bounded by MOST_SLOTS, and those of all sessions of a worker by WORKER_SLOTS and
LEAST_SLOTS; beyond it the session's oldest one is stored and let go of.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from raftmft.sftp.upload import Upload

MOST_SLOTS = 16
"""MiB of file content that one session's uploads keep in memory, at most."""
WORKER_SLOTS = 32
"""MiB that the uploads of all sessions of a worker keep in memory, but for LEAST_SLOTS of each."""
LEAST_SLOTS = 2
"""What a session may always keep: any write touches at most so many, so it never waits for another session."""
MOST_ISLANDS = 256


class Slot:
    """A slot's bytes. `is_dirty` until they are on their way to the store; the first `stable` bytes are stored as the
    slot's present chunk and were not overwritten since.
    """

    __slots__ = ("buffer", "is_dirty", "stable")

    def __init__(self, buffer: bytearray, *, is_dirty: bool) -> None:
        self.buffer, self.is_dirty = buffer, is_dirty
        self.stable = 0 if is_dirty else len(buffer)

    def write(self, position: int, data: memoryview) -> None:
        """Puts bytes at a position; a gap before them becomes zeros."""
        buffer = self.buffer
        have = len(buffer)
        if position == have:
            buffer += data
        elif position < have:
            buffer[position : position + len(data)] = data
            if position < self.stable:
                self.stable = 0
        else:
            buffer += bytes(position - have)
            buffer += data
        self.is_dirty = True

    def fit(self, length: int) -> None:
        """Cuts, or pads with zeros, to `length` bytes."""
        have = len(self.buffer)
        if have > length:
            del self.buffer[length:]
            self.is_dirty = True
            if self.stable > length:
                self.stable = 0
        elif have < length:
            self.buffer += bytes(length - have)
            self.is_dirty = True


class Bell:
    """Wakes everyone who waits for something to change; each then looks again for itself."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Returns at the next ring."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def ring(self) -> None:
        """Something changed."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class WorkerBudget:
    """The slots in memory of all sessions of a worker. A session that is gone counts as long as its bytes are there."""

    def __init__(self, most_slots: int = WORKER_SLOTS) -> None:
        self._most = most_slots
        self._budgets: WeakSet[Budget] = WeakSet()

    def has_room(self, slots: int) -> bool:
        """Whether so many more slots may be taken into memory."""
        return sum(budget.held for budget in self._budgets) + slots <= self._most

    def budget(self) -> Budget:
        """That of a new session."""
        made = Budget(worker=self)
        self._budgets.add(made)
        return made


class Budget:
    """One session's slots in memory, over all its uploads."""

    def __init__(self, most_slots: int = MOST_SLOTS, worker: WorkerBudget | None = None) -> None:
        self._most, self._worker = most_slots, worker
        # By the object and not by the upload's id: an upload that is written again over a newer base has the same one.
        self._slots: OrderedDict[tuple[Upload, int], None] = OrderedDict()
        self._leaving = 0
        self.changed = Bell()

    def has_room(self, slots: int) -> bool:
        """Whether so many more slots may be taken into memory."""
        total = self.held + slots
        return total <= self._most and (
            total <= LEAST_SLOTS or self._worker is None or self._worker.has_room(slots))

    @property
    def held(self) -> int:
        """How many slots are in memory, those on their way to the store included."""
        return len(self._slots) + self._leaving

    async def push_out(self) -> None:
        """Begins to store the oldest slot, which makes room once it is stored, or waits for something to change."""
        oldest = next(iter(self._slots), None)
        if oldest is None:
            await self.changed.wait()
        elif not oldest[0].let_go(oldest[1]):
            await oldest[0].seals.changed.wait()

    def took(self, upload: Upload, number: int) -> None:
        """A slot came into memory."""
        self._slots[upload, number] = None

    def gave(self, upload: Upload, number: int) -> None:
        """A slot was let go of."""
        self._slots.pop((upload, number), None)
        self.changed.ring()

    def leaves(self) -> None:
        """Bytes of a slot are on their way to the store, and in memory until `left`."""
        self._leaving += 1

    def left(self) -> None:
        """They are stored, or given up."""
        self._leaving -= 1
        self.changed.ring()


class Prefix:
    """How many bytes from the start of a file were written, without a gap, in whatever order."""

    def __init__(self, end: int) -> None:
        self.end = end
        self._islands: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        """These bytes were written. Beyond MOST_ISLANDS gaps, what lies behind them is forgotten: the prefix may then
        be told too short, never too long.
        """
        if start > self.end:
            insort(self._islands, (start, end))
            self._merge()
            return
        if end > self.end:
            self.end = end
            while self._islands and self._islands[0][0] <= self.end:
                self.end = max(self.end, self._islands.pop(0)[1])

    def cut(self, size: int) -> None:
        """The file now ends at `size`."""
        self.end = min(self.end, size)
        self._islands = [(start, min(end, size)) for start, end in self._islands if start < size]

    def _merge(self) -> None:
        merged: list[tuple[int, int]] = []
        for start, end in self._islands:
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        self._islands = merged[:MOST_ISLANDS]
