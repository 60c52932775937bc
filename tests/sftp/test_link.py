"""The worker's end of the link over a real socket pair."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Code
from raftmft.sftp.link import MOST_REQUESTS, Link, LinkLost, Refused
from raftmft.wire import frames
from raftmft.wire import link as wire


class Node:
    """The other end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.reader, self.pending = sock, frames.FrameReader(), []

    async def next(self) -> Any:
        """The next message."""
        while not self.pending:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
            self.pending += [wire.parse(value) for value in self.reader.feed(data)]
        return self.pending.pop(0)

    async def send(self, data: bytes) -> None:
        """Sends frames."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)


def run(test: Callable[[Link, Node, list[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        here, there = socket.socketpair()
        there.setblocking(False)
        lost: list[str] = []

        async def handler(op: str, args: dict[str, Any]) -> Any:
            if op == "fails":
                raise RaftmftError("it cannot")
            return {"op": op, **args}

        link = Link(handler, lambda: lost.append("lost"))
        await asyncio.get_running_loop().create_connection(lambda: link, sock=here)
        async with asyncio.timeout(10):
            await test(link, Node(there), lost)
        there.close()

    asyncio.run(main())


def test_replies_find_their_requests_in_any_order() -> None:
    async def test(link: Link, node: Node, lost: list[str]) -> None:
        asked = [asyncio.create_task(link.request("op", {"n": n})) for n in range(5)]
        requests = [await node.next() for _ in range(5)]
        for request in reversed(requests):
            await node.send(wire.reply(request.id, wire.OK, request.args["n"]))
        assert await asyncio.gather(*asked) == [0, 1, 2, 3, 4]
    run(test)


@pytest.mark.parametrize(("status", "value", "kind"), [
    (wire.REJECTED, {"code": "quota", "text": "full"}, Refused), (wire.NO_QUORUM, "none", NoQuorum),
    (wire.UNKNOWN, "perhaps", OutcomeUnknown), (wire.FAILED, "no", RaftmftError)])
def test_trouble_is_told_apart(status: str, value: Any, kind: type[Exception]) -> None:
    async def test(link: Link, node: Node, lost: list[str]) -> None:
        asked = asyncio.create_task(link.request("op", {}))
        await node.send(wire.reply((await node.next()).id, status, value))
        with pytest.raises(kind) as caught:
            await asked
        assert type(caught.value) is kind
        assert not isinstance(caught.value, Refused) or caught.value.code is Code.QUOTA
    run(test)


def test_a_cancelled_request_is_forgotten() -> None:
    async def test(link: Link, node: Node, lost: list[str]) -> None:
        asked = asyncio.create_task(link.request("op", {}))
        first = await node.next()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await node.send(wire.reply(first.id, wire.OK, "late"))
        second = asyncio.create_task(link.request("op", {}))
        await node.send(wire.reply((await node.next()).id, wire.OK, "mine"))
        assert await second == "mine" and not lost
    run(test)


def test_requests_under_way_are_bounded() -> None:
    async def test(link: Link, node: Node, lost: list[str]) -> None:
        asked = [asyncio.create_task(link.request("op", {})) for _ in range(MOST_REQUESTS + 10)]
        requests = [await node.next() for _ in range(MOST_REQUESTS)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.next(), 0.1)
        for request in requests[:10]:
            await node.send(wire.reply(request.id, wire.OK, None))
        for _ in range(10):
            await node.next()
        for task in asked:
            task.cancel()
    run(test)


@pytest.mark.parametrize("end", [b"", b"\xff\xff\xff\xff", frames.encode([9, 9])])
def test_everything_fails_when_the_link_ends(end: bytes) -> None:
    async def test(link: Link, node: Node, lost: list[str]) -> None:
        asked = asyncio.create_task(link.request("op", {}))
        await node.next()
        if end:
            await node.send(end)
        else:
            node.sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LinkLost, match="outcome unknown"):
            await asked
        with pytest.raises(LinkLost):
            await link.request("op", {})
        link.notify("load", {})
        assert lost == ["lost"]
    run(test)


def test_the_nodes_requests_are_answered() -> None:
    async def test(link: Link, node: Node, lost: list[str]) -> None:
        await node.send(wire.request(1, "drain", {"x": 1}) + wire.request(2, "fails", {}))
        assert await node.next() == wire.Reply(1, wire.OK, {"op": "drain", "x": 1})
        assert await node.next() == wire.Reply(2, wire.FAILED, "it cannot")
        link.notify("load", {"sessions": 1})
        assert await node.next() == wire.Notification("load", {"sessions": 1})
    run(test)
