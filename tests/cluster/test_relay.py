"""Relayed connections: the target learns the true client, gets every byte and no byte more; forgers get nothing."""

from __future__ import annotations

import os
import socket

import pytest
import trio
from peer_nodes import until

from raftmft.cluster import relay as relay_module
from raftmft.cluster.relay import PrefaceGuard, RelayDoor, relay
from raftmft.wire.frames import FrameError
from raftmft.wire.preface import HEAD_SIZE, LIMIT_MOST_MS, MAGIC

KEY = b"k" * 32


class Clock:
    now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


def guards() -> tuple[PrefaceGuard, PrefaceGuard, Clock]:
    clock = Clock()
    return PrefaceGuard(KEY, "n1", clock_ms=clock), PrefaceGuard(KEY, "n2", clock_ms=clock), clock


def test_a_preface_is_taken_once_by_the_member_it_is_for():
    n1, n2, _ = guards()
    data = n1.make("n2", "192.0.2.7", 50022, 30)
    taken = n2.check(data)
    assert (taken.address, taken.port, taken.source, taken.target) == ("192.0.2.7", 50022, "n1", "n2")
    with pytest.raises(FrameError, match="replayed"):
        n2.check(data)
    with pytest.raises(FrameError, match="another member"):
        n1.check(n1.make("n2", "192.0.2.7", 50022, 30))


@pytest.mark.parametrize(("left_s", "said_ms"), [(29.5, 29_500), (-1.0, 0), (1e9, LIMIT_MOST_MS)])
def test_a_preface_tells_the_time_that_is_left_within_bounds(left_s, said_ms):
    n1, n2, _ = guards()
    assert n2.check(n1.make("n2", "192.0.2.7", 50022, left_s)).limit_ms == said_ms


@pytest.mark.parametrize(("shift_ms", "fresh"), [(30_000, True), (30_001, False), (-30_000, True), (-30_001, False)])
def test_a_preface_is_fresh_for_30_seconds(shift_ms, fresh):
    n1, n2, clock = guards()
    data = n1.make("n2", "192.0.2.7", 50022, 30)
    clock.now += shift_ms
    if fresh:
        n2.check(data)
    else:
        with pytest.raises(FrameError, match="stale"):
            n2.check(data)


def test_forged_prefaces_are_refused():
    n1, n2, clock = guards()
    with pytest.raises(FrameError, match="forged"):
        n2.check(PrefaceGuard(b"o" * 32, "n1", clock_ms=clock).make("n2", "192.0.2.7", 50022, 30))
    data = bytearray(n1.make("n2", "192.0.2.7", 50022, 30))
    data[HEAD_SIZE + 3] ^= 1
    with pytest.raises(FrameError):
        n2.check(data)


def test_after_a_rekey_only_the_new_key_counts():
    n1, n2, _ = guards()
    old = n1.make("n2", "192.0.2.7", 50022, 30)
    n2.rekey(b"new" * 11)
    with pytest.raises(FrameError, match="forged"):
        n2.check(old)
    with pytest.raises(FrameError, match="forged"):
        n2.check(n1.make("n2", "192.0.2.7", 50022, 30))
    n1.rekey(b"new" * 11)
    new = n1.make("n2", "192.0.2.7", 50022, 30)
    n2.check(new)
    with pytest.raises(FrameError, match="replayed"):
        n2.check(new)


def test_the_memory_of_nonces_is_bounded_and_never_lets_a_replay_in(monkeypatch):
    monkeypatch.setattr(relay_module, "NONCES_MAX", 5)
    n1, n2, clock = guards()
    first = [n1.make("n2", "192.0.2.7", port, 30) for port in range(5)]
    for data in first:
        n2.check(data)
    with pytest.raises(FrameError, match="too many"):
        n2.check(n1.make("n2", "192.0.2.7", 9, 30))
    clock.now += 30_000
    for data in first:
        with pytest.raises(FrameError, match="replayed"):
            n2.check(data)
    clock.now += 1
    n2.check(n1.make("n2", "192.0.2.7", 9, 30))
    assert len(n2._seen) == 1


class Target:
    """A member's relay door behind a listening socket; what it takes is served by `serve`."""

    def __init__(self, serve) -> None:
        self.guard, self.source = PrefaceGuard(KEY, "n2"), PrefaceGuard(KEY, "n1")
        self.clients: list = []
        self.serve = serve
        self.door = RelayDoor(self.guard, self.on_client)

    async def on_client(self, sock, preface) -> None:
        self.clients.append((preface.address, preface.port))
        await self.serve(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as nursery:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                listening.setblocking(False)
                task_status.started(listening.getsockname())
                while True:
                    await trio.lowlevel.wait_readable(listening)
                    sock, _ = listening.accept()
                    sock.setblocking(False)
                    nursery.start_soon(self.door.take, sock)


def client_pair() -> tuple[trio.SocketStream, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
    return trio.SocketStream(trio.socket.from_stdlib_socket(one)), other


async def echo(stream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_all(b"-end")


def no_pipes(flags):
    raise OSError(24, "Too many open files")


def no_splice(*args, **kwargs):
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("broken", [None, ("pipe2", no_pipes), ("splice", no_splice)])
async def test_every_byte_goes_both_ways_and_half_closing_is_passed_on(nursery, monkeypatch, broken):
    if broken:
        monkeypatch.setattr(os, *broken)
    target = Target(echo)
    address = await nursery.start(target.run)
    near, far = client_pair()
    nursery.start_soon(relay, far, *address, lambda: target.source.make("n2", "198.51.100.9", 4711, 30))
    data, got = os.urandom(5 << 20), bytearray()

    async def send():
        for start in range(0, len(data), 100_000):
            await near.send_all(data[start : start + 100_000])
        await near.send_eof()

    with trio.fail_after(10):
        async with trio.open_nursery() as inner:
            inner.start_soon(send)
            async for piece in near:
                got += piece
    assert got == data + b"-end"
    assert target.clients == [("198.51.100.9", 4711)]
    await until(lambda: far.fileno() < 0)


async def test_no_byte_of_the_clients_stream_is_swallowed(nursery):
    got = bytearray()

    async def collect(stream):
        async for data in stream:
            got.extend(data)

    target = Target(collect)
    address = await nursery.start(target.run)
    stream = await trio.open_tcp_stream(*address)
    preface = target.source.make("n2", "198.51.100.9", 4711, 30)
    for i in range(len(preface) - 1):  # byte by byte, and the last one together with the client's first
        await stream.send_all(preface[i : i + 1])
    await stream.send_all(preface[-1:] + b"SSH-2.0-client\r\n")
    await until(lambda: got == b"SSH-2.0-client\r\n")
    await stream.aclose()


async def test_forged_stale_and_broken_prefaces_are_closed(nursery):
    target = Target(echo)
    address = await nursery.start(target.run)
    good = target.source.make("n2", "198.51.100.9", 4711, 30)
    other_key = PrefaceGuard(b"o" * 32, "n1").make("n2", "198.51.100.9", 4711, 30)
    for data in (other_key, target.source.make("n3", "198.51.100.9", 1, 30), good[:20], good[:-1],
                 MAGIC + b"\xff" * 100, good[:-1] + bytes([good[-1] ^ 1])):
        stream = await trio.open_tcp_stream(*address)
        try:
            await stream.send_all(data)
            await stream.send_eof()
            assert await stream.receive_some(10) == b""
        except trio.BrokenResourceError:
            pass
        await stream.aclose()
    assert target.clients == [] and target.door.counts["refused"] == 6


async def test_when_either_side_breaks_both_are_closed(nursery):
    opened: list = []

    async def hold(stream):
        opened.append(stream)
        await trio.sleep_forever()

    target = Target(hold)
    address = await nursery.start(target.run)
    for who in ("client", "target"):
        near, far = client_pair()
        nursery.start_soon(relay, far, *address, lambda: target.source.make("n2", "198.51.100.9", 4711, 30))
        await until(lambda: opened)
        server = opened.pop()
        breaking = near if who == "client" else server
        breaking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        trio.lowlevel.notify_closing(breaking.socket)
        breaking.socket.close()  # a reset, as of a killed process
        with pytest.raises(trio.BrokenResourceError):
            await (server if who == "client" else near).receive_some(10)
            raise trio.BrokenResourceError
        await until(lambda far=far: far.fileno() < 0)


async def test_a_half_closed_relay_does_not_live_for_ever(nursery, monkeypatch):
    monkeypatch.setattr(relay_module, "HALF_CLOSED_S", 0.1)

    async def never_end(stream):
        await trio.sleep_forever()

    target = Target(never_end)
    address = await nursery.start(target.run)
    near, far = client_pair()
    async with trio.open_nursery() as inner:
        inner.start_soon(relay, far, *address, lambda: target.source.make("n2", "198.51.100.9", 4711, 30))
        await near.send_eof()
    assert far.fileno() < 0


async def test_a_client_does_not_hold_a_relay_whose_server_has_closed(nursery, monkeypatch):
    monkeypatch.setattr(relay_module, "SERVER_CLOSED_S", 0.1)

    async def close(stream):
        await stream.aclose()

    target = Target(close)
    address = await nursery.start(target.run)
    near, far = client_pair()
    with trio.fail_after(5):
        await relay(far, *address, lambda: target.source.make("n2", "198.51.100.9", 4711, 30))
    assert far.fileno() < 0
    await near.aclose()


async def test_a_target_that_never_speaks_is_given_up_and_told_of(nursery, monkeypatch, caplog):
    monkeypatch.setattr(relay_module, "FIRST_WORD_S", 0.1)

    async def hold(stream):
        await trio.sleep_forever()

    target = Target(hold)
    address = await nursery.start(target.run)
    near, far = client_pair()
    await near.send_all(b"SSH-2.0-client\r\n")
    with trio.fail_after(5):
        await relay(far, *address, lambda: target.source.make("n2", "198.51.100.9", 4711, 30))
    assert far.fileno() < 0
    await near.aclose()


async def test_refused_prefaces_cost_one_log_line_in_ten_seconds(nursery, caplog):
    target = Target(echo)
    address = await nursery.start(target.run)
    for _ in range(20):
        stream = await trio.open_tcp_stream(*address)
        await stream.send_all(MAGIC + bytes(100))
        await stream.aclose()
    await until(lambda: target.door.counts["refused"] == 20)
    (line,) = [r for r in caplog.records if "refused" in r.message]
    assert line.fields["address"].startswith("127.0.0.1:")


async def test_cancelling_closes_both_and_leaks_no_descriptor(nursery):
    opened: list = []

    async def hold(stream):
        opened.append(stream)
        assert await stream.receive_some(10) == b""
        await stream.aclose()

    target = Target(hold)
    address = await nursery.start(target.run)
    before = len(os.listdir("/proc/self/fd"))
    near, far = client_pair()
    async with trio.open_nursery() as inner:
        inner.start_soon(relay, far, *address, lambda: target.source.make("n2", "198.51.100.9", 4711, 30))
        await until(lambda: opened)
        inner.cancel_scope.cancel()
    with trio.fail_after(2):
        assert await near.receive_some(10) == b""
    await near.aclose()
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_an_unreachable_target_is_said_and_the_client_is_the_callers_again():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
    near, far = client_pair()
    await near.send_all(b"SSH-")
    with pytest.raises(OSError):
        await relay(far, *address, lambda: pytest.fail("the client's time counts on here"))
    assert far.recv(10) == b"SSH-"
    far.close()
    await near.aclose()
