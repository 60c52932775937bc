"""What every chunk store promises. A subclass gives `make` (opens or reopens the one store) and `damage`."""

from __future__ import annotations

import os

import pytest
from blake3 import blake3

from raftmft.core.errors import RaftmftError
from raftmft.store.errors import ChunkCorrupt, StoreBroken, StoreFull
from raftmft.store.format import Location


def chunk(seed: int, length: int = 1000) -> tuple[bytes, bytes]:
    """A chunk's id and data, the same for the same seed and length."""
    data = blake3(seed.to_bytes(8, "big")).digest(length)
    return blake3(data).digest(), data


class StoreContract:
    SEGMENT_SIZE = 64 << 10

    def make(self):
        raise NotImplementedError

    def reopen(self, store):
        """Closes the store and opens it again, as a restarted process does."""
        raise NotImplementedError

    def damage(self, store, location: Location) -> None:
        raise NotImplementedError

    @pytest.fixture
    def store(self):
        store = self.make()
        yield store
        store.close()

    @pytest.mark.parametrize("length", [1, 7, 8, 4096, (1 << 20) - 1, 1 << 20])
    def test_a_chunk_reads_as_it_was_appended(self, store, length):
        chunk_id, data = chunk(1, length)
        location = store.append(chunk_id, data)
        assert location.length == length
        assert store.find(chunk_id) == location
        assert store.read(location, chunk_id) == data == store.read(location)
        assert isinstance(store.read(location), bytes)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_buffer_is_taken_and_may_change_afterwards(self, store, kind):
        chunk_id, data = chunk(2)
        source = bytearray(data)
        location = store.append(chunk_id, kind(source))
        source[:] = bytes(len(source))
        assert store.read(location, chunk_id) == data

    @pytest.mark.parametrize("data", [b"", bytes((1 << 20) + 1)])
    def test_empty_and_oversized_chunks_are_a_bug_of_the_caller(self, store, data):
        with pytest.raises(ValueError):
            store.append(bytes(32), data)
        with pytest.raises(ValueError):
            store.append(bytes(31), b"x")
        assert len(store) == 0

    def test_what_was_never_stored_is_not_found(self, store):
        assert store.find(bytes(32)) is None
        assert len(store) == 0

    def test_a_wrong_place_is_a_corrupt_chunk_never_other_bytes(self, store):
        one, two = chunk(1), chunk(2)
        where = store.append(*one)
        store.append(*two)
        for wrong in (where._replace(offset=where.offset + 8), where._replace(segment="node-000099.seg"),
                      where._replace(length=where.length - 1), where._replace(segment="../../etc/passwd"),
                      where._replace(offset=0), where._replace(offset=1 << 31)):
            with pytest.raises(ChunkCorrupt):
                store.read(wrong, one[0])
        with pytest.raises(ChunkCorrupt):
            store.read(where, two[0])

    def test_a_damaged_chunk_is_never_served(self, store):
        chunk_id, data = chunk(3)
        location = store.append(chunk_id, data)
        store.sync()
        self.damage(store, location)
        with pytest.raises(ChunkCorrupt):
            store.read(location, chunk_id)
        store.forget(chunk_id, location)
        assert store.find(chunk_id) is None
        again = store.append(chunk_id, data)
        assert store.read(again, chunk_id) == data

    def test_ranges(self, store):
        chunk_id, data = chunk(4)
        location = store.append(chunk_id, data)
        assert store.read_range(location, 0, 1000) == data
        assert store.read_range(location, 990, 10) == data[990:]
        assert store.read_range(location, 5, 0) == b""
        for start, length in ((-1, 5), (995, 6), (0, 1001), (0, -1)):
            with pytest.raises(ValueError):
                store.read_range(location, start, length)

    def test_two_copies_of_a_chunk_and_one_goes_bad(self, store):
        chunk_id, data = chunk(5)
        first, second = store.append(chunk_id, data), store.append(chunk_id, data)
        assert first != second and store.find(chunk_id) == first and len(store) == 2
        store.forget(chunk_id, first)
        assert store.find(chunk_id) == second and len(store) == 1
        store.forget(chunk_id, first)
        store.forget(chunk_id, second)
        assert store.find(chunk_id) is None and len(store) == 0

    def test_segments_roll_and_everything_is_there_after_reopening(self):
        store = self.make()
        chunks = [chunk(i, 1 + i * 997 % 9000) for i in range(60)]
        where = [store.append(*c) for c in chunks]
        assert len({w.segment for w in where}) > 2
        assert all(w.offset + w.length <= self.SEGMENT_SIZE for w in where)
        store.sync()
        store = self.reopen(store)
        assert len(store) == 60
        for (chunk_id, data), location in zip(chunks, where, strict=True):
            assert store.find(chunk_id) == location
            assert store.read(location, chunk_id) == data
        store.close()

    def test_a_chunk_larger_than_a_segment_has_one_to_itself(self, store):
        big, small = chunk(1, 200_000), chunk(2, 10)
        assert store.append(*big).segment != store.append(*small).segment
        assert store.read(store.find(big[0]), big[0]) == big[1]

    def test_a_reopened_store_never_appends_to_a_segment_it_found(self):
        store = self.make()
        first = store.append(*chunk(1))
        store = self.reopen(store)
        assert store.append(*chunk(2)).segment != first.segment
        store.close()

    def test_a_full_store_says_so_leaves_nothing_and_recovers(self):
        store = self.make()
        kept = chunk(1, 30_000)
        store.append(*kept)
        store.sync()
        self.fill(store)
        lost = chunk(2, 30_000)
        for _ in range(2):
            with pytest.raises(StoreFull) as refused:
                store.append(*lost)
            assert refused.value.retry_is_safe
        assert store.find(lost[0]) is None
        store.sync()
        self.make_room(store)
        location = store.append(*lost)
        store.sync()
        store = self.reopen(store)
        assert store.find(lost[0]) == location
        assert store.read(location, lost[0]) == lost[1]
        assert store.read(store.find(kept[0]), kept[0]) == kept[1]
        store.close()

    def fill(self, store) -> None:
        raise NotImplementedError

    def make_room(self, store) -> None:
        raise NotImplementedError

    def test_a_closed_store_takes_nothing(self):
        store = self.make()
        store.append(*chunk(1))
        store.close()
        store.close()
        with pytest.raises(StoreBroken):
            store.append(*chunk(2))
        with pytest.raises(RaftmftError):
            store.sync()

    def test_random_content_is_no_trouble(self, store):
        seen = {}
        for length in range(1, 3000, 113):
            data = os.urandom(length)
            seen[blake3(data).digest()] = (store.append(blake3(data).digest(), data), data)
        for chunk_id, (location, data) in seen.items():
            assert store.read(location, chunk_id) == data
