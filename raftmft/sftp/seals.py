"""Sealing: a slot's bytes become a chunk in the store, held by enough owners.

A seal hashes and appends the bytes, enters the chunk in the upload's table, then waits until the node has it copied to
enough other owners. Bytes that are stored already (repeats.py) are neither appended nor copied. Seals of different
slots overlap; of one slot there is at most one. `window` of them are under way at most, which is how a slow cluster
slows the client. The streaming digest is fed by seals too, as long as full slots are sealed once each, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from blake3 import blake3

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp.buffers import Bell, Budget
from raftmft.sftp.chunks import Buffer, ChunkWriter
from raftmft.sftp.repeats import Repeats
from raftmft.sftp.slots import SlotTable
from raftmft.store.segments import Location
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)


class StreamDigest:
    """The BLAKE3 of a file that is written once from its start to its end; void as soon as it is not."""

    def __init__(self, *, is_possible: bool) -> None:
        self._hash: blake3 | None = blake3() if is_possible else None
        self.slots = 0

    def next_for(self, number: int, length: int, *, is_last: bool) -> blake3 | None:
        """What the slot's bytes are to be fed to, in order; None, and the digest is void, if it is not the next."""
        if number == self.slots and (length == CHUNK_SIZE or is_last):
            self.slots += 1
        else:
            self._hash = None
        return self._hash

    def void(self) -> None:
        """There will be no digest."""
        self._hash = None

    def hex(self, slots: int) -> str:
        """The digest of a file of so many slots, or ""."""
        return self._hash.hexdigest() if self._hash is not None and self.slots == slots else ""


class Seals:
    """The seals under way of one upload. `changed` rings whenever one gets on; `failure` is the first trouble."""

    def __init__(self, writer: ChunkWriter, table: SlotTable, budget: Budget, upload: int, window: int,
                 on_done: Callable[[int], None]) -> None:
        """`on_done` is called with the slot's number after each seal, successful or not."""
        self._writer, self._table, self._budget = writer, table, budget
        self._upload, self._window, self._on_done = upload, max(1, window), on_done
        self._bytes: dict[int, Buffer | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._repeats = Repeats()
        self.changed = Bell()
        self.failure: RaftmftError | None = None
        self.is_lossy = False
        """Bytes of a failed upload are neither in memory nor in the store: reading it would give holes for them."""

    def __contains__(self, number: int) -> bool:
        return number in self._bytes

    @property
    def is_full(self) -> bool:
        """Whether another one must wait."""
        return len(self._bytes) >= self._window

    @property
    def numbers(self) -> list[int]:
        """The slots that are being sealed."""
        return list(self._bytes)

    def bytes_of(self, number: int) -> Buffer | None:
        """The bytes that are on their way to the store; None if they are there, or if there is no such seal."""
        return self._bytes.get(number)

    def begin(self, number: int, data: Buffer, digest: blake3 | None) -> None:
        """Begins to seal. `data` must not change any more. The slot must not be sealed now."""
        assert number not in self._bytes and data
        self._bytes[number] = data
        self._budget.leaves()
        task = asyncio.get_running_loop().create_task(self._seal(number, data, digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def poison(self, trouble: RaftmftError) -> None:
        """Nothing more will come of this upload."""
        if self.failure is None:
            self.failure = trouble
            log.info("upload %d cannot go on: %s", self._upload, trouble, extra=fields(upload=self._upload))
        self.changed.ring()

    def check(self) -> None:
        """Raises the failure, if there is one."""
        if self.failure is not None:
            raise self.failure

    async def turn(self, number: int) -> None:
        """Returns when this slot could be sealed. Raises the failure."""
        self.check()
        while number in self._bytes or self.is_full:
            await self.changed.wait()
            self.check()

    async def appended(self) -> None:
        """Returns when the bytes of all seals are in the store. Raises the failure."""
        self.check()
        while any(data is not None for data in self._bytes.values()):
            await self.changed.wait()
            self.check()

    async def acknowledged(self) -> None:
        """Returns when no seal is under way. Raises the failure."""
        self.check()
        while self._bytes:
            await self.changed.wait()
            self.check()

    async def _seal(self, number: int, data: Buffer, digest: blake3 | None) -> None:
        is_held = True
        try:
            async with self._writer.in_flight:
                chunk_id, place = await self._stored(data, digest)
                self._table.set(number, chunk_id, len(data))
                self._bytes[number] = None
                del data  # or a megabyte more would stay in memory for each put that is under way
                self._budget.left()
                is_held = False
                self.changed.ring()
                if place is not None:
                    await self._writer.put(self._upload, chunk_id, place)
                    self._repeats.acknowledged(chunk_id)
        except RaftmftError as trouble:
            self.poison(trouble)
        except Exception:
            # Our bug, or no memory. Bytes may be lost: the file must not be published with a hole in their place.
            log.exception("a part of upload %d could not be stored", self._upload, extra=fields(upload=self._upload))
            self.poison(RaftmftError("internal error; see the server's log"))
        finally:
            if is_held:
                self._budget.left()
                self.is_lossy = True
            del self._bytes[number]
            self._on_done(number)
            self.changed.ring()

    async def _stored(self, data: Buffer, digest: blake3 | None) -> tuple[bytes, Location | None]:
        """The id of the bytes, and where they were appended; no place if enough owners hold them durably anyway."""
        writer, repeats = self._writer, self._repeats
        if not repeats.is_offered(len(data)):
            return await writer.append_new(data, digest, repeats)
        chunk_id = await writer.identify(data, digest)
        if chunk_id in repeats:
            return chunk_id, None
        is_held = await writer.offer(self._upload, chunk_id)
        repeats.answered(is_held)
        return chunk_id, None if is_held else await writer.append(data, chunk_id)
