"""Chains: a chunk leaves once and comes to several, each of which answers for itself; what goes wrong in them."""

from __future__ import annotations

import os
import threading

import pytest
import trio
import trio.testing
from blake3 import blake3
from peer_nodes import cluster_of, until

from raftmft.cluster import bulk, passing, replicator
from raftmft.cluster.hello import PeerUnreachable
from raftmft.wire import peer

MIB = 1 << 20
OWNERS = ("n1", "n2", "n3")


def chunk(size: int = MIB) -> tuple[bytes, bytes]:
    data = os.urandom(size)
    return blake3(data).digest(), data


async def put(node, data: bytes, need: int, owners=OWNERS) -> set[str]:
    return set(await node.replicator.put(blake3(data).digest(), lambda: data, owners, need))


async def answers(stream, count: int) -> list:
    """The next bulk messages without a body."""
    found = []
    for _ in range(count):
        head = bytearray(8)
        assert await stream.receive_exactly_into(memoryview(head))
        header = bytearray(peer.bulk_lengths(head)[0])
        assert await stream.receive_exactly_into(memoryview(header))
        found.append(peer.decode_bulk(header, 0))
    return found


async def test_a_full_chunk_leaves_once_and_a_smaller_one_for_each(tmp_path):
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        chunk_id, data = chunk()
        assert await put(n1, data, 2) == {"n2", "n3"}
        assert chunk_id in n2.storage.survivors() and chunk_id in n3.storage.survivors()
        assert n2.passing.counts["passed_on"] == 1 and "n3" not in n1.pool._peers
        assert await put(n1, chunk(MIB - 1)[1], 2) == {"n2", "n3"}
        assert n2.passing.counts["passed_on"] == 1 and "n3" in n1.pool._peers
        assert n1.pool.in_flight_bytes("n2") == n2.passing.held_bytes == 0


async def test_a_longer_chain_answers_for_each_member(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3", "n4", "n5") as cluster:
        n1 = cluster.nodes["n1"]
        chunk_id, data = chunk()
        assert await put(n1, data, 4, tuple(cluster.nodes)) == {"n2", "n3", "n4", "n5"}
        for name in ("n2", "n3", "n4", "n5"):
            assert chunk_id in cluster.nodes[name].storage.survivors()
            assert cluster.nodes[name].passing.counts["passed_on"] == (name != "n5")


async def test_a_slow_member_holds_up_neither_the_one_before_nor_the_one_behind(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        n3.storage.before_sync = lambda: gate.wait(5)
        assert await put(n1, chunk()[1], 1) == {"n2"}
        n3.storage.before_sync, n2.storage.before_sync = n2.storage.before_sync, n3.storage.before_sync
        gate.set()
        await until(lambda: n1.replicator._background["n3"] == 0)
        gate.clear()
        chunk_id, data = chunk()
        assert await put(n1, data, 1) == {"n3"} and chunk_id not in n2.storage.survivors()
        gate.set()
        await until(lambda: chunk_id in n2.storage.survivors())


async def test_who_is_behind_comes_last_in_a_chain(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        n2.storage.before_sync = lambda: gate.wait(5)
        with trio.fail_after(3):
            for _ in range(8):
                assert await put(n1, chunk()[1], 1) == {"n3"}
        assert n2.passing.counts["passed_on"] == 4 and n3.passing.counts["passed_on"] == 0
        gate.set()
        await until(lambda: n3.passing.counts["passed_on"] == 4)


async def test_who_cannot_be_reached_through_the_chain_is_sent_its_copy_at_once(tmp_path):
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, _ = cluster.nodes.values()

        async def refuse(member):
            raise PeerUnreachable(f"no way to {member}")

        n2.pool._dial = refuse
        with trio.fail_after(1):
            assert await put(n1, chunk()[1], 2) == {"n2", "n3"}
        assert n1.replicator.counts["sent_instead"] == 1
        # The same when nobody waits for that copy any more.
        chunk_id, data = chunk()
        await put(n1, data, 1)
        await until(lambda: chunk_id in cluster.nodes["n3"].storage.survivors())
        assert n1.replicator.counts["left_to_repair"] == 0


async def test_the_others_get_their_copies_when_the_first_dies(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, "n1", "n2", "n3", "n4") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        n2.storage.before_sync = lambda: gate.wait(5)
        result = []

        async def one():
            result.extend(await put(n1, chunk()[1], 2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await until(lambda: n2.storage.chunks)
            n2.scope.cancel()
            await until(lambda: result)
            gate.set()
        assert set(result) == {"n3", "n4"}


async def test_a_silent_first_member_is_waited_for_only_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "CHAIN_PATIENCE_S", 0.2)
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()

        async def deaf(member, stream):
            await trio.sleep_forever()

        n2.listener._on_bulk = deaf
        with trio.fail_after(2):
            assert await put(n1, chunk()[1], 1) == {"n3"}
        chained = n1.replicator.counts["chained"]
        with trio.fail_after(0.2):  # and nothing more is chained through it for a while
            assert await put(n1, chunk()[1], 1) == {"n3"}
        assert n1.replicator.counts["chained"] == chained == 1


@pytest.mark.parametrize("then", [("n2",), ("n1",), ("n3", "n2"), ("stranger",), ("n3", "stranger")])
async def test_a_list_with_a_loop_or_a_stranger_is_not_followed(tmp_path, then):
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        stream = await n1.dial_bulk("n2")
        chunk_id, data = chunk(1000)
        await stream.send_all(peer.encode_bulk(peer.Put(7, chunk_id, then), len(data)) + data)
        told = await answers(stream, 1 + len(then))
        stream.close()
        assert peer.Ack(7) in told and {m.member for m in told if isinstance(m, peer.Passed) and m.refusal} == set(then)
        assert chunk_id in n2.storage.survivors() and not n3.storage.chunks and n2.passing.held_bytes == 0


async def test_a_member_that_was_removed_gets_nothing_passed_on(tmp_path):
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        del cluster.directory[n3.fingerprint]
        told = {}
        await n1.pool.chain(("n2", "n3"), *chunk(), told.__setitem__)
        assert told["n2"] == "" and "no member" in told["n3"] and not n3.storage.chunks


async def test_what_is_passed_on_is_bounded_and_the_rest_is_sent_from_where_it_came(tmp_path, monkeypatch):
    monkeypatch.setattr(passing, "PASSING_MAX_BYTES", 2 * MIB)
    gate, most = threading.Event(), []
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        n3.storage.before_sync = lambda: gate.wait(5)
        chunks = [chunk() for _ in range(8)]
        async with trio.open_nursery() as nursery:
            for _, data in chunks:
                nursery.start_soon(put, n1, data, 1)
            await until(lambda: n2.passing.counts["no_room"] == 6)
            most.append(n2.passing.held_bytes)
            gate.set()
        await until(lambda: {i for i, _ in chunks} <= n3.storage.survivors())
        assert most == [2 * MIB] and n1.replicator.counts["sent_instead"] == 6
        await until(lambda: n2.passing.held_bytes == 0)


async def test_small_chunks_to_be_passed_on_cost_a_buffer_each_and_are_bounded_by_that(tmp_path, monkeypatch):
    monkeypatch.setattr(passing, "PASSING_MAX_BYTES", 3 * MIB)
    gate = threading.Event()
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        n3.storage.before_sync = lambda: gate.wait(5)
        stream = await n1.dial_bulk("n2")
        for seq in range(20):
            chunk_id, data = chunk(10)
            await stream.send_all(peer.encode_bulk(peer.Put(seq, chunk_id, ("n3",)), 10) + data)
        told = await answers(stream, 20 + 17)
        assert sum(isinstance(m, peer.Passed) and "too much" in m.refusal for m in told) == 17
        gate.set()
        assert await answers(stream, 3) == [peer.Passed(seq, "n3") for seq in range(3)]
        stream.close()


async def test_damaged_bytes_are_refused_by_every_member(tmp_path):
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        chunk_id, data = chunk()
        told = {}
        await n1.pool.chain(("n2", "n3"), chunk_id, data[:-1] + bytes([data[-1] ^ 1]), told.__setitem__)
        assert all("hash" in told[m] for m in ("n2", "n3")) and not n2.storage.chunks and not n3.storage.chunks


@pytest.mark.parametrize("lies", [
    [peer.Passed(0, "n4")], [peer.Passed(0, "n2")], [peer.Passed(0, "n3"), peer.Passed(0, "n3")],
    [peer.Ack(0), peer.Ack(0)], [peer.Passed(1, "n3")], [peer.Found(0)]])
async def test_answers_that_were_not_asked_for_end_the_connection(tmp_path, lies):
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, _ = cluster.nodes.values()

        async def liar(member, stream):
            await stream.receive_into(memoryview(bytearray(10)))
            await stream.send_all(b"".join(map(peer.encode_bulk, lies)))
            await trio.sleep_forever()

        n2.listener._on_bulk = liar
        told = []
        with pytest.raises(PeerUnreachable), trio.fail_after(3):
            await n1.pool.chain(("n2", "n3"), *chunk(100), lambda *answer: told.append(answer))
        assert len(told) == len(lies) - 1 and n1.pool.in_flight_bytes("n2") == 0


async def test_the_first_members_budget_and_patience_end_with_its_own_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "IN_FLIGHT_MAX_BYTES", 2 * MIB)
    monkeypatch.setattr(bulk, "PROGRESS_LIMIT_S", 0.1)
    monkeypatch.setattr(bulk, "PROGRESS_LOOK_S", 0.02)
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, _ = cluster.nodes.values()
        answered = trio.Event()

        async def slow(members, chunk_id, data, told):
            await answered.wait()
            for member in members:
                told(member, "")

        n2.passing._chain = slow
        with trio.fail_after(3):
            for _ in range(6):
                assert await put(n1, chunk()[1], 1) == {"n2"}
        assert n1.pool.in_flight_bytes("n2") == 0
        await trio.sleep(0.3)  # longer than nothing may move where something is asked
        answered.set()
        await until(lambda: not any(n1.replicator._background.values()))
        assert n1.replicator.counts["copies"] == 12 and not n1.replicator.counts["sent_instead"]


async def test_a_buffer_is_used_again_only_when_its_chunk_is_stored_and_passed_on(tmp_path):
    gate = threading.Event()
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        n2.storage.before_append = lambda: gate.wait(5)
        first, second = chunk(), chunk()
        assert await put(n1, first[1], 1) == {"n3"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, n1, second[1], 2)
            await until(lambda: second[0] in n3.storage.chunks)
            gate.set()
        for node in (n2, n3):
            assert [node.storage.chunks[i][1] == data for i, data in (first, second)] == [True, True]


async def test_nobodys_bytes_are_kept_once_all_have_answered_or_were_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "BACKGROUND_MAX_BYTES", 2 * MIB)
    gate, jobs = threading.Event(), []
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, _, n3 = cluster.nodes.values()
        n3.storage.before_sync = lambda: gate.wait(5)
        settle = n1.replicator._settle
        monkeypatch.setattr(n1.replicator, "_settle", lambda job: (jobs.append(job), settle(job)))
        monkeypatch.setattr(replicator, "ROOM_WAIT_S", 0.0)
        for _ in range(5):
            await put(n1, chunk()[1], 1)
        assert [len(job.data) for job in jobs] == [MIB, MIB, 0, 0, 0]
        assert n1.replicator.counts["left_to_repair"] == n1.replicator.owed == 3
        monkeypatch.setattr(replicator, "TOLD_S", 0.0)
        assert n1.replicator.owed == 0, "their owners' repairers have looked since"
        gate.set()
        await until(lambda: n1.replicator._background["n3"] == 0)
        assert not any(job.data for job in jobs)


async def test_a_slow_member_that_gets_on_slows_who_puts_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "BACKGROUND_MAX_BYTES", 3 * MIB)
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        n3.storage.before_append = lambda: threading.Event().wait(0.03)
        chunks, most = [chunk() for _ in range(24)], 0
        for _, data in chunks:
            await put(n1, data, 1)
            most = max(most, n1.replicator._background["n3"], n2.passing.held_bytes)
        await until(lambda: {i for i, _ in chunks} <= n3.storage.survivors())
        assert n1.replicator.counts["held_up"] and not n1.replicator.counts["left_to_repair"]
        assert most <= 4 * MIB


async def test_a_member_that_does_not_get_on_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(replicator, "BACKGROUND_MAX_BYTES", 3 * MIB)
    monkeypatch.setattr(replicator, "STALL_S", 0.3)
    gate = threading.Event()
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, _, n3 = cluster.nodes.values()
        n3.storage.before_sync = lambda: gate.wait(5)
        with trio.fail_after(3):
            for _ in range(10):
                assert await put(n1, chunk()[1], 1) == {"n2"}
        assert n1.replicator.counts["left_to_repair"] == 7 and 1 <= n1.replicator.counts["held_up"] <= 2
        gate.set()


async def test_a_cancelled_put_leaves_nothing_counted(tmp_path):
    async with cluster_of(tmp_path, *OWNERS) as cluster:
        n1, n2, n3 = cluster.nodes.values()
        for _ in range(10):
            with trio.move_on_after(0.002):
                await put(n1, chunk()[1], 2)
        await until(lambda: n1.pool.in_flight_bytes("n2") == n2.passing.held_bytes == 0)
        await until(lambda: not any(n1.replicator._background.values()))
        assert await put(n1, chunk()[1], 2) == {"n2", "n3"}
