"""The front door: hands over, relays, waits out an election, refuses in SSH's own words, and never hangs."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import trio

from raftmft.node import frontdoor
from raftmft.node.frontdoor import FrontDoor


class FakeWorkers:
    """Takes connections and remembers the clients' addresses."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.number = 0
        self.present = True

    def least_loaded(self) -> Any:
        return self if self.present else None

    async def hand_over(self, connection: socket.socket, address: str) -> None:
        self.taken.append(address)
        connection.close()


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
    assert await knock(FrontDoor("me", workers, lambda: "me", no_relay), everything) == b""  # type: ignore[arg-type]
    assert len(workers.taken) == 1 and workers.taken[0].startswith("127.0.0.1:")


async def test_a_relay_that_fails_before_the_first_byte_is_served_here() -> None:
    workers = FakeWorkers()
    asked: list[str] = []

    async def relay(connection: socket.socket, address: str, target: str) -> None:
        asked.append(target)
        raise ConnectionRefusedError("gone")

    door = FrontDoor("me", workers, lambda: "other", relay)  # type: ignore[arg-type]
    await knock(door, everything)
    assert asked == ["other"] and len(workers.taken) == 1 and door.relayed == 0


async def test_an_election_is_waited_out(monkeypatch: Any) -> None:
    answers = [None, None, "me"]
    workers = FakeWorkers()
    door = FrontDoor("me", workers, lambda: answers.pop(0), no_relay)  # type: ignore[arg-type]
    await knock(door, everything)
    assert len(workers.taken) == 1 and door.refused == 0


async def test_without_a_quorum_the_client_is_told_before_authentication(monkeypatch: Any) -> None:
    monkeypatch.setattr(frontdoor, "PATIENCE_S", 0.1)
    door = FrontDoor("me", FakeWorkers(), lambda: None, no_relay)  # type: ignore[arg-type]
    answer = await knock(door, everything)
    assert answer.startswith(b"SSH-2.0-raftmft_") and b"no quorum" in answer and door.refused == 1


async def test_a_client_that_never_reads_nor_closes_is_dropped(monkeypatch: Any) -> None:
    monkeypatch.setattr(frontdoor, "PATIENCE_S", 0.1)
    monkeypatch.setattr(frontdoor, "REFUSAL_LIMIT_S", 0.2)
    door = FrontDoor("me", FakeWorkers(), lambda: None, no_relay)  # type: ignore[arg-type]

    async def silent(stream: trio.SocketStream) -> bytes:
        data = b""
        while part := await stream.receive_some(4096):  # reads, but never closes its side
            data += part
        return data

    assert b"no quorum" in await knock(door, silent)


async def test_a_draining_door_refuses_what_is_relayed_to_it() -> None:
    workers = FakeWorkers()
    door = FrontDoor("me", workers, lambda: "me", no_relay)  # type: ignore[arg-type]
    door.close()
    assert b"SSH-2.0-raftmft_" in await knock(door, everything)
    assert not workers.taken
