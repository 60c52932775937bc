"""Gets chunks that are not held here from members that hold them, verified, and keeps them.

Members are asked one after the other in rendezvous order, so that owners come first and, before a chunk is called lost,
every member was asked. What a member gives is hashed here: a wrong answer counts as none, and is reported.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import trio
from blake3 import blake3

from raftmft.cluster.hello import PeerRefused, PeerUnreachable
from raftmft.cluster.holdings import ChunkDamaged, Holdings, Place
from raftmft.core.errors import RaftmftError
from raftmft.wire.loglines import fields

ANSWER_TIMEOUT_S = 5.0
"""How long one member may take for one chunk before the next is asked."""
FETCHES_MAX = 16
"""How many chunks are fetched at once (each is up to 1 MiB of memory)."""

log = logging.getLogger(__name__)
GetFrom = Callable[[str, bytes], Awaitable[bytearray | None]]


class ChunkUnavailable(RaftmftError):
    """No member that can be reached now has the chunk whole. It may come back with a member: a retry is safe."""

    retry_is_safe = True


class Fetcher:
    """`get_from(member, id)` gives unverified bytes or None (BulkPool.get); `alive` is that of the Replicator;
    `ranking` gives all who may have a chunk, in the order in which they are asked; on_damaged(member, id) is told of a
    member that gave wrong bytes.
    """

    def __init__(self, me: str, get_from: GetFrom, holdings: Holdings, alive: Callable[[str], bool],
                 ranking: Callable[[bytes], Sequence[str]], *,
                 on_damaged: Callable[[str, bytes], None] = lambda member, chunk_id: None) -> None:
        self._me, self._get_from, self._holdings = me, get_from, holdings
        self._alive, self._ranking, self._on_damaged = alive, ranking, on_damaged
        self._limit = trio.CapacityLimiter(FETCHES_MAX)
        self._under_way: dict[bytes, _Transfer] = {}
        self.counts: Counter[str] = Counter()

    async def fetch(self, chunk_id: bytes) -> Place:
        """The chunk is held here (not yet durable: see Holdings.durable), fetched if it was not. ChunkUnavailable if
        nobody has it; OSError or RaftmftError if the disk refuses.

        Fetches of the same chunk at the same time share one transfer and its failure. Should the one that began it be
        cancelled, another begins anew.
        """
        while (place := self._holdings.find(chunk_id)) is None:
            transfer = self._under_way.get(chunk_id)
            if transfer is None:
                return await self._begin(chunk_id)
            await transfer.done.wait()
            if transfer.failure:
                raise ChunkUnavailable(transfer.failure)
        return place

    async def read(self, chunk_id: bytes) -> bytes | bytearray:
        """The chunk's verified bytes: from here, or fetched and kept. Errors as of `fetch`."""
        try:
            data = await self._holdings.read(chunk_id)
        except ChunkDamaged:
            data = None  # Holdings has forgotten the bad copy
        if data is None:
            await self.fetch(chunk_id)
            data = await self._holdings.read(chunk_id)
        if data is None:
            raise ChunkUnavailable(f"chunk {chunk_id.hex()[:16]} was dropped while it was read: try again")
        return data

    async def _begin(self, chunk_id: bytes) -> Place:
        transfer = self._under_way[chunk_id] = _Transfer()
        try:
            async with self._limit:
                return await self._holdings.add(chunk_id, await self._ask_all(chunk_id))
        except ChunkUnavailable as error:
            transfer.failure = str(error)
            raise
        finally:
            del self._under_way[chunk_id]
            transfer.done.set()

    async def _ask_all(self, chunk_id: bytes) -> bytearray:
        asked, complaints = 0, []
        for member in self._ranking(chunk_id):
            if member == self._me or not self._alive(member):
                continue
            asked += 1
            data: bytearray | None = None
            try:
                with trio.fail_after(ANSWER_TIMEOUT_S):
                    data = await self._get_from(member, chunk_id)
            except (PeerUnreachable, PeerRefused) as error:
                complaints.append(str(error))
            except trio.TooSlowError:
                complaints.append(f"{member} did not answer in {ANSWER_TIMEOUT_S:g} s")
            if data is None:
                continue
            if blake3(data).digest() == chunk_id:
                self.counts["fetched"] += 1
                return data
            self.counts["wrong"] += 1
            log.error("%s gave bytes for chunk %s that do not have its hash", member, chunk_id.hex()[:16],
                      extra=fields(member=member, chunk=chunk_id))
            self._on_damaged(member, chunk_id)
        self.counts["unavailable"] += 1
        detail = f" ({'; '.join(complaints)})" if complaints else ""
        raise ChunkUnavailable(f"none of {asked} reachable members has chunk {chunk_id.hex()[:16]} whole{detail}")


class _Transfer:
    def __init__(self) -> None:
        self.done, self.failure = trio.Event(), ""
