"""check-file: digests of a file's content, without moving it.

The BLAKE3 that was published with a file (upload.py says when there is one), and digests of whole files that this node
has computed before (node/digests.py), are told at once. Others are computed beside the session's other requests
(engine.py): a chunk at a time, in one thread of the worker, so that several sessions take turns. That ends with the
session.

Who may read may check, and a check by name is an OPEN to read: by the same command, and so in the audit log. A check by
handle keeps the open alive until it is done, also if the handle is closed meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from blake3 import blake3

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import status
from raftmft.sftp.content import ChunkReader, Content
from raftmft.sftp.extended import MAX_DATA, CheckFile
from raftmft.sftp.files import ReadFile, WriteHandle
from raftmft.sftp.link import Link
from raftmft.sftp.status import Answer

ALGORITHMS: dict[str, Callable[[], Any]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False), "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256, "blake3": blake3}
"""In the order in which VERSION tells of them; md5 and sha1 for clients that know nothing else."""
LEAST_BLOCK = 256
"""The draft's."""
MOST_REPLY = MAX_DATA
"""Bytes of digests in one reply."""

Source = ReadFile | WriteHandle


class Checker:
    """Computes digests for all sessions of one worker, one chunk at a time."""

    def __init__(self, link: Link, reader: ChunkReader) -> None:
        self._link, self._reader = link, reader
        self._threads = ThreadPoolExecutor(1, "digest")

    async def check(self, session: int, source: Source, request: CheckFile) -> tuple[str, bytes]:
        """The algorithm's name and the digests, one for each block. Answer for what cannot be asked; RaftmftError if
        the content cannot be had. Cancelled: nothing is left.
        """
        name = _chosen(request.algorithms)
        size = source.size if isinstance(source, ReadFile) else source.upload.size
        if request.offset > size:
            raise Answer(status.FAILURE, f"offset {request.offset} is beyond the end of the file ({size} bytes)")
        end = min(size, request.offset + request.length) if request.length else size
        block = request.block
        if 0 < block < LEAST_BLOCK:
            raise Answer(status.FAILURE, f"blocks must have at least {LEAST_BLOCK} bytes, or 0 for a single one")
        each = ALGORITHMS[name]().digest_size
        if block and -(-(end - request.offset) // block) * each > MOST_REPLY:
            raise Answer(status.FAILURE, f"more than {MOST_REPLY // each} digests in a reply: ask for larger blocks or "
                                         "for a part of the file")
        is_whole = isinstance(source, ReadFile) and not request.offset and end == size and not 0 < block < size
        if isinstance(source, ReadFile) and is_whole and size and name in source.digests:
            return name, bytes.fromhex(source.digests[name])
        blocks = _Blocks(ALGORITHMS[name], block)
        async with aclosing(self._pieces(source, request.offset, end)) as pieces:
            async for piece in pieces:
                await asyncio.get_running_loop().run_in_executor(self._threads, blocks.feed, piece)
        digests = blocks.end()
        if isinstance(source, ReadFile) and is_whole and size:
            source.digests[name] = digests.hex()
            self._link.notify("digest.told", {"session": session, "file": source.file, "version": source.version,
                                              "algorithm": name, "digest": digests.hex()})
        return name, digests

    async def _pieces(self, source: Source, start: int, end: int) -> AsyncGenerator[memoryview, None]:
        # A reader of its own: the handle's goes on as if nobody had asked, and may be closed.
        content = Content(self._reader, source.content.manifest) if isinstance(source, ReadFile) else None
        try:
            while start < end:
                slot, position = divmod(start, CHUNK_SIZE)
                count = min(CHUNK_SIZE - position, end - start)
                if content is None:
                    assert isinstance(source, WriteHandle)
                    piece = memoryview(await source.upload.read(start, count))
                    if len(piece) < count:
                        raise Answer(status.FAILURE, "the file was cut while it was checked")
                else:
                    if start + count < end:
                        content.ahead(slot + 1)
                    piece = memoryview(await content.chunk(slot))[position : position + count]
                yield piece
                start += count
        finally:
            if content is not None:
                content.close()


class _Blocks:
    """The digests of consecutive blocks; of all of it if `size` is 0. `feed` is for a thread."""

    def __init__(self, new: Callable[[], Any], size: int) -> None:
        self._new, self._size = new, size
        self._hash, self._left = new(), size
        self._done = bytearray()

    def feed(self, piece: memoryview) -> None:
        """More bytes."""
        while self._size and len(piece) >= self._left:
            self._hash.update(piece[: self._left])
            piece = piece[self._left :]
            self._done += self._hash.digest()
            self._hash, self._left = self._new(), self._size
        self._hash.update(piece)
        self._left -= len(piece)

    def end(self) -> bytes:
        """All digests; the last block may be shorter. Of nothing there is one, unless blocks were asked for."""
        if not self._size or self._left < self._size:
            self._done += self._hash.digest()
        return bytes(self._done)


def _chosen(algorithms: bytes) -> str:
    """The first in the client's list that is known here."""
    for name in algorithms.decode("ascii", "replace").split(","):
        if name in ALGORITHMS:
            return name
    raise Answer(status.FAILURE, f"none of these digests is known here; ask for one of {', '.join(ALGORITHMS)}")
