"""The only way into a segment: append to the page cache, then one fdatasync for all that was appended.

Theory. `append` never waits for the disk: it makes the next segment when the present one is full, but the directory's
fsync, and the sealing of the full one, are left to the next `sync`, which runs in a thread. What a successful `sync`
covers is durable together with its directory entry; nothing may be acknowledged before. Syncs that wait for one another
are merged: a sync that began after an append covers it.

After a failed write or fdatasync nobody knows what the page cache and the disk hold (fsyncgate), so the writer refuses
everything from then on. The segment stays unsealed; who adopts it re-reads what is not known to be durable from the
disk. A full disk is different: nothing of the refused chunk is visible, and the next append tries again.
"""

from __future__ import annotations

import errno
import os
import threading

from raftmft.core.manifest import ID_SIZE
from raftmft.store import files, format
from raftmft.store.errors import StoreBroken, StoreFull
from raftmft.store.format import Hint, Location, RecordCodec

SEGMENT_SIZE = 256 << 20
PREALLOCATE_STEP = 16 << 20
"""Space is taken from the disk in steps of this size, so that fdatasync seldom has a new file size to write."""
DISK_SHARE = 16
"""No segment is larger than this part of the disk: compaction must have room for one."""
NAME_TRIES = 1000
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}

Buffer = bytes | bytearray | memoryview


class _Segment:
    """A segment that this writer holds open and locked."""

    __slots__ = ("name", "fd", "salt", "codec", "end", "allocated", "synced", "entries")

    def __init__(self, name: str, fd: int, salt: bytes) -> None:
        self.name, self.fd, self.salt, self.codec = name, fd, salt, RecordCodec(salt)
        self.end = self.allocated = format.SEGMENT_HEADER
        self.synced = 0
        self.entries = bytearray()


class SegmentWriter:
    """Appends chunks to segments of its own, one process and one `writer` name at a time; never to a segment that it
    found.

    All methods may be called from any thread. `sync` and `close` block on the disk; `append` may block for as long as
    the kernel takes to copy the data.
    """

    def __init__(self, directory: str | os.PathLike[str], writer: str, segment_size: int = SEGMENT_SIZE,
                 *, reserve_bytes: int | None = None) -> None:
        """Makes the directory if need be; no segment before the first append.

        `segment_size` is in bytes, at most a sixteenth of the disk is taken. `reserve_bytes` of the disk are never
        taken (None: one segment), so that compaction and the Raft journal still work when the store is full.
        """
        self._directory = os.fspath(directory)
        self.name = format.check_writer(writer)
        os.makedirs(self._directory, files.DIRECTORY_MODE, exist_ok=True)
        disk = os.statvfs(self._directory)
        self._segment_size = max(1, min(segment_size, disk.f_blocks * disk.f_frsize // DISK_SHARE, format.MAX_SEGMENT))
        self._reserve = self._segment_size if reserve_bytes is None else reserve_bytes
        self._number = 0
        self._preallocates = True
        self._current: _Segment | None = None
        self._full: list[_Segment] = []
        self._appended = self._durable = 0
        self._directory_changed = False
        self._broken = ""
        self._closed = False
        self._state = threading.Lock()
        self._syncing = threading.Lock()

    @property
    def unsynced_bytes(self) -> int:
        """How many bytes were appended that no sync has covered yet."""
        return self._appended - self._durable

    def append(self, chunk_id: bytes, data: Buffer) -> Location:
        """The chunk is in the page cache and can be read at the location by every process; it is not durable.

        `data` are 1 byte to 1 MiB; that they hash to `chunk_id` is the caller's word. StoreFull: not written, try again
        when there is space. StoreBroken: a write failed, now or earlier; the writer is of no more use.
        OSError: no segment could be made for another reason (descriptors); nothing was written.
        """
        length = len(data)
        if len(chunk_id) != ID_SIZE or not 0 < length <= format.MAX_CHUNK:
            raise ValueError(f"a chunk has an id of {ID_SIZE} bytes and 1 to {format.MAX_CHUNK} bytes of data")
        with self._state:
            self._check()
            need = format.aligned(format.RECORD_HEADER + length)
            segment = self._current
            if segment is None or (segment.end + need > self._segment_size and segment.entries):
                segment = self._next_segment()
            start, offset = segment.end, segment.end + format.RECORD_HEADER
            if start + need > segment.allocated and self._preallocates:
                self._preallocate(segment, start + need)
            header = segment.codec.pack(chunk_id, length, start, segment.synced)
            self._write(segment.fd, [header, data], start)
            segment.entries += format.pack_entry(chunk_id, offset, length)
            segment.end = start + need
            self._appended += need
            return Location(segment.name, offset, length)

    def sync(self) -> None:
        """Everything appended before the call is durable. Blocks; call it in a thread.

        StoreBroken if the disk failed, now or earlier: then nothing that was not yet covered by a sync may be
        acknowledged.
        """
        with self._state:
            self._check()
            target = self._appended
        with self._syncing:
            with self._state:
                self._check()
                if self._durable >= target:
                    return
                appended, current, full, self._full = self._appended, self._current, self._full, []
                end = current.end if current else 0
                directory_changed, self._directory_changed = self._directory_changed, False
            try:
                for segment in full:
                    os.fdatasync(segment.fd)
                if current is not None:
                    os.fdatasync(current.fd)
                if directory_changed:
                    files.fsync_directory(self._directory)
            except BaseException as error:
                with self._state:
                    self._broken = f"{self._directory}: fdatasync failed ({error}); look at the disk, restart the node"
                    self._full = full + self._full
                raise StoreBroken(self._broken) from error
            with self._state:
                self._durable = appended
                if current is not None:
                    current.synced = end
            for segment in full:
                self._seal(segment)

    def close(self) -> None:
        """Everything is durable and the last segment sealed; a broken writer only lets go of its files. Idempotent.

        StoreBroken if the disk fails now; the files are let go of all the same.
        """
        try:
            if not self._closed and not self._broken:
                self.sync()
        finally:
            with self._syncing, self._state:
                self._closed = True
                current, self._current = self._current, None
                left, self._full = self._full, []
            for segment in left:
                os.close(segment.fd)
            if current is not None and self._broken:
                os.close(current.fd)
            elif current is not None:
                self._seal(current)

    def _check(self) -> None:
        if self._broken:
            raise StoreBroken(self._broken)
        if self._closed:
            raise StoreBroken(f"{self._directory}: the segment writer {self.name} is closed")

    def _next_segment(self) -> _Segment:
        """The next segment is the current one, the full one waits for the next sync. Errors change nothing."""
        fd, name = self._create()
        try:
            salt = os.urandom(format.SALT_SIZE)
            self._write(fd, [format.pack_segment_header(salt)], 0)
        except BaseException:
            # Still empty, and no location in it was given out.
            os.unlink(os.path.join(self._directory, name))
            os.close(fd)
            raise
        if self._current is not None:
            self._full.append(self._current)
        self._current = _Segment(name, fd, salt)
        self._directory_changed = True
        return self._current

    def _create(self) -> tuple[int, str]:
        """A new, empty, locked file under the writer's next number."""
        if not self._number:
            parsed = (format.parse_segment_name(name) for name in files.list_segments(self._directory))
            self._number = max((found[1] for found in parsed if found and found[0] == self.name), default=0)
        for _ in range(NAME_TRIES):
            self._number += 1
            name = format.segment_name(self.name, self._number)
            path = os.path.join(self._directory, name)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, files.FILE_MODE)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise self._no_room() from None
                raise
            # Between our open and our lock somebody who clears up after dead writers may have found the file empty.
            if files.try_lock(fd) and os.fstat(fd).st_nlink:
                return fd, name
            os.close(fd)
        raise StoreBroken(f"{self._directory}: no free segment name for {self.name}; is another process writing them?")

    def _preallocate(self, segment: _Segment, least: int) -> None:
        """Space for `least` bytes is taken, and a step more if there is enough. StoreFull if there is not even
        `least`.
        """
        disk = os.statvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize - self._reserve
        step = min(max(least, segment.allocated + PREALLOCATE_STEP), max(least, self._segment_size))
        for wanted in (step, least):
            if wanted - segment.allocated > free:
                continue
            try:
                os.posix_fallocate(segment.fd, segment.allocated, wanted - segment.allocated)
            except OSError as error:
                if error.errno in _NO_FALLOCATE:
                    self._preallocates = False
                    return
                if error.errno not in _NO_ROOM:
                    raise
            else:
                segment.allocated = wanted
                return
        raise self._no_room()

    def _write(self, fd: int, buffers: list[Buffer], offset: int) -> None:
        """All of the buffers stand at `offset`. StoreFull, or StoreBroken for ever."""
        total = sum(len(buffer) for buffer in buffers)
        try:
            done = os.pwritev(fd, buffers, offset)
            while done < total:
                rest = b"".join(buffers)[done:]
                done += os.pwritev(fd, [rest], offset + done)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise self._no_room() from None
            self._broken = f"{self._directory}: a write failed ({error}); look at the disk, restart the node"
            raise StoreBroken(self._broken) from error

    def _seal(self, segment: _Segment) -> None:
        """Seals a durable segment and lets go of it. Without its hint file it is only slower to open."""
        try:
            if segment.entries:
                files.seal(self._directory, segment.name, segment.fd, Hint(segment.entries, segment.end, segment.salt))
            else:
                os.unlink(os.path.join(self._directory, segment.name))
        except OSError:
            pass  # the content is durable; the next process to open the directory scans it and seals it
        finally:
            os.close(segment.fd)

    def _no_room(self) -> StoreFull:
        return StoreFull(f"{self._directory}: the disk is full; free space or add members")
