"""Opening, sealing and adopting; and the table that keeps a chunk in less than 64 bytes."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.core.errors import CorruptFile
from raftmft.store import files, format
from raftmft.store.errors import SegmentBusy
from raftmft.store.format import Location
from raftmft.store.index import ChunkIndex
from raftmft.store.reader import SegmentReader
from raftmft.store.table import ChunkTable
from raftmft.store.writer import SegmentWriter
from tests.store.contract import chunk

CHUNKS = [chunk(i, 500 + i) for i in range(20)]


def written(directory, writer="w", *, close=True, chunks=CHUNKS, size=1 << 20):
    w = SegmentWriter(directory, writer, size, reserve_bytes=0)
    where = [w.append(*c) for c in chunks]
    w.sync()
    if close:
        w.close()
    return w, where


def abandon(writer: SegmentWriter) -> None:
    """The writing process is killed: its descriptors are closed, nothing else happens."""
    os.close(writer._current.fd)
    writer._current = None
    writer._closed = True


def test_a_sealed_segment_opens_by_its_hint_without_a_look_at_the_records(tmp_path, monkeypatch):
    _, where = written(tmp_path)
    monkeypatch.setattr("raftmft.store.index.scan", None)
    index = ChunkIndex(tmp_path)
    assert [index.get(c[0]) for c in CHUNKS] == where and len(index) == len(CHUNKS)
    assert not index.problems


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "version", "short segment"])
def test_a_damaged_hint_is_made_anew(tmp_path, harm):
    _, where = written(tmp_path)
    (hint,) = tmp_path.glob("*.hint")
    content = bytearray(hint.read_bytes())
    lost = set()
    if harm == "flip":
        content[60] ^= 1
    elif harm == "cut":
        del content[-30:]
    elif harm == "version":
        content[11] = 9
    elif harm == "short segment":
        os.truncate(tmp_path / where[0].segment, where[-1].offset + 3)
        lost = {CHUNKS[-1][0]}
    else:
        content.clear()
    hint.write_bytes(content)
    index = ChunkIndex(tmp_path)
    assert {c[0] for c in CHUNKS} - set(index.ids()) == lost
    assert any("hint" in line for line in index.problems)
    assert ChunkIndex(tmp_path).problems == []


def test_another_format_version_is_named_with_both_versions(tmp_path):
    _, where = written(tmp_path)
    path = tmp_path / where[0].segment
    content = bytearray(path.read_bytes())
    content[8:12] = (7).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=rf"{where[0].segment}.* 7.* {format.VERSION}"):
        ChunkIndex(tmp_path)
    assert path.read_bytes() == content


def test_a_damaged_segment_header_costs_nothing_while_the_hint_stands(tmp_path):
    _, where = written(tmp_path)
    with (tmp_path / where[0].segment).open("r+b") as file:
        file.write(b"\xff" * 8)
    index, reader = ChunkIndex(tmp_path), SegmentReader(tmp_path)
    assert all(reader.read(index.get(i), i) == data for i, data in CHUNKS)
    assert len(index.problems) == 1
    next(tmp_path.glob("*.hint")).unlink()
    index = ChunkIndex(tmp_path)
    assert len(index) == 0 and len(index.problems) == 1


def test_what_was_never_written_leaves_no_debris(tmp_path):
    for name, content in (("w-000001.seg", b""), ("w-000002.seg", bytes(4096)), ("w-000003.seg", b"RM")):
        (tmp_path / name).write_bytes(content)
    index = ChunkIndex(tmp_path)
    assert len(index) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w-000003.seg"]
    assert len(index.problems) == 1  # two stray bytes are no segment's beginning: looked at by a person, not deleted


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "w-1.seg").write_text("not our naming")
    assert len(ChunkIndex(tmp_path)) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_a_living_writers_segment_is_busy_and_adopted_once_it_is_dead(tmp_path):
    writer, where = written(tmp_path, close=False)
    index = ChunkIndex(tmp_path, lock_wait_s=0)
    assert index.busy == [where[0].segment] and len(index) == 0
    with pytest.raises(SegmentBusy):
        index.adopt(where[0].segment)
    writer.append(*chunk(99))
    abandon(writer)
    assert index.adopt_all("w") == [where[0].segment]
    assert len(index) == len(CHUNKS) + 1
    assert (tmp_path / format.hint_name(where[0].segment)).exists()
    index.adopt(where[0].segment)
    assert len(index) == len(CHUNKS) + 1


def test_opening_waits_for_a_dying_writer(tmp_path, monkeypatch):
    writer, _ = written(tmp_path, close=False)
    monkeypatch.setattr("raftmft.store.index.time.sleep", lambda seconds: abandon(writer))
    index = ChunkIndex(tmp_path, lock_wait_s=60)
    assert not index.busy and len(index) == len(CHUNKS)


def test_adopting_forgets_what_did_not_reach_the_disk(tmp_path):
    """The index was told of a chunk whose data a failing disk lost; the adopted segment has it no more."""
    index = ChunkIndex(tmp_path)
    writer, where = written(tmp_path, close=False)
    lost, kept = chunk(100), chunk(101)
    place = writer.append(*lost)
    for chunk_id, location in [(c[0], w) for c, w in zip(CHUNKS, where, strict=True)] + [(lost[0], place)]:
        index.add(chunk_id, location)
    _, elsewhere = written(tmp_path, "other", chunks=[kept, lost])
    index.adopt_all("other")
    with (tmp_path / place.segment).open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.length))
    abandon(writer)
    index.adopt(place.segment)
    assert index.all(lost[0]) == [elsewhere[1]]
    assert [index.all(c[0]) for c in CHUNKS] == [[w] for w in where]
    assert len(index) == len(CHUNKS) + 2


def test_adopt_all_takes_only_that_writers_segments(tmp_path):
    index = ChunkIndex(tmp_path)
    written(tmp_path, "w", chunks=CHUNKS[:10], size=2000)
    written(tmp_path, "w-1", chunks=CHUNKS[10:])
    names = index.adopt_all("w")
    assert len(names) > 1 and all(format.parse_segment_name(n)[0] == "w" for n in names)
    assert len(index) == 10


def test_add_discard_and_the_rest_of_the_interface(tmp_path):
    index = ChunkIndex(tmp_path)
    one = Location("a-000001.seg", 80, 5)
    assert index.add(b"\0" * 32, one) and not index.add(b"\0" * 32, one)
    assert b"\0" * 32 in index and b"\1" * 32 not in index and len(index) == 1
    assert not index.discard(b"\0" * 32, one._replace(offset=88))
    assert index.discard(b"\0" * 32, one) and not index.discard(b"\0" * 32, one)
    assert list(index.ids()) == []


# All in one bucket, and much like parts of one another.
ids = st.integers(0, 3).map(lambda n: bytes(2) + n.to_bytes(1, "big") * 30)
places = st.builds(Location, st.sampled_from(["a-000001.seg", "b-000001.seg"]),
                   st.sampled_from([80, 1 << 31, 0x01010101]), st.sampled_from([1, 1 << 20]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "drop", "load"]), ids, places), max_size=30))
def test_the_table_is_a_dict_of_lists(operations):
    table = ChunkTable()
    model: dict[bytes, list[Location]] = {}
    for what, chunk_id, place in operations:
        if what == "add":
            assert table.add(chunk_id, place) == (chunk_id not in model)
        if what == "load":
            table.load(place.segment, format.pack_entry(chunk_id, place.offset, place.length))
        if what in ("add", "load"):
            known = model.setdefault(chunk_id, [])
            if place not in known:
                known.append(place)
        elif what == "discard":
            known = model.get(chunk_id, [])
            assert table.discard(chunk_id, place) == (place in known)
            if place in known:
                known.remove(place)
        else:
            before = sum(map(len, model.values()))
            model = {i: [p for p in known if p.segment != place.segment] for i, known in model.items()}
            assert table.drop(place.segment) == before - sum(map(len, model.values()))
        model = {i: known for i, known in model.items() if known}
        assert len(table) == sum(map(len, model.values()))
    assert sorted(table.ids()) == sorted(model)
    for n in range(4):
        chunk_id = bytes(2) + bytes([n]) * 30
        assert table.all(chunk_id) == model.get(chunk_id, [])
        assert table.get(chunk_id) == (model.get(chunk_id) or [None])[0]


def test_a_chunk_costs_at_most_64_bytes():
    table, chance = ChunkTable(), random.Random(1)
    empty = sum(bucket.__sizeof__() for bucket in table._buckets)
    count = 300_000
    table.load("a-000001.seg", b"".join(format.pack_entry(chance.randbytes(32), 80, 100) for _ in range(count)))
    assert len(table) == count
    assert (sum(bucket.__sizeof__() for bucket in table._buckets) - empty) / count <= 64


def test_ids_that_differ_in_their_first_bits_alone_are_different_chunks():
    table = ChunkTable()
    wanted = {bytes((n >> 8, n & 255)) + bytes(30): Location("a-000001.seg", 80 + n, 100) for n in range(1 << 16)}
    table.load("a-000001.seg", b"".join(format.pack_entry(i, w.offset, w.length) for i, w in wanted.items()))
    assert set(table.ids()) == set(wanted) and len(table) == len(wanted)
    assert all(table.get(chunk_id) == where for chunk_id, where in wanted.items())


def test_a_failed_seal_leaves_a_segment_that_is_scanned(tmp_path, monkeypatch):
    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "seal", no_room)
    _, where = written(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.hint"))
    index = ChunkIndex(tmp_path)
    assert [index.get(c[0]) for c in CHUNKS] == where
    assert len(list(tmp_path.glob("*.hint"))) == 1
