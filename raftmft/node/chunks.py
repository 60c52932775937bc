"""The node's side of chunk content: where chunks lie here, how many others hold those of a running upload, fetching.

A worker appends a chunk to its own segment and says so (`chunk.put`) before its fdatasync; the node copies it to the
other owners meanwhile and answers when enough of them hold it durably. The worker's own copy counts through the fact
that it sends publish or checkpoint only after its fdatasync. Before it appends a chunk it may offer it: hits.py.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from raftmft.cluster.fetcher import Fetcher
from raftmft.cluster.repairer import Repairer
from raftmft.cluster.replicator import Replicator
from raftmft.core import placement
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, ID_SIZE, Manifest
from raftmft.node.coverage import Coverage
from raftmft.node.hits import Hits
from raftmft.node.workers import Worker
from raftmft.store.disk import SegmentStore
from raftmft.store.format import Location
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

MOST_IDS_A_REQUEST = 4096
FETCH_LIMIT_S = 30.0


@dataclass(slots=True)
class Upload:
    """What the node knows of a running upload: who writes it, and which puts are under way or failed."""

    worker: Worker
    pending: int = 0
    failed: str = ""
    oldest: int = 0
    """The oldest placement epoch under which any of its content was acknowledged."""
    under_way: Counter[int] = field(default_factory=Counter)
    """Puts under way, by the placement epoch in which they began."""
    ended: bool = field(default=False)
    uid: int | None = None
    """Whose home it goes to, once that home was looked at."""


class Chunks:
    """Serves the chunk.* requests. `members` gives (id, weight) of those that store; `replicas` is R;
    `write_quorum` how many must hold a chunk at this moment (ClusterView.write_quorum).
    """

    def __init__(self, me: str, storage: SegmentStore, replicator: Replicator, fetcher: Fetcher, repairer: Repairer,
                 members: Callable[[], list[tuple[str, int]]], replicas: Callable[[], int],
                 coverage: Coverage, write_quorum: Callable[[], int], hits: Hits) -> None:
        self._write_quorum, self._hits = write_quorum, hits
        self._me, self._storage, self._coverage = me, storage, coverage
        self._replicator, self._fetcher, self._repairer = replicator, fetcher, repairer
        self._members, self._replicas = members, replicas
        self._uploads: dict[int, Upload] = {}

    def locate(self, ids: list[bytes]) -> list[list[Any] | None]:
        """[segment, offset, length] of each chunk that lies here, else None."""
        found = (self._storage.find(i) for i in ids)
        return [None if location is None else list(location) for location in found]

    def disk_bytes(self) -> tuple[int, int]:
        """Size of the disk that chunks lie on here, and what is free of it for them."""
        disk = os.statvfs(self._storage.directory)
        return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize

    def begin(self, upload: int, worker: Worker, placement: int) -> None:
        """An upload was begun by this worker. `placement` is the epoch under which what it continues from was
        acknowledged; 0 if that is not known.
        """
        self._uploads[upload] = Upload(worker, oldest=placement)

    def inherits(self, upload: int, placement: int = 0) -> None:
        """The upload takes over content that was acknowledged under this placement epoch; 0 if that is not known."""
        if (known := self._uploads.get(upload)) is not None:
            known.oldest = min(known.oldest, placement)

    async def covered(self, upload: int, manifest: Manifest) -> int:
        """The placement epoch under which a write quorum of the owners holds all of `manifest`, which is the upload's
        content or a prefix of it: its chunks are acknowledged again if any was under an earlier one.
        """
        known = self._uploads.get(upload)
        if known is None:
            raise RaftmftError("the upload has ended")
        if known.oldest != self._coverage.epoch():
            began = list(known.under_way)
            epoch = await self._coverage.ensure(manifest)
            # A put that was under way when this began may end with the owners of its own time.
            known.oldest = min([epoch, *began, *known.under_way])
        return known.oldest

    def worker_of(self, upload: int) -> Worker | None:
        """Who writes an upload on this node; None if nobody does."""
        known = self._uploads.get(upload)
        return None if known is None else known.worker

    def end(self, upload: int) -> None:
        """The upload is published or given up."""
        known = self._uploads.pop(upload, None)
        if known is not None:
            known.ended = True

    def forget(self, worker: Worker) -> None:
        """The worker is gone, and with it its uploads."""
        for upload in [u for u, known in self._uploads.items() if known.worker is worker]:
            self.end(upload)

    def check_all_held(self, upload: int) -> None:
        """Raises RaftmftError unless every chunk put of the upload was answered well."""
        known = self._uploads.get(upload)
        if known is None:
            raise RaftmftError("the upload has ended")
        if known.failed or known.pending:
            raise RaftmftError(known.failed or f"{known.pending} chunks are not replicated yet")

    async def put(self, worker: Worker, args: dict[str, Any]) -> dict[str, Any]:
        """Takes a chunk that the worker appended into the index and onto enough other owners.

        Returns when a write quorum holds it, the worker's own copy counted if this member is an owner. Raises
        RaftmftError, and the upload can no longer be published, if too few owners can be reached.
        """
        chunk_id, location = _id(args["id"]), _location(args)
        if not location.segment.startswith(f"{worker.name}-"):
            raise RaftmftError("a worker may only name segments of its own")
        upload, members = self._live(worker, args), self._members()
        replicas = len(members) if args.get("index") else min(self._replicas(), len(members))
        owners = placement.owners(chunk_id, members, replicas)
        own = 1 if self._me in owners else 0

        def need() -> int:
            return self._quorum(upload) - own

        with self._under_way(upload):
            try:
                # What a worker says is looked at before the index believes it: a place that is not there would later
                # fail a sync, and with it the node. Read from the page cache: it was written just now.
                others = any(owner != self._me for owner in owners)
                data = self._storage.read(location, chunk_id) if others else self._storage.read_range(location, 0, 1)
                self._storage.index.add(chunk_id, location)
                await self._replicator.put(chunk_id, lambda: data, owners, need)
            except BaseException as error:
                upload.failed = f"a chunk could not be copied to {need()} other members: {error}"
                raise
        return {}

    async def offer(self, worker: Worker, args: dict[str, Any]) -> dict[str, Any]:
        """chunk.offer: "held" is True if a write quorum of the chunk's owners holds it durably, and the upload's user
        may know that. Then it counts for the upload as if it had been put; else nothing has happened.
        """
        chunk_id, upload, members = _id(args["id"]), self._live(worker, args), self._members()
        if upload.uid is None:
            upload.uid = await self._hits.begin(int(args["upload"]))
        owners = placement.owners(chunk_id, members, min(self._replicas(), len(members)))
        with self._under_way(upload):
            return {"held": await self._hits.hit(upload.uid, chunk_id, owners, self._quorum(upload))}

    def _live(self, worker: Worker, args: dict[str, Any]) -> Upload:
        upload = self._uploads.get(int(args["upload"]))
        if upload is None or upload.worker is not worker:
            raise RaftmftError("the upload has ended")
        return upload

    def _quorum(self, upload: Upload) -> int:
        """How many owners must hold a chunk of it at this moment."""
        full = placement.write_quorum(min(self._replicas(), len(self._members())))
        quorum = min(full, self._write_quorum())
        if quorum < full:
            upload.oldest = 0  # those who are away may be back when it is published: then they are asked again
        return quorum

    @contextmanager
    def _under_way(self, upload: Upload) -> Iterator[None]:
        """A chunk is being acknowledged under the present placement."""
        epoch = self._coverage.epoch()
        upload.pending += 1
        upload.under_way[epoch] += 1
        upload.oldest = min(upload.oldest, epoch)
        try:
            yield
        finally:
            upload.pending -= 1
            upload.under_way[epoch] -= 1
            upload.under_way += Counter()  # drops what is none

    async def locate_request(self, args: dict[str, Any]) -> dict[str, Any]:
        """chunk.locate."""
        ids = [_id(i) for i in args["ids"]]
        if len(ids) > MOST_IDS_A_REQUEST:
            raise RaftmftError(f"at most {MOST_IDS_A_REQUEST} ids a request")
        return {"locations": self.locate(ids)}

    async def fetch(self, args: dict[str, Any]) -> dict[str, Any]:
        """chunk.fetch: brings a chunk here from any member that holds it; RaftmftError if none does."""
        chunk_id = _id(args["id"])
        with trio.move_on_after(FETCH_LIMIT_S):
            place = await self._fetcher.fetch(chunk_id)
            return {"location": [place.segment, place.offset, place.length]}
        raise RaftmftError(f"a chunk of this file did not come within {FETCH_LIMIT_S:.0f} s; try again")

    async def bad(self, args: dict[str, Any]) -> None:
        """chunk.bad: the copy at this place fails its hash. It is forgotten, and repaired from another member."""
        chunk_id = _id(args["id"])
        location = self._storage.find(chunk_id)
        if location is not None and (location.segment, location.offset) == (args["segment"], args["offset"]):
            log.error("chunk %s at %s:%d is damaged; it is repaired from another member",
                      chunk_id.hex()[:16], location.segment, location.offset,
                      extra=fields(chunk=chunk_id, file=location.segment))
            self._storage.forget(chunk_id, location)
            self._repairer.damaged(chunk_id)


def _id(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != ID_SIZE:
        raise ValueError("a chunk id must be 32 bytes")
    return value


def _location(args: dict[str, Any]) -> Location:
    segment, offset, length = str(args["segment"]), int(args["offset"]), int(args["length"])
    if "/" in segment or offset < 0 or not 0 < length <= CHUNK_SIZE:
        raise ValueError("not a place of a chunk")
    return Location(segment, offset, length)
