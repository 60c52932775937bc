"""Snapshots on disk: what was finished survives and restores byte for byte; what is damaged is never used."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from pathlib import Path
from random import Random

import pytest

from raftmft.core.errors import CorruptFile
from raftmft.raft import snapshots as snapshots_module
from raftmft.raft.configuration import Configuration
from raftmft.raft.deflate import NICE, Deflater
from raftmft.raft.snapshots import Snapshot, SnapshotFolder, SnapshotWriter, digest, read_header
from raftmft.wire.frames import FrameError

CONFIGURED = Configuration(("a", "b")).encode()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of several blocks, one of which cannot be compressed."""
    monkeypatch.setattr(snapshots_module, "BLOCK_BYTES", 4096)
    path = tmp_path / "state"
    path.write_bytes(b"text " * 3000 + Random(1).randbytes(6000) + b"end")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> SnapshotFolder:
    (tmp_path / "raft").mkdir()
    return SnapshotFolder(str(tmp_path / "raft" / "snapshot"))


def reopened(folder: SnapshotFolder) -> SnapshotFolder:
    return SnapshotFolder(folder.path)


def test_what_was_made_restores_byte_for_byte(state: Path, folder: SnapshotFolder, tmp_path: Path) -> None:
    made = folder.make(str(state), 77, 5, CONFIGURED)
    assert len(made.blocks) == 6 and os.listdir(tmp_path / "raft") == ["snapshot.0000000000000077"]
    again = reopened(folder)
    assert again.held == [made]
    again.restore(made, str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == state.read_bytes()
    assert os.stat(folder.name(made)).st_mode & 0o777 == 0o600


def test_header_and_blocks_are_found_by_their_hashes(state: Path, folder: SnapshotFolder) -> None:
    made = folder.make(str(state), 77, 5, CONFIGURED)
    folder.adopt(made)
    header = folder.find(made.root)
    assert header is not None and digest(header) == made.root and read_header(header) == made
    for size, block in made.blocks:
        data = folder.find(block)
        assert data is not None and len(data) == size and digest(data) == block
    assert folder.find(bytes(32)) is None


def test_the_last_two_are_kept(state: Path, folder: SnapshotFolder, tmp_path: Path) -> None:
    for index in (5, 9, 12):
        for old in folder.adopt(folder.make(str(state), index, 1, CONFIGURED)):
            folder.discard(old)
    assert [snapshot.index for snapshot in folder.held] == [9, 12]
    assert [snapshot.index for snapshot in reopened(folder).held] == [9, 12]
    folder.drop_beyond(11)
    assert [snapshot.index for snapshot in reopened(folder).held] == [9]


def test_a_flipped_bit_anywhere_is_found(state: Path, folder: SnapshotFolder, tmp_path: Path) -> None:
    made = folder.make(str(state), 77, 5, CONFIGURED)
    path = Path(folder.name(made))
    whole, target = path.read_bytes(), tmp_path / "back"
    for at in range(20, len(whole), 37):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        again = reopened(folder)
        if again.held:  # the header is sound: the block must tell
            with pytest.raises(CorruptFile, match="is damaged at byte"):
                again.restore(again.held[0], str(target))
            assert not target.exists()
    path.write_bytes(whole[:-1])
    assert reopened(folder).held == []


def test_another_version_is_refused_and_named(state: Path, folder: SnapshotFolder) -> None:
    path = Path(folder.name(folder.make(str(state), 77, 5, CONFIGURED)))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 16, 9)
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="format 9 .* format 1"):
        reopened(folder)


def test_a_full_disk_leaves_nothing(state: Path, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch,
                                    tmp_path: Path) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            folder.make(str(state), 77, 5, CONFIGURED)
    assert os.listdir(tmp_path / "raft") == []
    (tmp_path / "raft" / "snapshot.0000000000000078.new").write_bytes(b"half")
    assert reopened(folder).held == [] and os.listdir(tmp_path / "raft") == []


def test_making_one_can_be_broken_off_between_blocks(state: Path, folder: SnapshotFolder, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    before, blocks = children(), iter(range(3))

    def between() -> None:
        if next(blocks) == 2:
            raise Stop

    with pytest.raises(Stop):
        folder.make(str(state), 77, 5, CONFIGURED, between)
    assert os.listdir(tmp_path / "raft") == [] and children() <= before


def test_a_large_one_is_synced_bit_by_bit(state: Path, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [0], os.fdatasync

    def sync(fd: int) -> None:
        sizes.append(os.fstat(fd).st_size)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(snapshots_module, "SYNC_BYTES", 5000)
    state.write_bytes(Random(1).randbytes(40_000))
    folder.make(str(state), 77, 5, CONFIGURED)
    steps = [after - before for before, after in zip(sizes, sizes[1:], strict=False)]
    assert len(steps) >= 4 and all(0 < step < 5000 + 4200 for step in steps)


def children() -> set[str]:
    """Processes that this one started and that still are."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


def test_the_process_that_compresses_goes_behind_others_and_ends_with_its_use() -> None:
    data, before = b"some state " * 10_000, children()
    with Deflater() as deflate:
        assert zlib.decompress(deflate(data)) == data and zlib.decompress(deflate(b"")) == b""
        assert os.getpriority(os.PRIO_PROCESS, deflate.process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + NICE
        assert children() - before == {str(deflate.process.pid)}
    assert children() <= before


def test_it_ends_when_nobody_writes_to_it_any_more() -> None:
    with Deflater() as deflate:
        deflate(b"x")
        assert deflate.process.stdin is not None
        deflate.process.stdin.close()
        assert deflate.process.wait(30) == 0


def test_without_it_no_snapshot_is_made(state: Path, folder: SnapshotFolder, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(Deflater):
        def __enter__(self) -> Deflater:
            super().__enter__()
            self.process.kill()
            self.process.wait()
            return self

    monkeypatch.setattr(snapshots_module, "Deflater", Dead)
    with pytest.raises(OSError):
        folder.make(str(state), 77, 5, CONFIGURED)
    assert os.listdir(tmp_path / "raft") == []


def test_a_disk_that_reads_otherwise_than_was_written_is_not_trusted(
        state: Path, folder: SnapshotFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.fsync

    def lies(fd: int) -> None:
        real(fd)
        os.pwrite(fd, b"\xff", 500)

    monkeypatch.setattr(os, "fsync", lies)
    with pytest.raises(CorruptFile, match="does not read as it was written"):
        folder.make(str(state), 77, 5, CONFIGURED)
    assert os.listdir(tmp_path / "raft") == []


def test_a_block_that_unpacks_to_more_than_any_may_is_refused(folder: SnapshotFolder, tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(50 << 20), 9)
    with SnapshotWriter(folder, 3) as writer:
        writer.add(bomb, digest(bomb))
        made = writer.finish(1, CONFIGURED, 900 << 10)
    with pytest.raises(CorruptFile, match="larger than any may be"):
        folder.restore(made, str(tmp_path / "back"))


@pytest.mark.parametrize("header", [
    b"", b"\xc0", b"\x96\x01\x01\xa0\x01\xa0\xa0",
    Snapshot(1, 1, b"", 5, ()).header(),
    Snapshot(0, 1, b"", 5, ((5, bytes(32)),)).header(),
    Snapshot(1, 1, b"", 1 << 40, ((5, bytes(32)),)).header(),
    Snapshot(1, 1, b"", 5, ((1 << 21, bytes(32)),)).header(),
    Snapshot(1, 1, b"", 5, ((5, bytes(31)),)).header(),
])
def test_a_header_that_makes_no_sense_is_refused(header: bytes) -> None:
    with pytest.raises(FrameError):
        read_header(header)
