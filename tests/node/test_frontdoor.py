"""The front door: who is it, may it try, who serves it; it refuses in SSH's own words, and never hangs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from raftmft.core.bans import Address, Network, covers, parse_network
from raftmft.core.options import Startups
from raftmft.node import frontdoor, throttle
from raftmft.node.frontdoor import FrontDoor, format_address
from raftmft.wire.proxy_header import V2_SIGNATURE


class FakeWorkers:
    """Takes connections and remembers the clients' addresses."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.limits: list[float] = []
        self.got = b""
        self.number = 0
        self.present = True
        self.live: dict[int, Any] = {}

    def least_loaded(self) -> Any:
        return self if self.present else None

    async def hand_over(self, connection: socket.socket, address: str, deadline: float) -> None:
        self.taken.append(address)
        self.limits.append(deadline - trio.current_time())
        await trio.lowlevel.wait_readable(connection)
        self.got = connection.recv(4096)
        connection.close()


class FakeRules:
    """Rules that let everybody in, to be changed."""

    def __init__(self, **changes: Any) -> None:
        self.networks: tuple[Network, ...] = ()
        self.banned: tuple[Network, ...] = ()
        self.max_startups, self.rate, self.limit = Startups(100, 30, 300), 30, 30.0
        self.__dict__.update(changes)

    def trusted(self) -> tuple[Network, ...]:
        return self.networks

    def startups(self) -> Startups:
        return self.max_startups

    def rate_per_address(self) -> int:
        return self.rate

    def limit_s(self) -> float:
        return self.limit

    def is_banned(self, address: Address | None) -> bool:
        return any(covers(network, address) for network in self.banned)


LOOPBACK = parse_network("127.0.0.0/8")


def make(workers: Any, choose: Any = lambda: "me", relay: Any = None, draw: Any = lambda: 0.5,
         **rules: Any) -> FrontDoor:
    return FrontDoor("me", workers, FakeRules(**rules), choose, relay or no_relay, draw)


async def knock(door: FrontDoor, talk: Callable[[trio.SocketStream], Any]) -> Any:
    """Connects to the door over real sockets and gives what `talk` does."""
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.run, listener)
            stream = await trio.open_tcp_stream(*listener.getsockname())
            answer = await talk(stream)
            nursery.cancel_scope.cancel()
    return answer


async def everything(stream: trio.SocketStream) -> bytes:
    data = b""
    try:
        await stream.send_all(b"SSH-2.0-client\r\n")
        while part := await stream.receive_some(4096):
            data += part
            await stream.send_eof()
    except trio.BrokenResourceError:
        pass  # the fake worker closes with our bytes unread, which resets the connection
    return data


async def no_relay(*_: Any) -> None:
    raise AssertionError("nothing is to be relayed")


async def test_a_connection_for_us_goes_to_a_worker_with_the_clients_address() -> None:
    workers = FakeWorkers()
    assert await knock(make(workers), everything) == b""
    assert len(workers.taken) == 1 and workers.taken[0].startswith("127.0.0.1:")
    assert workers.got == b"SSH-2.0-client\r\n" and 29 < workers.limits[0] <= 30


async def test_a_relay_that_fails_before_the_first_byte_is_served_here() -> None:
    workers = FakeWorkers()
    asked: list[str] = []

    async def relay(connection: socket.socket, address: str, target: str, left_s: Any) -> None:
        asked.append(target)
        raise ConnectionRefusedError("gone")

    door = make(workers, lambda: "other", relay)
    await knock(door, everything)
    assert asked == ["other"] and len(workers.taken) == 1 and door.relayed == 0


async def test_a_relayed_client_keeps_the_time_it_has_used_and_is_not_cut_here() -> None:
    answers, left = [None, None, None, None, "other"], []

    async def relay(connection: socket.socket, address: str, target: str, left_s: Callable[[], float]) -> None:
        left.append(left_s())
        with trio.move_on_after(0.5) as session:
            await trio.lowlevel.wait_readable(connection)
        assert session.cancelled_caught, "a session that outlasts the limit is cut"
        connection.close()

    door = make(FakeWorkers(), lambda: answers.pop(0), relay, limit=0.4)

    async def talk(stream: trio.SocketStream) -> bytes:
        return bytes(await stream.receive_some(10))

    assert await knock(door, talk) == b""
    assert 0 < left[0] <= 0.4 - 4 * frontdoor.LOOK_AGAIN_S and door.counts["slow"] == 0


async def test_a_relay_that_does_not_come_to_be_counts_in_the_limit() -> None:
    async def relay(connection: socket.socket, address: str, target: str, left_s: Callable[[], float]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            connection.close()

    door = make(FakeWorkers(), lambda: "other", relay, limit=0.2)

    async def talk(stream: trio.SocketStream) -> bytes:
        return bytes(await stream.receive_some(10))

    assert await knock(door, talk) == b"" and door.counts["slow"] == 1


@pytest.mark.parametrize(("left_s", "counts_s"), [(12.0, 12.0), (99.0, 30.0), (0.0, 0.0)])
async def test_who_was_relayed_here_has_what_is_left_but_never_more_than_the_limit(
        left_s: float, counts_s: float) -> None:
    workers = FakeWorkers()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.send(b"x")
    await make(workers).arrived(far, ("203.0.113.8", 4711), left_s)
    assert counts_s - 1 < workers.limits[0] <= counts_s
    near.close()


async def test_an_election_is_waited_out(monkeypatch: Any) -> None:
    answers = [None, None, "me"]
    workers = FakeWorkers()
    door = make(workers, lambda: answers.pop(0))
    await knock(door, everything)
    assert len(workers.taken) == 1 and door.refused == 0


async def test_without_a_quorum_the_client_is_told_before_authentication(monkeypatch: Any) -> None:
    monkeypatch.setattr(frontdoor, "PATIENCE_S", 0.1)
    door = make(FakeWorkers(), lambda: None)
    answer = await knock(door, everything)
    assert answer.startswith(b"SSH-2.0-raftmft_") and b"no quorum" in answer and door.refused == 1


async def test_a_client_that_never_reads_nor_closes_is_dropped(monkeypatch: Any) -> None:
    monkeypatch.setattr(frontdoor, "PATIENCE_S", 0.1)
    monkeypatch.setattr(frontdoor, "REFUSAL_LIMIT_S", 0.2)
    door = make(FakeWorkers(), lambda: None)

    async def silent(stream: trio.SocketStream) -> bytes:
        data = b""
        while part := await stream.receive_some(4096):  # reads, but never closes its side
            data += part
        return data

    assert b"no quorum" in await knock(door, silent)


async def test_a_draining_door_refuses_what_is_relayed_to_it() -> None:
    workers = FakeWorkers()
    door = make(workers)
    door.close()
    assert b"SSH-2.0-raftmft_" in await knock(door, everything)
    assert not workers.taken


# --- PROXY protocol ----------------------------------------------------------------------------------------------
def saying(data: bytes, then: bytes = b"SSH-2.0-client\r\n") -> Callable[[trio.SocketStream], Any]:
    """Sends, byte by byte for `data`, and gives all that is answered."""
    async def talk(stream: trio.SocketStream) -> bytes:
        answer = b""
        try:
            for i in range(len(data)):
                await stream.send_all(data[i : i + 1] if i < len(data) - 1 else data[i:] + then)
                await trio.testing.wait_all_tasks_blocked()
            while part := await stream.receive_some(4096):
                answer += part
        except trio.BrokenResourceError:
            pass
        return answer

    return talk


V2 = V2_SIGNATURE + struct.pack(">BBH", 0x21, 0x11, 12) + bytes([203, 0, 113, 9, 10, 0, 0, 1]) + struct.pack(
    ">HH", 4711, 22)
V2_LOCAL = V2_SIGNATURE + struct.pack(">BBH", 0x20, 0, 0)


@pytest.mark.parametrize(("header", "client"), [
    (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 22\r\n", "203.0.113.9:4711"), (V2, "203.0.113.9:4711"),
    (b"PROXY TCP6 2001:db8::9 2001:db8::1 4711 22\r\n", "[2001:db8::9]:4711"),
    (V2_LOCAL, None), (b"PROXY UNKNOWN\r\n", None),
])
async def test_a_trusted_balancer_says_whose_connection_it_is(header: bytes, client: str | None) -> None:
    workers = FakeWorkers()
    door = make(workers, networks=(LOOPBACK,))
    await knock(door, saying(header))
    assert workers.got == b"SSH-2.0-client\r\n", "a byte of the client's stream is missing"
    assert workers.taken[0] == client if client else workers.taken[0].startswith("127.0.0.1:")


@pytest.mark.parametrize("header", [b"SSH-2.0-client\r\n", b"PROXY TCP4 nonsense\r\n", V2_SIGNATURE + b"\x99\0\0\0"])
async def test_a_trusted_balancer_without_a_good_header_is_closed_unanswered(header: bytes, caplog: Any) -> None:
    workers = FakeWorkers()
    door = make(workers, networks=(LOOPBACK,))
    assert await knock(door, saying(header, b"")) == b""
    assert not workers.taken and door.counts["proxy"] == 1
    assert "PROXY header" in caplog.text


async def test_a_trusted_balancer_has_a_limit_for_its_header(monkeypatch: Any) -> None:
    monkeypatch.setattr(frontdoor, "PROXY_LIMIT_S", 0.1)
    workers = FakeWorkers()
    door = make(workers, networks=(LOOPBACK,))
    assert await knock(door, saying(V2[:-1], b"")) == b""
    assert not workers.taken and door.counts["proxy"] == 1


async def test_a_header_of_others_is_never_looked_for() -> None:
    workers = FakeWorkers()
    door = make(workers, networks=(parse_network("127.9.0.0/16"),))
    await knock(door, saying(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 22\r\n"))
    assert workers.taken[0].startswith("127.0.0.1:") and workers.got.startswith(b"P")


async def test_what_the_balancer_said_counts_for_bans_rates_and_relays() -> None:
    header = b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 22\r\n"
    client = parse_network("203.0.113.0/24")
    door = make(FakeWorkers(), networks=(LOOPBACK,), banned=(client,))
    assert await knock(door, saying(header)) == b"" and door.counts["banned"] == 1
    door = make(FakeWorkers(), networks=(LOOPBACK,), banned=(LOOPBACK,))
    await knock(door, saying(header))
    assert door.counts["banned"] == 0, "the balancer itself is not the client"
    relayed: list[str] = []

    async def relay(connection: socket.socket, address: str, target: str, left_s: Any) -> None:
        relayed.append(address)

    door = make(FakeWorkers(), lambda: "other", relay, networks=(LOOPBACK,))
    await knock(door, saying(header))
    assert relayed == ["203.0.113.9:4711"]
    assert len(door._rates) == 1 and door._rates.take(client[9], 1, trio.current_time()) == 0
    assert len(door._rates) == 1


# --- bans --------------------------------------------------------------------------------------------------------
async def test_a_banned_client_is_closed_without_a_byte() -> None:
    workers = FakeWorkers()
    door = make(workers, banned=(LOOPBACK,))
    assert await knock(door, everything) == b""
    assert not workers.taken and door.counts["banned"] == 1


async def test_a_banned_client_that_was_relayed_is_closed_too() -> None:
    workers = FakeWorkers()
    door = make(workers, banned=(parse_network("203.0.113.9"),))
    near, far = socket.socketpair()
    await door.arrived(far, ("203.0.113.9", 4711), 30.0)
    assert near.recv(10) == b"" and not workers.taken and door.counts["banned"] == 1
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.send(b"x")
    await door.arrived(far, ("203.0.113.8", 4711), 30.0)
    assert workers.taken == ["203.0.113.8:4711"]


async def test_a_new_ban_cuts_what_is_held_and_relayed_for_its_addresses() -> None:
    async def relay(connection: socket.socket, address: str, target: str, left_s: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            connection.close()

    door = make(FakeWorkers(), lambda: "other", relay)

    async def talk(stream: trio.SocketStream) -> bytes:
        while not door.relayed:
            await trio.testing.wait_all_tasks_blocked()
        door.cut(parse_network("203.0.113.0/24"))
        with trio.move_on_after(0.1) as held:
            await stream.receive_some(10)
        assert held.cancelled_caught, "another network's ban cut it"
        door.cut(LOOPBACK)
        return bytes(await stream.receive_some(10))

    assert await knock(door, talk) == b""
    assert not door._held


# --- how many ----------------------------------------------------------------------------------------------------
async def test_an_address_over_its_rate_waits_and_then_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(throttle, "BURST_S", 0.1)
    monkeypatch.setattr(throttle, "MOST_DELAY_S", 0.3)
    workers = FakeWorkers()
    door = make(workers, rate=20)

    async def talk(stream: trio.SocketStream) -> None:
        address = stream.socket.getpeername()
        streams = [await trio.open_tcp_stream(*address) for _ in range(20)]
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for each in [stream, *streams]:
                nursery.start_soon(everything, each)
        assert trio.current_time() - begun > 0.2, "nobody waited"

    await knock(door, talk)
    assert 7 <= len(workers.taken) <= 12 and door.counts["rate"] == 21 - len(workers.taken)
    assert door._delayed == 0


async def test_while_too_many_have_not_logged_in_further_ones_are_dropped_and_told() -> None:
    workers = FakeWorkers()
    workers.live = {0: SimpleNamespace(waiting=200)}
    for draw, is_dropped in ((0.64, True), (0.66, False)):
        door = make(workers, draw=lambda draw=draw: draw)
        answer = await knock(door, everything)
        assert (b"too many clients" in answer) == is_dropped == (door.counts["dropped"] == 1)
    workers.live = {0: SimpleNamespace(waiting=150), 1: SimpleNamespace(waiting=150)}
    door = make(workers, draw=lambda: 0.999)
    near, far = socket.socketpair()
    await door.arrived(far, ("203.0.113.9", 4711), 30.0)
    assert b"too many clients" in near.recv(4096), "relayed ones count as well"


async def test_a_connection_that_only_holds_the_door_is_cut_in_time(monkeypatch: Any) -> None:
    door = make(FakeWorkers(), lambda: None, limit=0.2)

    async def talk(stream: trio.SocketStream) -> bytes:
        return bytes(await stream.receive_some(10))

    assert await knock(door, talk) == b"" and door.counts["slow"] == 1 and door.half_open == 0


async def test_thousands_of_refusals_are_a_line_or_two(caplog: Any) -> None:
    caplog.set_level("INFO")
    door = make(FakeWorkers(), banned=(parse_network("203.0.113.0/24"),))
    for i in range(2000):
        near, far = socket.socketpair()
        await door.arrived(far, ("203.0.113.9", i), 30.0)
        near.close()
    assert door.counts["banned"] == 2000 and 1 <= len(caplog.records) <= 2
    assert caplog.records[0].fields == {"address": "203.0.113.9:0", "reason": "banned"}


@pytest.mark.parametrize(("address", "text"), [
    (("192.0.2.7", 5), "192.0.2.7:5"), (("2001:db8::1", 5), "[2001:db8::1]:5"),
    (("::ffff:192.0.2.7", 5), "192.0.2.7:5"),
    (("fe80::1%eth0", 5), "[fe80::1]:5")])
def test_addresses_have_one_form(address: tuple[str, int], text: str) -> None:
    assert format_address(address) == text
