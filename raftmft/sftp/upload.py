"""A file open to write: bytes in, chunks out, and at the client's CLOSE a published file.

Theory. A file is a row of 1 MiB slots. Written slots lie in memory until they are full, or must make room; then they
are sealed (seals.py). While the window of seals is full `write` waits, the engine stops, and the client is slowed by
SSH's window.

A WRITE is acknowledged when its bytes are taken in order in memory, as OpenSSH does. Whatever goes wrong afterwards
*poisons* the upload: later WRITEs and the CLOSE fail with the reason. Checkpoints (checkpoint.py) run beside the
writes; publishing waits for them. Only `publish` publishes, and only a client's CLOSE, or SETSTAT of a size, leads to
it.

The digest published beside the manifest is the BLAKE3 of the whole file, in hex, if the file was written once from its
start to its end, or is a copy of one that has it; else it is "", and the manifest alone says what the content is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, MAX_FILE_SIZE, Manifest, chunk_count
from raftmft.core.outcome import Code
from raftmft.sftp import opids
from raftmft.sftp.attrs import MODE_BITS, FileAttrs
from raftmft.sftp.buffers import Budget, Prefix, Slot
from raftmft.sftp.checkpoint import Checkpoints
from raftmft.sftp.chunks import Buffer, ChunkWriter
from raftmft.sftp.content import ChunkReader, Content, places_of
from raftmft.sftp.link import Link, Refused
from raftmft.sftp.names import Path
from raftmft.sftp.seals import Seals, StreamDigest
from raftmft.sftp.slots import UNCHANGED, SlotTable
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)


class SessionOver(RaftmftError):
    """The session ended while a write waited."""


class Upload:
    """One upload. Its methods are called by one session's engine, one at a time; checkpoints run beside them."""

    def __init__(self, link: Link, writer: ChunkWriter, reader: ChunkReader, budget: Budget, session: int,
                 begun: dict[str, Any], *, window: int, is_append: bool, is_truncated: bool, path: Path = ()) -> None:
        """`begun` is the node's answer to fs.begin, `path` what was opened, for the log only: others may rename it."""
        self._path, self.begun_by = list(path), opids.present()
        self.id, self.file = int(begun["upload"]), int(begun["file"])
        self.mode, self.session = int(begun["mode"]), session
        self.size, self.placement = int(begun["size"]), int(begun["placement"])
        self.attrs: dict[str, int] = {}
        # A new name is published by any CLOSE, an existing file only if something changed.
        self.is_changed = is_truncated or not self.file
        self.is_removed = self._is_over = self._is_ended = False
        self._readers = 0
        self.appends = is_append and bool(self.file)
        # Where the bytes begin that were only ever appended; None once anything else was changed.
        self.appended_from = self.size if self.appends and not is_truncated else None
        self._version, self._copied_digest, self._window = int(begun["version"]), "", window
        self._touched_s = time.time()
        self.link, self.writer, self._reader, self._budget = link, writer, reader, budget
        self._base = Content(reader, Manifest(self.size, int(begun["depth"]), bytes(begun["ids"])),
                             places_of(begun.get("locations") or []))
        self.table = SlotTable(self._base)
        self.prefix = Prefix(self.size)
        self.slots: dict[int, Slot] = {}
        self._digest = StreamDigest(is_possible=not self.size)
        self.seals = Seals(writer, self.table, budget, self.id, window, self._sealed)
        self.checkpoints = Checkpoints(self, is_kept=not self.file)

    # --- writing ---------------------------------------------------------------------------------
    def try_write(self, offset: int, data: memoryview) -> bool:
        """Takes the bytes at once; False, with nothing taken, if that needs waiting. Raises the upload's failure."""
        self.seals.check()
        size = len(data)
        if self.appends:
            offset = self.size
        end = offset + size
        _check_size(end)
        if not size:
            return True
        first, last = offset // CHUNK_SIZE, (end - 1) // CHUNK_SIZE
        slots, new = self.slots, 0
        for number in range(first, last + 1):
            if number not in slots:
                if number in self.seals or self.table.is_stored(number):
                    return False
                new += 1
        if (new and not self._budget.has_room(new)) or self.seals.is_full or self.checkpoints.is_behind():
            return False
        taken = 0
        for number in range(first, last + 1):
            position = max(0, offset - number * CHUNK_SIZE)
            count = min(CHUNK_SIZE - position, size - taken)
            slot = slots.get(number) or self._take_in(number, Slot(bytearray(), is_dirty=True))
            slot.write(position, data[taken : taken + count])
            taken += count
            if position + count == CHUNK_SIZE and number not in self.seals:
                self._seal(number)
        self.size = max(self.size, end)
        self.is_changed = True
        self._copied_digest = ""
        self._touched_s = time.time()
        self.prefix.add(offset, end)
        self.checkpoints.written()
        return True

    async def write(self, offset: int, data: memoryview) -> None:
        """Takes the bytes, waiting for room, loaded slots and acknowledgements as need be. Raises the failure."""
        if self._is_over:  # a copy goes on writing after its session, and may never have to wait
            raise SessionOver("the session ended")
        while not self.try_write(offset, data):
            where = self.size if self.appends else offset
            await self._make_way(where // CHUNK_SIZE, (where + len(data) - 1) // CHUNK_SIZE)

    async def _make_way(self, first: int, last: int) -> None:
        """Removes one obstacle to a write to these slots, or waits for something to change."""
        if self._is_over:
            raise SessionOver("the session ended")
        if self.checkpoints.is_behind():
            self.checkpoints.catch_up(is_idle=not self.seals.numbers)
        elif not self.seals.is_full:
            missing = [number for number in range(first, last + 1) if number not in self.slots]
            if missing and not self._budget.has_room(len(missing)):
                await self._budget.push_out()
                return
            for number in missing:
                if number not in self.seals and self.table.is_stored(number):
                    await self._load(number)
                    return
        await self.seals.changed.wait()

    def let_go(self, number: int) -> bool:
        """Stores a slot and takes it out of memory; False if that must wait for its copy, or if the upload failed."""
        slot = self.slots.get(number)
        if slot is None or not slot.is_dirty or self.seals.failure is not None:
            if slot is not None:
                self.seals.is_lossy |= slot.is_dirty
                self._drop(number)
            return True
        if number in self.seals or self.seals.is_full:
            return False
        self._seal(number)
        return True

    async def truncate(self, size: int) -> None:
        """The file now has `size` bytes; new ones are zeros. Raises the failure, or RaftmftError if it cannot."""
        self.seals.check()
        _check_size(size)
        self.is_changed, self._copied_digest, self.appended_from = True, "", None
        if size < self.size:
            await self.seals.acknowledged()
            # At once: a checkpoint that runs meanwhile must see prefix and table agree.
            for number in [n for n in self.slots if n >= chunk_count(size)]:
                self._drop(number)
            self.table.cut(chunk_count(size))
            self.prefix.cut(size)
            self.size = size
            if size < self._digest.slots * CHUNK_SIZE:
                self._digest.void()
            if size % CHUNK_SIZE:
                await self._cut_slot(*divmod(size, CHUNK_SIZE))
        self.size = size
        self._touched_s = time.time()
        self.checkpoints.written()

    # --- sharing chunks --------------------------------------------------------------------------
    @property
    def is_empty(self) -> bool:
        """Whether nothing was written to it, and it continues from nothing."""
        return not self.size and not self.slots and not self.seals.numbers

    def adopt(self, content: Manifest, digest: str) -> None:
        """The upload, which must be empty, has the content of a published version from now on. Raises the failure."""
        self.seals.check()
        assert self.is_empty
        self._base.close()
        self._base = Content(self._reader, content)
        self.table.rebase(self._base)
        self.size, self.prefix, self.is_changed = content.size, Prefix(content.size), True
        self._digest.void()
        self._copied_digest = digest
        self._touched_s = time.time()
        self.checkpoints.written()

    async def share(self, number: int, chunk_id: bytes, length: int) -> None:
        """A slot has a chunk of a published version for its content. Short ones must be the file's last.

        Raises the failure.
        """
        _check_size(number * CHUNK_SIZE + length)
        self.seals.check()
        while number in self.seals and not self._is_over:
            await self.seals.changed.wait()
            self.seals.check()
        if self._is_over:
            raise SessionOver("the session ended")
        if number in self.slots:
            self._drop(number)
        self.table.set(number, chunk_id, length)
        self._digest.void()
        self._copied_digest = ""
        self.size = max(self.size, number * CHUNK_SIZE + length)
        self.is_changed = True
        self._touched_s = time.time()
        self.prefix.add(number * CHUNK_SIZE, number * CHUNK_SIZE + length)
        self.checkpoints.written()

    def over_base(self, base: dict[str, Any]) -> Upload:
        """The same appending upload, with nothing appended, over another version of its file (`base`: see fs.base)."""
        begun = {**base, "upload": self.id, "file": self.file, "mode": self.mode}
        fresh = Upload(self.link, self.writer, self._reader, self._budget, self.session, begun,
                       window=self._window, is_append=True, is_truncated=False, path=tuple(self._path))
        fresh.attrs, fresh.is_changed = self.attrs, True
        return fresh

    @property
    def told(self) -> dict[str, Any]:
        """What every request about this upload says of it; outside of any operation it is of the one that began it."""
        return {"session": self.session, "upload": self.id, "path": self._path,
                "op": opids.present() or self.begun_by}

    # --- looking ---------------------------------------------------------------------------------
    async def read(self, offset: int, length: int) -> bytes:
        """The upload's own bytes, unpublished ones included; empty at its end. RaftmftError if some were given up."""
        if self.seals.is_lossy:
            raise self.seals.failure or RaftmftError("the upload has failed, and some of its bytes are not kept")
        end = min(self.size, offset + length)
        pieces = []
        while offset < end:
            number, position = divmod(offset, CHUNK_SIZE)
            count = min(CHUNK_SIZE - position, end - offset)
            piece = bytes((await self.bytes_of(number))[position : position + count])
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
        zero_id = await self.table.zero_id(self.size, self._store_zeros)
        self.table.lowest_change = UNCHANGED
        manifest = await self.table.manifest(self.size, zero_id, self.store_index)
        await asyncio.gather(self.writer.sync(), self.seals.acknowledged())
        await self.link.request("fs.publish", {
            **self.told, "size": manifest.size, "depth": manifest.depth, "ids": manifest.ids,
            "placement": self.placement, "attrs": self.attrs,
            "base": self._version if self.appended_from is not None else 0,
            "digest": self._copied_digest or self._digest.hex(chunk_count(self.size))})

    async def end(self, *, keep: bool) -> None:
        """The upload ends unpublished; nothing is raised. The state machine ends it anyway with its session."""
        try:
            await self.link.request("fs.end", {**self.told, "keep": keep})
        except RaftmftError as trouble:
            log.debug("upload %d is ended with its session: %s", self.id, trouble,
                      extra=fields(upload=self.id, session=self.session, op=opids.present()))

    def reader_came(self) -> None:
        """Another handle reads what is written here; it may outlive the writing one."""
        self._readers += 1

    def reader_left(self) -> None:
        """It is closed."""
        self._readers -= 1
        if self._is_ended:
            self.ended()

    def ended(self) -> None:
        """The writing handle is closed. Memory is let go of with the last reader, or when others need it."""
        self._is_ended = True
        if not self._readers:
            self.close()

    def close(self) -> None:
        """Lets go of memory."""
        for number in list(self.slots):
            self._drop(number)
        self._base.close()

    def over(self) -> None:
        """The session is over: a write that waits gives up."""
        self._is_over = True
        self.seals.changed.ring()
        self._budget.changed.ring()

    async def store_index(self, content: bytes) -> bytes:
        """Stores an index chunk; gives its id."""
        return await self.writer.store(self.id, content, is_index=True)

    # --- leaves ----------------------------------------------------------------------------------
    async def _store_zeros(self, zeros: bytes) -> bytes:
        return await self.writer.store(self.id, zeros)

    def _take_in(self, number: int, slot: Slot) -> Slot:
        self.slots[number] = slot
        self._budget.took(self, number)
        return slot

    def _drop(self, number: int) -> None:
        del self.slots[number]
        self._budget.gave(self, number)

    def _seal(self, number: int, *, is_last: bool = False) -> None:
        """Begins to seal a slot that has no seal under way; it leaves memory."""
        data = self.slots[number].buffer
        self._drop(number)
        self.seals.begin(number, data, self._digest.next_for(number, len(data), is_last=is_last))

    def _sealed(self, number: int) -> None:
        slot = self.slots.get(number)
        if (slot is not None and slot.is_dirty and len(slot.buffer) == CHUNK_SIZE and not self.seals.is_full
                and self.seals.failure is None):
            self._seal(number)  # it became full while a copy of it was under way
        self.checkpoints.stored()

    async def _load(self, number: int) -> Slot:
        """A stored slot comes back into memory, to be changed."""
        data = await self._stored(number)
        return self.slots.get(number) or self._take_in(number, Slot(bytearray(data), is_dirty=False))

    async def _cut_slot(self, number: int, length: int) -> None:
        """No bytes stand in a slot behind `length`, which might show up once the file grows. Trouble poisons."""
        if number not in self.slots and self.table.length_of(number) <= length:
            return
        try:
            slot = self.slots.get(number) or await self._load_with_room(number)
        except RaftmftError as trouble:
            self.seals.poison(trouble)
            raise
        slot.fit(min(length, len(slot.buffer)))

    async def _load_with_room(self, number: int) -> Slot:
        while not self._budget.has_room(1):
            await self._budget.push_out()
        return await self._load(number)

    async def _stored(self, number: int) -> bytes:
        chunk_id = await self.table.id_of(number)
        if chunk_id is None:
            return b""
        data = await self._reader.load(chunk_id)
        if len(data) < self.table.length_of(number):
            raise RaftmftError("a chunk of this file has the wrong length: its manifest is damaged")
        return data

    async def bytes_of(self, number: int) -> Buffer:
        """A slot's present bytes, wherever they are."""
        slot = self.slots.get(number)
        if slot is not None:
            return slot.buffer
        return self.seals.bytes_of(number) or await self._stored(number)

    async def _store_all(self) -> None:
        """Every slot is in the store in its final length; the acknowledgements may be outstanding."""
        last = chunk_count(self.size) - 1
        tail: bytearray | None = None
        for number in sorted({*self.slots, *self.seals.numbers, *self.table.short}):
            length = min(CHUNK_SIZE, self.size - number * CHUNK_SIZE)
            slot, data = self.slots.get(number), self.seals.bytes_of(number)
            have = self.table.length_of(number) if data is None else len(data)
            if have == length and (slot is None or not slot.is_dirty):
                if slot is not None and number == last:
                    tail = slot.buffer  # a checkpoint stored it, and did not hash it
                continue
            await self.seals.turn(number)
            slot = self.slots.get(number) or await self._load_with_room(number)
            slot.fit(length)
            self._seal(number, is_last=number == last)
        await self.seals.appended()
        if tail is not None:
            digest = self._digest.next_for(last, len(tail), is_last=True)
            if digest is not None:
                digest.update(tail)


def _check_size(size: int) -> None:
    if size > MAX_FILE_SIZE:
        raise RaftmftError(f"File too large: at most {MAX_FILE_SIZE} bytes")
