"""The writer's promises about durability, failure and exclusion, and the layout on disk."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading

import pytest

from raftmft.store import files, format
from raftmft.store import writer as writer_module
from raftmft.store.errors import StoreBroken, StoreFull
from raftmft.store.index import ChunkIndex
from raftmft.store.reader import SegmentReader
from raftmft.store.writer import SegmentWriter
from tests.store.conftest import make
from tests.store.contract import chunk


def test_the_first_sync_makes_the_directory_entry_durable_too(tmp_path, disk):
    writer = make(tmp_path)
    where = writer.append(*chunk(1))
    assert disk.log == []
    writer.sync()
    assert disk.log == [f"fdatasync {where.segment}", f"fsync {tmp_path.name}"]
    writer.append(*chunk(2))
    writer.sync()
    assert disk.log[2:] == [f"fdatasync {where.segment}"]
    writer.sync()
    assert len(disk.log) == 3, "nothing to sync"
    writer.close()


def test_a_sync_covers_segments_rolled_since_the_last_one(tmp_path, disk):
    writer = make(tmp_path, 2000)
    names = list(dict.fromkeys(writer.append(*chunk(i, 900)).segment for i in range(7)))
    assert len(names) == 4
    writer.sync()
    data = [line for line in disk.log if line.startswith("fdatasync")]
    assert sorted(data) == [f"fdatasync {name}" for name in names]
    assert disk.log.index(f"fsync {tmp_path.name}") == 4, "the directory, before anything is sealed"
    assert [(tmp_path / format.hint_name(name)).exists() for name in names] == [True, True, True, False]
    writer.close()
    assert (tmp_path / format.hint_name(names[-1])).exists()


def test_a_sync_that_waits_covers_what_was_appended_before_it(tmp_path, disk):
    """The one under way began before the second append, so the second caller needs a sync of its own."""
    writer = make(tmp_path)
    writer.append(*chunk(1))
    disk.hold = threading.Event()
    first = threading.Thread(target=writer.sync)
    first.start()
    assert disk.entered.wait(10)
    writer.append(*chunk(2))
    assert writer.unsynced_bytes > 0
    others = [threading.Thread(target=writer.sync) for _ in range(3)]
    for thread in others:
        thread.start()
    disk.hold.set()
    for thread in (first, *others):
        thread.join(10)
    assert writer.unsynced_bytes == 0
    assert sum(line.startswith("fdatasync") for line in disk.log) == 2, "the three that waited shared one"
    writer.close()


def test_the_synced_mark_lags_behind_a_sync_under_way(tmp_path, disk):
    """A record appended while a sync runs must not say that what the sync covers is durable."""
    writer = make(tmp_path)
    writer.append(*chunk(1))
    disk.hold = threading.Event()
    thread = threading.Thread(target=writer.sync)
    thread.start()
    assert disk.entered.wait(10)
    second = writer.append(*chunk(2))
    disk.hold.set()
    thread.join(10)
    third = writer.append(*chunk(3))

    def mark(where):
        with open(tmp_path / where.segment, "rb") as file:
            content = file.read()
        codec = format.RecordCodec(format.parse_segment_header(content, ""))
        at = where.offset - format.RECORD_HEADER
        return codec.parse(content[at:where.offset], at).synced

    assert mark(second) == 0
    assert mark(third) == second.offset - format.RECORD_HEADER
    writer.close()


def test_a_failed_fdatasync_breaks_the_writer_for_ever(tmp_path, disk):
    writer = make(tmp_path)
    good = chunk(1)
    writer.append(*good)
    writer.sync()
    bad = writer.append(*chunk(2))
    disk.fail = OSError(errno.EIO, "Input/output error")
    with pytest.raises(StoreBroken, match="fdatasync failed"):
        writer.sync()
    disk.fail = None
    for attempt in (writer.sync, lambda: writer.append(*chunk(3))):
        with pytest.raises(StoreBroken):
            attempt()
    writer.close()
    assert not (tmp_path / format.hint_name(bad.segment)).exists(), "a broken segment is never sealed by its writer"
    assert good[0] in ChunkIndex(tmp_path), "and its lock is free"


def test_all_who_wait_for_a_sync_that_fails_are_told(tmp_path, disk):
    writer = make(tmp_path)
    writer.append(*chunk(1))
    disk.hold, failed = threading.Event(), []

    def sync():
        try:
            writer.sync()
        except StoreBroken as error:
            failed.append(error)

    threads = [threading.Thread(target=sync) for _ in range(4)]
    threads[0].start()
    assert disk.entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    disk.fail = OSError(errno.EIO, "Input/output error")
    disk.hold.set()
    for thread in threads:
        thread.join(10)
    assert len(failed) == 4
    writer.close()


def test_a_failed_write_breaks_the_writer_for_ever(tmp_path, monkeypatch):
    writer = make(tmp_path)
    writer.append(*chunk(1))

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(StoreBroken, match="write failed"):
        writer.append(*chunk(2))
    monkeypatch.undo()
    with pytest.raises(StoreBroken):
        writer.append(*chunk(2))
    with pytest.raises(StoreBroken):
        writer.sync()
    writer.close()


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: real(fd, [b"".join(buffers)[:700]], at))
    writer = make(tmp_path)
    chunk_id, data = chunk(1, 5000)
    where = writer.append(chunk_id, data)
    assert SegmentReader(tmp_path).read(where, chunk_id) == data
    writer.close()


def test_two_writers_of_one_name_never_share_a_segment(tmp_path):
    one, two = make(tmp_path), make(tmp_path)
    names = {w.append(*chunk(n)).segment for n, w in enumerate((one, two))}
    assert len(names) == 2
    for name in names:
        fd = os.open(tmp_path / name, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    one.close()
    two.close()
    assert make(tmp_path).append(*chunk(3)).segment == "w-000003.seg"


def test_an_empty_file_cleared_away_between_making_and_locking_is_not_written(tmp_path, monkeypatch):
    real = files.try_lock
    cleared = []

    def lock(fd):
        if not cleared:
            cleared.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.unlink(cleared[0])
        return real(fd)

    monkeypatch.setattr(files, "try_lock", lock)
    writer = make(tmp_path)
    where = writer.append(*chunk(1))
    assert cleared and (tmp_path / where.segment).exists()
    writer.close()


def test_files_are_for_their_owner_alone(tmp_path):
    writer = make(tmp_path / "new")
    writer.append(*chunk(1))
    writer.close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new").iterdir()] == [0o600, 0o600]


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b", "x" * 65, "-"])
def test_bad_writer_names(tmp_path, name):
    with pytest.raises(ValueError):
        make(tmp_path, name=name)


def test_a_writer_that_wrote_nothing_leaves_nothing(tmp_path):
    writer = make(tmp_path)
    writer.sync()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_space_is_taken_in_steps_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "PREALLOCATE_STEP", 100_000)
    writer = make(tmp_path, 1 << 20)
    where = writer.append(*chunk(1, 10_000))
    path = tmp_path / where.segment
    first = path.stat().st_size
    assert 100_000 <= first <= 200_000
    while writer.append(*chunk(2, 10_000)).offset + 10_000 < first:
        pass
    assert path.stat().st_size > first
    writer.close()
    assert path.stat().st_size <= first + 20_000


def test_a_segment_never_takes_more_than_a_sixteenth_of_the_disk(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)

    class Small:
        f_frsize, f_blocks, f_bavail = real.f_frsize, 16 * 20_000 // real.f_frsize, real.f_bavail

    monkeypatch.setattr(os, "statvfs", lambda path: Small)
    writer = make(tmp_path, 256 << 20)
    where = [writer.append(*chunk(i, 9000)) for i in range(4)]
    assert len({w.segment for w in where}) >= 2
    assert all((tmp_path / w.segment).stat().st_size <= 20_000 for w in where)
    writer.close()


def test_the_reserve_is_left_free(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    writer = SegmentWriter(tmp_path, "w", 1 << 20, reserve_bytes=real.f_bavail * real.f_frsize + (1 << 40))
    with pytest.raises(StoreFull, match="full"):
        writer.append(*chunk(1))
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_no_segment_can_be_made_on_a_full_disk_and_then_it_can(tmp_path, monkeypatch):
    writer = make(tmp_path, 2000)
    first = writer.append(*chunk(1, 1500))
    real = os.open

    def full(path, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(StoreFull):
        writer.append(*chunk(2, 1500))
    writer.sync()
    monkeypatch.undo()
    second = writer.append(*chunk(2, 1500))
    assert second.segment != first.segment
    writer.close()
    assert len(ChunkIndex(tmp_path)) == 2


def test_a_record_is_bound_to_its_segment_and_its_place():
    codec, other = format.RecordCodec(b"s" * 16), format.RecordCodec(b"t" * 16)
    head = codec.pack(bytes(32), 100, 800, 0)
    assert codec.parse(head, 800) == format.Record(bytes(32), 848, 100, 0)
    assert other.parse(head, 800) is None and codec.parse(head, 808) is None and codec.parse(head[:-1], 800) is None
    for bit in range(len(head) * 8):
        bad = bytearray(head)
        bad[bit // 8] ^= 1 << bit % 8
        assert codec.parse(bytes(bad), 800) is None


def test_disk_layout_stands_as_documented():
    """What is written today must be read for ever: a change here needs a new VERSION."""
    assert format.pack_segment_header(b"0123456789abcdef").hex() == (
        "524d46545345474d00000001" "30313233343536373839616263646566" "16668af1")
    head = format.RecordCodec(b"0123456789abcdef").pack(bytes(range(32)), 0x123456 >> 4, 32, 8)
    assert head.hex() == "5243484b00012345" + bytes(range(32)).hex() + "00000008" "d02e2629"
    entry = format.pack_entry(bytes(range(32)), 0x11223344, 0x0A0B0C)
    assert entry == bytes(range(32)) + bytes.fromhex("112233440a0b0c")
    hint = format.pack_hint(format.Hint(entry, 0x55667788, b"0123456789abcdef"))
    assert hint.hex() == ("524d465448494e5400000001000000010000000055667788" "30313233343536373839616263646566"
                          + entry.hex() + "83e089a7")
