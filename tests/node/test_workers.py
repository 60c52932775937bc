"""Session workers as the node sees them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raftmft.core.errors import RaftmftError
from raftmft.node.workers import Workers


async def never(*_: Any) -> None:
    raise AssertionError("it is not asked")


async def test_a_stop_is_clean_though_a_worker_is_not_ready_yet() -> None:
    asked = []

    class Link:
        def __init__(self, refusal: str) -> None:
            self.refusal = refusal

        async def request(self, op: str, args: dict[str, Any]) -> None:
            asked.append(op)
            if self.refusal:
                raise RaftmftError(self.refusal)

    workers = Workers(2, never, never, lambda starts: f"w{starts}", ())
    for number, refusal in enumerate(("the worker is not ready", "")):
        workers.live[number] = SimpleNamespace(link=Link(refusal))  # type: ignore[assignment]
    await workers.drain(20)
    assert asked == ["drain", "drain"]
