"""The reader's promises: nothing damaged is served, descriptors are bounded, others' appends can be made durable."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from raftmft.store import files, format
from raftmft.store.errors import ChunkCorrupt, StoreBroken
from raftmft.store.reader import ONE_READ_MAX, SegmentReader
from raftmft.store.writer import SegmentWriter
from tests.store.conftest import make
from tests.store.contract import chunk


def open_segments() -> int:
    return sum(".seg" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}"))


def test_a_reader_keeps_a_bounded_number_of_segments_open(tmp_path):
    writer = make(tmp_path, 1000)
    chunks = [chunk(i, 900) for i in range(12)]
    where = [writer.append(*c) for c in chunks]
    writer.close()
    before = open_segments()
    reader = SegmentReader(tmp_path, open_segments_max=3)
    for _ in range(2):
        for (chunk_id, data), location in zip(chunks, where, strict=True):
            assert reader.read(location, chunk_id) == data
            assert open_segments() - before <= 3
    reader.close()
    assert open_segments() == before
    assert reader.read(where[0], chunks[0][0]) == chunks[0][1]
    reader.close()


def test_a_segment_that_is_being_read_is_not_closed_under_the_reading_thread(tmp_path, monkeypatch):
    writer = make(tmp_path, 1000)
    chunks = [chunk(i, 900) for i in range(2)]
    where = [writer.append(*c) for c in chunks]
    writer.close()
    before = open_segments()
    reader = SegmentReader(tmp_path, open_segments_max=1)
    reading, go = threading.Event(), threading.Event()
    real, results = files.pread_all, []

    def slow(fd, length, offset):
        if threading.current_thread() is not threading.main_thread():
            reading.set()
            assert go.wait(10)
        return real(fd, length, offset)

    monkeypatch.setattr(files, "pread_all", slow)
    thread = threading.Thread(target=lambda: results.append(reader.read(where[0], chunks[0][0])))
    thread.start()
    assert reading.wait(10)
    assert reader.read(where[1], chunks[1][0]) == chunks[1][1]  # evicts the first
    reader.close()
    go.set()
    thread.join(10)
    assert results == [chunks[0][1]]
    assert open_segments() == before


def test_an_unreadable_sector_is_a_corrupt_chunk_and_other_trouble_is_not(tmp_path, monkeypatch):
    writer = make(tmp_path)
    chunk_id, _ = chunk(1)
    where = writer.append(*chunk(1))
    reader = SegmentReader(tmp_path)
    for number, expected in ((errno.EIO, ChunkCorrupt), (errno.ENOMEM, OSError)):
        def fail(*args, number=number):
            raise OSError(number, os.strerror(number))
        with monkeypatch.context() as patch:
            patch.setattr(files, "pread_all", fail)
            with pytest.raises(expected):
                reader.read(where, chunk_id)
    writer.close()
    reader.close()


def test_a_damaged_header_is_found_on_reading_too(tmp_path):
    writer = make(tmp_path)
    chunk_id, data = chunk(1)
    where = writer.append(chunk_id, data)
    with open(tmp_path / where.segment, "r+b") as file:
        file.seek(where.offset - format.RECORD_HEADER)
        file.write(b"X")
    reader = SegmentReader(tmp_path)
    with pytest.raises(ChunkCorrupt):
        reader.read(where, chunk_id)
    assert reader.read(where) == data
    writer.close()
    reader.close()


def test_another_processs_appends_are_made_durable_with_their_directory_entry(tmp_path, disk):
    writer = make(tmp_path)
    where = writer.append(*chunk(1))
    reader = SegmentReader(tmp_path)
    reader.sync([where.segment])
    assert disk.log == [f"fsync {tmp_path.name}", f"fdatasync {where.segment}"]
    before = open_segments()
    writer.append(*chunk(2))
    reader.sync([where.segment])
    assert disk.log[2:] == [f"fdatasync {where.segment}"]
    assert open_segments() == before, "the descriptor that would be told of a lost write is kept"
    disk.fail = OSError(errno.EIO, "Input/output error")
    with pytest.raises(StoreBroken):
        reader.sync([where.segment])
    disk.fail = None
    writer.close()
    reader.sync([where.segment])
    assert open_segments() == before - 2, "the writer's, and once it is sealed the reader's"
    reader.close()


@pytest.mark.parametrize("length", [1, ONE_READ_MAX - 1, ONE_READ_MAX, ONE_READ_MAX + 1, 1 << 20])
@pytest.mark.parametrize("harm", ["header", "first byte", "last byte", "cut"])
def test_neither_way_to_read_a_record_gives_out_what_is_damaged(tmp_path, length, harm):
    wanted = chunk(length, length)
    writer = SegmentWriter(tmp_path, "w", 2 << 20, reserve_bytes=0)
    where = writer.append(*wanted)
    writer.close()
    reader = SegmentReader(tmp_path)
    assert reader.read(where, wanted[0]) == wanted[1]
    with open(tmp_path / where.segment, "r+b") as file:
        at = {"header": where.offset - 40, "first byte": where.offset}.get(harm, where.offset + length - 1)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.truncate(at) if harm == "cut" else file.write(bytes((byte ^ 1,)))
    with pytest.raises(ChunkCorrupt):
        reader.read(where, wanted[0])
    reader.close()
