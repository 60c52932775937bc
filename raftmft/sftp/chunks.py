"""Chunks on their way to disk and to other members.

`append` hashes a chunk and puts it into this worker's own segment (page cache), in one worker thread, so that chunks
are hashed in the order asked. `offer` asks the node whether the owners have a chunk already (node/hits.py), which is
then neither appended nor put. `put` has the node copy it to other owners meanwhile. `sync` makes everything appended
before the call durable; calls that come while a sync runs share the next one. A worker must not send publish or
checkpoint before its own `sync` and every `put` of the content have returned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
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

    async def identify(self, data: Buffer, digest: blake3 | None = None) -> bytes:
        """The chunk's id; nothing is stored. `digest`, if given, is fed the data. `data` must not change meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._appending, _identify, data, digest)

    async def append(self, data: Buffer, chunk_id: bytes) -> Location:
        """The place of an identified chunk; it can be read there, but is not durable.

        `data` must not change until this returns. RaftmftError (StoreFull, StoreBroken) if it cannot; cancelled, the
        chunk is appended all the same and nothing refers to it.
        """
        _, place = await self._append_in_thread(data, None, (), chunk_id)
        assert place is not None
        return place

    async def append_new(self, data: Buffer, digest: blake3 | None = None,
                         known: Container[bytes] = ()) -> tuple[bytes, Location | None]:
        """identify and append in one turn of the thread; no place, and nothing appended, if the id is in `known`."""
        return await self._append_in_thread(data, digest, known, None)

    async def _append_in_thread(self, data: Buffer, digest: blake3 | None, known: Container[bytes],
                                chunk_id: bytes | None) -> tuple[bytes, Location | None]:
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._appending, self._append, data, digest, known, chunk_id)
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

    async def offer(self, upload: int, chunk_id: bytes) -> bool:
        """Whether a write quorum of the owners has the chunk durably, and the user may know: then it is stored."""
        return (await self._link.request("chunk.offer", {"upload": upload, "id": chunk_id}))["held"] is True

    async def store(self, upload: int, data: Buffer, *, is_index: bool = False) -> bytes:
        """append and put, within the bound of chunks in flight; gives the id."""
        async with self.in_flight:
            chunk_id, place = await self.append_new(data)
            assert place is not None
            del data  # it need not stay in memory while it is copied
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

    def _append(self, data: Buffer, digest: blake3 | None, known: Container[bytes],
                chunk_id: bytes | None) -> tuple[bytes, Location | None]:
        if chunk_id is None:
            chunk_id = _identify(data, digest)
        return chunk_id, None if chunk_id in known else self._segments.append(chunk_id, data)


def _identify(data: Buffer, digest: blake3 | None) -> bytes:
    if digest is not None:
        digest.update(data)
    return blake3(data).digest()
