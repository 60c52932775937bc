"""Has content acknowledged again under the present placement (contract, promise 1: under *one* placement epoch).

When members come and go, chunks of a running upload, or those that it continues from, were acknowledged by the owners
of an earlier placement. Here the present owners are asked which of the chunks they hold durably, in batches of ids;
only chunks that too few of them hold are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import trio

from raftmft.cluster.fetcher import Fetcher
from raftmft.cluster.holdings import Holdings
from raftmft.cluster.links import PeerLinks
from raftmft.cluster.replicator import Replicator
from raftmft.core import placement
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import ID_SIZE, Manifest, distinct_ids

OPERATION = "chunks.durable"
MOST_IDS = 1024
"""Ids in one request."""
LOOK_SLICE = 256
"""Chunks whose owners are worked out before other tasks get their turn."""
ASK_LIMIT_S = 2.0
COPIES_MAX = 4
"""Chunks copied at once."""


class Coverage:
    """Answers for this member, and asks for `ensure`. `storing` gives (id, weight); `replicas` R; `epoch` the placement
    epoch that both belong to; `write_quorum` as in Chunks.
    """

    def __init__(self, me: str, links: PeerLinks, holdings: Holdings, fetcher: Fetcher, replicator: Replicator,
                 storing: Callable[[], list[tuple[str, int]]], replicas: Callable[[], int],
                 epoch: Callable[[], int], write_quorum: Callable[[], int]) -> None:
        self._write_quorum = write_quorum
        self._me, self._links, self._holdings = me, links, holdings
        self._fetcher, self._replicator = fetcher, replicator
        self._storing, self._replicas, self._epoch = storing, replicas, epoch
        links.handle(OPERATION, self._answer)

    def epoch(self) -> int:
        """The present placement epoch."""
        return self._epoch()

    async def ensure(self, manifest: Manifest) -> int:
        """Every chunk of `manifest`, index chunks included, is durable on a write quorum of the owners (or stand-ins)
        under the placement epoch that is returned. RaftmftError if that cannot be had; cancelled: copies may be left.
        """
        epoch, storing, replicas = self._epoch(), self._storing(), self._replicas()
        # A sparse file names few chunks, many times.
        index_ids = list(dict.fromkeys(manifest.index_ids()))
        if index_ids:
            await self._ensure_all(index_ids, storing, len(storing), replicas)
        for index_id in index_ids:
            for some in distinct_ids(bytes(await self._fetcher.read(index_id)), MOST_IDS):
                await self._ensure_all(some, storing, replicas, replicas)
        await self._ensure_all(list(dict.fromkeys(manifest.data_ids())), storing, replicas, replicas)
        return epoch

    async def _ensure_all(self, ids: Sequence[bytes], storing: list[tuple[str, int]], copies: int,
                          replicas: int) -> None:
        owners: dict[bytes, tuple[str, ...]] = {}
        asked: dict[str, list[bytes]] = {}
        for number, chunk_id in enumerate(ids, 1):
            owners[chunk_id] = members = placement.owners(chunk_id, storing, copies)
            for member in members:
                asked.setdefault(member, []).append(chunk_id)
            if number % LOOK_SLICE == 0:
                await trio.lowlevel.checkpoint()
        holders: dict[bytes, set[str]] = {chunk_id: set() for chunk_id in owners}
        async with trio.open_nursery() as nursery:
            for member, wanted in asked.items():
                nursery.start_soon(self._ask, member, wanted, holders)
        quorum = min(self._write_quorum(), placement.write_quorum(replicas))
        limit = trio.CapacityLimiter(COPIES_MAX)
        failures: list[RaftmftError] = []
        async with trio.open_nursery() as nursery:
            for chunk_id, held_by in holders.items():
                if len(held_by) < quorum:
                    await limit.acquire_on_behalf_of(chunk_id)
                    if failures:
                        limit.release_on_behalf_of(chunk_id)
                        break
                    nursery.start_soon(self._copy, chunk_id, owners[chunk_id], quorum, limit, failures)
        if failures:
            raise failures[0]

    async def _copy(self, chunk_id: bytes, owners: tuple[str, ...], quorum: int, limit: trio.CapacityLimiter,
                    failures: list[RaftmftError]) -> None:
        try:
            data = await self._fetcher.read(chunk_id)
            place = self._holdings.find(chunk_id)
            if place is None:
                raise RaftmftError("a chunk was dropped while it was copied; try again")
            await self._holdings.durable(place)
            need = quorum - (1 if self._me in owners else 0)
            await self._replicator.put(chunk_id, lambda: data, owners, need)
        except RaftmftError as trouble:
            failures.append(trouble)  # told by the caller: raised here it would come as a group that nobody expects
        finally:
            limit.release_on_behalf_of(chunk_id)

    async def _ask(self, member: str, ids: list[bytes], holders: dict[bytes, set[str]]) -> None:
        for some in _batches(ids):
            try:
                held = (await self._durable(some) if member == self._me else await self._links.request(
                    member, OPERATION, {"ids": some}, timeout_s=ASK_LIMIT_S))
            except RaftmftError:
                return  # it counts for nothing, and a stand-in may hold the chunk instead
            if isinstance(held, list) and len(held) == len(some):
                for chunk_id, is_held in zip(some, held, strict=True):
                    if is_held is True:
                        holders[chunk_id].add(member)

    async def _durable(self, ids: Sequence[bytes]) -> list[bool]:
        places = [self._holdings.find(chunk_id) for chunk_id in ids]
        await self._holdings.durable(*[place for place in places if place is not None])
        return [place is not None for place in places]

    async def _answer(self, _: str, args: dict[str, Any]) -> list[bool]:
        ids = args.get("ids")
        if not isinstance(ids, list) or len(ids) > MOST_IDS or not all(
                isinstance(chunk_id, bytes) and len(chunk_id) == ID_SIZE for chunk_id in ids):
            raise ValueError(f"ids must be at most {MOST_IDS} chunk ids")
        return await self._durable(ids)


def _batches(ids: Sequence[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(ids), MOST_IDS):
        yield list(ids[start : start + MOST_IDS])
