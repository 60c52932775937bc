"""Which chunks of an upload the worker neither appends nor sends, and which it asks about."""

from __future__ import annotations

import os

from blake3 import blake3

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import packets as p
from raftmft.sftp.repeats import LEAST_OFFERED, MOST_REPEATS, PATIENCE, PROBE_EVERY, Repeats
from tests.sftp.fake_node import FakeNode
from tests.sftp.raw_client import RawSftp
from tests.sftp.test_uploads import run


def test_offers_go_on_while_they_are_not_in_vain_and_become_rare_when_they_are() -> None:
    repeats = Repeats()
    assert not repeats.is_offered(LEAST_OFFERED - 1)
    for _ in range(100):
        assert repeats.is_offered(CHUNK_SIZE)
        repeats.answered(True)
    for _ in range(PATIENCE):
        assert repeats.is_offered(CHUNK_SIZE)
        repeats.answered(False)
    for _ in range(3):
        assert [repeats.is_offered(CHUNK_SIZE) for _ in range(PROBE_EVERY)] == [False] * (PROBE_EVERY - 1) + [True]
        repeats.answered(False)
    for _ in range(PROBE_EVERY - 1):
        assert not repeats.is_offered(CHUNK_SIZE)
    assert repeats.is_offered(CHUNK_SIZE)
    repeats.answered(True)
    assert repeats.is_offered(CHUNK_SIZE)


def test_only_the_latest_repeats_are_remembered() -> None:
    repeats = Repeats()
    ids = [number.to_bytes(32, "big") for number in range(MOST_REPEATS + 1)]
    for chunk_id in ids:
        repeats.acknowledged(chunk_id)
    assert ids[0] not in repeats and all(chunk_id in repeats for chunk_id in ids[1:])



def test_a_hit_is_neither_appended_nor_put_and_its_bytes_count_in_the_digest(own_node: FakeNode) -> None:
    node, data = own_node, os.urandom(5 * CHUNK_SIZE + 70_000)

    async def test(sftp: RawSftp) -> None:
        await sftp.put("first", data)
        puts = {args["id"]: args for args in node.ops("chunk.put")}
        assert len(puts) == 6
        node.known = set(puts)
        await sftp.put("second", data)
        assert len(node.ops("chunk.put")) == 6, "the second time nothing is put"
        assert [args["id"] for args in node.ops("chunk.offer")[-6:]] == list(puts)
        assert node.content("second") == data
        assert node.ops("fs.publish")[-1]["digest"] == blake3(data).hexdigest()
        # Own bytes that were a hit are read back, changed, and cut.
        node.known = set(puts)
        handle = await sftp.open_file("third", p.FXF_READ | p.FXF_WRITE | p.FXF_CREAT)
        await sftp.write(handle, 0, data)
        assert await sftp.read(handle, 3 * CHUNK_SIZE - 10, 20) == data[3 * CHUNK_SIZE - 10 : 3 * CHUNK_SIZE + 10]
        await sftp.write(handle, 100, b"changed")
        await sftp.close_handle(handle)
        assert node.content("third") == data[:100] + b"changed" + data[107:]
    run(node, test)


def test_a_hit_says_nothing_of_the_chunks_beside_it(own_node: FakeNode) -> None:
    node, data = own_node, os.urandom(6 * CHUNK_SIZE)

    async def test(sftp: RawSftp) -> None:
        await sftp.put("first", data)
        ids = [args["id"] for args in node.ops("chunk.put")]
        node.known = set(ids)
        changed = data[: 2 * CHUNK_SIZE] + os.urandom(CHUNK_SIZE) + data[3 * CHUNK_SIZE :]
        await sftp.put("second", changed)
        assert len(node.ops("chunk.put")) == 7
        assert node.content("second") == changed
    run(node, test)


def test_repeated_blocks_of_one_upload_are_put_once(own_node: FakeNode) -> None:
    node, data = own_node, bytes(64 * CHUNK_SIZE)

    async def test(sftp: RawSftp) -> None:
        await sftp.put("zeros", data)
        assert len(node.ops("chunk.put")) <= 2 * node.window_chunks
        assert node.content("zeros") == data
        assert node.ops("fs.publish")[-1]["digest"] == blake3(data).hexdigest()
    run(node, test)
