"""Chunks between members: an acknowledgement means a synced copy; stand-ins, refusals, kills, damage, bounds."""

from __future__ import annotations

import os
import pickle
import threading

import msgpack
import pytest
import trio
import trio.testing
from blake3 import blake3
from peer_nodes import SegmentStorage, cluster_of, until

from raftmft.cluster import bulk, hello, links, replicator
from raftmft.cluster.bulk import ByteBudget, PutRefused
from raftmft.cluster.fetcher import ChunkUnavailable
from raftmft.cluster.hello import PeerUnreachable
from raftmft.cluster.replicator import UNREACHABLE_DEADLINE_S, Alone, NotEnoughHolders
from raftmft.wire import peer

MIB = 1 << 20


def chunk(size: int = MIB) -> tuple[bytes, bytes]:
    data = os.urandom(size)
    return blake3(data).digest(), data


async def put(node, data: bytes, owners=("n1", "n2", "n3"), need: int = 1) -> tuple[str, ...]:
    return await node.replicator.put(blake3(data).digest(), lambda: data, owners, need)


async def test_a_put_leaves_need_durable_copies_and_the_rest_follow(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n2, n3 = cluster.nodes.values()
        chunks = [chunk(size) for size in (1, 17, 4096, 65_536, 65_537, MIB, peer.BULK_BODY_LIMIT)]
        for chunk_id, data in chunks:
            held_by = await put(n1, data)
            assert held_by and all(chunk_id in cluster.nodes[m].storage.survivors() for m in held_by)
        for chunk_id, data in chunks:
            await until(lambda i=chunk_id: i in n2.storage.survivors() and i in n3.storage.survivors())
            assert n2.storage.chunks[chunk_id][1] == data
        assert not n1.storage.chunks
        await until(lambda: n1.pool.in_flight_bytes("n2") == n1.pool.in_flight_bytes("n3") == 0)


async def test_many_puts_at_once_share_syncs(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        n2.storage.before_sync = lambda: gate.wait(5)
        chunks = [chunk(2000) for _ in range(300)]
        async with trio.open_nursery() as nursery:
            for _, data in chunks:
                nursery.start_soon(put, n1, data)
            await until(lambda: len(n2.storage.chunks) == 300)
            gate.set()
        assert {i for i, _ in chunks} == n2.storage.survivors()
        assert n2.storage.syncs == 2


async def test_no_acknowledgement_before_the_sync(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        n2.storage.before_sync = lambda: gate.wait(5)
        done = []
        chunk_id, data = chunk()

        async def one():
            await put(n1, data)
            assert chunk_id in n2.storage.survivors()
            done.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await until(lambda: chunk_id in n2.storage.chunks)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not done
            # A second put of the same chunk is a hit, and must not be acknowledged either.
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not done and len(n2.storage.chunks) == 1
            gate.set()
        assert len(done) == 2


async def test_a_dead_owner_has_a_stand_in_and_does_not_delay(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3", "n4") as cluster:
        n1 = cluster.nodes["n1"]
        await cluster.nodes["n2"].kill()
        await until(lambda: "n2" not in n1.links.connected())
        chunk_id, data = chunk()
        with trio.fail_after(1):
            assert set(await put(n1, data, need=2)) == {"n3", "n4"}
        assert n1.replicator.counts["stood_in"] == 1
        assert chunk_id in cluster.nodes["n4"].storage.survivors()


async def test_an_owner_killed_in_the_middle_of_a_put_has_a_stand_in(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, "n1", "n2", "n3", "n4") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        n2.storage.before_sync = lambda: gate.wait(5)
        chunk_id, data = chunk()
        result = []

        async def one():
            result.extend(await put(n1, data, need=2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await until(lambda: chunk_id in n2.storage.chunks)
            assert not result
            n2.scope.cancel()
            await until(lambda: result)
            assert set(result) == {"n3", "n4"} and chunk_id not in n2.storage.survivors()
            gate.set()


async def test_a_stalled_owner_gets_a_stand_in_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "STALL_S", 0.2)
    gate = threading.Event()
    async with cluster_of(tmp_path, "n1", "n2", "n3", "n4") as cluster:
        cluster.nodes["n2"].storage.before_sync = lambda: gate.wait(5)
        chunk_id, data = chunk()
        assert set(await put(cluster.nodes["n1"], data, need=2)) == {"n3", "n4"}
        gate.set()
        await until(lambda: chunk_id in cluster.nodes["n2"].storage.survivors())


async def test_without_enough_members_it_says_no_quorum_in_time(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        _, data = chunk()
        with trio.fail_after(5), pytest.raises(NotEnoughHolders, match="no quorum: 1 of 2"):
            await put(n1, data, need=2)
        assert await put(n1, data, owners=("n1",), need=0) == ()


async def test_a_member_that_comes_back_in_time_is_used(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1 = cluster.nodes["n1"]
        alive = False
        n1.replicator._alive = n1.replicator._reachable = lambda member: alive
        _, data = chunk()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, n1, data)
            await trio.testing.wait_all_tasks_blocked(0.05)
            alive = True
        assert len(cluster.nodes["n2"].storage.chunks) == 1


async def test_bulk_connections_that_come_up_late_are_waited_for_while_the_member_talks(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "UNREACHABLE_DEADLINE_S", 0.2)
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, tried = cluster.nodes["n1"], []

        async def too_busy(member):
            tried.append(member)
            if len(tried) <= 8:  # each failure is followed by a pause of 0.25 s at least
                raise PeerUnreachable(f"{member} did not answer in 2 s")
            return await n1.dial_bulk(member)

        n1.pool._dial = too_busy
        assert await put(n1, chunk()[1])
        assert len(tried) > 8


async def test_members_that_gossip_holds_for_suspect_are_waited_for_while_they_talk(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "UNREACHABLE_DEADLINE_S", 0.2)
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, looks = cluster.nodes["n1"], []
        n1.replicator._alive = lambda member: looks.append(member) or len(looks) > 10
        assert await put(n1, chunk()[1], owners=("n1", "n2")) == ("n2",)


async def test_silent_members_are_no_quorum_though_their_links_are_still_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "UNREACHABLE_DEADLINE_S", 0.2)
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        n2.storage.before_append = lambda: pytest.fail("it is never reached")
        link = n1.links._links["n2"]
        assert n1.links.hears("n2")
        link.heard_at -= links.HEARD_WITHIN_S
        assert not n1.links.hears("n2") and "n2" in n1.links.connected()
        await until(lambda: n1.links.hears("n2"))  # its next ping
        n1.replicator._reachable = n1.replicator._alive = lambda member: False
        with trio.fail_after(5), pytest.raises(NotEnoughHolders, match="no quorum: 0 of 1"):
            await put(n1, chunk()[1])


def test_a_pause_of_ones_own_is_not_the_silence_of_others():
    alone = Alone(100.0)
    assert alone.look(100.25, True) == 0.25
    assert alone.look(160.0, True) == 0.25 + replicator.LOOK_MAX_S < UNREACHABLE_DEADLINE_S
    assert alone.look(160.1, False) == 0
    assert alone.look(160.2, True) == pytest.approx(0.1)


async def test_a_full_disk_refuses_with_its_reason_and_another_holds_the_chunk(tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n2, n3 = cluster.nodes.values()
        n2.storage.before_append = full
        chunk_id, data = chunk()
        with pytest.raises(PutRefused, match="No space left"):
            await n1.pool.put("n2", chunk_id, data)
        assert await put(n1, data) == ("n3",)
        n3.storage.before_append = full
        monkeypatch.setattr(replicator, "PUT_DEADLINE_S", 0.5)
        with pytest.raises(NotEnoughHolders, match="check their disks.*No space left"):
            await put(n1, os.urandom(100))


async def test_damaged_bytes_are_refused_by_the_receiver(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        for size in (100, MIB):
            chunk_id, data = chunk(size)
            with pytest.raises(PutRefused, match="does not|do not have its hash"):
                await n1.pool.put("n2", chunk_id, data[:-1] + bytes([data[-1] ^ 1]))
        assert not n2.storage.chunks
        await n1.pool.put("n2", chunk_id, data)  # the connection serves on


async def test_the_background_is_bounded_and_leaves_the_rest_to_repair(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "BACKGROUND_MAX_BYTES", 4 * MIB)
    monkeypatch.setattr(bulk, "IN_FLIGHT_MAX_BYTES", 3 * MIB)
    gate = threading.Event()
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n3 = cluster.nodes["n1"], cluster.nodes["n3"]
        n3.storage.before_sync = lambda: gate.wait(10)
        for _ in range(12):
            assert await put(n1, chunk()[1]) == ("n2",)
            assert n1.pool.in_flight_bytes("n3") <= 3 * MIB
            assert n1.replicator._background["n3"] <= 5 * MIB
        assert n1.replicator.counts["left_to_repair"] >= 6
        gate.set()
        await until(lambda: n1.replicator._background["n3"] == 0)
        assert 2 <= len(n3.storage.survivors()) <= 6 and len(cluster.nodes["n2"].storage.chunks) == 12


async def test_a_cancelled_put_breaks_nobody_elses(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1 = cluster.nodes["n1"]
        for _ in range(10):
            with trio.move_on_after(0.001):
                await n1.pool.put("n2", *chunk())
            await n1.pool.put("n2", *chunk(1000))
        await until(lambda: n1.pool.in_flight_bytes("n2") == 0)
        assert sum(1 for _ in n1.pool._peers["n2"].connections) <= bulk.CONNECTIONS_PER_PEER


async def test_a_peers_death_fails_all_under_way_and_returns_their_budget(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        n2.storage.before_sync = lambda: gate.wait(5)
        failed = []

        async def one():
            with pytest.raises(PeerUnreachable):
                await n1.pool.put("n2", *chunk())
            failed.append(True)

        async with trio.open_nursery() as nursery:
            for _ in range(50):  # more than may be in flight
                nursery.start_soon(one)
            await until(lambda: n2.storage.chunks)
            n1.pool.cut_off("n2")
            n2.scope.cancel()
            await until(lambda: len(failed) == 50)
            gate.set()
        assert n1.pool.in_flight_bytes("n2") == 0


async def test_fetch_asks_in_order_until_somebody_has_it_whole(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3", "n4") as cluster:
        n1, n2, n3, n4 = cluster.nodes.values()
        chunk_id, data = chunk()
        with pytest.raises(ChunkUnavailable, match="none of 3"):
            await n1.fetcher.fetch(chunk_id)
        n3.storage.append(chunk_id, data)
        n3.storage.damage(chunk_id)
        n4.storage.append(chunk_id, data)
        await n1.fetcher.fetch(chunk_id)
        assert await n1.fetcher.read(chunk_id) == data == n1.storage.chunks[chunk_id][1]
        assert n3.damaged == [("n3", chunk_id)] and n3.holdings.find(chunk_id) is None


async def test_wrong_bytes_from_a_holder_count_as_none_and_are_reported(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n2, n3 = cluster.nodes.values()
        chunk_id, data = chunk()
        n2.storage.read = lambda place, i: b"lies"
        n2.storage.append(chunk_id, data)
        n3.storage.append(chunk_id, data)
        await n1.fetcher.fetch(chunk_id)
        assert n1.storage.chunks[chunk_id][1] == data and n1.damaged == [("n2", chunk_id)]
        lost, lost_data = chunk()
        n2.storage.append(lost, lost_data)
        with pytest.raises(ChunkUnavailable):
            await n1.fetcher.fetch(lost)
        assert lost not in n1.storage.chunks


async def test_fetches_of_one_chunk_share_one_transfer(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        chunk_id, data = chunk()
        n2.storage.append(chunk_id, data)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(n1.fetcher.fetch, chunk_id)
            nursery.start_soon(n1.fetcher.fetch, chunk_id)
        assert n2.server.counts["served"] == 1
        failed = []

        async def lost():
            with pytest.raises(ChunkUnavailable):
                await n1.fetcher.fetch(b"l" * 32)
            failed.append(1)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(lost)
        assert len(failed) == 5 and n2.server.counts["missed"] == 1


@pytest.mark.parametrize("data", [
    pickle.dumps([1]), b"\x00" * 64, b"\xff" * 64, peer.BULK_PREFIX.pack(5, 0) + b"\x93\x01\x02\x03\x04",
    peer.BULK_PREFIX.pack(peer.BULK_HEADER_LIMIT + 1, 0), peer.BULK_PREFIX.pack(10, peer.BULK_BODY_LIMIT + 1),
    peer.encode_bulk(peer.Ack(1)), peer.encode_bulk(peer.Put(1, b"i" * 32), 0)])
async def test_malformed_bulk_requests_drop_only_that_connection(tmp_path, data):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        stream = await n1.dial_bulk("n2")
        await stream.send_all(data)
        try:
            assert await stream.receive_into(memoryview(bytearray(1))) == 0
        except trio.BrokenResourceError:
            pass
        stream.close()
        assert n2.server.counts["malformed"] == 1
        await n1.pool.put("n2", *chunk(100))


async def test_a_bulk_request_of_a_later_version_is_refused_and_the_connection_goes_on(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        data, chunk_id = b"content", blake3(b"content").digest()
        header = msgpack.packb([peer.BULK_CODE_LIMIT, 3, {"a": 1}])
        stream = await n1.dial_bulk("n2")
        await stream.send_all(peer.BULK_PREFIX.pack(len(header), 1000) + header + b"b" * 1000
                              + peer.encode_bulk(peer.Put(4, chunk_id), len(data)) + data)
        answers = []
        for _ in range(2):
            head = bytearray(8)
            assert await stream.receive_exactly_into(memoryview(head))
            header = bytearray(peer.bulk_lengths(head)[0])
            assert await stream.receive_exactly_into(memoryview(header))
            answers.append(peer.decode_bulk(header, 0))
        stream.close()
        assert answers == [peer.Ack(3, "this member does not know such a request"), peer.Ack(4)]
        assert n2.server.counts["unknown_kind"] == 1 and n2.server.counts["malformed"] == 0


async def test_malformed_bulk_answers_fail_the_request_and_the_connection(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        answers = [peer.encode_bulk(peer.Found(0)), peer.encode_bulk(peer.Ack(5)), b"\xff" * 8, b""]

        async def liar(member, stream):
            await stream.receive_into(memoryview(bytearray(10)))
            await stream.send_all(answers.pop())

        n2.listener._on_bulk = liar
        while answers:
            with pytest.raises(PeerUnreachable):
                await n1.pool.put("n2", *chunk(100))


async def test_a_peer_that_asks_and_never_reads_costs_bounded_memory(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        chunk_id, data = chunk()
        n2.storage.append(chunk_id, data)
        stream = await n1.dial_bulk("n2")
        asked = 0
        with trio.move_on_after(0.5):
            for seq in range(100):
                await stream.send_all(peer.encode_bulk(peer.Get(seq, chunk_id)))
                asked += 1
            await trio.sleep_forever()
        assert asked == 100 and n2.server.counts["served"] < 30
        stream.close()


async def test_a_connection_is_retired_before_its_key_is_worn_out(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "RETIRE_BYTES", 5 * MIB)
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        for _ in range(12):
            await n1.pool.put("n2", *chunk())
        assert n2.listener.counts[peer.BULK] >= 3
        await until(lambda: len(n1.pool._peers["n2"].connections) <= 1)


async def test_budget_is_first_come_first_served_and_survives_cancellation():
    budget, order = ByteBudget(10), []

    async def take(name, size):
        await budget.take(size)
        order.append(name)

    async with trio.open_nursery() as nursery:
        await budget.take(8)
        nursery.start_soon(take, "big", 9)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, "small", 1)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []  # the small one does not starve the big one
        budget.give(8)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(order) == ["big", "small"] and budget.used == 10
        with trio.move_on_after(0) as scope:
            await budget.take(5)
        assert scope.cancelled_caught and budget.used == 10
        budget.give(9)
        budget.give(1)
        await budget.take(50)  # over the limit, but alone
        assert budget.used == 50
        budget.give(50)
        # A waiter that is admitted while its cancellation is on the way gives back what it got.
        await budget.take(10)
        with trio.CancelScope() as waiting:
            async with trio.open_nursery() as inner:
                inner.start_soon(budget.take, 4)
                await trio.testing.wait_all_tasks_blocked()
                waiting.cancel()
                budget.give(10)
                assert budget.used == 4
        assert budget.used == 0


async def test_nobody_is_dialled_without_end(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, dials = cluster.nodes["n1"], []

        async def refuse(member):
            dials.append(member)
            raise PeerUnreachable("no")

        n1.pool._dial = refuse
        for _ in range(50):
            with pytest.raises(PeerUnreachable):
                await n1.pool.put("n2", *chunk(10))
        assert len(dials) < 5
        assert hello.DIAL_TIMEOUT_S < 5


async def test_a_connection_on_which_nothing_moves_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "PROGRESS_LIMIT_S", 0.1)
    monkeypatch.setattr(bulk, "PROGRESS_LOOK_S", 0.02)
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()

        async def deaf(member, stream):
            await trio.sleep_forever()

        n2.listener._on_bulk = deaf
        with pytest.raises(PeerUnreachable, match="nothing moved"):
            await n1.pool.put("n2", *chunk())


async def test_with_real_segments_copies_outlive_their_process_and_damage_is_repaired_from_others(tmp_path):
    def storage(name):
        return SegmentStorage(tmp_path / f"store-{name}")

    chunks = [chunk(size) for size in (1, 5000, 65_537, MIB, MIB, MIB, MIB, MIB, MIB)]  # several segments of 4 MiB
    async with cluster_of(tmp_path, "n1", "n2", "n3", storage=storage) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        for chunk_id, data in chunks:
            await n1.holdings.put(chunk_id, data)
        async with trio.open_nursery() as nursery:
            for chunk_id, _ in chunks:
                place = n1.storage.find(chunk_id)
                nursery.start_soon(n1.replicator.put, chunk_id, lambda p=place: n1.storage.reader.read(p),
                                   ("n1", "n2", "n3"), 2)
        for chunk_id, data in chunks:
            assert await n2.holdings.read(chunk_id) == await n3.holdings.read(chunk_id) == data
        damaged, data = chunks[4]
        n2.storage.damage(damaged)
        assert await n1.pool.get("n2", damaged) is None and n2.damaged == [("n2", damaged)]
        assert n2.holdings.find(damaged) is None
        assert await n2.fetcher.read(damaged) == data
        await n2.holdings.durable(n2.holdings.find(damaged))
    for node in (n1, n2, n3):
        node.storage.writer.close()
        again = SegmentStorage(node.storage.folder, "again")
        for chunk_id, data in chunks:
            assert any(again.reader.read(place) == data for place in again.index.all(chunk_id))


async def test_a_workers_unsynced_segment_is_synced_through_the_reader(tmp_path):
    def storage(name):
        return SegmentStorage(tmp_path / f"store-{name}")

    async with cluster_of(tmp_path, "n1", "n2", storage=storage) as cluster:
        n1, n2 = cluster.nodes.values()
        worker = SegmentStorage(n2.storage.folder, "worker")
        chunk_id, data = chunk()
        n2.storage.index.add(chunk_id, worker.append(chunk_id, data))
        touched: list[str] = []
        assert n2.holdings.touch(chunk_id, touched.append)
        await until(lambda: touched == [""])
        assert n2.storage.writer.unsynced_bytes == 0 and n2.holdings.syncs == 1
        assert n2.holdings._synced == {n2.holdings.find(chunk_id).segment: n2.holdings.find(chunk_id).offset + MIB}
