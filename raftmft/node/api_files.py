"""The admin API's view of one file: its manifest, which members hold its chunks, and how well it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from raftmft.core import placement
from raftmft.core.commands import MemberSpec
from raftmft.core.errors import RaftmftError
from raftmft.core.inspection import FileRow
from raftmft.core.manifest import CHUNK_SIZE, ID_SIZE, IDS_PER_INDEX, Manifest, split_ids
from raftmft.core.outcome import Rejection
from raftmft.node.api import V1, Call, Operation
from raftmft.node.api_audit import iso
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.state import ReplicatedState

MOST_CHUNKS = 1000
DEFAULT_CHUNKS = 100
CHUNK = {"number": (int, None), "kind": str, "id": str, "size": (int, None), "owners": [str], "holders": [str]}
FILE = {"user": str, "path": str, "file": int, "version": int, "partial": bool, "size": int, "mtime": str, "mode": str,
        "digest": str, "depth": int, "chunk_count": int, "replicas": int, "health": str, "silent": [str],
        "chunks": [CHUNK]}

WhoHolds = Callable[[Sequence[bytes], Sequence[str]], Awaitable[dict[str, list[bool] | None]]]


@dataclass(frozen=True, slots=True)
class Placing:
    """Where chunks belong now: the members, (id, weight) of those that store, and the effective R."""

    members: Sequence[MemberSpec]
    storing: Sequence[tuple[str, int]]
    replicas: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    id: bytes
    number: int | None
    size: int | None
    owners: tuple[str, ...]


class FilesApi:
    """`read_index` gives the content of an index chunk, wherever it lies."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, placing: Callable[[], Placing], who_holds: WhoHolds,
                 read_index: Callable[[bytes], Awaitable[bytes | bytearray]]) -> None:
        self._state, self._epoch = state, epoch
        self._placing, self._who_holds, self._read_index = placing, who_holds, read_index

    def operations(self) -> list[Operation]:
        """The routes."""
        return [Operation(
            "GET", f"{V1}/file", "Show a file, and which members hold its chunks", self._show, FILE, query=(
                Field("path", "text", "/USER/path, written as the audit log writes it", required=True),
                Field("first", "whole", "the number of the first chunk to show; the first is 0"),
                Field("limit", "whole", f"how many chunks to show; {DEFAULT_CHUNKS} unless given", high=MOST_CHUNKS)))]

    async def _show(self, call: Call) -> Any:
        await self._epoch.barrier()
        row = self._state.machine.inspection.file(call.query["path"])
        if isinstance(row, Rejection):
            raise Rejected(row.code, row.text)
        placing = self._placing()
        chunks, readable = await self._chunks(row.manifest, placing, call.query.get("first", 0),
                                              call.query.get("limit", DEFAULT_CHUNKS))
        # Who is to store nothing any more (a leaving member) may have the last copy, and readers get it there.
        storing = {member for member, _ in placing.storing}
        held = await self._who_holds([chunk.id for chunk in chunks], [member.id for member in placing.members])
        names = {member.id: member.name for member in placing.members}
        silent = sorted(names.get(member, member) for member, answer in held.items() if answer is None)
        holders = [[member for member, answer in held.items() if answer is not None and answer[i]]
                   for i in range(len(chunks))]
        return {
            **_about(row), "replicas": placing.replicas, "silent": silent,
            "health": health(chunks, holders, silent, storing) if readable else _missing(silent),
            "chunks": [
                {"number": chunk.number, "kind": "index" if chunk.number is None else "data", "id": chunk.id.hex(),
                 "size": chunk.size, "owners": [names.get(member, member) for member in chunk.owners],
                 "holders": sorted(names.get(member, member) for member in holding)}
                for chunk, holding in zip(chunks, holders, strict=True)]}

    async def _chunks(self, manifest: Manifest, placing: Placing, first: int, limit: int) -> tuple[list[_Chunk], bool]:
        """All index chunks, and of the data chunks `limit` from number `first`; False if an index cannot be read."""
        def data(numbers: range, ids: Sequence[bytes]) -> list[_Chunk]:
            return [_Chunk(chunk_id, number, min(CHUNK_SIZE, manifest.size - number * CHUNK_SIZE),
                           placement.owners(chunk_id, placing.storing, placing.replicas))
                    for number, chunk_id in zip(numbers, ids, strict=False)]

        wanted = range(min(first, manifest.chunk_count), min(first + limit, manifest.chunk_count))
        everywhere = tuple(member for member, _ in placing.storing)
        found = [_Chunk(chunk_id, None, None, everywhere) for chunk_id in manifest.index_ids()]
        at, indexed = wanted.start, min(wanted.stop, manifest.indexed)
        while at < indexed:
            index, begin = divmod(at, IDS_PER_INDEX)
            try:
                content = bytes(await self._read_index(found[index].id))
            except RaftmftError:
                return found, False
            ids = split_ids(content[begin * ID_SIZE : (begin + indexed - at) * ID_SIZE])
            if not ids:
                return found, False
            found += data(range(at, indexed), ids)
            at += len(ids)
        own = manifest.data_ids()
        return found + data(range(at, wanted.stop), own[at - manifest.indexed :] if at < wanted.stop else []), True


def health(chunks: Sequence[_Chunk], holders: Sequence[Sequence[str]], silent: Sequence[str],
           storing: Collection[str]) -> str:
    """"ok": every chunk is on as many of the `storing` members as should hold it; "degraded": some are not; "lost":
    some are nowhere; "unknown": some were found nowhere, but members are silent that may hold them.
    """
    if any(not holding for holding in holders):
        return _missing(silent)
    whole = all(sum(member in storing for member in holding) >= len(chunk.owners)
                for chunk, holding in zip(chunks, holders, strict=True))
    return "ok" if whole else "degraded"


def _missing(silent: Sequence[str]) -> str:
    """What is found nowhere: a member that does not answer may have it, and the index chunk that names it, too."""
    return "unknown" if silent else "lost"


def _about(row: FileRow) -> dict[str, Any]:
    return {"user": row.user, "path": row.path, "file": row.file, "version": row.version, "partial": row.partial,
            "size": row.manifest.size, "mtime": iso(max(0, row.mtime) * 1000), "mode": f"{row.mode & 0o7777:04o}",
            "digest": row.digest, "depth": row.manifest.depth, "chunk_count": row.manifest.chunk_count}
