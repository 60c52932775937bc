"""Control links: one per pair, in order, never blocking; a dead peer is noticed; requests get exactly their answers."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
import trio
from peer_nodes import cluster_of, make_self, until

from raftmft.cluster import hello, links, turns
from raftmft.cluster.hello import PeerRefused, PeerRemovedUs, PeerUnreachable
from raftmft.cluster.links import RequestFailed, RequestLost
from raftmft.cluster.succession import WAS_REMOVED
from raftmft.core.errors import RaftmftError
from raftmft.wire import peer
from raftmft.wire.frames import FrameError


def record(node, kind: str = "raft") -> list:
    got: list = []
    node.links.on_message(kind, lambda member, body: got.append((member, body)))
    return got


async def test_messages_arrive_in_order_from_the_member_that_sent_them(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n2, n3 = cluster.nodes.values()
        got = record(n1)
        sent = [b"%d" % i + b"x" * (i * 37 % 5000) for i in range(2000)]
        for body in sent:
            assert n2.links.send("n1", "raft", body)
        assert n3.links.send("n1", "raft", b"from n3")
        await until(lambda: len(got) == 2001)
        assert [body for member, body in got if member == "n2"] == sent
        assert [body for member, body in got if member == "n3"] == [b"from n3"]
        assert not n2.links.send("n9", "raft", b"")


async def test_large_messages_pass_both_ways_at_once(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        at1, at2 = record(n1), record(n2)
        big = bytes(range(256)) * (4 << 10) * 4
        for _ in range(5):
            assert n1.links.send("n2", "raft", big) and n2.links.send("n1", "raft", big)
        await until(lambda: len(at1) == len(at2) == 5)
        assert all(body == big for _, body in at1 + at2)


async def test_a_message_leaves_in_the_call_that_sends_it_and_a_burst_in_one_write(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        got = record(n2)
        stream = n1.links._links["n2"].stream
        await until(lambda: stream.idle)
        writes = []
        send_all, send_now = stream.send_all, stream.send_now
        stream.send_now = lambda data: (writes.append(1), send_now(data))[1]

        async def counted(*buffers):
            if buffers:
                writes.append(len(buffers))
            await send_all(*buffers)

        stream.send_all = counted
        for i in range(100):
            n1.links.send("n2", "raft", b"%d" % i)
        assert writes == [1]
        await until(lambda: len(got) == 100)
        assert writes[:2] == [1, 1] and len(writes) <= 3  # at most one ping more


async def test_ups_and_downs_are_told_once_each_and_links_come_back(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        n1.events.clear()
        n1.links.cut_off("n2")
        assert n1.links.connected() == {"n3"} and not n1.links.send("n2", "raft", b"")
        await until(lambda: n1.links.connected() == {"n2", "n3"})
        assert n1.events == [("down", "n2"), ("up", "n2")]
        await n2.kill()
        await until(lambda: n1.links.connected() == {"n3"})
        assert n1.events[2:] == [("down", "n2")]


async def test_a_newer_connection_replaces_the_older(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        n1.events.clear()
        stream = await hello.dial(n2.me, "n1", n1.address, peer.CONTROL, lambda: cluster.directory)
        await until(lambda: n1.events == [("down", "n2"), ("up", "n2")] or len(n1.events) > 2)
        stream.close()
        await until(lambda: n1.links.connected() == {"n2"} and n2.links.connected() == {"n1"})


async def test_of_two_links_that_crossed_the_one_dialled_in_turn_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "DIAL_TIMEOUT_S", 60.0)
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        before = n1.links._links["n2"], n2.links._links["n1"]
        crossing = await hello.dial(n1.me, "n2", n2.address, peer.CONTROL, lambda: cluster.directory)
        assert await crossing.receive_into(memoryview(bytearray(100))) == 0, "n2 closed it"
        await n1.links._serve("n2", crossing, is_in_turn=False)  # at this end it gives way, too
        assert (n1.links._links["n2"], n2.links._links["n1"]) == before and not any(link.down for link in before)
        crossing.close()
        # One that is older than a crossing can be is surely dead: n1 lost it, or would not have dialled.
        monkeypatch.setattr(links, "DIAL_TIMEOUT_S", 0.0)
        newer = await hello.dial(n1.me, "n2", n2.address, peer.CONTROL, lambda: cluster.directory)
        await until(lambda: before[1].down)
        newer.close()


async def test_when_all_dial_all_at_once_each_pair_keeps_one_link(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "ALONE_S", 0.0)
    async with cluster_of(tmp_path, "n1", "n2", "n3", "n4", "n5") as cluster:
        nodes = list(cluster.nodes.values())

        def connections() -> int:
            return sum(len(scopes) for node in nodes for scopes in node.listener._members.values())

        def is_whole() -> bool:
            return connections() == 10 and all(len(node.links.connected()) == 4 for node in nodes)

        async def lasts() -> bool:
            await until(is_whole)
            now_up = [link for node in nodes for link in node.links._links.values()]
            since = trio.current_time() + 2 * links.PING_PERIOD_S
            await until(lambda: all(link.heard_at > since for link in now_up) or any(link.down for link in now_up))
            return is_whole() and not any(link.down for link in now_up)

        with trio.fail_after(10):
            while not await lasts():
                pass
        downs = [event for node in nodes for event in node.events if event[0] == "down"]
        assert len(downs) <= 20, "a link out of turn was replaced by one in turn, at most once at either end"


async def test_who_is_shut_out_hears_so_though_others_were_to_dial_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(turns, "ALONE_S", 0.3)
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n2, n3 = cluster.nodes.values()
        known, listed = n1.others(), dict(cluster.directory)
        n1.links._addresses, n1.links._directory = lambda: known, lambda: listed  # what it knew last
        del cluster.directory[n1.fingerprint]
        for node in (n2, n3):
            node.links.refresh()
        for name in ("n2", "n3"):
            text = f"{name} refused the link: your certificate is not listed in this cluster"
            await until(lambda text=text: text in caplog.text)
        assert n1.links.connected() == frozenset() and n2.links.connected() == {"n3"}
        began, failed = trio.current_time(), n1.links.counts["dial_failed"]
        await until(lambda: n1.links.counts["dial_failed"] >= failed + 10)
        assert trio.current_time() - began > 0.5, "attempts become rare"
        assert caplog.text.count("your certificate is not listed") == 2, "and are told once"


@pytest.mark.parametrize("objection", [WAS_REMOVED, "none that is listed here vouches for it"])
async def test_who_was_removed_and_missed_that_hears_it_from_whoever_knows(tmp_path, objection):
    """It is cut off by the entry that removes it, so that it may never learn that this was committed."""
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        heard = []
        n2.links._on_removed = lambda: heard.append(n2.links.counts["dial_failed"])
        known, listed = n2.others(), dict(cluster.directory)
        n2.links._addresses, n2.links._directory = lambda: known, lambda: listed  # what it knew last
        n1.listener._me = replace(n1.me, judge=lambda member, certificate, chain: objection)
        del cluster.directory[n2.fingerprint]
        n1.links.refresh()
        await until(lambda: n2.links.counts["dial_failed"] >= 2)
        assert bool(heard) == (objection == WAS_REMOVED)


async def test_nobody_believes_that_it_was_removed_who_has_not_proven_who_it_is(tmp_path):
    async with cluster_of(tmp_path, "n1") as cluster:
        n1 = cluster.nodes["n1"]
        guest, _ = make_self(tmp_path / "guest", "n9", cluster.authority)
        n1.listener._me = replace(n1.me, judge=lambda member, certificate, chain: WAS_REMOVED)
        with pytest.raises(PeerRefused) as refused:
            await hello.dial(guest, "n1", n1.address, peer.CONTROL, dict)  # lists nobody, so it asks who that is
        assert not isinstance(refused.value, PeerRemovedUs)
        with pytest.raises(PeerRemovedUs):
            await hello.dial(guest, "n1", n1.address, peer.CONTROL, lambda: {n1.fingerprint: "n1"})
        # A survivor that was recovered is another cluster, whose list says nothing to those it left.
        with pytest.raises(PeerRefused) as refused:
            await hello.dial(replace(guest, cluster_id="c-0"), "n1", n1.address, peer.CONTROL,
                             lambda: {n1.fingerprint: "n1"})
        assert not isinstance(refused.value, PeerRemovedUs)


async def test_a_peer_that_falls_silent_is_noticed_within_3_seconds(tmp_path):
    async with cluster_of(tmp_path, "n1") as cluster:
        n1 = cluster.nodes["n1"]
        me, fingerprint = make_self(tmp_path / "n2", "n2", cluster.authority)
        cluster.directory[fingerprint] = "n2"
        silent = await hello.dial(me, "n1", n1.address, peer.CONTROL, lambda: cluster.directory)
        await until(lambda: n1.links.connected() == {"n2"})
        began = trio.current_time()
        await until(lambda: n1.links.connected() == frozenset())
        assert 2.0 < trio.current_time() - began <= 3.0
        silent.close()


async def test_a_link_that_lags_is_dropped_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "BUFFER_MAX_BYTES", 2 << 20)
    async with cluster_of(tmp_path, "n1") as cluster:
        n1 = cluster.nodes["n1"]
        me, fingerprint = make_self(tmp_path / "n2", "n2", cluster.authority)
        cluster.directory[fingerprint] = "n2"
        lazy = await hello.dial(me, "n1", n1.address, peer.CONTROL, lambda: cluster.directory)
        await until(lambda: n1.links.connected() == {"n2"})
        taken = 0
        while n1.links.send("n2", "raft", bytes(1 << 20)):
            taken += 1
            assert taken < 100
            await trio.lowlevel.checkpoint()
        await until(lambda: n1.links.connected() == frozenset())
        assert n1.links.counts["dropped"] == 1
        lazy.close()


async def test_malformed_messages_drop_the_link_and_nothing_else(tmp_path):
    async with cluster_of(tmp_path, "n1", "n3") as cluster:
        n1 = cluster.nodes["n1"]
        me, fingerprint = make_self(tmp_path / "n2", "n2", cluster.authority)
        cluster.directory[fingerprint] = "n2"

        def refuse(member, body):
            raise FrameError("no raft message")

        n1.links.on_message("raft", refuse)
        for data in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", peer.encode_control("raft", b"x"),
                     peer.encode_control(peer.ASK, b"junk"), peer.encode_control(peer.ANSWER, b"junk")):
            stream = await hello.dial(me, "n1", n1.address, peer.CONTROL, lambda: cluster.directory)
            await until(lambda: "n2" in n1.links.connected())
            await stream.send_all(data)
            await until(lambda: "n2" not in n1.links.connected())
            stream.close()
        assert n1.links.connected() == {"n3"}


async def test_what_a_later_version_sends_is_counted_and_the_link_stays(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        await until(lambda: "n1" in n2.links.connected())
        heard = []
        n1.links.on_message("raft", lambda member, body: heard.append(body))
        n2.links.send("n1", "later", b"\x00" * 100)
        with pytest.raises(RequestFailed, match="knows no request 'later'"):
            await n2.links.request("n1", "later", {"a": [1]}, timeout_s=5)
        n2.links.send("n1", "raft", b"x")
        await until(lambda: heard)
        assert n1.links.counts["unknown_kind"] == 1 and n1.links.counts["dropped"] == 0


async def test_requests_are_answered_refused_or_lost(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        hold = trio.Event()

        async def echo(member, args):
            return {"member": member, **args}

        async def fail(member, args):
            raise RaftmftError("not today")

        async def wrong(member, args):
            return args["needed"]

        async def hang(member, args):
            await hold.wait()

        for op, handler in {"echo": echo, "fail": fail, "wrong": wrong, "hang": hang}.items():
            n1.links.handle(op, handler)
        assert await n2.links.request("n1", "echo", {"a": [1, b"x"]}) == {"member": "n2", "a": [1, b"x"]}
        with pytest.raises(RequestFailed, match="not today"):
            await n2.links.request("n1", "fail")
        with pytest.raises(RequestFailed, match="wrong arguments"):
            await n2.links.request("n1", "wrong")
        with pytest.raises(RequestFailed, match="knows no request"):
            await n2.links.request("n1", "nonsense")
        with pytest.raises(RequestLost, match="did not answer hang"):
            await n2.links.request("n1", "hang", timeout_s=0.05)
        with pytest.raises(PeerUnreachable):
            await n2.links.request("n9", "echo")
        lost = []

        async def ask():
            with pytest.raises(RequestLost, match="broke"):
                await n2.links.request("n1", "hang", timeout_s=60)
            lost.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: n2.links._asked)
            n2.links.cut_off("n1")
        assert lost and not n2.links._asked


async def test_at_most_so_many_requests_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "REQUESTS_MAX", 4)
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes.values()
        running, hold = [], trio.Event()

        async def slow(member, args):
            running.append(args)
            await hold.wait()

        n1.links.handle("slow", slow)
        results = []

        async def ask(i):
            try:
                results.append(await n2.links.request("n1", "slow", {"i": i}))
            except RequestFailed as error:
                results.append(str(error))

        async with trio.open_nursery() as nursery:
            for i in range(6):
                nursery.start_soon(ask, i)
            await until(lambda: len(results) == 2)
            assert len(running) == 4
            hold.set()
        assert sum("too many" in str(result) for result in results) == 2 and results.count(None) == 4


async def test_a_member_whose_port_is_a_strangers_is_dialled_with_patience(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        async with cluster_of(tmp_path, "n2") as cluster:
            n2 = cluster.nodes["n2"]
            n2.links._addresses = lambda: {"n1": stranger.getsockname()}
            n2.links.refresh()
            stranger.settimeout(5)
            sock, _ = await trio.to_thread.run_sync(stranger.accept)
            sock.close()
            await until(lambda: n2.links.counts["dial_failed"] >= 1)
            assert n2.links.connected() == frozenset()
