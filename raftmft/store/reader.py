"""The way out of segments: pread, by any number of threads, in any process."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable

from blake3 import blake3

from raftmft.store import files, format
from raftmft.store.errors import ChunkCorrupt, StoreBroken
from raftmft.store.format import Place

OPEN_SEGMENTS_MAX = 256
"""How many segments a reader keeps open; beyond it the least recently used one is closed."""
ONE_READ_MAX = 128 << 10
"""Up to here a record is read whole, header and data, and copying the data out costs less than a second system call."""
FIRST_OFFSET = format.SEGMENT_HEADER + format.RECORD_HEADER
_UNREADABLE = {errno.EIO, errno.EBADMSG, errno.EUCLEAN}


class _File:
    """An open segment; `users` threads are reading it now. Closed when it is neither cached nor used."""

    __slots__ = ("fd", "users", "cached")

    def __init__(self, fd: int) -> None:
        self.fd, self.users, self.cached = fd, 0, True


class SegmentReader:
    """Reads chunks at their locations. All methods may be called from any thread, and block on the disk."""

    def __init__(self, directory: str | os.PathLike[str], *, open_segments_max: int = OPEN_SEGMENTS_MAX) -> None:
        self._directory = os.fspath(directory)
        self._max = open_segments_max
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._synced: dict[str, int] = {}
        self._lock = threading.Lock()
        self._syncing = threading.Lock()

    def read(self, location: Place, chunk_id: bytes | None = None) -> bytes:
        """The data at `location`; with `chunk_id`, certainly that chunk's: header and hash are checked.

        ChunkCorrupt: damaged, gone or unreadable; take another copy. OSError: the trouble lies elsewhere (no
        descriptors).
        """
        length, start = location.length, location.offset - format.RECORD_HEADER
        if chunk_id is None:
            data = self._pread(location, length, location.offset)
        elif length <= ONE_READ_MAX:
            record = self._pread(location, format.RECORD_HEADER + length, start)
            if not format.header_matches(record, chunk_id, length):
                raise ChunkCorrupt(f"{_at(location)} is not the chunk {chunk_id.hex()[:16]}")
            data = record[format.RECORD_HEADER:]
        else:
            if not format.header_matches(self._pread(location, format.RECORD_HEADER, start), chunk_id, length):
                raise ChunkCorrupt(f"{_at(location)} is not the chunk {chunk_id.hex()[:16]}")
            data = self._pread(location, length, location.offset)
        if len(data) != length:
            raise ChunkCorrupt(f"{_at(location)} ends after {len(data)} bytes")
        if chunk_id is not None and blake3(data).digest() != chunk_id:
            raise ChunkCorrupt(f"{_at(location)} does not have the hash of chunk {chunk_id.hex()[:16]}")
        return data

    def read_range(self, location: Place, start: int, length: int) -> bytes:
        """`length` bytes from `start` of the chunk, unverified: for a chunk that was verified since it was opened.

        ValueError if the range leaves the chunk; errors else as of `read`.
        """
        if start < 0 or length < 0 or start + length > location.length:
            raise ValueError(f"bytes {start} to {start + length} are not within a chunk of {location.length}")
        data = self._pread(location, length, location.offset + start)
        if len(data) != length:
            raise ChunkCorrupt(f"{_at(location)} ends after {start + len(data)} bytes")
        return data

    def sync(self, segments: Iterable[str]) -> None:
        """What was appended to these segments before the call is durable, whoever wrote it. StoreBroken if not.

        The descriptor of a segment that is still written is kept from its first sync on: a failed write-back is
        reported once to every descriptor that was open, and might be missed by one opened later. Forget it with
        `release`.
        """
        with self._syncing:
            for segment in segments:
                try:
                    fd = self._synced.get(segment)
                    if fd is None:
                        fd = self._synced[segment] = self._open_file(segment)
                        files.fsync_directory(self._directory)
                    os.fdatasync(fd)
                except OSError as error:
                    raise StoreBroken(
                        f"{segment}: fdatasync failed ({error}); look at the disk, then restart the node") from error
                if os.path.exists(os.path.join(self._directory, format.hint_name(segment))):
                    os.close(self._synced.pop(segment))  # sealed: whoever sealed it has synced all of it

    def release(self, segment: str) -> None:
        """The segment is let go of (it was sealed, or it is to be deleted)."""
        with self._lock:
            self._drop(self._files.pop(segment, None))
        with self._syncing:
            fd = self._synced.pop(segment, None)
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """All segments are let go of, those being read as soon as they are not. The reader can still be used."""
        for segment in [*self._files, *self._synced]:
            self.release(segment)

    def _open_file(self, segment: str) -> int:
        if format.parse_segment_name(segment) is None:
            raise FileNotFoundError(errno.ENOENT, "no segment's name", segment)
        return os.open(os.path.join(self._directory, segment), os.O_RDONLY)

    def _pread(self, location: Place, length: int, offset: int) -> bytes:
        """`length` bytes at `offset` of the segment, fewer where it ends. ChunkCorrupt for what says that the copy is
        lost.
        """
        segment = location.segment
        if location.offset < FIRST_OFFSET or not 0 < location.length <= format.MAX_CHUNK:
            raise ChunkCorrupt(f"{_at(location)} is no place of a chunk")
        file: _File | None = None
        try:
            with self._lock:
                file = self._files.get(segment)
                if file is None:
                    file = self._files[segment] = _File(self._open_file(segment))
                    if len(self._files) > self._max:
                        self._drop(self._files.popitem(last=False)[1])
                else:
                    self._files.move_to_end(segment)
                file.users += 1
            return files.pread_all(file.fd, length, offset)
        except FileNotFoundError:
            raise ChunkCorrupt(f"{_at(location)}: the segment is gone") from None
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            raise ChunkCorrupt(f"{_at(location)} cannot be read: {error.strerror}") from error
        finally:
            if file is not None:
                with self._lock:
                    file.users -= 1
                    if not file.users and not file.cached:
                        os.close(file.fd)

    @staticmethod
    def _drop(file: _File | None) -> None:
        """The file is no longer cached; the lock is held."""
        if file is not None:
            file.cached = False
            if not file.users:
                os.close(file.fd)


def _at(location: Place) -> str:
    return f"{location.segment} at {location.offset}"
