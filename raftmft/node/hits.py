"""Deduplication: which chunks of an upload are stored already, so that they are neither appended nor sent.

A worker offers a chunk (`chunk.offer`) before it appends it. It is a *hit* if the user may know that it is there, and a
write quorum of its owners says, each after a sync that began after it was asked (Holdings.touch), that it holds it
durably: the same waits and as many answers as for bytes. Else it is a miss, and the worker stores and puts it as any.

Who may know: with dedup.scope home, whose own home has a published file with that chunk now (homes.py); for others no
owner is asked. So nothing of another home can be told by time, and since what is put is appended even where it is held
(bulk_server.py), nor by room on the disks. With dedup.scope cluster, everybody may.

Should too few owners have it, or not say so, the bytes are stored anew; so a hit never counts on a copy that is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import trio

from raftmft.cluster.holdings import Holdings
from raftmft.cluster.links import PeerLinks
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import ID_SIZE
from raftmft.node.homes import Homes, ReadIndex
from raftmft.node.state import ReplicatedState

OPERATION = "chunks.touch"
MOST_IDS = 1024
"""Ids in one request."""
ASK_LIMIT_S = 2.0


class Hits:
    """Answers for this member, and asks for `hit`. `run` must be running for homes to be known; `read_index` gives the
    content of an index chunk.
    """

    def __init__(self, me: str, links: PeerLinks, holdings: Holdings, read_index: ReadIndex,
                 state: ReplicatedState) -> None:
        self._me, self._links, self._holdings, self._state = me, links, holdings, state
        self._homes = Homes(lambda: state.machine.references, state.machine.path, read_index)
        self.run = self._homes.run
        self.counts: Counter[str] = Counter()
        links.handle(OPERATION, self._answer)

    def shares(self) -> bool:
        """Whether all may know of each other's content."""
        machine = self._state.machine
        return machine.is_bootstrapped and machine.options.get("dedup.scope") == "cluster"

    async def begin(self, upload: int) -> int:
        """Looks at what the home of a live upload consists of now; gives its uid."""
        live = self._state.machine.uploads.get(upload)
        if live is None:
            return 0
        await self._homes.refresh(live.uid)
        return live.uid

    async def hit(self, uid: int, chunk_id: bytes, owners: Collection[str], quorum: int) -> bool:
        """Whether `quorum` of the owners hold the chunk durably, if the user may know. Cancelled: some touched it."""
        if self._me in owners and self._holdings.find(chunk_id) is None:
            return False  # not worth a question
        if not (self._homes.refers(uid, chunk_id) or self.shares()):
            return False
        held: set[str] = set()
        async with trio.open_nursery() as nursery:
            async def ask(member: str) -> None:
                if await self._is_held(member, chunk_id):
                    held.add(member)
                    if len(held) >= quorum:
                        nursery.cancel_scope.cancel()

            for member in owners:
                nursery.start_soon(ask, member)
        self.counts["hits" if len(held) >= quorum else "lacking"] += 1
        return len(held) >= quorum

    async def _is_held(self, member: str, chunk_id: bytes) -> bool:
        try:
            answer = (await self._touch([chunk_id]) if member == self._me else await self._links.request(
                member, OPERATION, {"ids": [chunk_id]}, timeout_s=ASK_LIMIT_S))
        except RaftmftError:
            return False
        return answer == [True]

    async def _touch(self, ids: list[bytes]) -> list[bool]:
        """Which of the chunks are held here, durably, as of a sync that began after this was asked."""
        left, failure, done = 1, "", trio.Event()

        def one(refusal: str) -> None:
            nonlocal left, failure
            left, failure = left - 1, failure or refusal
            if not left:
                done.set()

        held = []
        for chunk_id in ids:
            left += 1
            held.append(self._holdings.touch(chunk_id, one))
            left -= not held[-1]
        one("")
        await done.wait()
        if failure:
            raise RaftmftError(failure)
        return held

    async def _answer(self, _: str, args: dict[str, Any]) -> list[bool]:
        ids = args.get("ids")
        if not isinstance(ids, list) or len(ids) > MOST_IDS or not all(
                isinstance(chunk_id, bytes) and len(chunk_id) == ID_SIZE for chunk_id in ids):
            raise ValueError(f"ids must be at most {MOST_IDS} chunk ids")
        return await self._touch(ids)
