"""The hand-driven TLS stream: right bytes in both directions at once, right refusals, truth about what broke."""

from __future__ import annotations

import os
import random
import socket
import ssl

import pytest
import trio
import trio.testing
from peer_nodes import make_files, make_self

from raftmft.cluster import certificates
from raftmft.cluster.tls import TlsStream


@pytest.fixture(scope="module")
def selves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = certificates.make_authority("test")
    return make_self(folder / "a", "a", authority), make_self(folder / "b", "b", authority)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    return one, other


async def linked(selves) -> tuple[TlsStream, TlsStream]:
    (a, _), (b, _) = selves
    one, other = tcp_pair()
    client, server = TlsStream(one, a.client, server_side=False), TlsStream(other, b.server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake, 5)
        nursery.start_soon(server.handshake, 5)
    for stream in (client, server):
        stream.tune(1 << 20, user_timeout_s=3)
    return client, server


async def test_both_directions_at_once_carry_every_byte(selves):
    client, server = await linked(selves)
    assert client.peer_fingerprint() == selves[1][1] and server.peer_fingerprint() == selves[0][1]
    rng = random.Random(5)
    pieces = {side: [os.urandom(rng.choice((0, 1, 9, 5000, 1 << 20, 3 << 20))) for _ in range(12)] for side in "cs"}

    async def send(stream, mine):
        for start in range(0, len(mine), 3):
            await stream.send_all(*mine[start : start + 3])

    async def receive(stream, theirs):
        want = b"".join(theirs)
        got = bytearray(len(want))
        assert await stream.receive_exactly_into(memoryview(got))
        assert bytes(got) == want

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client, pieces["c"])
            nursery.start_soon(send, server, pieces["s"])
            nursery.start_soon(receive, client, pieces["s"])
            nursery.start_soon(receive, server, pieces["c"])
    client.close()
    assert await server.receive_into(memoryview(bytearray(1))) == 0
    server.close()


async def test_send_now_leaves_at_once_and_its_rest_leaves_later_in_order(selves):
    client, server = await linked(selves)
    assert client.idle
    client.send_now(b"a" * 100)
    got = bytearray(100)
    assert await server.receive_exactly_into(memoryview(got)) and got == b"a" * 100
    big = os.urandom(32 << 20)  # more than any socket buffer takes
    client.send_now(big)
    assert not client.idle
    with pytest.raises(trio.BusyResourceError):
        client.send_now(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"end")
        got = bytearray(len(big) + 3)
        assert await server.receive_exactly_into(memoryview(got))
    assert got == big + b"end" and client.idle
    client.close()
    server.close()


async def test_a_cancelled_send_breaks_the_stream_and_says_so(selves):
    client, server = await linked(selves)
    with trio.move_on_after(0.05) as scope:
        await client.send_all(bytes(64 << 20))
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"more")
    client.close()
    server.close()


async def test_a_cancelled_receive_loses_nothing(selves):
    client, server = await linked(selves)
    got = bytearray(5)
    with trio.move_on_after(0):
        await server.receive_into(memoryview(got))
    await client.send_all(b"hello")
    assert await server.receive_exactly_into(memoryview(got)) and got == b"hello"
    client.close()
    server.close()


async def test_one_sender_and_one_receiver_only_and_closing_wakes_them(selves):
    client, server = await linked(selves)
    woken = []

    async def receive():
        with pytest.raises(trio.ClosedResourceError):
            await client.receive_into(memoryview(bytearray(1)))
        woken.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.receive_into(memoryview(bytearray(1)))
        client.close()
    assert woken
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")
    server.close()


async def test_an_end_in_the_middle_of_a_message_is_no_clean_end(selves):
    client, server = await linked(selves)
    await client.send_all(b"half")
    client.close()
    with pytest.raises(trio.BrokenResourceError, match="middle"):
        await server.receive_exactly_into(memoryview(bytearray(5)))
    server.close()


async def test_garbage_instead_of_a_record_breaks_the_stream(selves):
    client, server = await linked(selves)
    client._sock.send(b"\x17\x03\x03\x00\x20" + b"z" * 32)
    with pytest.raises(trio.BrokenResourceError, match="bad TLS"):
        await server.receive_into(memoryview(bytearray(5)))
    server.close()
    client.close()


async def refusal_of(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> str:
    one, other = tcp_pair()
    client = TlsStream(one, client_context, server_side=False)
    server = TlsStream(other, server_context, server_side=True)
    reasons = []

    async def client_side():
        try:
            await client.handshake(5)
            await client.receive_into(memoryview(bytearray(1)))
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client_side)
        try:
            await server.handshake(5)
        except trio.BrokenResourceError as error:
            reasons.append(str(error))
        server.close()
    client.close()
    assert reasons, "the handshake was not refused"
    return reasons[0]


async def test_tls_1_2_another_ca_and_no_certificate_are_refused(selves, tmp_path):
    (_, _), (server, _) = selves
    stranger, _ = make_self(tmp_path / "s", "a", certificates.make_authority("test"))
    assert "handshake refused" in await refusal_of(server.server, stranger.client)

    def lenient() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    assert "did not return a certificate" in await refusal_of(server.server, lenient())
    files, _ = make_files(tmp_path / "old", "a", certificates.make_authority("test"))
    old = lenient()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(files.certificate, files.key)
    assert "unsupported protocol" in await refusal_of(server.server, old)


async def test_an_expired_certificate_is_refused(selves, tmp_path):
    from datetime import datetime, timedelta, timezone

    authority = certificates.make_authority("test")
    server, _ = make_self(tmp_path / "srv", "b", authority)
    files, _ = make_files(tmp_path / "late", "a", authority)
    past = datetime.now(timezone.utc) - timedelta(days=91)
    certificates.write_member_files(files, authority.certificate, certificates.issue_member(authority, "a", now=past))
    assert "expired" in await refusal_of(server.server, certificates.client_context(files))


async def test_a_silent_peer_times_out(selves):
    one, other = tcp_pair()
    server = TlsStream(other, selves[0][0].server, server_side=True)
    with pytest.raises(trio.TooSlowError):
        await server.handshake(0.05)
    server.close()
    one.close()
