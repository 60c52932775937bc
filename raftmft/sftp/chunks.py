"""Chunks on their way to disk and to other members.

`append` hashes a chunk and puts it into this worker's own segment (page cache), in one worker thread, so that chunks
are appended in the order asked. `put` has the node copy it to other owners meanwhile. `sync` makes everything appended
before the call durable; calls that come while a sync runs share the next one. A worker must not send publish or
checkpoint before its own `sync` and every `put` of the content have returned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from blake3 import blake3

from raftmft.core.errors import RaftmftError
from raftmft.sftp.link import Link
from raftmft.store.errors import StoreBroken
from raftmft.store.segments import Location, SegmentWriter

log = logging.getLogger(__name__)

MOST_IN_FLIGHT = 64
"""Chunks of one worker that are appended but not yet acknowledged by enough other owners."""

Buffer = bytes | bytearray


class ChunkWriter:
    """The one writer of this worker's segments. `on_broken` is called when the disk failed: nothing that it was
    asked after that is ever acknowledged, and the process should end (fsyncgate).
    """

    def __init__(self, link: Link, directory: str, writer: str, segment_bytes: int,
                 on_broken: Callable[[str], None]) -> None:
        self._link = link
        self._segments = SegmentWriter(directory, writer, segment_bytes)
        self._on_broken = on_broken
        self._appending = ThreadPoolExecutor(1, "append")
        self._syncing = ThreadPoolExecutor(1, "sync")
        self._sync_lock = asyncio.Lock()
        self._next_sync: asyncio.Task[None] | None = None
        self.in_flight = asyncio.Semaphore(MOST_IN_FLIGHT)

    async def append(self, data: Buffer, digest: blake3 | None = None) -> tuple[bytes, Location]:
        """The chunk's id and place; it can be read there, but is not durable. `digest`, if given, is fed the data.

        `data` must not change until this returns. RaftmftError (StoreFull, StoreBroken) if it cannot; cancelled, the
        chunk is appended all the same and nothing refers to it.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._appending, self._append, data, digest)
        except StoreBroken as error:
            self._on_broken(str(error))
            raise
        except OSError as error:
            raise RaftmftError(f"this node cannot write to its disk: {error.strerror}") from error

    async def put(self, upload: int, chunk_id: bytes, place: Location, *, is_index: bool = False) -> None:
        """Returns once enough other owners hold the chunk durably. Raises what the node answers."""
        await self._link.request("chunk.put", {
            "upload": upload, "id": chunk_id, "segment": place.segment, "offset": place.offset, "length": place.length,
            "index": is_index})

    async def store(self, upload: int, data: Buffer, *, is_index: bool = False) -> bytes:
        """append and put, within the bound of chunks in flight; gives the id."""
        async with self.in_flight:
            chunk_id, place = await self.append(data)
            await self.put(upload, chunk_id, place, is_index=is_index)
            return chunk_id

    async def sync(self) -> None:
        """Everything whose append had returned is durable. StoreBroken if the disk failed.

        Cancelled: the sync goes on for whoever else waits.
        """
        if self._next_sync is None:
            self._next_sync = asyncio.get_running_loop().create_task(self._sync())
        await asyncio.shield(self._next_sync)

    async def _sync(self) -> None:
        async with self._sync_lock:
            self._next_sync = None  # who comes from now on may have appended after this sync began
            try:
                await asyncio.get_running_loop().run_in_executor(self._syncing, self._segments.sync)
            except StoreBroken as error:
                self._on_broken(str(error))
                raise

    def _append(self, data: Buffer, digest: blake3 | None) -> tuple[bytes, Location]:
        chunk_id = blake3(data).digest()
        place = self._segments.append(chunk_id, data)
        if digest is not None:
            digest.update(data)
        return chunk_id, place
