"""A file open to write: bytes in, chunks out, and at the client's CLOSE a published file.

Theory. A file is a row of 1 MiB slots. Written slots lie in memory (`_slots`) until they are full, or must make room;
then they are *sealed*: hashed, appended to the segment, and copied to other owners by the node, all overlapping. A
slot with a seal under way stands in `_sealing`. At most `window` seals of one upload are unacknowledged; over that,
`write` waits, the engine stops, and the client is slowed by SSH's window.

A WRITE is acknowledged when its bytes are taken in order in memory, as OpenSSH does. Whatever goes wrong afterwards
*poisons* the upload: later WRITEs and the CLOSE fail with the reason. Checkpoints (checkpoint.py) run beside the
writes; publishing waits for them. Only `publish` publishes, and only the engine calls it, for a client's CLOSE.

The digest published beside the manifest is the BLAKE3 of the whole file, in hex, if the file was written once from its
start to its end; else it is "", and the manifest alone says what the content is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from blake3 import blake3

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, MAX_FILE_SIZE, Manifest, chunk_count
from raftmft.core.outcome import Code
from raftmft.sftp.attrs import MODE_BITS, FileAttrs
from raftmft.sftp.buffers import Budget, Prefix, Slot
from raftmft.sftp.checkpoint import Checkpoints
from raftmft.sftp.chunks import ChunkWriter
from raftmft.sftp.content import ChunkReader, Content, places_of
from raftmft.sftp.link import Link, Refused
from raftmft.sftp.names import Path
from raftmft.sftp.slots import SlotTable

log = logging.getLogger(__name__)

_ZEROS = bytes(CHUNK_SIZE)


class SessionOver(RaftmftError):
    """The session ended while a write waited."""


class Upload:
    """One upload. Its methods are called by one session's engine, one at a time; checkpoints run beside them."""

    def __init__(self, link: Link, writer: ChunkWriter, reader: ChunkReader, budget: Budget, session: int, path: Path,
                 begun: dict[str, Any], *, window: int, is_append: bool, is_truncated: bool) -> None:
        """`begun` is the node's answer to fs.begin."""
        self.id, self.file, self.path = int(begun["upload"]), int(begun["file"]), path
        self.mode, self.session = int(begun["mode"]), session
        self.size = int(begun["size"])
        self.placement = int(begun["placement"])
        self.attrs: dict[str, int] = {}
        self._touched_s = time.time()
        # A new name is published by any CLOSE, an existing file only if something changed.
        self.is_changed = is_truncated or not self.file
        self.is_removed = False
        self.is_over = False
        self.failure: RaftmftError | None = None
        self.appends = is_append and bool(self.file)
        self.link, self.writer, self._reader, self._budget = link, writer, reader, budget
        self.base = Content(reader, Manifest(self.size, int(begun["depth"]), bytes(begun["ids"])),
                            places_of(begun.get("locations") or []))
        self.table = SlotTable(self.base)
        self.prefix = Prefix(self.size)
        self._window = max(1, window)
        self._slots: dict[int, Slot] = {}
        self._sealing: dict[int, bytes | bytearray | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._digest: blake3 | None = None if self.size else blake3()
        self._digested = 0
        self._zero_id: bytes | None = None
        self.checkpoints = Checkpoints(self, is_kept=not self.file)

    # --- writing ---------------------------------------------------------------------------------
    def try_write(self, offset: int, data: memoryview) -> bool:
        """Takes the bytes at once; False, with nothing taken, if that needs waiting. Raises the upload's failure."""
        if self.failure is not None:
            raise self.failure
        size = len(data)
        if self.appends:
            offset = self.size
        end = offset + size
        if end > MAX_FILE_SIZE:
            raise RaftmftError(f"File too large: at most {MAX_FILE_SIZE} bytes")
        if not size:
            return True
        first, last = offset // CHUNK_SIZE, (end - 1) // CHUNK_SIZE
        slots, new = self._slots, 0
        for number in range(first, last + 1):
            if number not in slots:
                if number in self._sealing or self.table.is_stored(number):
                    return False
                new += 1
        if (new and not self._budget.has_room(new)) or len(self._sealing) >= self._window or (
                self.checkpoints.is_behind()):
            return False
        taken = 0
        for number in range(first, last + 1):
            start = number * CHUNK_SIZE
            position = max(0, offset - start)
            count = min(CHUNK_SIZE - position, size - taken)
            slot = slots.get(number)
            if slot is None:
                slot = self._take_in(number, Slot(bytearray(), is_dirty=True))
            slot.write(position, data[taken : taken + count])
            taken += count
            if position + count == CHUNK_SIZE and number not in self._sealing:
                self._seal(number)
        self.size = max(self.size, end)
        self.is_changed = True
        self._touched_s = time.time()
        self.prefix.add(offset, end)
        self.checkpoints.written()
        return True

    async def write(self, offset: int, data: memoryview) -> None:
        """Takes the bytes, waiting for room, loaded slots and acknowledgements as need be. Raises the failure."""
        while not self.try_write(offset, data):
            where = self.size if self.appends else offset
            await self._make_way(where // CHUNK_SIZE, (where + len(data) - 1) // CHUNK_SIZE)

    async def _make_way(self, first: int, last: int) -> None:
        """Removes one obstacle to a write to these slots."""
        if self.is_over:
            raise SessionOver("the session ended")
        if self.checkpoints.is_behind():
            self.checkpoints.catch_up(is_idle=not self._sealing)
        elif len(self._sealing) < self._window:
            missing = [number for number in range(first, last + 1) if number not in self._slots]
            if missing and not self._budget.has_room(len(missing)):
                oldest = self._budget.oldest()
                if oldest is None or not await oldest[0].let_go(oldest[1]):
                    await self._budget.changed()
                return
            for number in missing:
                if number not in self._sealing and self.table.is_stored(number):
                    await self._load(number)
                    return
        await self.changed()

    async def let_go(self, number: int) -> bool:
        """Stores a slot and takes it out of memory; False if that must wait for something else first."""
        slot = self._slots.get(number)
        if slot is None:
            return True
        if not slot.is_dirty:
            self._drop(number)
            return True
        if number in self._sealing:
            return False
        while len(self._sealing) >= self._window:
            await self.changed()
        if number in self._slots and number not in self._sealing:
            self._seal(number)
        return True

    async def truncate(self, size: int) -> None:
        """The file now has `size` bytes; new ones are zeros. Raises the failure, or RaftmftError if it cannot."""
        if self.failure is not None:
            raise self.failure
        if size > MAX_FILE_SIZE:
            raise RaftmftError(f"File too large: at most {MAX_FILE_SIZE} bytes")
        self.is_changed = True
        if size < self.size:
            await self.settled()
            for number in [n for n in self._slots if n >= chunk_count(size)]:
                self._drop(number)
            self.table.cut(chunk_count(size))
            tail, length = divmod(size, CHUNK_SIZE)
            if length and (tail in self._slots or self.table.length_of(tail) > length):
                slot = self._slots.get(tail) or await self._load(tail)
                if len(slot.buffer) > length:
                    slot.fit(length)
            if size < self._digested * CHUNK_SIZE:
                self._digest = None
            self.prefix.cut(size)
        self.size = size
        self.checkpoints.written()

    async def read(self, offset: int, length: int) -> bytes:
        """The upload's own bytes, unpublished ones included; empty at its end."""
        end = min(self.size, offset + length)
        pieces = []
        while offset < end:
            number, position = divmod(offset, CHUNK_SIZE)
            count = min(CHUNK_SIZE - position, end - offset)
            piece = bytes((await self._bytes_of(number))[position : position + count])
            pieces.append(piece + bytes(count - len(piece)))
            offset += count
        return b"".join(pieces)

    def present_attrs(self, uid: int) -> FileAttrs:
        """What the writing session is told of its upload."""
        now = int(self._touched_s)
        kind = self.mode & ~MODE_BITS
        return FileAttrs(size=self.size, uid=uid, gid=uid, mode=kind | self.attrs.get("mode", self.mode & MODE_BITS),
                         atime=self.attrs.get("atime", now), mtime=self.attrs.get("mtime", now))

    # --- ends ------------------------------------------------------------------------------------
    async def publish(self) -> None:
        """The file is whole and visible, or this raises why not (and the upload is still to be ended).

        On return every chunk is durable here and on its write quorum, and the node has committed the manifest.
        """
        await self.checkpoints.stop()
        if self.is_removed:
            raise Refused(Code.NOT_FOUND, "the file was removed while it was being written")
        await self._store_all()
        self.table.lowest_change = 1 << 62
        manifest = await self.table.manifest(self.size, await self._zero(), self.store_index)
        await asyncio.gather(self.writer.sync(), self.settled())
        await self.link.request("fs.publish", {
            "session": self.session, "upload": self.id, "size": manifest.size, "depth": manifest.depth,
            "ids": manifest.ids, "placement": self.placement, "digest": self._hex_digest(), "attrs": self.attrs})

    async def end(self, *, keep: bool) -> None:
        """The upload ends unpublished; nothing is raised. The state machine ends it anyway with its session."""
        try:
            await self.link.request("fs.end", {"session": self.session, "upload": self.id, "keep": keep})
        except RaftmftError as trouble:
            log.debug("upload %d is ended with its session: %s", self.id, trouble)

    def close(self) -> None:
        """Lets go of memory; own read handles may go on to read what was stored."""
        for number in list(self._slots):
            self._drop(number)
        self.base.close()

    def over(self) -> None:
        """The session is over: a write that waits gives up."""
        self.is_over = True
        self.wake()
        self._budget.wake()

    def poison(self, trouble: RaftmftError) -> None:
        """From now on every WRITE and the CLOSE fail with this."""
        if self.failure is None:
            self.failure = trouble
        self.wake()

    # --- for checkpoints -------------------------------------------------------------------------
    async def changed(self) -> None:
        """Returns after the next seal's or checkpoint's progress, at poison, and when the session is over."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def wake(self) -> None:
        """Something changed."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def settled(self) -> None:
        """Every seal that was begun is acknowledged. Raises the failure."""
        while self._sealing and self.failure is None:
            await self.changed()
        if self.failure is not None:
            raise self.failure

    async def store_copies(self) -> None:
        """Copies of all dirty slots within the prefix are on their way; writes may go on meanwhile."""
        for number in sorted(n for n, slot in self._slots.items() if slot.is_dirty):
            while (number in self._sealing or len(self._sealing) >= self._window) and self.failure is None:
                await self.changed()
            slot = self._slots.get(number)
            if slot is not None and slot.is_dirty and self.failure is None:
                self._seal(number, is_copy=True)

    def stored_prefix(self) -> int:
        """How many bytes from the start are stored as the table says, every chunk of them acknowledged."""
        waiting = [number for number, slot in self._slots.items() if slot.is_dirty]
        limit = min([*waiting, *self._sealing], default=None)
        end = self.prefix.end
        if limit is not None and limit * CHUNK_SIZE < end:
            end = limit * CHUNK_SIZE
            slot = self._slots.get(limit)
            if limit not in self._sealing and slot is not None and slot.stable == self.table.length_of(limit):
                end = min(end + slot.stable, self.prefix.end)
        tail = end % CHUNK_SIZE
        # The prefix's last chunk must be exactly as long as it is stored.
        return end if not tail or self.table.length_of(end // CHUNK_SIZE) == tail else end - tail

    async def store_index(self, content: bytes) -> bytes:
        """Stores an index chunk; gives its id."""
        return await self.writer.store(self.id, content, is_index=True)

    # --- leaves ----------------------------------------------------------------------------------
    def _take_in(self, number: int, slot: Slot) -> Slot:
        self._slots[number] = slot
        self._budget.took(self, number)
        return slot

    def _drop(self, number: int) -> None:
        del self._slots[number]
        self._budget.gave(self, number)

    def _seal(self, number: int, *, is_copy: bool = False, is_last: bool = False) -> None:
        """Begins to store a slot that has no seal under way; it leaves memory unless `is_copy`."""
        slot = self._slots[number]
        digest = None
        data: bytes | bytearray = slot.buffer
        if is_copy:
            data = bytes(slot.buffer)
            slot.is_dirty, slot.stable = False, len(data)
        else:
            self._drop(number)
            if number == self._digested and (len(data) == CHUNK_SIZE or is_last):
                digest = self._digest
                self._digested += 1
            else:
                self._digest = None
        self._sealing[number] = data
        self._budget.leaves()
        task = asyncio.get_running_loop().create_task(self._store(number, data, digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store(self, number: int, data: bytes | bytearray, digest: blake3 | None) -> None:
        is_held = True
        try:
            async with self.writer.in_flight:
                chunk_id, place = await self.writer.append(data, digest)
                self.table.set(number, chunk_id, len(data))
                self._sealing[number] = None
                self._budget.left()
                is_held = False
                self.wake()
                await self.writer.put(self.id, chunk_id, place)
        except RaftmftError as trouble:
            self.poison(trouble)
        finally:
            if is_held:
                self._budget.left()
            del self._sealing[number]
            slot = self._slots.get(number)
            if slot is not None and slot.is_dirty and len(slot.buffer) == CHUNK_SIZE and self.failure is None:
                self._seal(number)  # it became full while a copy of it was under way
            self.wake()
            self.checkpoints.stored()

    async def _load(self, number: int) -> Slot:
        """A stored slot comes back into memory, to be changed."""
        data = await self._stored(number)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._take_in(number, Slot(bytearray(data), is_dirty=False))
        return slot

    async def _stored(self, number: int) -> bytes:
        chunk_id = await self.table.id_of(number)
        if chunk_id is None:
            return b""
        data = await self._reader.load(chunk_id)
        if len(data) < self.table.length_of(number):
            raise RaftmftError("a chunk of this file has the wrong length: its manifest is damaged")
        return data

    async def _bytes_of(self, number: int) -> bytes | bytearray:
        slot = self._slots.get(number)
        if slot is not None:
            return slot.buffer
        return self._sealing.get(number) or await self._stored(number)

    async def _store_all(self) -> None:
        """Every slot is appended in its final length; the acknowledgements may be outstanding."""
        last, tail = chunk_count(self.size) - 1, None
        wanted = {number: min(CHUNK_SIZE, self.size - number * CHUNK_SIZE)
                  for number in sorted({*self._slots, *self._sealing, *self.table.short})}
        for number, length in wanted.items():
            while number in self._sealing or len(self._sealing) >= self._window:
                await self._progress()
            slot = self._slots.get(number)
            if slot is None:
                if self.table.length_of(number) == length:
                    continue
                slot = await self._load(number)
            slot.fit(length)
            if slot.is_dirty or self.table.length_of(number) != length:
                self._seal(number, is_last=number == last)
            elif number == last == self._digested:
                tail = slot.buffer
        while any(data is not None for data in self._sealing.values()):
            await self._progress()
        if self.failure is not None:
            raise self.failure
        if tail is not None and self._digest is not None:  # stored by a checkpoint, and not hashed then
            self._digest.update(tail)
            self._digested += 1

    async def _progress(self) -> None:
        if self.failure is not None:
            raise self.failure
        await self.changed()

    async def _zero(self) -> bytes:
        """The id of a chunk of zeros, stored once if the file has holes."""
        if self._zero_id is None and self.table.has_holes(chunk_count(self.size)):
            count, tail = divmod(self.size, CHUNK_SIZE)
            if tail and not self.table.is_stored(count):  # the last slot is a hole, and short
                chunk_id = await self.writer.store(self.id, bytes(tail))
                self.table.set(count, chunk_id, tail)
            if self.table.has_holes(chunk_count(self.size)):
                self._zero_id = await self.writer.store(self.id, _ZEROS)
        return self._zero_id or b""

    def _hex_digest(self) -> str:
        is_whole = self._digest is not None and self._digested == chunk_count(self.size)
        return self._digest.hexdigest() if is_whole and self._digest is not None else ""
