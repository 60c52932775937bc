"""The disk store's twin in memory, for tests and simulations: same promises, same errors, and a crash at will."""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from raftmft.core.manifest import ID_SIZE
from raftmft.store import format
from raftmft.store.errors import ChunkCorrupt, StoreBroken, StoreFull
from raftmft.store.format import Location, Place
from raftmft.store.writer import SEGMENT_SIZE, Buffer


class MemoryStore:
    """Chunks in memory. What was not synced is lost by `crash`, as by a power cut. `capacity` bytes make it full."""

    def __init__(self, writer: str = "node", segment_size: int = SEGMENT_SIZE, *, capacity: int | None = None) -> None:
        self._writer, self._segment_size, self.capacity = format.check_writer(writer), segment_size, capacity
        self._data: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        self._places: dict[bytes, list[Location]] = {}
        self._synced: set[tuple[str, int]] = set()
        self._number, self._end, self._used = 1, format.SEGMENT_HEADER, 0
        self._closed = False

    def __len__(self) -> int:
        """How many copies are held: a chunk that was stored twice counts twice."""
        return sum(map(len, self._places.values()))

    def find(self, chunk_id: bytes) -> Location | None:
        """Where the chunk lies, synced or not; None if it is not held."""
        places = self._places.get(chunk_id)
        return places[0] if places else None

    def append(self, chunk_id: bytes, data: Buffer) -> Location:
        """The chunk is held, not yet durable. StoreFull, StoreBroken after `close`."""
        length = len(data)
        if len(chunk_id) != ID_SIZE or not 0 < length <= format.MAX_CHUNK:
            raise ValueError(f"a chunk has an id of {ID_SIZE} bytes and 1 to {format.MAX_CHUNK} bytes of data")
        self._check()
        need = format.aligned(format.RECORD_HEADER + length)
        if self.capacity is not None and self._used + need > self.capacity:
            raise StoreFull("the memory store is full")
        if self._end + need > self._segment_size and self._end > format.SEGMENT_HEADER:
            self._number, self._end = self._number + 1, format.SEGMENT_HEADER
        location = Location(format.segment_name(self._writer, self._number), self._end + format.RECORD_HEADER, length)
        self._end, self._used = self._end + need, self._used + need
        self._data[location.segment, location.offset] = (chunk_id, bytes(data))
        self._places.setdefault(chunk_id, []).append(location)
        return location

    def sync(self, segments: Iterable[str] = ()) -> None:
        """Everything appended before the call survives a crash."""
        self._check()
        self._synced.update(self._data)

    def read(self, location: Place, chunk_id: bytes | None = None) -> bytes:
        """The data at `location`; certainly the chunk's if its id is given. ChunkCorrupt."""
        found_id, data = self._data.get((location.segment, location.offset), (b"", b""))
        if len(data) != location.length or not data:
            raise ChunkCorrupt(f"{location.segment} has no chunk at {location.offset}")
        if chunk_id is not None and (found_id != chunk_id or blake3(data).digest() != chunk_id):
            raise ChunkCorrupt(f"{location.segment} at {location.offset} is not the chunk {chunk_id.hex()[:16]}")
        return data

    def read_range(self, location: Place, start: int, length: int) -> bytes:
        """Some bytes of the chunk, unverified. ChunkCorrupt, ValueError."""
        if start < 0 or length < 0 or start + length > location.length:
            raise ValueError(f"bytes {start} to {start + length} are not within a chunk of {location.length}")
        return self.read(location)[start:start + length]

    def forget(self, chunk_id: bytes, location: Place) -> None:
        """The copy at `location` is bad: it is no longer named."""
        places, place = self._places.get(chunk_id, []), Location(location.segment, location.offset, location.length)
        if place in places:
            places.remove(place)
            if not places:
                del self._places[chunk_id]

    def damage(self, location: Location) -> None:
        """One bit of the copy at `location` flips."""
        chunk_id, data = self._data[location.segment, location.offset]
        self._data[location.segment, location.offset] = (chunk_id, bytes([data[0] ^ 1]) + data[1:])

    def close(self) -> None:
        """Everything is durable; nothing more can be appended."""
        if not self._closed:
            self.sync()
            self._closed = True

    def crash(self) -> MemoryStore:
        """The store as the next process finds it: only what was synced."""
        left = MemoryStore(self._writer, self._segment_size, capacity=self.capacity)
        left._number = self._number + 1
        for key in sorted(self._synced):
            chunk_id, data = left._data[key] = self._data[key]
            left._places.setdefault(chunk_id, []).append(Location(*key, len(data)))
            left._used += format.aligned(format.RECORD_HEADER + len(data))
        left._synced = set(left._data)
        return left

    def _check(self) -> None:
        if self._closed:
            raise StoreBroken("the memory store is closed")
