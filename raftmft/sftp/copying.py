"""copy-data: from a file that is open to read into an upload, sharing chunks instead of moving bytes.

A slot of the upload can be a chunk of the source where a whole chunk of the one falls on a whole slot of the other; a
whole file into an empty upload takes the manifest as it is, in one step whatever its size. Only what lies across a
chunk's edge goes through this worker, and everything if the two offsets differ within a chunk.

Shared chunks count as held for the upload's publish (contract, promise 1) though no put of this upload was answered
for them: they belong to a published version, so a write quorum of their owners had them on disk before that version
was acknowledged, and no member lets go of a copy before all owners have theirs. They cannot be swept meanwhile: while
the source is open it pins its version, and before that can end the commit of `fs.copy` has the state machine keep the
source's manifest until the upload ends; afterwards the published file itself refers to them.
"""

from __future__ import annotations

import asyncio

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, MAX_FILE_SIZE
from raftmft.sftp import status
from raftmft.sftp.extended import CopyData
from raftmft.sftp.files import ReadFile, WriteHandle
from raftmft.sftp.lookup import Lookup
from raftmft.sftp.status import Answer
from raftmft.sftp.upload import Upload

MOVED_AT_ONCE = 256 << 10
SLOTS_A_TURN = 256
"""Slots shared before others get their turn of the loop."""


async def copy(lookup: Lookup, source: ReadFile | WriteHandle, target: Upload, request: CopyData) -> None:
    """Copies as OpenSSH's server does: a length of 0 is until the end; Answer(EOF) if the source ends before `length`.

    Trouble poisons the upload, as a failed WRITE does. Cancelled: some of it may be copied.
    """
    if isinstance(source, WriteHandle) and source.upload is target:
        raise Answer(status.FAILURE, "a file cannot be copied into itself")
    size = source.upload.size if isinstance(source, WriteHandle) else source.size
    wanted_end = request.offset + request.length
    end = min(size, wanted_end) if request.length else size
    at = target.size if target.appends else request.target_offset
    count = max(0, end - request.offset)
    if at + count > MAX_FILE_SIZE:
        raise Answer(status.FAILURE, f"File too large: at most {MAX_FILE_SIZE} bytes")
    try:
        target.seals.check()
        if isinstance(source, ReadFile):
            content = source.content.manifest
            await lookup.ask("fs.copy", upload=target.id, open=source.open, size=content.size, depth=content.depth,
                             ids=content.ids, bytes=count)
        if isinstance(source, ReadFile) and count == size and at == 0 and target.is_empty:
            target.adopt(source.content.manifest, source.digest)
        else:
            await _copy_range(source, request.offset, end, target, at)
        if target.checkpoints.is_behind():
            await target.checkpoints.now()
    except RaftmftError as trouble:
        target.seals.poison(trouble)
        raise
    if request.length and wanted_end > size:
        raise Answer(status.EOF)


async def _copy_range(source: ReadFile | WriteHandle, start: int, end: int, target: Upload, at: int) -> None:
    delta, shared = at - start, 0
    while start < end:
        slot, position = divmod(start, CHUNK_SIZE)
        count = min(CHUNK_SIZE - position, end - start)
        # A chunk that is shorter than its slot may be shared only as the last one of the target.
        is_whole = position == 0 and delta % CHUNK_SIZE == 0 and isinstance(source, ReadFile) and (
            count == CHUNK_SIZE or (start + count == source.size and start + count + delta >= target.size))
        if is_whole and isinstance(source, ReadFile):
            await target.share((start + delta) // CHUNK_SIZE, await source.content.id_of(slot), count)
            shared += 1
            if shared % SLOTS_A_TURN == 0:
                await asyncio.sleep(0)
        else:
            count = min(count, MOVED_AT_ONCE)
            await target.write(start + delta, await _bytes(source, start, count))
        start += count


async def _bytes(source: ReadFile | WriteHandle, start: int, count: int) -> memoryview:
    if isinstance(source, WriteHandle):
        return memoryview(await source.upload.read(start, count))
    slot, position = divmod(start, CHUNK_SIZE)
    return memoryview(await source.content.chunk(slot))[position : position + count]
