"""Checkpoints of an upload: its durable prefix, committed so that another node can continue it (contract, promise 3).

A checkpoint is due when EVERY_BYTES more are stored and acknowledged, and EVERY_S after a byte was written; in the
second case copies of unfinished slots are stored too. Writes stop before the prefix is over MOST_BEHIND_BYTES ahead of
the last checkpoint. Only uploads to names without a published file are checkpointed. A checkpoint that fails poisons
the upload.

A manifest's last chunk ends where its file does. So where the prefix ends within a chunk that is stored longer (bytes
behind a gap came first), the checkpoint stores a copy of that chunk's beginning: a prefix never shrinks.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, chunk_count
from raftmft.sftp.extended import MAX_DATA
from raftmft.sftp.slots import UNCHANGED

if TYPE_CHECKING:
    from raftmft.sftp.upload import Upload

EVERY_BYTES = 8 << 20
EVERY_S = 1.0
"""Measured from the first byte that is not covered; with TICK_S and the commit it stays below 2 s."""
TICK_S = 0.2
MOST_BEHIND_BYTES = 16 << 20


class Checkpoints:
    """The checkpoints of one upload, at most one at a time. `is_kept` is False where partials are not kept."""

    def __init__(self, upload: Upload, *, is_kept: bool) -> None:
        self._upload = upload
        self._is_kept = is_kept
        self._done = upload.size
        self._written_at: float | None = None
        self._running: asyncio.Task[None] | None = None
        self._is_stopped = False

    def written(self) -> None:
        """Bytes were taken, or the size changed."""
        if self._written_at is None and self._is_kept:
            self._written_at = time.monotonic()

    def stored(self) -> None:
        """A chunk was acknowledged: begins a checkpoint if enough of them were."""
        if self._may_run() and self._stored_prefix() - self._done >= EVERY_BYTES:
            self._start(with_tail=False)

    def tick(self) -> None:
        """Called every TICK_S: begins a checkpoint if the oldest byte that is not covered is EVERY_S old."""
        if self._may_run() and self._written_at is not None and time.monotonic() - self._written_at >= EVERY_S:
            self._start(with_tail=True)

    def is_behind(self) -> bool:
        """Whether more bytes may not be acknowledged before a checkpoint covers earlier ones."""
        return self._is_kept and not self._is_stopped and not self._upload.is_removed and (
            self._upload.prefix.end - self._done > MOST_BEHIND_BYTES - MAX_DATA)  # as much as one WRITE may add

    def catch_up(self, *, is_idle: bool) -> None:
        """Writes wait for a checkpoint: begins one if nothing else will."""
        if self._may_run() and is_idle:
            self._start(with_tail=True)

    async def now(self) -> None:
        """All bytes written before the call are durable on a write quorum and, if they are a prefix, checkpointed.

        Raises the upload's failure.
        """
        upload = self._upload
        await self._store_copies()
        await upload.seals.acknowledged()
        await self._idle()
        if self._may_run():
            await self._start(with_tail=True, is_asked=True)
        else:
            await upload.writer.sync()
        upload.seals.check()

    async def stop(self) -> None:
        """No checkpoint runs, and none will begin. Raises the upload's failure."""
        self._is_stopped = True
        await self._idle()
        self._upload.seals.check()

    async def _idle(self) -> None:
        while self._running is not None:
            await asyncio.wait([self._running])

    def _may_run(self) -> bool:
        upload = self._upload
        return (self._is_kept and not self._is_stopped and self._running is None and upload.seals.failure is None
                and not upload.is_removed)

    def _start(self, *, with_tail: bool, is_asked: bool = False) -> asyncio.Task[None]:
        self._running = asyncio.get_running_loop().create_task(self._run(with_tail, is_asked))
        return self._running

    async def _run(self, with_tail: bool, is_asked: bool) -> None:
        upload = self._upload
        began, self._written_at = time.monotonic(), None
        try:
            if with_tail:
                await self._store_copies()
                await upload.seals.acknowledged()
            await self._commit(with_tail, is_asked)
            if upload.prefix.end > self._done and self._written_at is None:
                self._written_at = began
        except RaftmftError as trouble:
            upload.seals.poison(trouble)
        finally:
            self._running = None
            upload.seals.changed.ring()
        self.stored()

    async def _commit(self, with_tail: bool, is_asked: bool) -> None:
        """Commits the stored prefix as it is now; gives up, without trouble, if it is overwritten meanwhile. One that
        was asked for is committed though it stands: another session's file may have come and gone at its place.
        """
        upload, table = self._upload, self._upload.table
        size = self._stored_prefix()
        # From here on the table tells what changes meanwhile: a file that is cut has fewer chunks than counted here.
        changed_before, table.lowest_change = table.lowest_change, UNCHANGED
        is_done = False
        try:
            end, tail_id = await self._store_tail(size) if with_tail else (size, b"")
            if end == self._done and min(changed_before, table.lowest_change) >= chunk_count(end) and not (
                    is_asked and end):
                return
            manifest = await table.checkpoint(end, upload.store_index, tail_id)
            if table.lowest_change < chunk_count(end):
                return
            is_done = True
        finally:
            if not is_done:
                table.lowest_change = min(table.lowest_change, changed_before)
        size = end
        await upload.writer.sync()
        await upload.link.request("fs.checkpoint", {
            **upload.told, "op": upload.begun_by, "size": size, "depth": manifest.depth, "ids": manifest.ids,
            "placement": upload.placement})
        self._done = size

    # --- the prefix in the store -----------------------------------------------------------------
    async def _store_copies(self) -> None:
        """Copies of all dirty slots are on their way; writes may go on meanwhile. Raises the failure."""
        upload = self._upload
        for number in sorted(n for n, slot in upload.slots.items() if slot.is_dirty):
            await upload.seals.turn(number)
            slot = upload.slots.get(number)
            if slot is not None and slot.is_dirty:
                data = bytes(slot.buffer)
                slot.is_dirty, slot.stable = False, len(data)
                upload.seals.begin(number, data, None)

    def _stored_prefix(self) -> int:
        """How many bytes from the start are stored as the table says, every chunk of them acknowledged."""
        upload = self._upload
        unstored = [number for number, slot in upload.slots.items() if slot.is_dirty]
        limit = min([*unstored, *upload.seals.numbers], default=None)
        end = upload.prefix.end
        if limit is not None and limit * CHUNK_SIZE < end:
            start, slot = limit * CHUNK_SIZE, upload.slots.get(limit)
            # A slot that grew since a copy of it was stored counts as far as the copy.
            is_grown = slot is not None and limit not in upload.seals and slot.stable == upload.table.length_of(limit)
            end = min(start + slot.stable, end) if slot is not None and is_grown else start
        tail = end % CHUNK_SIZE
        # The prefix's last chunk must be exactly as long as it is stored.
        return end if not tail or upload.table.length_of(end // CHUNK_SIZE) == tail else end - tail

    async def _store_tail(self, size: int) -> tuple[int, bytes]:
        """Where the prefix ends, and the id of its last chunk's beginning, if only that is missing from `size`; else
        `size` and b"".
        """
        upload, end = self._upload, self._upload.prefix.end
        number, length = divmod(end, CHUNK_SIZE)
        if not length or size != number * CHUNK_SIZE:
            return size, b""
        data = bytes((await upload.bytes_of(number))[:length])
        return (end, await upload.writer.store(upload.id, data)) if len(data) == length else (size, b"")
