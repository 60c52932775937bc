"""Content is acknowledged again under the present placement: asked for first, copied only where too few hold it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from blake3 import blake3

from raftmft.cluster.hello import PeerUnreachable
from raftmft.core import placement
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, IDS_PER_INDEX, Manifest
from raftmft.node.chunks import Chunks
from raftmft.node.coverage import MOST_IDS, Coverage
from raftmft.store.disk import SegmentStore
from raftmft.store.writer import SegmentWriter

IDS = [bytes([n]) * 32 for n in range(1, 9)]
STORING = [("a", 100), ("b", 100), ("c", 100), ("d", 100)]


def manifest(ids: list[bytes]) -> Manifest:
    return Manifest(len(ids) * CHUNK_SIZE, 0, b"".join(ids))


class Cluster:
    """`a` asks; `held` says which member durably holds which chunk; `down` members do not answer."""

    def __init__(self) -> None:
        self.held: dict[str, set[bytes]] = {member: set() for member, _ in STORING}
        self.down: set[str] = set()
        self.puts: list[tuple[bytes, tuple[str, ...], int]] = []
        self.asked: list[list[bytes]] = []
        self.epoch = 7
        links = SimpleNamespace(handle=lambda op, handler: setattr(self, "answer", handler), request=self.request)
        holdings = SimpleNamespace(find=lambda i: i if i in self.held["a"] else None, durable=self.durable)
        fetcher = SimpleNamespace(read=self.read)
        replicator = SimpleNamespace(put=self.put)
        self.coverage = Coverage("a", links, holdings, fetcher, replicator, lambda: STORING, lambda: 3,  # type: ignore[arg-type]
                                 lambda: self.epoch, lambda: 2)

    async def durable(self, *places: Any) -> None:
        pass

    async def request(self, member: str, op: str, args: dict[str, Any], *, timeout_s: float) -> list[bool]:
        if member in self.down:
            raise PeerUnreachable("down")
        self.asked.append(args["ids"])
        return [chunk_id in self.held[member] for chunk_id in args["ids"]]

    async def read(self, chunk_id: bytes) -> bytes:
        if not any(chunk_id in held for held in self.held.values()):
            raise RaftmftError("nobody has it")
        self.held["a"].add(chunk_id)
        return b"data"

    async def put(self, chunk_id: bytes, load: Any, owners: tuple[str, ...], need: int) -> None:
        self.puts.append((chunk_id, owners, need))

    def spread(self, ids: list[bytes], count: int) -> None:
        """The first `count` owners of each chunk hold it."""
        for chunk_id in ids:
            for owner in placement.owners(chunk_id, STORING, 3)[:count]:
                self.held[owner].add(chunk_id)


async def test_what_a_quorum_of_the_owners_holds_is_not_copied() -> None:
    cluster = Cluster()
    cluster.spread(IDS, 2)
    assert await cluster.coverage.ensure(manifest(IDS)) == 7
    assert cluster.puts == []


async def test_what_too_few_owners_hold_is_put_to_a_quorum() -> None:
    cluster = Cluster()
    cluster.spread(IDS[:4], 2)
    cluster.spread(IDS[4:], 1)
    await cluster.coverage.ensure(manifest(IDS))
    assert {put[0] for put in cluster.puts} == set(IDS[4:])
    for chunk_id, owners, need in cluster.puts:
        assert owners == placement.owners(chunk_id, STORING, 3)
        assert need == 2 - ("a" in owners), "this member's own copy counts if it is an owner"


async def test_a_chunk_that_stands_many_times_in_a_file_is_asked_for_once() -> None:
    cluster = Cluster()
    index_ids, holes = [IDS[0]] * 31 + [IDS[1]], {IDS[0]: IDS[2] * IDS_PER_INDEX, IDS[1]: IDS[2] * 8 + IDS[3]}
    cluster.spread(IDS[:4], 3)
    for member in cluster.held:
        cluster.held[member] |= set(IDS[:2])
    read: list[bytes] = []

    async def read_index(chunk_id: bytes) -> bytes:
        read.append(chunk_id)
        return holes[chunk_id]

    cluster.coverage._fetcher.read = read_index  # type: ignore[assignment]
    await cluster.coverage.ensure(Manifest((31 * IDS_PER_INDEX + 9) * CHUNK_SIZE, 1, b"".join(index_ids)))
    assert read == IDS[:2] and cluster.puts == []
    assert cluster.asked and max(len(ids) for ids in cluster.asked) <= 2


async def test_a_checkpoints_last_chunks_are_asked_for_beside_its_index_chunks() -> None:
    cluster = Cluster()
    cluster.spread(IDS[:2], 3)
    for member in cluster.held:
        cluster.held[member] |= {IDS[0]}

    async def read(chunk_id: bytes) -> bytes:
        return IDS[1] * 64 if chunk_id == IDS[0] else b"data"

    cluster.coverage._fetcher.read = read  # type: ignore[assignment]
    cluster.held["a"].add(IDS[2])
    await cluster.coverage.ensure(Manifest(66 * CHUNK_SIZE, 2, IDS[0] + IDS[1] + IDS[2]))
    assert [put[0] for put in cluster.puts] == [IDS[2]]


async def test_who_does_not_answer_counts_for_nothing() -> None:
    cluster = Cluster()
    cluster.spread(IDS, 3)
    cluster.held["a"] |= set(IDS)
    cluster.down = {"b", "c", "d"}
    await cluster.coverage.ensure(manifest(IDS))
    assert {put[0] for put in cluster.puts} == set(IDS)


async def test_a_chunk_that_nobody_has_fails_it() -> None:
    cluster = Cluster()
    with pytest.raises(RaftmftError, match="nobody has it"):
        await cluster.coverage.ensure(manifest(IDS[:1]))


@pytest.mark.parametrize("ids", [None, [b"short"], [IDS[0]] * (MOST_IDS + 1), ["x" * 32]])
async def test_a_malformed_question_is_refused(ids: Any) -> None:
    with pytest.raises(ValueError):
        await Cluster().answer("b", {"ids": ids})  # type: ignore[attr-defined]


async def test_an_upload_is_covered_again_when_members_changed_and_only_then() -> None:
    cluster = Cluster()
    chunks = Chunks("a", None, None, None, None, lambda: STORING, lambda: 3, cluster.coverage, lambda: 2, None)  # type: ignore[arg-type]
    asked: list[Manifest] = []
    real = cluster.coverage.ensure

    async def ensure(content: Manifest) -> int:
        asked.append(content)
        return await real(content)

    cluster.coverage.ensure = ensure  # type: ignore[method-assign]
    cluster.spread(IDS, 2)
    chunks.begin(1, None, 7)  # type: ignore[arg-type]
    assert await chunks.covered(1, manifest(IDS)) == 7 and not asked
    cluster.epoch = 9
    assert await chunks.covered(1, manifest(IDS)) == 9 and len(asked) == 1
    assert await chunks.covered(1, manifest(IDS)) == 9 and len(asked) == 1
    # A put that began before the change may end with the owners of its own time: asked again next time.
    cluster.epoch = 12
    chunks._uploads[1].under_way[9] += 1
    assert await chunks.covered(1, manifest(IDS)) == 9
    chunks.inherits(1)
    chunks._uploads[1].under_way.clear()
    assert await chunks.covered(1, manifest(IDS)) == 12 and len(asked) == 3
    # What it copies from a version published under the present placement need not be asked for, older content must.
    chunks.inherits(1, 12)
    assert await chunks.covered(1, manifest(IDS)) == 12 and len(asked) == 3
    chunks.inherits(1, 11)
    assert await chunks.covered(1, manifest(IDS)) == 12 and len(asked) == 4


async def test_a_put_whose_copies_were_under_way_when_members_changed_is_acknowledged_again(tmp_path: Path) -> None:
    """However it went to its owners, along a chain or not: what counts is the epoch in which it began."""
    cluster, worker = Cluster(), SimpleNamespace(name="w")
    writer, store = SegmentWriter(tmp_path, "w"), SegmentStore(tmp_path)
    data = b"content"
    chunk_id = blake3(data).digest()
    place = writer.append(chunk_id, data)
    going, arrived, asked = trio.Event(), trio.Event(), []

    async def put(chunk: bytes, load: Any, owners: tuple[str, ...], need: Any) -> None:
        going.set()
        await arrived.wait()

    async def request(member: str, op: str, args: dict[str, Any], *, timeout_s: float) -> list[bool]:
        asked.append(member)
        return [True] * len(args["ids"])

    cluster.request = request  # type: ignore[method-assign]
    cluster.coverage._links.request = request  # type: ignore[method-assign]
    chunks = Chunks("a", store, SimpleNamespace(put=put), None, None, lambda: STORING, lambda: 3,  # type: ignore[arg-type]
                    cluster.coverage, lambda: 2, None)  # type: ignore[arg-type]
    chunks.begin(1, worker, 7)  # type: ignore[arg-type]
    content = Manifest(len(data), 0, chunk_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chunks.put, worker, {"upload": 1, "id": chunk_id, "segment": place.segment,
                                                "offset": place.offset, "length": place.length})
        await going.wait()
        cluster.epoch = 9
        assert await chunks.covered(1, content) == 7, "asked, but the put may yet end with the owners of before"
        with pytest.raises(RaftmftError, match="not replicated yet"):
            chunks.check_all_held(1)
        asked.clear()
        arrived.set()
    chunks.check_all_held(1)
    assert await chunks.covered(1, content) == 9 and asked, "the owners of now were asked"
    asked.clear()
    assert await chunks.covered(1, content) == 9 and not asked
