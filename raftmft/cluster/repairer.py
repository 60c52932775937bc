"""Makes this member hold what it should: the chunks it owns, and every index chunk, of everything that was published.

It walks the published manifests in the order of their publish index. The *marker*, a small file, says through which
index everything is durably held, under which placement; a member that was away goes on from there, and starts over when
the placement changed. A pass looks only at what had been applied SETTLE_S before: copies that are still on their way
from the node that took the upload need no fetching.

A chunk that nobody has now does not hold up the rest: its manifest is kept in `_owed` and tried again, at most OWED_MAX
of them (then the walk waits). The marker stays below the first manifest that is owed.

A huge file that grows, or is changed in part, keeps nearly all its index chunks. Those that were found to name nothing
that is missing are remembered while the placement stands and nothing is dropped, and not looked through again.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import trio

from raftmft.cluster.certificates import write_file
from raftmft.cluster.fetcher import Fetcher
from raftmft.cluster.holdings import Holdings, Place
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import Manifest, distinct_ids
from raftmft.wire.loglines import fields

PERIOD_S = 30.0
SETTLE_S = 2.0
RETRY_S = 5.0
"""The pause before what is owed is tried again."""
PAGE = 64
"""Manifests per look at the namespace."""
FETCHES_MAX = 4
"""Chunks fetched at once for repair: less than Fetcher's bound, so that readers come through."""
LOOK_SLICE = 256
"""Chunk ids looked up before other tasks get their turn."""
OWED_MAX = 10_000
MOST_WHOLE = 4096
"""Index chunks that are known to name nothing that is missing here."""

log = logging.getLogger(__name__)

Published = tuple[int, int, Manifest]
"""(publish index, file id, manifest)"""
ManifestsSince = Callable[[int, int], Sequence[Published]]
"""(index, limit) -> the first `limit` present files published after Raft index `index`, in order."""


class Marker:
    """Through which Raft index, under which placement epoch, this member durably holds all it should.

    A small file: magic, version, index, placement, CRC-32; big-endian.
    """

    _LAYOUT = struct.Struct(">8sHQQ")
    _MAGIC, _VERSION = b"RMFTHELD", 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.index, self.placement = self._load()

    def move(self, index: int, placement: int) -> None:
        """Both are on disk when this returns (blocking: tmp, fsync, rename, fsync)."""
        body = self._LAYOUT.pack(self._MAGIC, self._VERSION, index, placement)
        write_file(self._path, body + struct.pack(">I", crc32(body)))
        self.index, self.placement = index, placement

    def _load(self) -> tuple[int, int]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0, 0
        size = self._LAYOUT.size
        if len(data) == size + 4 and crc32(data[:size]) == int.from_bytes(data[size:], "big"):
            magic, version, index, placement = self._LAYOUT.unpack(data[:size])
            if (magic, version) == (self._MAGIC, self._VERSION):
                return int(index), int(placement)
        # Losing the marker costs a walk from the start, never a chunk.
        log.warning("%s is no marker of this version: all that is held is checked from the start", self._path,
                    extra=fields(file=self._path))
        return 0, 0


class Repairer:
    """`run` must be running. `owned(id)` says whether this member is an owner of a data chunk now; `applied()` gives
    the Raft index that the local state has reached; `placement()` a number that changes whenever `owned` may answer
    otherwise (the placement epoch; constant while membership is). `stores()`: whether this member holds chunks at all.
    """

    def __init__(self, manifests_since: ManifestsSince, owned: Callable[[bytes], bool], applied: Callable[[], int],
                 holdings: Holdings, fetcher: Fetcher, marker: Path, *, placement: Callable[[], int] = lambda: 0,
                 stores: Callable[[], bool] = lambda: True, period_s: float = PERIOD_S, settle_s: float = SETTLE_S,
                 retry_s: float = RETRY_S) -> None:
        self._manifests_since, self._owned = manifests_since, owned
        self._applied, self._placement = applied, placement
        self._holdings, self._fetcher, self._marker = holdings, fetcher, Marker(marker)
        self._stores = stores
        self._period_s, self._settle_s, self._retry_s = period_s, settle_s, retry_s
        self._position, self._walked = self._marker.index, self._marker.placement
        self._owed: dict[int, int] = {}
        self._damaged: dict[bytes, None] = {}
        self._whole: dict[bytes, None] = {}
        self._dropped = 0
        self._limit = trio.CapacityLimiter(FETCHES_MAX)
        self._wake = trio.Event()
        self._stayed = self._coming = 0
        self.repaired = 0
        self.caught_up = False
        """Whether a pass since the start has come through to what was applied when it began."""

    @property
    def held_through(self) -> int:
        """The durable marker: all that was published up to this Raft index is held, as far as this member should."""
        return self._marker.index

    @property
    def held_placement(self) -> int:
        """The placement epoch under which `held_through` is true."""
        return self._marker.placement

    @property
    def missing(self) -> int:
        """How many chunks this member should hold and found no one to give, when it last looked."""
        return sum(self._owed.values()) + len(self._damaged)

    @property
    def lacking(self) -> int:
        """How many chunks this member knows that it should hold and does not: `missing`, and those being fetched."""
        return self.missing + self._coming

    @property
    def given_up(self) -> int:
        """How many of `missing` were looked for in two passes or more, and nobody had them."""
        return min(self._stayed, self.missing)

    def kick(self) -> None:
        """Something was published, or a member came back: look soon."""
        self._wake.set()

    def damaged(self, chunk_id: bytes) -> None:
        """The copy here turned out to be bad (and was dropped from the index): it is to be repaired soon."""
        self._damaged[chunk_id] = None
        self._whole.clear()
        self.kick()

    async def repair(self, chunk_id: bytes) -> bool:
        """Fetches a chunk whose copy here was bad. False: nobody has it now; it is tried again until somebody does."""
        self._damaged[chunk_id] = None
        self._whole.clear()
        repaired = await self._repair(chunk_id)
        if not repaired:
            self.kick()
        return repaired

    async def _repair(self, chunk_id: bytes) -> bool:
        try:
            await self._holdings.durable(await self._fetcher.fetch(chunk_id))
        except (RaftmftError, OSError) as error:
            log.error("chunk %s is not repaired yet: %s", chunk_id.hex()[:16], error, extra=fields(chunk=chunk_id))
            return False
        self._damaged.pop(chunk_id, None)
        self.repaired += 1
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks after each kick, and each period without one, until cancelled."""
        task_status.started()
        while True:
            horizon = self._applied()
            if self.caught_up:
                await trio.sleep(self._settle_s)
            await self.look(horizon)
            with trio.move_on_after(self._retry_s if self.missing else self._period_s):
                await self._wake.wait()
            self._wake = trio.Event()

    async def look(self, horizon: int) -> None:
        """One pass over what is owed and over what was published since, up to Raft index `horizon`.

        Cancelled, the marker stays where it was.
        """
        placement, before = self._placement(), self.missing
        if placement != self._walked:
            self._position, self._walked = 0, placement
            self._owed.clear()
            self._whole.clear()
        if self._dropped != self._holdings.damaged:  # a reader found a bad copy
            self._dropped = self._holdings.damaged
            self._whole.clear()
        for chunk_id in list(self._damaged):
            await self._repair(chunk_id)
        for index in sorted(self._owed):
            # The file may have been removed or replaced since: then nothing is owed for that index any more.
            await self._settle(index, [found for found in self._manifests_since(index - 1, 1) if found[0] == index])
        while self._position < horizon and len(self._owed) < OWED_MAX:
            page = [found for found in self._manifests_since(self._position, PAGE) if found[0] <= horizon]
            for found in page:
                await self._settle(found[0], [found])
                self._position = found[0]
            if len(page) < PAGE:
                self._position = horizon
        through = min(self._owed) - 1 if self._owed else self._position
        # Should the placement have changed during the pass, its early part is not worth a marker.
        if self._placement() == placement and (through, placement) != (self._marker.index, self._marker.placement):
            await trio.to_thread.run_sync(self._marker.move, through, placement)
        self._stayed = min(before, self.missing)
        self.caught_up = self.caught_up or self._position >= horizon

    async def _settle(self, index: int, published: list[Published]) -> None:
        """Everything of these files that belongs here is durably held here, or their publish index is owed."""
        lacking = 0
        for _, _, manifest in published:
            lacking += await self._hold_all(manifest)
        if lacking:
            self._owed[index] = lacking
        else:
            self._owed.pop(index, None)

    async def _hold_all(self, manifest: Manifest) -> int:
        """How many of the manifest's chunks should be held here and are not. What is held is durable."""
        if not self._stores():
            return 0  # a witness holds no index chunks either
        lacking = await self._hold([i for i in manifest.data_ids() if self._owned(i)])
        if not manifest.depth:
            return lacking
        lacking += await self._hold(manifest.index_ids())
        for index_id in dict.fromkeys(manifest.index_ids()):
            if self._holdings.find(index_id) is None or index_id in self._whole:
                continue
            try:
                ids = bytes(await self._fetcher.read(index_id))
            except (RaftmftError, OSError) as error:
                log.error("index chunk %s cannot be read: %s", index_id.hex()[:16], error, extra=fields(chunk=index_id))
                lacking += 1
                continue
            lacking_before = lacking
            for some in distinct_ids(ids, LOOK_SLICE):
                lacking += await self._hold([i for i in some if self._owned(i)])
            if lacking == lacking_before:
                self._whole[index_id] = None
                if len(self._whole) > MOST_WHOLE:
                    del self._whole[next(iter(self._whole))]
        return lacking

    async def _hold(self, ids: list[bytes]) -> int:
        """How many of `ids` could not be had. The others are held and durable when this returns."""
        places: list[Place] = []
        wanted: list[bytes] = []
        for chunk_id in dict.fromkeys(ids):
            place = self._holdings.find(chunk_id)
            if place is None:
                wanted.append(chunk_id)
            else:
                places.append(place)
        lacking = 0

        async def one(chunk_id: bytes) -> None:
            nonlocal lacking
            async with self._limit:
                try:
                    places.append(await self._fetcher.fetch(chunk_id))
                    self.repaired += 1
                except (RaftmftError, OSError) as error:
                    lacking += 1
                    log.debug("chunk %s is missing: %s", chunk_id.hex()[:16], error, extra=fields(chunk=chunk_id))
            self._coming -= 1

        self._coming = len(wanted)
        try:
            async with trio.open_nursery() as nursery:
                for chunk_id in wanted:
                    nursery.start_soon(one, chunk_id)
        finally:
            self._coming = 0
        try:
            await self._holdings.durable(*places)
        except RaftmftError as error:
            log.error("chunks were not made durable: %s", error)
            return lacking + len(places)
        await trio.lowlevel.checkpoint()
        return lacking
