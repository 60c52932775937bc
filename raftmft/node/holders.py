"""Which members hold which chunks: each is asked over its control link; this member looks for itself.

"Held" means that the member's index has a place for the chunk, not that its bytes were read again: that is scrub's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import trio

from raftmft.cluster.links import PeerLinks
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import ID_SIZE

OPERATION = "chunks.held"
MOST_IDS = 2048
"""Ids in one request."""
ASK_LIMIT_S = 3.0


class Holders:
    """Asks, and answers for this member. `is_here` tells whether a chunk lies here."""

    def __init__(self, me: str, links: PeerLinks, is_here: Callable[[bytes], bool]) -> None:
        self._me, self._links, self._is_here = me, links, is_here
        links.handle(OPERATION, self._answer)

    async def who_holds(self, ids: Sequence[bytes], members: Collection[str]) -> dict[str, list[bool] | None]:
        """Member id -> for each of `ids` whether it holds the chunk; None for a member that did not answer in time."""
        assert len(ids) <= MOST_IDS
        found: dict[str, list[bool] | None] = dict.fromkeys(members)

        async def ask(member: str) -> None:
            if member == self._me:
                found[member] = [self._is_here(chunk_id) for chunk_id in ids]
                return
            try:
                answer = await self._links.request(member, OPERATION, {"ids": list(ids)}, timeout_s=ASK_LIMIT_S)
            except RaftmftError:
                return
            if isinstance(answer, list) and len(answer) == len(ids):
                found[member] = [held is True for held in answer]

        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(ask, member)
        return found

    async def _answer(self, _: str, args: dict[str, Any]) -> list[bool]:
        ids = args.get("ids")
        if not isinstance(ids, list) or len(ids) > MOST_IDS or not all(
                isinstance(chunk_id, bytes) and len(chunk_id) == ID_SIZE for chunk_id in ids):
            raise ValueError(f"ids must be at most {MOST_IDS} chunk ids")
        return [self._is_here(chunk_id) for chunk_id in ids]
