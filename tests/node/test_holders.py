"""Who holds which chunks: members are asked at once, silent ones are told apart, and nobody is believed too much."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from raftmft.cluster.hello import PeerUnreachable
from raftmft.node.holders import ASK_LIMIT_S, MOST_IDS, Holders

IDS = [bytes([n]) * 32 for n in range(3)]


class FakeLinks:
    """Answers by script: a value, or an exception."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.handler: Any = None
        self.asked: list[tuple[str, float]] = []

    def handle(self, op: str, handler: Any) -> None:
        self.handler = handler

    async def request(self, member: str, op: str, args: dict[str, Any], *, timeout_s: float) -> Any:
        self.asked.append((member, timeout_s))
        await trio.lowlevel.checkpoint()
        answer = self.answers[member]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_each_member_is_asked_and_this_one_looks_for_itself() -> None:
    links = FakeLinks({"b": [True, False, True], "c": PeerUnreachable("gone"), "d": [True], "e": "yes",
                       "f": [1, None, True]})
    holders = Holders("a", links, lambda chunk_id: chunk_id == IDS[1])  # type: ignore[arg-type]
    assert await holders.who_holds(IDS, ["a", "b", "c", "d", "e", "f"]) == {
        "a": [False, True, False], "b": [True, False, True], "c": None, "d": None, "e": None,
        "f": [False, False, True]}
    assert set(links.asked) == {(member, ASK_LIMIT_S) for member in "bcdef"}


async def test_what_peers_may_ask() -> None:
    links = FakeLinks({})
    Holders("a", links, lambda chunk_id: chunk_id == IDS[1])  # type: ignore[arg-type]
    assert await links.handler("b", {"ids": IDS}) == [False, True, False]
    assert await links.handler("b", {"ids": []}) == []
    for wrong in ({}, {"ids": 5}, {"ids": [b"short"]}, {"ids": ["x" * 32]}, {"ids": [IDS[0]] * (MOST_IDS + 1)}):
        with pytest.raises(ValueError, match="ids must be"):
            await links.handler("b", wrong)
