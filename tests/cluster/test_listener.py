"""The peer port: members come in, strangers cost nothing, who is no longer listed is out at once."""

from __future__ import annotations

import os
import pickle
import socket
import ssl

import pytest
import trio
from peer_nodes import CLUSTER, Cluster, MemoryStorage, Node, cluster_of, make_self, until

from raftmft.cluster import certificates, hello, listener
from raftmft.cluster.hello import PeerRefused, PeerUnreachable
from raftmft.wire import frames, peer
from raftmft.wire.preface import MAGIC


async def closed_by_server(address, data: bytes, timeout_s: float = 3.0) -> bytes:
    """What the server answered to `data` before it closed."""
    answer = b""
    with trio.fail_after(timeout_s):
        stream = await trio.open_tcp_stream(*address)
        async with stream:
            try:
                if data:
                    await stream.send_all(data)
                while piece := await stream.receive_some(1000):
                    answer += piece
            except trio.BrokenResourceError:
                pass
    return answer


class Bomb:
    def __reduce__(self):
        return os._exit, (7,)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", pickle.dumps(Bomb()), b"\xc3" + os.urandom(64),
                                  b"SSH-2.0-x\r\n", b"\x00" * 100_000],
                         ids=["http", "pickle", "random", "ssh", "zeros"])
async def test_strangers_are_closed_and_counted(tmp_path, data):
    async with cluster_of(tmp_path, "n1") as cluster:
        node = cluster.nodes["n1"]
        assert await closed_by_server(node.address, data) == b""
        assert node.listener.counts["stranger"] == 1


async def test_hostile_tls_and_frames_are_refused(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        node, peer_node = cluster.nodes["n1"], cluster.nodes["n2"]
        await closed_by_server(node.address, b"\x16\x03\x01\x01\xf0" + os.urandom(500))
        assert node.listener.counts["refused"] == 1

        async def greeting(data: bytes) -> None:
            stream = hello.TlsStream(socket.create_connection(node.address), peer_node.me.client, server_side=False)
            await stream.handshake(5)
            await stream.send_all(data)
            try:
                while await stream.receive_into(memoryview(bytearray(1000))):
                    pass
            except trio.BrokenResourceError:
                pass
            stream.close()

        refused = node.listener.counts["refused"]
        for data in (b"\xff\xff\xff\xff", frames.encode(pickle.dumps(1)), frames.encode("x" * 2000), b"\x00" * 4,
                     frames.encode({"raftmft": 1}), frames.encode([1, 2])):
            await greeting(data)
            refused += 1
            assert node.listener.counts["refused"] == refused


async def test_no_certificate_and_tls_1_2_get_no_further_than_the_handshake(tmp_path):
    async with cluster_of(tmp_path, "n1") as cluster:
        node = cluster.nodes["n1"]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
            stream = trio.SSLStream(await trio.open_tcp_stream(*node.address), context)
            await stream.do_handshake()
        await until(lambda: node.listener.counts["refused"] == 1)


async def test_an_unlisted_certificate_of_our_own_ca_is_refused_and_told_why(tmp_path):
    async with cluster_of(tmp_path, "n1") as cluster:
        node = cluster.nodes["n1"]
        guest, _ = make_self(tmp_path / "guest", "n9", cluster.authority)
        with pytest.raises(PeerRefused, match="not listed in this cluster"):
            await hello.dial(guest, "n1", node.address, peer.CONTROL, lambda: cluster.directory)
        assert node.links.connected() == frozenset()


async def test_another_ca_is_refused_by_either_side(tmp_path):
    async with cluster_of(tmp_path, "n1") as cluster:
        node = cluster.nodes["n1"]
        other, fingerprint = make_self(tmp_path / "other", "n2", certificates.make_authority("test"))
        cluster.directory[fingerprint] = "n2"
        with pytest.raises(PeerUnreachable, match="TLS handshake refused"):
            await hello.dial(other, "n1", node.address, peer.CONTROL, lambda: cluster.directory)


@pytest.mark.parametrize(("change", "reason"), [
    ({"cluster_id": "c-2"}, "this is cluster c-1"), ({"member": "n3"}, "your certificate is that of n2")])
async def test_a_hello_that_contradicts_is_refused(tmp_path, change, reason):
    async with cluster_of(tmp_path, "n1") as cluster:
        me, fingerprint = make_self(tmp_path / "n2", "n2", cluster.authority)
        cluster.directory[fingerprint] = "n2"
        me = hello.Self(change.get("member", "n2"), change.get("cluster_id", CLUSTER), me.server, me.client)
        with pytest.raises(PeerRefused, match=reason):
            await hello.dial(me, "n1", cluster.nodes["n1"].address, peer.BULK, lambda: cluster.directory)


async def test_a_member_of_a_later_version_is_welcomed_and_one_of_too_old_a_version_refused(tmp_path, monkeypatch):
    async with cluster_of(tmp_path, "n1") as cluster:
        me, fingerprint = make_self(tmp_path / "n2", "n2", cluster.authority)
        cluster.directory[fingerprint] = "n2"
        said = peer.encode_hello

        def greet(version: int):
            def later(hello):
                [value] = frames.FrameReader().feed(said(hello))
                return frames.encode({**value, "raftmft": version, "colour": "blue"})
            monkeypatch.setattr(peer, "encode_hello", later)

        greet(peer.VERSION + 1)
        stream = await hello.dial(me, "n1", cluster.nodes["n1"].address, peer.BULK, lambda: cluster.directory)
        stream.close()
        greet(peer.OLDEST - 1)
        with pytest.raises(PeerRefused, match="you speak peer protocol 0 and this member 1 and later only"):
            await hello.dial(me, "n1", cluster.nodes["n1"].address, peer.BULK, lambda: cluster.directory)
        monkeypatch.undo()
        welcomed = peer.Welcome(peer.OLDEST - 1, "n1")
        monkeypatch.setattr(peer, "decode_welcome", lambda value: welcomed)
        with pytest.raises(PeerRefused, match="n1 speaks peer protocol 0"):
            await hello.dial(me, "n1", cluster.nodes["n1"].address, peer.BULK, lambda: cluster.directory)


async def test_a_dialler_does_not_take_one_member_for_another(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        with pytest.raises(PeerRefused, match="is not n3: its certificate is that of n1"):
            await hello.dial(n2.me, "n3", n1.address, peer.BULK, lambda: cluster.directory)


async def test_a_slow_loris_is_closed_in_time_and_keeps_no_member_out(tmp_path, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKES_MAX", 8)
    async with cluster_of(tmp_path, "n1") as cluster:
        node = cluster.nodes["n1"]
        lazy = [socket.create_connection(node.address) for _ in range(30)]
        for i, sock in enumerate(lazy):
            sock.sendall((b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", MAGIC[:1])[i % 3])
        # At once, long before their time is up.
        await until(lambda: node.listener.counts["slow"] >= 22, timeout_s=listener.HANDSHAKE_TIMEOUT_S / 2)
        assert len(node.listener._undecided) <= 8
        me, fingerprint = make_self(tmp_path / "n2", "n2", cluster.authority)
        cluster.directory[fingerprint] = "n2"
        with trio.fail_after(1):
            stream = await hello.dial(me, "n1", node.address, peer.BULK, lambda: cluster.directory)
        stream.close()
        for sock in lazy:
            sock.close()


async def test_an_undecided_connection_is_closed_at_its_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_S", 0.1)
    async with cluster_of(tmp_path, "n1") as cluster:
        node = cluster.nodes["n1"]
        assert await closed_by_server(node.address, b"") == b""
        assert await closed_by_server(node.address, b"\x16\x03\x01") == b""
        assert node.listener.counts["slow"] == 2 and not node.listener._undecided


async def test_refusals_are_logged_once_in_a_while(tmp_path, caplog):
    async with cluster_of(tmp_path, "n1") as cluster:
        for _ in range(20):
            await closed_by_server(cluster.nodes["n1"].address, b"junk")
        assert cluster.nodes["n1"].listener.counts["stranger"] == 20
    assert sum("peer port" in record.message for record in caplog.records) == 1


async def test_a_relayed_connection_is_handed_over_unread(tmp_path):
    async with cluster_of(tmp_path, "n1") as cluster:
        node = cluster.nodes["n1"]
        stream = await trio.open_tcp_stream(*node.address)
        await stream.send_all(MAGIC + b"rest")
        await until(lambda: node.relayed)
        [sock] = node.relayed
        assert sock.recv(100) == MAGIC + b"rest"
        sock.close()
        await stream.aclose()


async def test_who_is_unlisted_is_cut_off_at_once_and_stays_out(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1, n2 = cluster.nodes["n1"], cluster.nodes["n2"]
        stream = await hello.dial(n2.me, "n1", n1.address, peer.BULK, lambda: cluster.directory)
        await until(lambda: n1.listener.counts[peer.BULK] == 1)
        del cluster.directory[n2.fingerprint]
        for node in (n1, cluster.nodes["n3"]):
            node.listener.recheck()
            node.links.refresh()
        with trio.fail_after(2):
            assert await stream.receive_into(memoryview(bytearray(1))) == 0
        stream.close()
        for node in (n1, cluster.nodes["n3"]):
            await until(lambda node=node: node.links.connected() == {"n1", "n3"} - {node.name})
        with pytest.raises(PeerRefused):
            await hello.dial(n2.me, "n1", n1.address, peer.BULK, lambda: cluster.directory | {n1.fingerprint: "n1"})


async def test_cut_off_closes_all_of_one_member_and_nobody_elses(tmp_path):
    async with cluster_of(tmp_path, "n1", "n2", "n3") as cluster:
        n1 = cluster.nodes["n1"]
        assert n1.listener.cut_off("n2") == 1 and n1.listener.cut_off("n9") == 0
        await until(lambda: ("down", "n2") in n1.events)
        assert ("down", "n3") not in n1.events
        await until(lambda: n1.links.connected() == {"n2", "n3"})  # still listed: it comes back


async def test_one_member_cannot_open_connections_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(listener, "CONNECTIONS_PER_MEMBER", 3)
    async with cluster_of(tmp_path, "n1") as cluster:
        n1 = cluster.nodes["n1"]
        me, fingerprint = make_self(tmp_path / "n2", "n2", cluster.authority)
        cluster.directory[fingerprint] = "n2"
        streams = [await hello.dial(me, "n1", n1.address, peer.BULK, lambda: cluster.directory) for _ in range(5)]
        await until(lambda: n1.listener.counts["crowd"] == 2)
        for stream in streams:
            stream.close()


async def test_the_port_is_free_again_after_the_end(tmp_path):
    cluster = Cluster(tmp_path)
    node = cluster.nodes["n1"] = Node(cluster, "n1", MemoryStorage())
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await node.kill()
    listener.open_port(*node.address).close()
