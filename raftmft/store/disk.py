"""One process's whole chunk store on disk: its own writer, a reader, and the index of the directory."""

from __future__ import annotations

import os
from collections.abc import Iterable

from raftmft.store.format import Location, Place, parse_segment_name
from raftmft.store.index import ChunkIndex
from raftmft.store.reader import SegmentReader
from raftmft.store.writer import SEGMENT_SIZE, Buffer, SegmentWriter


class SegmentStore:
    """Chunks on disk. `append` is called by one thread at a time; all methods may be called from any, and block."""

    def __init__(self, directory: str | os.PathLike[str], writer: str = "node", segment_size: int = SEGMENT_SIZE,
                 *, reserve_bytes: int | None = None) -> None:
        """Opens the directory; errors as of ChunkIndex."""
        self.directory = os.fspath(directory)
        self.index = ChunkIndex(directory)
        self.reader = SegmentReader(directory)
        self.writer = SegmentWriter(directory, writer, segment_size, reserve_bytes=reserve_bytes)

    def __len__(self) -> int:
        """How many copies are held: a chunk that was stored twice counts twice."""
        return len(self.index)

    def find(self, chunk_id: bytes) -> Location | None:
        """Where the chunk lies, durable or not; None if it is not held."""
        return self.index.get(chunk_id)

    def append(self, chunk_id: bytes, data: Buffer) -> Location:
        """The chunk is held, not yet durable. StoreFull, StoreBroken."""
        location = self.writer.append(chunk_id, data)
        self.index.add(chunk_id, location)
        return location

    def sync(self, segments: Iterable[str] = ()) -> None:
        """Everything this store appended before the call is durable, and what others appended to `segments`.
        StoreBroken.
        """
        self.writer.sync()
        self.reader.sync(name for name in segments if (parse_segment_name(name) or ("",))[0] != self.writer.name)

    def read(self, location: Place, chunk_id: bytes | None = None) -> bytes:
        """The data at `location`; certainly the chunk's if its id is given. ChunkCorrupt."""
        return self.reader.read(location, chunk_id)

    def read_range(self, location: Place, start: int, length: int) -> bytes:
        """Some bytes of the chunk, unverified. ChunkCorrupt, ValueError."""
        return self.reader.read_range(location, start, length)

    def forget(self, chunk_id: bytes, location: Place) -> None:
        """The copy at `location` is bad: it is no longer named."""
        self.index.discard(chunk_id, location)

    def close(self) -> None:
        """Everything is durable and sealed. StoreBroken."""
        try:
            self.writer.close()
        finally:
            self.reader.close()
