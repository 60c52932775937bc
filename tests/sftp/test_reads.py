"""Reading: only verified bytes, whatever the disk holds; misses are fetched; trouble is told."""

from __future__ import annotations

import os
from typing import Any

from raftmft.sftp import packets as p
from raftmft.sftp.content import ChunkCache
from raftmft.store.segments import Location, SegmentWriter
from tests.sftp.fake_node import FakeNode, wait_for
from tests.sftp.raw_client import PUT, RawSftp
from tests.sftp.test_uploads import expect, run

MIB = 1 << 20


async def put(sftp: RawSftp, name: str, data: bytes) -> None:
    handle = await sftp.open_file(name, PUT)
    await sftp.write(handle, 0, data)
    await sftp.close_handle(handle)


def damage(node: FakeNode, place: Location) -> None:
    with open(node.store / place.segment, "r+b") as file:
        file.seek(place.offset + 100)
        byte = file.read(1)
        file.seek(place.offset + 100)
        file.write(bytes([byte[0] ^ 1]))


def chunk_ids(node: FakeNode, name: str) -> list[bytes]:
    manifest = node.files["anna"][(name.encode(),)].manifest
    assert manifest is not None
    return manifest.id_list()


def test_a_damaged_chunk_is_never_served(own_node: FakeNode) -> None:
    data = os.urandom(2 * MIB + 77)

    async def test(sftp: RawSftp) -> None:
        await put(sftp, "bad", data)
        place = own_node.places[chunk_ids(own_node, "bad")[1]]
        damage(own_node, place)
        handle = await sftp.open_file("bad", p.FXF_READ)
        assert await sftp.read(handle, 0, 1000) == data[:1000]
        await expect(4, "damaged", sftp.read(handle, MIB, 1000))
        await sftp.close_handle(handle)
        bad = [args for op, args in own_node.notes if op == "chunk.bad"]
        assert bad[0]["segment"] == place.segment and bad[0]["offset"] == place.offset
        (end,) = wait_for("the end of the read", lambda: [a for op, a in own_node.notes if op == "read.end"])
        assert end["ok"] is False and end["bytes"] == 1000
    run(own_node, test)


def test_a_damaged_or_missing_chunk_is_fetched_from_elsewhere(own_node: FakeNode) -> None:
    data = os.urandom(3 * MIB + 77)
    copies = SegmentWriter(own_node.store, "peer", 64 << 20)

    async def test(sftp: RawSftp) -> None:
        await put(sftp, "repaired", data)
        ids = chunk_ids(own_node, "repaired")
        moved = {i: copies.append(i, data[n * MIB : (n + 1) * MIB]) for n, i in enumerate(ids)}
        damage(own_node, own_node.places[ids[1]])
        del own_node.places[ids[2]]
        own_node._chunk_fetch = lambda id: {"location": list(moved[id])}  # type: ignore[method-assign]
        own_node._chunk_locate = lambda ids: {"locations": [None] * len(ids)}  # type: ignore[method-assign]
        assert await sftp.read_all("repaired") == data
        assert {args["id"] for args in own_node.ops("chunk.fetch")} == {ids[1], ids[2]}
    run(own_node, test)
    copies.close()


def test_reads_end_where_the_file_does(node: FakeNode) -> None:
    data = os.urandom(MIB + 500)

    async def test(sftp: RawSftp) -> None:
        await put(sftp, "edges", data)
        handle = await sftp.open_file("edges", p.FXF_READ)
        assert await sftp.read(handle, MIB - 10, 20) == data[MIB - 10 : MIB + 10], "a read over two chunks is not cut"
        assert await sftp.read(handle, MIB + 490, 4000) == data[-10:]
        for offset, length in ((len(data), 1), (1 << 63, 5), (0, 0)):
            await expect(1, "End of file", sftp.read(handle, offset, length))
        await expect(4, "not open to write", sftp.write(handle, 0, b"x"))
        await expect(4, "", sftp.open_file("/", p.FXF_READ))
        await sftp.close_handle(handle)
    run(node, test)


def test_a_read_that_was_not_closed_is_told_too(own_node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await put(sftp, "f", b"content")
        handle = await sftp.open_file("f", p.FXF_READ)
        await sftp.read(handle, 0, 4)
    run(own_node, test)
    wait_for("the end", lambda: own_node.ended)
    (end,) = [args for op, args in own_node.notes if op == "read.end"]
    assert end["bytes"] == 4 and end["ok"] is True


def test_the_cache_is_bounded_over_all_files() -> None:
    class Owner:
        def __init__(self) -> None:
            self.forgotten: list[int] = []

        def forget(self, slot: int) -> None:
            self.forgotten.append(slot)

    cache = ChunkCache(most_bytes=3 * MIB)
    one: Any = Owner()
    two: Any = Owner()
    for slot in range(3):
        cache.add(one, slot, MIB)
    cache.drop(one, 1)
    cache.add(two, 0, MIB)
    assert one.forgotten == []
    cache.add(two, 1, MIB)
    assert one.forgotten == [0] and two.forgotten == []
