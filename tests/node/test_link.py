"""The node's end of a link: answers, refusals, hostile bytes, and what becomes of requests when the worker is gone."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.node.link import Link, Rejected
from raftmft.wire import frames


def pair() -> tuple[Link, trio.SocketStream]:
    here, there = socket.socketpair()
    return (
        Link(trio.SocketStream(trio.socket.from_stdlib_socket(here))),
        trio.SocketStream(trio.socket.from_stdlib_socket(there)),
    )


async def answers(stream: trio.SocketStream, count: int) -> list[Any]:
    reader, found = frames.FrameReader(), []
    while len(found) < count:
        found += reader.feed(await stream.receive_some(65536))
    return found


@pytest.mark.parametrize(
    ("error", "status", "value"),
    [
        (Rejected("not_found", "no such file"), "rejected", {"code": "not_found", "text": "no such file"}),
        (NoQuorum("no quorum"), "no_quorum", "no quorum"),
        (OutcomeUnknown("outcome unknown"), "unknown", "outcome unknown"),
        (RaftmftError("broken"), "failed", "broken"),
        (KeyError("x"), "failed", None),
    ],
)
async def test_errors_become_statuses(error: Exception, status: str, value: Any) -> None:
    link, worker = pair()

    async def handler(op: str, args: dict[str, Any]) -> Any:
        raise error

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, handler)
            await worker.send_all(frames.encode([0, 7, "fs.stat", {}]))
            [answer] = await answers(worker, 1)
            assert answer[:3] == [1, 7, status]
            assert value is None or answer[3] == value
            nursery.cancel_scope.cancel()


async def test_notifications_are_served_in_order_before_later_requests() -> None:
    link, worker = pair()
    seen: list[Any] = []

    async def handler(op: str, args: dict[str, Any]) -> Any:
        seen.append((op, args["n"]))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, handler)
            await worker.send_all(
                b"".join(frames.encode([2, "read.end", {"n": n}]) for n in range(50))
                + frames.encode([0, 1, "session.end", {"n": 50}])
            )
            await answers(worker, 1)
            nursery.cancel_scope.cancel()
    assert seen == [("read.end", n) for n in range(50)] + [("session.end", 50)]


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 8, frames.encode([9, 9]), frames.encode({"a": 1}), frames.encode([0, "x", 1, {}])]
)
async def test_garbage_ends_the_link_and_nothing_else(garbage: bytes) -> None:
    link, worker = pair()

    async def handler(op: str, args: dict[str, Any]) -> Any:
        raise AssertionError("garbage reached a handler")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, handler)
            await worker.send_all(garbage)
            assert await worker.receive_some(10) == b""


async def test_a_request_to_a_worker_that_dies_ends() -> None:
    link, worker = pair()

    async def handler(op: str, args: dict[str, Any]) -> Any:
        return None

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, handler)

            async def die() -> None:
                await answers(worker, 1)
                await worker.aclose()

            nursery.start_soon(die)
            with pytest.raises(trio.BrokenResourceError):
                await link.request("drain", {})
        with pytest.raises(trio.BrokenResourceError):
            await link.request("drain", {})
