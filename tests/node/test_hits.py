"""Deduplication: what a home consists of, who is asked, and that only a write quorum of durable copies is a hit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from raftmft.cluster.hello import PeerUnreachable
from raftmft.core import commands as c
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, IDS_PER_INDEX, Manifest
from raftmft.core.references import LEAST_OFFERED
from raftmft.node.chunks import Chunks
from raftmft.node.hits import MOST_IDS, OPERATION, Hits
from raftmft.node.homes import LOAD_LIMIT_S, SLICE, Homes
from tests.core.machine_world import World, content

MIB = CHUNK_SIZE
OWNERS = ("a", "b", "c")


def ids_of(size: int, seed: int) -> list[bytes]:
    return content(size, seed).id_list()


@pytest.fixture
def state(tmp_path: Path) -> World:
    """Ann and bob, each with a session."""
    made = World(tmp_path / "state.db")
    made.boot()
    for user in ("ann", "bob"):
        made.user(user)
    return made


def uid(world: World, user: str) -> int:
    row = world.machine.users.get(user)
    assert row is not None
    return row.uid


class Cluster:
    """`a` asks. `held`: which member holds which chunk. `log`: who was asked or synced, in order."""

    def __init__(self, world: World) -> None:
        self.world, self.log = world, list[str]()
        self.held: dict[str, set[bytes]] = {member: set() for member in OWNERS}
        self.down: set[str] = set()
        self.gates: dict[str, trio.Event] = {}
        self.indexes: dict[bytes, bytes] = {}
        links = SimpleNamespace(handle=lambda op, handler: setattr(self, "answer", handler), request=self.request)
        self.hits = Hits("a", links, self, self.read_index, SimpleNamespace(machine=world.machine))  # type: ignore[arg-type]

    # holdings
    def find(self, chunk_id: bytes) -> Any:
        return chunk_id if chunk_id in self.held["a"] else None

    def touch(self, chunk_id: bytes, callback: Any) -> bool:
        if chunk_id not in self.held["a"]:
            return False
        self.log.append("a synced")
        callback("the disk failed" if "a" in self.down else "")
        return True

    # links
    async def request(self, member: str, op: str, args: dict[str, Any], *, timeout_s: float) -> list[bool]:
        assert op == OPERATION
        self.log.append(f"{member} asked")
        if member in self.gates:
            await self.gates[member].wait()
        if member in self.down:
            raise PeerUnreachable("down")
        return [chunk_id in self.held[member] for chunk_id in args["ids"]]

    async def read_index(self, index_id: bytes) -> bytes:
        if index_id not in self.indexes:
            raise RaftmftError("nobody has it")
        return self.indexes[index_id]

    def everywhere(self, ids: list[bytes]) -> None:
        for held in self.held.values():
            held |= set(ids)


@pytest.fixture
async def cluster(state: World, nursery: trio.Nursery) -> Cluster:
    made = Cluster(state)
    await nursery.start(made.hits.run)
    return made


async def begun(cluster: Cluster, user: str) -> int:
    session = cluster.world.login(user)
    return await cluster.hits.begin(cluster.world.begin(session, "upload")["upload"])


# --- who may know ------------------------------------------------------------------------------------------------
async def test_a_chunk_of_ones_own_published_file_is_a_hit_and_nobody_is_asked_about_another_homes(
        cluster: Cluster) -> None:
    cluster.world.put(cluster.world.login("ann"), "file", 3 * MIB)
    ids = ids_of(3 * MIB, 1)
    cluster.everywhere(ids)
    ann, bob = await begun(cluster, "ann"), await begun(cluster, "bob")
    assert all([await cluster.hits.hit(ann, chunk_id, OWNERS, 2) for chunk_id in ids])
    cluster.log.clear()
    for chunk_id in ids:
        assert not await cluster.hits.hit(bob, chunk_id, OWNERS, 2)
        assert not await cluster.hits.hit(0, chunk_id, OWNERS, 2), "an upload that ended has no home"
    assert cluster.log == [], "no question leaves and no sync is waited for: a miss is a miss at once"
    cluster.world.ok(c.ConfigSet("dedup.scope", "cluster"))
    assert all([await cluster.hits.hit(bob, chunk_id, OWNERS, 2) for chunk_id in ids])
    cluster.world.ok(c.ConfigSet("dedup.scope", "home"))
    assert not await cluster.hits.hit(bob, ids[0], OWNERS, 2)


@pytest.mark.parametrize("change", ["removed", "replaced"])
async def test_what_is_no_longer_in_a_published_file_is_no_hit(cluster: Cluster, change: str) -> None:
    world = cluster.world
    session = world.login("ann")
    world.put(session, "file", 2 * MIB)
    world.put(session, "other", 2 * MIB, seed=2)
    cluster.everywhere(ids_of(2 * MIB, 1) + ids_of(2 * MIB, 2))
    ann = await begun(cluster, "ann")
    assert await cluster.hits.hit(ann, ids_of(2 * MIB, 1)[0], OWNERS, 2)
    if change == "removed":
        world.ok(c.Remove(session, (b"file",)))
    else:
        world.put(session, "file", 5)
    assert not await cluster.hits.hit(ann, ids_of(2 * MIB, 1)[0], OWNERS, 2)
    assert await cluster.hits.hit(ann, ids_of(2 * MIB, 2)[0], OWNERS, 2)


async def test_an_upload_knows_what_was_published_before_it_began_through_whichever_node(cluster: Cluster) -> None:
    session = cluster.world.login("ann")
    for seed in range(1, 6):
        cluster.world.put(session, f"file{seed}", 2 * MIB, seed=seed)
        cluster.everywhere(ids_of(2 * MIB, seed))
        ann = await begun(cluster, "ann")
        for known in range(1, seed + 1):
            assert await cluster.hits.hit(ann, ids_of(2 * MIB, known)[1], OWNERS, 2)


# --- what is a hit -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("holders", "down", "is_hit"), [
    ("abc", "", True), ("ab", "", True), ("bc", "", False), ("a", "", False), ("abc", "c", True), ("abc", "bc", False),
    ("abc", "a", True), ("ab", "a", False)])
async def test_only_a_write_quorum_of_owners_that_say_so_is_a_hit(
        cluster: Cluster, holders: str, down: str, is_hit: bool) -> None:
    cluster.world.put(cluster.world.login("ann"), "file", MIB)
    (chunk_id,) = ids_of(MIB, 1)
    for member in holders:
        cluster.held[member].add(chunk_id)
    cluster.down = set(down)
    assert await cluster.hits.hit(await begun(cluster, "ann"), chunk_id, OWNERS, 2) is is_hit


async def test_a_hit_waits_for_a_sync_here_and_for_as_many_answers_as_bytes_would(
        cluster: Cluster, nursery: trio.Nursery) -> None:
    cluster.world.put(cluster.world.login("ann"), "file", MIB)
    (chunk_id,) = ids_of(MIB, 1)
    cluster.everywhere([chunk_id])
    cluster.gates = {"b": trio.Event(), "c": trio.Event()}
    ann, answers = await begun(cluster, "ann"), list[bool]()

    async def ask() -> None:
        answers.append(await cluster.hits.hit(ann, chunk_id, OWNERS, 2))

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [] and sorted(cluster.log) == ["a synced", "b asked", "c asked"]
    cluster.gates["c"].set()
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [True], "the slowest owner is not waited for"


async def test_who_is_asked_touches_and_says_what_it_holds(cluster: Cluster) -> None:
    ids = ids_of(3 * MIB, 1)
    cluster.held["a"] = {ids[0], ids[2]}
    assert await cluster.answer("b", {"ids": ids}) == [True, False, True]  # type: ignore[attr-defined]
    assert cluster.log == ["a synced"] * 2
    assert await cluster.answer("b", {"ids": ids[1:2]}) == [False]  # type: ignore[attr-defined]
    cluster.down = {"a"}
    with pytest.raises(RaftmftError, match="the disk failed"):
        await cluster.answer("b", {"ids": ids})  # type: ignore[attr-defined]
    for wrong in (None, [b"short"], [ids[0]] * (MOST_IDS + 1), ["x" * 32]):
        with pytest.raises(ValueError, match="chunk ids"):
            await cluster.answer("b", {"ids": wrong})  # type: ignore[attr-defined]


async def test_an_offer_counts_under_its_placement_and_less_than_the_full_quorum_is_asked_again(
        cluster: Cluster) -> None:
    quorum, epoch = 2, 7
    coverage = SimpleNamespace(epoch=lambda: epoch)
    chunks = Chunks("a", None, None, None, None, lambda: [(o, 1) for o in OWNERS], lambda: 3, coverage,  # type: ignore[arg-type]
                    lambda: quorum, cluster.hits)
    cluster.world.put(cluster.world.login("ann"), "file", MIB)
    (chunk_id,) = ids_of(MIB, 1)
    cluster.held["a"].add(chunk_id)
    number = cluster.world.begin(cluster.world.login("ann"), "upload")["upload"]
    worker: Any = object()
    chunks.begin(number, worker, 9)
    args = {"upload": number, "id": chunk_id}
    assert await chunks.offer(worker, args) == {"held": False}
    cluster.held["b"].add(chunk_id)
    assert await chunks.offer(worker, args) == {"held": True}
    assert chunks._uploads[number].oldest == 7
    chunks.check_all_held(number)
    cluster.down, quorum = {"b", "c"}, 1
    assert await chunks.offer(worker, args) == {"held": True}
    assert chunks._uploads[number].oldest == 0, "those who are away may be back when it is published"
    with pytest.raises(RaftmftError, match="has ended"):
        await chunks.offer(object(), args)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bytes"):
        await chunks.offer(worker, {"upload": number, "id": b"x"})


# --- the sets ----------------------------------------------------------------------------------------------------
def homes_of(world: World, nursery: trio.Nursery, cluster: Cluster, **bounds: int) -> Homes:
    return Homes(lambda: world.machine.references, world.machine.path, cluster.read_index, **bounds)


async def test_large_files_are_known_by_their_index_chunks_and_a_lost_one_only_costs_room(
        state: World, cluster: Cluster, nursery: trio.Nursery) -> None:
    rows = [i.to_bytes(32, "little") for i in range(1, IDS_PER_INDEX + 3 * SLICE)]
    contents = [b"".join(rows[:IDS_PER_INDEX]), b"".join(rows[IDS_PER_INDEX:])]
    indexes = [b"i" * 32, b"j" * 32]
    session = state.login("ann")
    begun_at = state.begin(session, "large")
    state.ok(c.Publish(session, begun_at["upload"], Manifest(len(rows) * MIB, 1, b"".join(indexes)),
                       state.placement, "", c.Attrs()))
    cluster.indexes[indexes[1]] = contents[1]
    homes = homes_of(state, nursery, cluster)
    await nursery.start(homes.run)
    await homes.refresh(uid(state, "ann"))
    known = [homes.refers(uid(state, "ann"), row) for row in rows]
    assert known == [False] * IDS_PER_INDEX + [True] * (len(rows) - IDS_PER_INDEX)
    assert not homes.refers(uid(state, "ann"), b"z" * 32) and not homes.refers(uid(state, "bob"), rows[-1])


async def test_a_sparse_file_takes_a_few_entries_of_its_homes_set(
        state: World, cluster: Cluster, nursery: trio.Nursery) -> None:
    hole, last = b"h" * 32, b"l" * 32
    contents = {b"i" * 32: hole * IDS_PER_INDEX, b"j" * 32: hole * (IDS_PER_INDEX - 1) + last}
    cluster.indexes |= contents
    session = state.login("ann")
    upload = state.begin(session, "sparse")["upload"]
    state.ok(c.Publish(session, upload, Manifest(32 * IDS_PER_INDEX * MIB, 1, b"i" * 32 * 31 + b"j" * 32),
                       state.placement, "", c.Attrs()))
    homes = homes_of(state, nursery, cluster)
    await nursery.start(homes.run)
    await homes.refresh(uid(state, "ann"))
    assert homes.refers(uid(state, "ann"), hole) and homes.refers(uid(state, "ann"), last) and homes.chunks == 3


async def test_memory_is_bounded_and_the_latest_files_are_known(
        state: World, cluster: Cluster, nursery: trio.Nursery) -> None:
    homes = homes_of(state, nursery, cluster, home_chunks=40, most_chunks=60)
    await nursery.start(homes.run)
    for user in ("ann", "bob"):
        session = state.login(user)
        for seed in range(1, 21):
            state.put(session, f"file{seed}", 4 * MIB, seed=seed)
            await homes.refresh(uid(state, user))
            assert homes.refers(uid(state, user), ids_of(4 * MIB, seed)[3])
            assert homes.chunks <= 60
    assert not homes.refers(uid(state, "bob"), ids_of(4 * MIB, 1)[0])
    assert not homes.refers(uid(state, "ann"), ids_of(4 * MIB, 20)[0]), "the home that was used last has the room"


async def test_files_of_a_single_home_that_is_too_large_are_known_in_part(
        state: World, cluster: Cluster, nursery: trio.Nursery) -> None:
    state.put(state.login("ann"), "file", 60 * MIB)
    homes = homes_of(state, nursery, cluster, home_chunks=16, most_chunks=32)
    await nursery.start(homes.run)
    await homes.refresh(uid(state, "ann"))
    assert homes.chunks == 60, "of one version no less than a slice is read"


async def test_an_upload_waits_for_its_set_and_others_share_the_reading(
        state: World, cluster: Cluster, nursery: trio.Nursery, mock_clock: Any) -> None:
    session = state.login("ann")
    upload = state.begin(session, "large")["upload"]
    state.ok(c.Publish(session, upload, Manifest(65 * MIB, 1, b"i" * 32), state.placement, "", c.Attrs()))
    reads, gate = [], trio.Event()

    async def read(index_id: bytes) -> bytes:
        reads.append(index_id)
        await gate.wait()
        return b"".join(ids_of(64 * MIB, 3)) + b"x" * 32

    homes = Homes(lambda: state.machine.references, state.machine.path, read)
    await nursery.start(homes.run)
    async with trio.open_nursery() as both:
        for _ in range(2):
            both.start_soon(homes.refresh, uid(state, "ann"))
        while not reads:
            await trio.lowlevel.checkpoint()  # a thread is at work
        await trio.testing.wait_all_tasks_blocked()
        assert len(both.child_tasks) == 2
        mock_clock.jump(LOAD_LIMIT_S)
    assert reads == [b"i" * 32]
    assert not homes.refers(uid(state, "ann"), b"x" * 32)
    gate.set()
    await homes.refresh(uid(state, "ann"))
    assert homes.refers(uid(state, "ann"), b"x" * 32) and reads == [b"i" * 32]


async def test_manifests_are_read_in_pages_and_small_files_left_out(
        state: World, cluster: Cluster, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftmft.node.homes.PAGE", 3)
    session = state.login("ann")
    for seed in range(1, 9):
        state.put(session, f"file{seed}", LEAST_OFFERED + 2 * MIB, seed=seed)
        state.put(session, f"small{seed}", LEAST_OFFERED - 1, seed=100 + seed)
        state.put(session, f"empty{seed}", 0)
    homes = homes_of(state, nursery, cluster)
    await nursery.start(homes.run)
    ann = uid(state, "ann")
    await homes.refresh(ann)
    for seed in range(1, 9):
        assert all(homes.refers(ann, found) for found in ids_of(LEAST_OFFERED + 2 * MIB, seed))
        assert not homes.refers(ann, ids_of(LEAST_OFFERED - 1, 100 + seed)[0])
    assert len(homes._homes[ann].files) == 8 and homes.chunks == 24
