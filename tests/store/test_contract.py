"""Memory and disk keep the same promises."""

from __future__ import annotations

import errno
import os

import pytest

from raftmft.store.disk import SegmentStore
from raftmft.store.memory import MemoryStore
from tests.store.contract import StoreContract, chunk


class TestMemory(StoreContract):
    def make(self):
        return MemoryStore(segment_size=self.SEGMENT_SIZE)

    def reopen(self, store):
        store.close()
        return store.crash()

    def damage(self, store, location):
        store.damage(location)

    def fill(self, store):
        store.capacity = 40_000

    def make_room(self, store):
        store.capacity = None

    def test_a_crash_loses_what_was_not_synced_and_nothing_else(self):
        store = self.make()
        one, two = chunk(1), chunk(2)
        store.append(*one)
        store.sync()
        store.append(*two)
        left = store.crash()
        assert left.find(two[0]) is None and left.read(left.find(one[0]), one[0]) == one[1]


class TestDisk(StoreContract):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path, monkeypatch):
        self.path, self.monkeypatch = tmp_path / "chunks", monkeypatch

    def make(self):
        return SegmentStore(self.path, segment_size=self.SEGMENT_SIZE)

    def reopen(self, store):
        store.close()
        return self.make()

    def damage(self, store, location):
        path = self.path / location.segment
        with path.open("r+b") as file:
            file.seek(location.offset + location.length // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x40]))

    def fill(self, store):
        """The disk takes half of a write, then no more; fallocate fails too."""
        real = os.pwritev

        def full(fd, buffers, offset):
            data = b"".join(buffers)
            if len(data) > 20_000:
                return real(fd, [data[:10_000]], offset)
            raise OSError(errno.ENOSPC, "No space left on device")

        def no_space(fd, offset, length):
            raise OSError(errno.ENOSPC, "No space left on device")

        self.monkeypatch.setattr(os, "pwritev", full)
        self.monkeypatch.setattr(os, "posix_fallocate", no_space)
        store.writer._preallocates = False  # so that the write itself meets the full disk

    def make_room(self, store):
        self.monkeypatch.undo()
        store.writer._preallocates = True
