"""A member that was away comes to hold what it should; the marker never says more than what is durably held."""

from __future__ import annotations

import os

import pytest
import trio
from blake3 import blake3
from peer_nodes import MemoryStorage, until

from raftmft.cluster import repairer as repairer_module
from raftmft.cluster.fetcher import Fetcher
from raftmft.cluster.holdings import Holdings
from raftmft.cluster.repairer import Marker, Repairer
from raftmft.core.manifest import CHUNK_SIZE, Manifest


class World:
    """The published files of a cluster, one other member that holds their chunks, and this member."""

    def __init__(self, folder, **times) -> None:
        self.remote: dict[bytes, bytes] = {}
        self.published: list[tuple[int, int, Manifest]] = []
        self.applied = 0
        self.placement = 1
        self.asked: list[bytes] = []
        self.owned = lambda chunk_id: True
        self.storage = MemoryStorage()
        self.holdings = Holdings(self.storage)
        self.fetcher = Fetcher("n1", self.get, self.holdings, lambda m: True, lambda i: ("n2", "n1"))
        self.path = folder / "held"
        self.times = {"settle_s": 0.0, "period_s": 0.02, "retry_s": 0.02, **times}
        self.repairer = self.make()

    def make(self) -> Repairer:
        return Repairer(self.since, lambda i: self.owned(i), lambda: self.applied, self.holdings, self.fetcher,
                        self.path, placement=lambda: self.placement, **self.times)

    def since(self, index: int, limit: int):
        return [found for found in self.published if found[0] > index][:limit]

    async def get(self, member: str, chunk_id: bytes):
        self.asked.append(chunk_id)
        await trio.lowlevel.checkpoint()
        data = self.remote.get(chunk_id)
        return data and bytearray(data)

    def add(self, data: bytes) -> bytes:
        chunk_id = blake3(data).digest()
        self.remote[chunk_id] = data
        return chunk_id

    def publish(self, manifest: Manifest) -> int:
        self.applied += 1
        self.published.append((self.applied, self.applied * 100, manifest))
        return self.applied

    def publish_small(self, count: int = 1) -> list[bytes]:
        ids = [self.add(os.urandom(50)) for _ in range(count)]
        self.publish(Manifest(CHUNK_SIZE * count, 0, b"".join(ids)))
        return ids

    def publish_large(self, count: int) -> tuple[list[bytes], bytes]:
        ids = [self.add(os.urandom(40)) for _ in range(count)]
        index_id = self.add(b"".join(ids))
        self.publish(Manifest(CHUNK_SIZE * count, 1, index_id))
        return ids, index_id


@pytest.fixture
async def world(tmp_path, nursery):
    world = World(tmp_path)
    await nursery.start(world.holdings.run)
    return world


async def test_all_that_was_published_comes_to_be_held_durably_before_the_marker_says_so(world):
    ids = [i for _ in range(200) for i in world.publish_small(2)]
    moved = []
    move = world.repairer._marker.move

    def checked(index, placement):
        covered = {i for at, _, manifest in world.published if at <= index for i in manifest.id_list()}
        assert covered <= world.storage.survivors()
        moved.append(index)
        move(index, placement)

    world.repairer._marker.move = checked
    await world.repairer.look(world.applied)
    assert set(ids) == world.storage.survivors() and moved == [200]
    assert world.repairer.held_through == 200 and Marker(world.path).index == 200
    assert world.repairer.missing == 0 and world.repairer.repaired == 400


async def test_what_is_held_but_not_synced_is_synced_before_the_marker_moves(world):
    [chunk_id] = world.publish_small()
    world.storage.append(chunk_id, world.remote[chunk_id], segment="worker-3")
    await world.repairer.look(world.applied)
    assert chunk_id in world.storage.survivors() and world.repairer.held_through == 1 and not world.asked


async def test_only_own_data_chunks_but_every_index_chunk(world):
    ids, index_id = world.publish_large(100)
    world.owned = lambda chunk_id: chunk_id != index_id and chunk_id[0] < 128
    await world.repairer.look(world.applied)
    assert world.storage.survivors() == {i for i in ids if i[0] < 128} | {index_id}
    assert world.asked[0] == index_id


async def test_a_checkpoints_last_chunks_stand_beside_its_index_chunks(world):
    ids = [world.add(os.urandom(40)) for _ in range(67)]
    index_id = world.add(b"".join(ids[:64]))
    world.publish(Manifest(CHUNK_SIZE * 67, 2, index_id + b"".join(ids[64:])))
    world.owned = lambda chunk_id: chunk_id not in (ids[3], ids[65])
    await world.repairer.look(world.applied)
    assert world.storage.survivors() == {*ids, index_id} - {ids[3], ids[65]} and world.repairer.missing == 0


async def test_an_index_chunk_is_looked_through_again_only_if_what_it_names_may_be_missing(world, monkeypatch):
    ids, index_id = world.publish_large(600)
    looked = []
    find = world.holdings.find
    monkeypatch.setattr(world.holdings, "find", lambda chunk_id: looked.append(chunk_id) or find(chunk_id))

    async def looks():
        looked.clear()
        world.publish(Manifest(CHUNK_SIZE * 600, 1, index_id))
        await world.repairer.look(world.applied)
        assert world.repairer.held_through == world.applied and index_id in looked
        return set(ids) <= set(looked)

    lost = world.remote.pop(ids[500])
    assert await looks_before_it_is_whole(world, looked, ids)
    world.remote[ids[500]] = lost
    assert [await looks() for _ in range(3)] == [True, False, False]
    world.repairer.damaged(ids[7])
    assert [await looks() for _ in range(2)] == [True, False]
    world.holdings.damaged += 1
    assert [await looks() for _ in range(2)] == [True, False]
    world.placement += 1
    assert [await looks() for _ in range(2)] == [True, False]


async def looks_before_it_is_whole(world, looked, ids):
    for _ in range(2):
        looked.clear()
        await world.repairer.look(world.applied)
        assert world.repairer.missing
    return set(ids) <= set(looked)


async def test_a_lost_chunk_holds_back_the_marker_but_not_the_rest(world):
    world.publish_small()
    [lost] = world.publish_small()
    later = [world.publish_small()[0] for _ in range(100)]
    data = world.remote.pop(lost)
    await world.repairer.look(world.applied)
    assert set(later) <= world.storage.survivors()
    assert (world.repairer.missing, world.repairer.held_through) == (1, 1)
    world.asked.clear()
    await world.repairer.look(world.applied)
    assert world.asked == [lost]  # what is held is not walked again
    world.remote[lost] = data
    await world.repairer.look(world.applied)
    assert (world.repairer.missing, world.repairer.held_through) == (0, 102)


async def test_a_lost_index_chunk_is_owed_until_it_and_its_chunks_are_held(world):
    ids, index_id = world.publish_large(5)
    content, last = world.remote.pop(index_id), world.remote.pop(ids[-1])
    await world.repairer.look(world.applied)
    assert world.repairer.held_through == 0 and world.repairer.missing == 1
    world.remote[index_id] = content
    await world.repairer.look(world.applied)
    assert world.repairer.held_through == 0 and world.repairer.missing == 1
    world.remote[ids[-1]] = last
    await world.repairer.look(world.applied)
    assert world.repairer.held_through == 1 and world.repairer.missing == 0


async def test_a_file_removed_while_its_chunk_is_missing_is_owed_no_longer(world):
    [lost] = world.publish_small()
    del world.remote[lost]
    world.publish_small()
    await world.repairer.look(world.applied)
    assert world.repairer.missing == 1
    del world.published[0]
    await world.repairer.look(world.applied)
    assert world.repairer.missing == 0 and world.repairer.held_through == 2


async def test_a_restart_goes_on_from_the_marker_and_a_new_placement_starts_over(world):
    first = world.publish_small(3)
    world.owned = lambda chunk_id: chunk_id != first[0]
    await world.repairer.look(world.applied)
    assert first[0] not in world.storage.survivors() and world.repairer.held_through == 1
    again = world.make()
    assert again.held_through == 1
    world.asked.clear()
    await again.look(world.applied)
    assert world.asked == []
    world.owned, world.placement = (lambda chunk_id: True), 2
    again = world.make()
    await again.look(world.applied)
    assert set(first) == world.storage.survivors() and Marker(world.path).placement == 2


async def test_what_was_applied_just_now_is_left_to_the_copies_on_their_way(world):
    world.publish_small()
    late = world.publish_small()
    await world.repairer.look(1)
    assert late[0] not in world.asked and world.repairer.held_through == 1


async def test_owed_manifests_are_bounded(world, monkeypatch):
    monkeypatch.setattr(repairer_module, "OWED_MAX", 10)
    lost = {world.publish_small()[0] for _ in range(200)}
    kept = {i: world.remote.pop(i) for i in lost}
    await world.repairer.look(world.applied)
    assert 10 <= world.repairer.missing <= 10 + repairer_module.PAGE
    world.remote.update(kept)
    await world.repairer.look(world.applied)
    assert world.storage.survivors() == lost and world.repairer.held_through == 200


async def test_it_runs_by_itself_and_when_kicked(tmp_path, nursery):
    world = World(tmp_path, period_s=3600.0)
    await nursery.start(world.holdings.run)
    first = world.publish_small()
    await nursery.start(world.repairer.run)
    await until(lambda: set(first) <= world.storage.survivors())
    await until(lambda: world.repairer.caught_up)
    second = world.publish_small()
    world.repairer.kick()
    await until(lambda: set(second) <= world.storage.survivors())
    await until(lambda: world.repairer.held_through == 2)


async def test_what_is_missing_is_tried_again_without_being_asked(tmp_path, nursery):
    world = World(tmp_path, period_s=3600.0)
    await nursery.start(world.holdings.run)
    [lost] = world.publish_small()
    data = world.remote.pop(lost)
    await nursery.start(world.repairer.run)
    await until(lambda: world.repairer.missing == 1)
    world.remote[lost] = data
    await until(lambda: world.repairer.missing == 0)


async def test_what_two_passes_did_not_find_is_given_up_until_somebody_has_it(world):
    [lost] = world.publish_small()
    data = world.remote.pop(lost)
    await world.repairer.look(world.applied)
    assert (world.repairer.missing, world.repairer.given_up) == (1, 0), "one pass may have come too early"
    await world.repairer.look(world.applied)
    assert (world.repairer.missing, world.repairer.given_up) == (1, 1)
    world.remote[lost] = data
    await world.repairer.look(world.applied)
    assert (world.repairer.missing, world.repairer.given_up) == (0, 0)


async def test_a_damaged_copy_is_replaced(world):
    [chunk_id] = world.publish_small()
    await world.repairer.look(world.applied)
    world.storage.damage(chunk_id)
    world.holdings.drop(chunk_id, world.storage.find(chunk_id))
    data = world.remote.pop(chunk_id)
    world.repairer.damaged(chunk_id)
    assert world.repairer.missing == 1
    assert not await world.repairer.repair(chunk_id)
    assert world.repairer.missing == 1
    world.remote[chunk_id] = data
    await world.repairer.look(world.applied)
    assert world.repairer.missing == 0
    assert await world.holdings.read(chunk_id) == data and chunk_id in world.storage.survivors()


async def test_a_full_disk_holds_back_the_marker(world):
    world.storage.before_append = lambda: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    world.publish_small(3)
    await world.repairer.look(world.applied)
    assert world.repairer.held_through == 0 and world.repairer.missing == 3


@pytest.mark.parametrize("damage", [b"", b"junk", b"RMFTHELD" + b"\0" * 22, None])
def test_a_damaged_marker_costs_a_walk_and_nothing_else(tmp_path, damage):
    path = tmp_path / "held"
    Marker(path).move(77, 3)
    assert (Marker(path).index, Marker(path).placement) == (77, 3)
    path.write_bytes(path.read_bytes()[:-1] + b"!" if damage is None else damage)
    assert (Marker(path).index, Marker(path).placement) == (0, 0)


async def test_what_is_being_fetched_counts_as_lacking_and_not_as_missing(world, nursery):
    ids, _ = world.publish_large(9)
    real, go, seen = world.get, trio.Event(), []

    async def get(member, chunk_id):
        seen.append((world.repairer.lacking, world.repairer.missing))
        if len(seen) > 1:
            await go.wait()
        return await real(member, chunk_id)

    world.fetcher._get_from = get
    nursery.start_soon(world.repairer.look, world.applied)
    await until(lambda: len(seen) > 1)
    assert (world.repairer.lacking, world.repairer.missing) == (9, 0)
    go.set()
    await until(lambda: set(ids) <= world.storage.survivors())
    await until(lambda: world.repairer.held_through == 1)
    assert world.repairer.lacking == 0
