"""Durable means synced after the append, whoever appended; one sync serves all that wait."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing
from blake3 import blake3
from peer_nodes import MemoryStorage, until

from raftmft.cluster.holdings import INLINE_BYTES, ChunkDamaged, Holdings
from raftmft.core.errors import RaftmftError


def chunk(seed: int, size: int = 1000) -> tuple[bytes, bytes]:
    data = seed.to_bytes(4, "big") * (size // 4)
    return blake3(data).digest(), data


async def test_put_returns_only_once_a_power_cut_would_spare_the_chunk(nursery):
    storage = MemoryStorage()
    holdings = Holdings(storage)
    await nursery.start(holdings.run)
    for seed, size in ((1, 100), (2, INLINE_BYTES * 2)):
        chunk_id, data = chunk(seed, size)
        await holdings.put(chunk_id, data)
        assert chunk_id in storage.survivors()
        assert await holdings.read(chunk_id) == data
    syncs = storage.syncs
    await holdings.put(*chunk(1, 100))  # held and durable: no further sync
    assert storage.syncs == syncs


async def test_a_hit_on_a_workers_unsynced_append_waits_for_a_sync_of_its_segment(nursery):
    storage = MemoryStorage()
    holdings = Holdings(storage)
    await nursery.start(holdings.run)
    chunk_id, data = chunk(1)
    storage.append(chunk_id, data, segment="worker-1")
    assert chunk_id not in storage.survivors()
    await holdings.put(chunk_id, data)
    assert chunk_id in storage.survivors() and len(storage.chunks) == 1


async def test_a_touch_is_answered_after_a_sync_that_began_later_even_if_the_chunk_is_durable(nursery):
    storage, gate = MemoryStorage(), threading.Semaphore(1)
    storage.before_sync = lambda: gate.acquire(timeout=5)
    holdings = Holdings(storage)
    await nursery.start(holdings.run)
    chunk_id, data = chunk(1)
    await holdings.put(chunk_id, data)
    answers = []
    assert not holdings.touch(b"n" * 32, answers.append)
    assert holdings.touch(chunk_id, answers.append)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [] and storage.syncs == 1
    gate.release()
    await until(lambda: answers == [""])
    assert storage.syncs == 2 and len(storage.chunks) == 1


async def test_what_is_put_again_on_purpose_is_appended_again(nursery):
    storage = MemoryStorage()
    holdings = Holdings(storage)
    await nursery.start(holdings.run)
    for size in (100, INLINE_BYTES * 2):
        chunk_id, data = chunk(1, size)
        first = await holdings.add(chunk_id, data)
        assert await holdings.add(chunk_id, data) == first
        assert (await holdings.add(chunk_id, data, again=True)).offset == first.offset + size


async def test_one_sync_at_a_time_and_all_that_wait_share_the_next(nursery):
    storage, gate = MemoryStorage(), threading.Semaphore(0)
    storage.before_sync = lambda: gate.acquire(timeout=5)
    holdings = Holdings(storage)
    await nursery.start(holdings.run)
    done = []

    async def put(seed):
        await holdings.put(*chunk(seed))
        done.append(seed)

    nursery.start_soon(put, 0)
    await until(lambda: storage.chunks)
    await trio.testing.wait_all_tasks_blocked()
    for seed in range(1, 20):
        nursery.start_soon(put, seed)
    await until(lambda: len(storage.chunks) == 20)
    assert done == []
    gate.release()
    await until(lambda: done == [0])  # what came during the first sync is not covered by it
    gate.release()
    await until(lambda: len(done) == 20)
    assert storage.syncs == 2


async def test_a_wrong_hash_is_never_stored(nursery):
    storage = MemoryStorage()
    holdings = Holdings(storage)
    for size in (1000, INLINE_BYTES * 2):
        with pytest.raises(ChunkDamaged):
            await holdings.add(b"i" * 32, bytes(size))
    assert not storage.chunks


async def test_a_failed_sync_fails_all_that_wait_and_stops_the_node():
    storage = MemoryStorage()
    storage.before_sync = lambda: (_ for _ in ()).throw(OSError(5, "I/O error"))
    holdings = Holdings(storage)
    refused = []

    async def put(seed):
        with pytest.raises(RaftmftError, match="nothing was promised"):
            await holdings.put(*chunk(seed))
        refused.append(seed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, 1)
        nursery.start_soon(put, 2)
        await until(lambda: len(storage.chunks) == 2)
        with pytest.raises(OSError, match="I/O error"):
            await holdings.run()
    assert len(refused) == 2
    with pytest.raises(RaftmftError):
        await holdings.put(*chunk(3))
    assert not storage.survivors()


async def test_a_damaged_copy_is_forgotten_and_never_given(nursery):
    storage = MemoryStorage()
    holdings = Holdings(storage)
    await nursery.start(holdings.run)
    chunk_id, data = chunk(1)
    await holdings.put(chunk_id, data)
    storage.damage(chunk_id)
    with pytest.raises(ChunkDamaged):
        await holdings.read(chunk_id)
    assert holdings.find(chunk_id) is None and await holdings.read(chunk_id) is None
    assert holdings.damaged == 1
