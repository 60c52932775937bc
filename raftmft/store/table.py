"""Chunk id -> locations in less than 64 bytes a chunk (54 at 1M, 55 at 10M), where a dict takes over 200.

Chunk ids are evenly spread, so their first 14 bits are a perfect hash: 16,384 buckets, each one bytearray of packed
41-byte entries (31 B rest of the id | u32 offset | u24 length | u24 segment number), searched with `bytearray.find`. At
a million chunks a bucket has 61 entries and a look-up takes about a microsecond, at ten million 3 to 6. A bucket grows
by an eighth, alone, so nothing is ever held twice. Empty, the table takes 1 MiB.

More buckets would be smaller than 512 bytes at a million chunks, where Python's own allocator keeps them: what they
leave behind as they grow made 71 bytes of 50. `bench/index_memory.py` tells the figures.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

from raftmft.core.manifest import ID_SIZE
from raftmft.store import format
from raftmft.store.format import Location, Place

_BUCKETS = 1 << 14
_KEY, _PLACE = ID_SIZE - 1, 10
_ENTRY = _KEY + _PLACE
_HINT_ENTRY = struct.Struct(f">B{_KEY + 7}s")
SEGMENTS_MAX = 1 << 24


class ChunkTable:
    """Maps chunk ids to every location known for them. May be used from any thread; no call takes long but `load`."""

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many locations are known: a chunk that was stored twice counts twice."""
        return self._count

    def get(self, chunk_id: bytes) -> Location | None:
        """The location that was added first, or None."""
        with self._lock:
            bucket, key = self._buckets[chunk_id[0] << 6 | chunk_id[1] >> 2], chunk_id[1:]
            at = _find(bucket, key)
            return None if at < 0 else self._location(bucket, at)

    def all(self, chunk_id: bytes) -> list[Location]:
        """Every location of the chunk, the one that `get` gives first."""
        with self._lock:
            bucket, key = self._buckets[chunk_id[0] << 6 | chunk_id[1] >> 2], chunk_id[1:]
            found, at = [], _find(bucket, key)
            while at >= 0:
                found.append(self._location(bucket, at))
                at = _find(bucket, key, at + _ENTRY)
            return found

    def add(self, chunk_id: bytes, location: Place) -> bool:
        """The location is known; True if the chunk had none before."""
        with self._lock:
            bucket, key = self._buckets[chunk_id[0] << 6 | chunk_id[1] >> 2], chunk_id[1:]
            entry = key + self._place(location)
            at = _find(bucket, key)
            if at >= 0 and _find(bucket, entry, at) >= 0:
                return False
            bucket += entry
            self._count += 1
            return at < 0

    def discard(self, chunk_id: bytes, location: Place) -> bool:
        """The location is not known; True if it was."""
        with self._lock:
            number = self._numbers.get(location.segment)
            if number is None:
                return False
            bucket, key = self._buckets[chunk_id[0] << 6 | chunk_id[1] >> 2], chunk_id[1:]
            at = _find(bucket, key + self._place(location))
            if at < 0:
                return False
            del bucket[at:at + _ENTRY]
            self._count -= 1
            return True

    def load(self, segment: str, entries: bytes | bytearray | memoryview) -> None:
        """Adds the packed entries of a hint file (format.py): about half a microsecond each. No two are the same."""
        known = segment in self._numbers
        with self._lock:
            number = self._number(segment).to_bytes(3, "big")
            buckets, count = self._buckets, 0
            for first, rest in _HINT_ENTRY.iter_unpack(entries):
                if known and _find(buckets[first << 6 | rest[0] >> 2], rest + number) >= 0:
                    continue
                buckets[first << 6 | rest[0] >> 2] += rest + number
                count += 1
            self._count += count

    def drop(self, segment: str) -> int:
        """Forgets every location in the segment; returns how many. Looks at every chunk, a bucket at a time."""
        number = self._numbers.get(segment)
        if number is None:
            return 0
        suffix, dropped = number.to_bytes(3, "big"), 0
        for bucket in self._buckets:
            if bucket.find(suffix) < 0:
                continue
            with self._lock:
                for at in range(len(bucket) - _ENTRY, -1, -_ENTRY):
                    if bucket[at + _ENTRY - 3:at + _ENTRY] == suffix:
                        del bucket[at:at + _ENTRY]
                        dropped += 1
                        self._count -= 1
        return dropped

    def ids(self) -> Iterator[bytes]:
        """Every chunk id once, in order of their first byte. What changes meanwhile may be seen or not."""
        for prefix, bucket in enumerate(self._buckets):
            if not bucket:
                continue
            with self._lock:
                content = bytes(bucket)
            head = bytes((prefix >> 6,))
            yield from {head + content[at:at + _KEY] for at in range(0, len(content), _ENTRY)}

    def _number(self, segment: str) -> int:
        number = self._numbers.get(segment)
        if number is None:
            number = self._numbers[segment] = len(self._names)
            if number >= SEGMENTS_MAX:
                raise OverflowError("more segments than the index can number")
            self._names.append(segment)
        return number

    def _place(self, location: Place) -> bytes:
        if not (0 <= location.offset <= format.MAX_SEGMENT and 0 < location.length <= format.MAX_CHUNK):
            raise ValueError(f"{location} is no place of a chunk")
        return (location.offset << 48 | location.length << 24 | self._number(location.segment)).to_bytes(_PLACE, "big")

    def _location(self, bucket: bytearray, at: int) -> Location:
        place = int.from_bytes(bucket[at + _KEY:at + _ENTRY], "big")
        return Location(self._names[place & 0xFFFFFF], place >> 48, place >> 24 & 0xFFFFFF)


def _find(bucket: bytearray, key: bytes, start: int = 0) -> int:
    """Where an entry that begins with `key` stands, or -1. A match across two entries is none."""
    at = bucket.find(key, start)
    while at >= 0 and at % _ENTRY:
        at = bucket.find(key, at + 1)
    return at
