"""What a power cut leaves: everything synced is found and right, whatever became of the bytes after the last sync."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.store import format
from raftmft.store.errors import ChunkCorrupt
from raftmft.store.format import Location
from raftmft.store.index import ChunkIndex
from raftmft.store.reader import SegmentReader
from raftmft.store.writer import SegmentWriter
from tests.store.contract import chunk

SYNCED, UNSYNCED = 6, 5
SIZES = (1, 100, 3000, 17, 4096, 9000, 8, 5000, 60, 2500, 1)
CHUNKS = [chunk(i, length) for i, length in enumerate(SIZES)]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A directory as a killed writer left it: SYNCED durable chunks, then UNSYNCED that only the page cache has."""
    directory = tmp_path_factory.mktemp("left")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raftmft.store.writer.PREALLOCATE_STEP", 64 << 10)
        yield from left_behind(directory, tmp_path_factory.mktemp("copy"))


def left_behind(directory, copy):
    writer = SegmentWriter(directory, "w", 1 << 20, reserve_bytes=0)
    where = []
    for n, c in enumerate(CHUNKS):
        where.append(writer.append(*c))
        if n + 1 in (3, SYNCED):
            writer.sync()
    shutil.copytree(directory, copy, dirs_exist_ok=True)
    writer.close()
    yield copy, where, format.aligned(where[SYNCED - 1].offset + where[SYNCED - 1].length)


def check_after(directory: Path, where: list[Location], synced: int = SYNCED) -> ChunkIndex:
    """Opens twice (by scanning, then by hint): all synced chunks are right, no chunk is served wrong."""
    for _ in range(2):
        index, reader = ChunkIndex(directory), SegmentReader(directory)
        for n, (chunk_id, data) in enumerate(CHUNKS):
            location = index.get(chunk_id)
            assert location == where[n] or (n >= synced and location is None), f"chunk {n}"
            if location is not None:
                assert reader.read(location, chunk_id) == data
        assert set(index.ids()) <= {c[0] for c in CHUNKS}
        reader.close()
    assert not list(directory.glob("*.tmp"))
    return index


def copy_of(left: Path) -> TemporaryDirectory[str]:
    holder = TemporaryDirectory()
    shutil.copytree(left, holder.name, dirs_exist_ok=True)
    return holder


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_whatever_happens_after_the_last_sync(left, data):
    directory, where, synced_end = left
    end = where[-1].offset + where[-1].length
    cut = data.draw(st.integers(synced_end, end), label="cut")
    how = data.draw(st.sampled_from(["truncate", "zero", "garble", "zero pages", "old size"]))
    with copy_of(directory) as copied:
        path = Path(copied) / where[0].segment
        content = bytearray(path.read_bytes())
        if how == "truncate":
            del content[cut:]
        elif how == "zero":
            content[cut:] = bytes(len(content) - cut)
        elif how == "garble":
            length = data.draw(st.integers(1, 600))
            content[cut:cut + length] = data.draw(st.randoms(use_true_random=False)).randbytes(length)
        elif how == "zero pages":  # pages reach the disk in any order
            for page in range(-(-synced_end // 512), len(content) // 512):
                if data.draw(st.booleans()) if page * 512 < end else False:
                    content[page * 512:page * 512 + 512] = bytes(512)
        else:
            del content[end:]
        path.write_bytes(content)
        index = check_after(Path(copied), where)
        assert index.problems == []


def test_nothing_lost_when_only_the_process_died(left):
    directory, where, _ = left
    with copy_of(directory) as copied:
        index = check_after(Path(copied), where, synced=len(CHUNKS))
        assert len(index) == len(CHUNKS)
        # The preallocated rest is given back.
        assert (Path(copied) / where[0].segment).stat().st_size == format.aligned(where[-1].offset + where[-1].length)


def test_a_header_on_disk_without_its_data_is_not_believed(left):
    directory, where, _ = left
    with copy_of(directory) as copied:
        path = Path(copied) / where[0].segment
        content = bytearray(path.read_bytes())
        last = where[-2]
        content[last.offset:last.offset + last.length] = bytes(last.length)
        path.write_bytes(content)
        index = check_after(Path(copied), where)
        assert index.get(CHUNKS[-2][0]) is None
        assert index.get(CHUNKS[-1][0]) == where[-1]


@pytest.mark.parametrize("victim", range(SYNCED - 1))
@pytest.mark.parametrize("byte", [0, 5, 20, 47])
def test_a_damaged_header_of_a_synced_chunk_is_reported_and_hides_no_other(left, victim, byte):
    directory, where, _ = left
    with copy_of(directory) as copied:
        path = Path(copied) / where[0].segment
        content = bytearray(path.read_bytes())
        content[where[victim].offset - format.RECORD_HEADER + byte] ^= 0x10
        path.write_bytes(content)
        index = ChunkIndex(copied)
        assert index.get(CHUNKS[victim][0]) is None
        assert [c for n, c in enumerate(CHUNKS) if n != victim and c[0] not in index] == []
        assert len(index.problems) == 1 and where[0].segment in index.problems[0]


def test_a_damaged_synced_chunk_behind_a_damaged_header_is_reported_too(left):
    directory, where, _ = left
    with copy_of(directory) as copied:
        path = Path(copied) / where[0].segment
        content = bytearray(path.read_bytes())
        content[where[1].offset - 1] ^= 1
        content[where[2].offset] ^= 1
        path.write_bytes(content)
        index = ChunkIndex(copied)
        assert CHUNKS[1][0] not in index and CHUNKS[2][0] not in index and CHUNKS[3][0] in index
        assert len(index.problems) == 2


def test_content_that_looks_like_records_is_not_taken_for_one(tmp_path):
    """A user stores a copy of a segment; its header is then damaged, and the scan searches through that content."""
    first = SegmentWriter(tmp_path, "w", 1 << 20, reserve_bytes=0)
    inner = chunk(1, 50)
    first.append(*inner)
    first.close()
    (image,) = [path.read_bytes() for path in tmp_path.glob("*.seg")]
    for path in tmp_path.iterdir():
        path.unlink()
    writer = SegmentWriter(tmp_path, "w", 1 << 20, reserve_bytes=0)
    outer = writer.append(blake3(image).digest(), image)
    last = chunk(2)
    writer.append(*last)
    writer.sync()
    path = tmp_path / outer.segment
    content = bytearray(path.read_bytes())
    content[outer.offset - 1] ^= 1
    writer.close()
    for old in tmp_path.iterdir():
        old.unlink()
    path.write_bytes(content)
    index = ChunkIndex(tmp_path)
    assert set(index.ids()) == {last[0]}


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1), bit=st.integers(0, 7), sealed=st.booleans())
def test_any_flipped_bit_is_noticed_before_a_chunk_is_served(left, position, bit, sealed):
    directory, where, _ = left
    with copy_of(directory) as copied:
        if sealed:
            ChunkIndex(copied)
        end = where[-1].offset + where[-1].length
        path = Path(copied) / where[0].segment
        content = bytearray(path.read_bytes())
        content[format.SEGMENT_HEADER + int(position * (end - format.SEGMENT_HEADER - 1))] ^= 1 << bit
        path.write_bytes(content)
        index, reader = ChunkIndex(copied), SegmentReader(copied)
        wrong = 0
        for chunk_id, data in CHUNKS:
            location = index.get(chunk_id)
            try:
                assert location is None or reader.read(location, chunk_id) == data
                wrong += location is None
            except ChunkCorrupt:
                wrong += 1
        assert wrong <= 1
        reader.close()
