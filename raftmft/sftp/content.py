"""Reading a manifest's content: whole chunks, each verified once when it is read, a few kept, the next read ahead.

`ChunkReader` finds one chunk: at its known place, else where the node says, else the node fetches it from a peer. A
chunk whose hash is wrong is reported to the node and looked for elsewhere; it is never given out. `Content` is one
manifest being read; what all contents of a worker keep is bounded by the shared `ChunkCache`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, ID_SIZE, IDS_PER_INDEX, Manifest, chunk_count
from raftmft.sftp.link import Link
from raftmft.store.errors import ChunkCorrupt
from raftmft.store.segments import Location, SegmentReader

CACHE_BYTES = 192 << 20
"""What all open files of one worker keep of verified chunks."""
KEPT_CHUNKS = 3
"""What one open file keeps: the present chunk, the one before, the one read ahead."""
LOCATE_AHEAD = 64
MOST_PLACES = 256
READ_THREADS = 4
ATTEMPTS = 3


class ChunkCache:
    """Bounds the verified chunks of all contents together; the least recently kept goes first."""

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[tuple[int, int], tuple[Content, int]] = OrderedDict()
        self._bytes = 0

    def add(self, content: Content, slot: int, size: int) -> None:
        """The content keeps a chunk; others let go of theirs if that is too much."""
        self._entries[id(content), slot] = (content, size)
        self._bytes += size
        while self._bytes > self._most_bytes and len(self._entries) > 1:
            (_, old), (owner, old_size) = self._entries.popitem(last=False)
            self._bytes -= old_size
            owner.forget(old)

    def drop(self, content: Content, slot: int) -> None:
        """The content lets go of a chunk."""
        entry = self._entries.pop((id(content), slot), None)
        if entry is not None:
            self._bytes -= entry[1]


class ChunkReader:
    """Reads verified chunks for all sessions of one worker."""

    def __init__(self, link: Link, directory: str) -> None:
        self._link = link
        self._segments = SegmentReader(directory)
        self._threads = ThreadPoolExecutor(READ_THREADS, "read")
        self.cache = ChunkCache()

    async def load(self, chunk_id: bytes, place: Location | None = None) -> bytes:
        """The chunk, verified, from `place` or wherever it is found. RaftmftError if no good copy comes."""
        loop = asyncio.get_running_loop()
        for _ in range(ATTEMPTS):
            if place is None:
                place = (await self.locate([chunk_id]))[0] or await self._fetch(chunk_id)
            try:
                return await loop.run_in_executor(self._threads, self._segments.read, place, chunk_id)
            except ChunkCorrupt:
                self._link.notify("chunk.bad", {"id": chunk_id, "segment": place.segment, "offset": place.offset})
                place = None
            except OSError as error:
                raise RaftmftError(f"this node cannot read its disk: {error.strerror}") from error
        raise RaftmftError("a chunk of this file is damaged on this node and no good copy came; try again")

    async def locate(self, ids: list[bytes]) -> list[Location | None]:
        """Where chunks lie on this node, as far as the node knows."""
        answer = await self._link.request("chunk.locate", {"ids": ids})
        return places_of(answer["locations"])

    async def _fetch(self, chunk_id: bytes) -> Location:
        answer = await self._link.request("chunk.fetch", {"id": chunk_id})
        (place,) = places_of([answer["location"]])
        if place is None:
            raise RaftmftError("a chunk of this file cannot be found on any member")
        return place


class Content:
    """One manifest, read slot by slot. `places` are those of the manifest's own ids, where known."""

    def __init__(self, reader: ChunkReader, manifest: Manifest, places: list[Location | None] | None = None) -> None:
        self.manifest = manifest
        self._reader = reader
        self._ids = manifest.id_list()
        known, self._indexed = places or [], manifest.indexed
        self._index_ids = len(self._ids) - (chunk_count(manifest.size) - self._indexed)
        self._places: dict[int, Location | None] = dict(enumerate(known[self._index_ids :], self._indexed))
        self._index_places = known[: self._index_ids]
        self._index: tuple[int, bytes] = (-1, b"")  # up to 1 MiB; one is enough for whoever reads on
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._coming: dict[int, asyncio.Task[bytes]] = {}
        self._is_closed = False

    def length_of(self, slot: int) -> int:
        """How many bytes the slot's chunk must have."""
        return min(CHUNK_SIZE, self.manifest.size - slot * CHUNK_SIZE)

    def peek(self, slot: int) -> bytes | None:
        """The chunk, if it is at hand."""
        return self._chunks.get(slot)

    async def chunk(self, slot: int) -> bytes:
        """The slot's chunk, verified. RaftmftError if it cannot be had. Cancelled: the read goes on and is kept."""
        data = self._chunks.get(slot)
        return data if data is not None else await asyncio.shield(self._start(slot))

    def ahead(self, slot: int) -> None:
        """Begins to read a chunk that will be wanted; trouble shows only when it is asked for."""
        if 0 <= slot < chunk_count(self.manifest.size) and slot not in self._chunks:
            self._start(slot)

    async def id_of(self, slot: int) -> bytes:
        """The id of the slot's chunk."""
        if slot >= self._indexed:
            return self._ids[self._index_ids + slot - self._indexed]
        group, position = divmod(slot, IDS_PER_INDEX)
        ids = await self.index(group)
        return ids[position * ID_SIZE : (position + 1) * ID_SIZE]

    async def ids(self, first: int, end: int) -> bytes:
        """The ids of slots first..end, of which there must be so many, concatenated; they lie in one index chunk's
        range.
        """
        group = first // IDS_PER_INDEX
        index, start = (await self.index(group) if first < self._indexed else b""), group * IDS_PER_INDEX
        own = self._ids[self._index_ids + max(0, first - self._indexed) : self._index_ids + max(0, end - self._indexed)]
        return index[(first - start) * ID_SIZE : (end - start) * ID_SIZE] + b"".join(own)

    async def index(self, group: int) -> bytes:
        """The content of an index chunk: the ids of up to IDS_PER_INDEX slots."""
        if self._index[0] != group:
            place = self._index_places[group] if group < len(self._index_places) else None
            ids = await self._reader.load(self._ids[group], place)
            wanted = min(IDS_PER_INDEX, self._indexed - group * IDS_PER_INDEX)
            if len(ids) != wanted * ID_SIZE:
                raise RaftmftError("an index chunk of this file has the wrong length: its manifest is damaged")
            self._index = (group, ids)
            return ids
        return self._index[1]

    def forget(self, slot: int) -> None:
        """Lets go of a chunk (for the cache)."""
        self._chunks.pop(slot, None)

    def close(self) -> None:
        """Lets go of everything."""
        self._is_closed = True
        for slot in list(self._chunks):
            self._reader.cache.drop(self, slot)
        self._chunks.clear()
        self._index = (-1, b"")
        for task in self._coming.values():
            task.cancel()

    def _start(self, slot: int) -> asyncio.Task[bytes]:
        task = self._coming.get(slot)
        if task is None:
            task = self._coming[slot] = asyncio.get_running_loop().create_task(self._load(slot))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # a read ahead may fail unseen
        return task

    async def _load(self, slot: int) -> bytes:
        try:
            chunk_id = await self.id_of(slot)
            if slot not in self._places and self.manifest.depth:
                await self._locate_from(slot)
            data = await self._reader.load(chunk_id, self._places.get(slot))
            if len(data) != self.length_of(slot):
                raise RaftmftError("a chunk of this file has the wrong length: its manifest is damaged")
            if not self._is_closed:
                self._keep(slot, data)
            return data
        finally:
            self._coming.pop(slot, None)
            self._places.pop(slot, None)  # asked again after a chunk was evicted: it may have moved

    def _keep(self, slot: int, data: bytes) -> None:
        self._chunks[slot] = data
        self._reader.cache.add(self, slot, len(data))
        while len(self._chunks) > KEPT_CHUNKS:
            old, _ = self._chunks.popitem(last=False)
            self._reader.cache.drop(self, old)

    async def _locate_from(self, slot: int) -> None:
        last = min(slot + LOCATE_AHEAD, chunk_count(self.manifest.size), (slot // IDS_PER_INDEX + 1) * IDS_PER_INDEX)
        slots = list(range(slot, last))
        ids = [await self.id_of(number) for number in slots]
        if len(self._places) > MOST_PLACES:
            self._places.clear()
        self._places.update(zip(slots, await self._reader.locate(ids), strict=True))


def places_of(value: list[Any]) -> list[Location | None]:
    """Locations as the link carries them."""
    return [None if place is None else Location(*place) for place in value]
