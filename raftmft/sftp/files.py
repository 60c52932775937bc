"""What a session has open: files to read, uploads, directories, and their handles.

A `Session` belongs to one login, and may have several SFTP channels; each channel has a `Handles` of its own, while
uploads are known to all channels of the session, since the writing session sees its own unpublished bytes (contract,
"What each session sees of a name"). Which name leads to which upload the node says: others may rename it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, Manifest
from raftmft.sftp.attrs import FileAttrs, attrs_of
from raftmft.sftp.buffers import Budget
from raftmft.sftp.content import ChunkReader, Content, places_of
from raftmft.sftp.link import Link
from raftmft.sftp.names import Path
from raftmft.sftp.upload import Upload

MOST_HANDLES = 256
"""Open handles of one session, over all its channels."""


class Session:
    """One authenticated session, as its node knows it by `id`."""

    def __init__(self, number: int, user: str, uid: int, address: str, budget: Budget) -> None:
        self.id, self.user, self.uid, self.address = number, user, uid, address
        self.user_bytes = user.encode("utf-8", "replace")
        self.budget = budget
        self.handle_count = 0
        self._uploads: dict[int, Upload] = {}
        self.ended = asyncio.Event()

    @property
    def about(self) -> dict[str, Any]:
        """This session in the fields of a log line."""
        return {"session": self.id, "user": self.user, "address": self.address}

    def upload(self, number: int) -> Upload | None:
        """The session's own open upload of this id."""
        return self._uploads.get(number)

    def uploads(self) -> list[Upload]:
        """All of them."""
        return list(self._uploads.values())

    def opened(self, upload: Upload) -> None:
        """An upload was begun."""
        self._uploads[upload.id] = upload

    def closed(self, upload: Upload) -> None:
        """An upload ended; its name shows what is published again."""
        self._uploads.pop(upload.id, None)

    def removed(self, ids: list[Any]) -> None:
        """The name of these uploads was removed: they go on as files without a name."""
        for number in ids:
            upload = self._uploads.pop(number, None)
            if upload is not None:
                upload.is_removed = True
                upload.seals.changed.ring()


class ReadFile:
    """A published version, open to read."""

    def __init__(self, link: Link, reader: ChunkReader, session: int, opened: dict[str, Any]) -> None:
        """`opened` is the node's answer to fs.open."""
        self.size = int(opened["size"])
        self.attrs: FileAttrs = attrs_of(opened["attrs"])
        self.file, self.open, self.digest = int(opened["file"]), int(opened["open"]), str(opened["digest"])
        self.version = int(opened["version"])
        self.digests: dict[str, str] = dict(opened.get("digests") or {})
        """Of the whole content, in hex, by algorithm, as far as they are known."""
        if self.digest:
            self.digests["blake3"] = self.digest
        self._link, self._session = link, session
        self.content = Content(reader, Manifest(self.size, int(opened["depth"]), bytes(opened["ids"])),
                                places_of(opened.get("locations") or []))
        self._bytes = 0
        self._is_ok = True
        self._next = self._users = 0
        self._is_closed = False

    def try_read(self, offset: int, length: int) -> list[memoryview] | None:
        """The bytes as views, fewer only at the end of the file; None if a chunk is not at hand. [] at the end."""
        end = min(self.size, offset + length)
        pieces: list[memoryview] = []
        at = offset
        while at < end:
            slot, position = divmod(at, CHUNK_SIZE)
            data = self.content.peek(slot)
            if data is None:
                return None
            pieces.append(memoryview(data)[position : position + end - at])
            at += len(pieces[-1])
        if pieces:
            self._bytes += end - offset
            if offset == self._next:  # who reads on will want the next chunk
                self.content.ahead((end - 1) // CHUNK_SIZE + 1)
            self._next = end
        return pieces

    async def read(self, offset: int, length: int) -> list[memoryview]:
        """As try_read, reading chunks as need be. RaftmftError if one cannot be had."""
        end = min(self.size, offset + length)
        while (pieces := self.try_read(offset, length)) is None:
            try:
                first = offset // CHUNK_SIZE
                for slot in range(first, (end - 1) // CHUNK_SIZE + 1):
                    if slot == first and offset == self._next:
                        self.content.ahead(slot + 1)
                    await self.content.chunk(slot)
            except RaftmftError:
                self._is_ok = False
                raise
        return pieces

    def hold(self) -> None:
        """Until `release` the version stays open, although the handle may be closed."""
        self._users += 1

    def release(self) -> None:
        """Undoes one `hold`."""
        self._users -= 1
        if self._is_closed and not self._users:
            self._tell_end()

    def close(self) -> None:
        """Tells the node how the read ended, as soon as nobody uses the file any more."""
        self.content.close()
        self._is_closed = True
        if not self._users:
            self._tell_end()

    def _tell_end(self) -> None:
        self._link.notify("read.end", {
            "session": self._session, "open": self.open, "bytes": self._bytes, "ok": self._is_ok})


class WriteHandle:
    """A handle on an upload. Only the one that began it ends it (`is_owner`)."""

    def __init__(self, upload: Upload, *, readable: bool, writable: bool, is_owner: bool) -> None:
        self.upload, self.readable, self.writable, self.is_owner = upload, readable, writable, is_owner


class Directory:
    """A directory being listed: pages of published names, then the session's own unpublished ones."""

    def __init__(self, path: Path, first_page: dict[str, Any]) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = list(first_page["entries"])
        self.has_more = bool(first_page["more"])
        self.last: bytes | None = self.entries[-1]["name"] if self.entries else None
        self.dots: list[dict[str, Any]] = list(first_page["dots"])
        self.own: dict[bytes, int] = dict(first_page["uploads"])

    def add_page(self, page: dict[str, Any]) -> None:
        """The next page came."""
        self.entries.extend(page["entries"])
        self.has_more = bool(page["more"]) and bool(page["entries"])
        if self.entries:
            self.last = self.entries[-1]["name"]


Handle = ReadFile | WriteHandle | Directory


class Handles:
    """One channel's handles by their opaque names, which mean nothing in any other channel."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._by_name: dict[bytes, Handle] = {}
        self._count = 0

    def has_room(self) -> bool:
        """Whether one more may be opened."""
        return self._session.handle_count < MOST_HANDLES

    def add(self, handle: Handle) -> bytes:
        """The handle's new name."""
        self._count += 1
        self._session.handle_count += 1
        name = self._count.to_bytes(4, "big") + secrets.token_bytes(4)
        self._by_name[name] = handle
        return name

    def get(self, name: bytes) -> Handle | None:
        """The handle of this name."""
        return self._by_name.get(name)

    def take(self, name: bytes) -> Handle | None:
        """The handle of this name, which is no longer open."""
        handle = self._by_name.pop(name, None)
        if handle is not None:
            self._session.handle_count -= 1
        return handle

    def uploads(self) -> list[Upload]:
        """The uploads that this channel's handles lead to."""
        return [handle.upload for handle in self._by_name.values() if isinstance(handle, WriteHandle)]

    def take_all(self) -> Iterator[Handle]:
        """Every handle, none of which is open afterwards."""
        for name in list(self._by_name):
            handle = self.take(name)
            if handle is not None:
                yield handle
