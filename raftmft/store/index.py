"""Which chunks lie in a directory of segments, and where. Owned by the node process.

Opening reads the hint file of every sealed segment. A segment without one was left by a process that died: it is
fdatasynced, scanned (scan.py) and sealed, so that everything the index names after opening is durable. Chunks that are
appended later are added as their writers tell of them, before they are durable: see SegmentReader.sync.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from raftmft.store import files, format
from raftmft.store.errors import SegmentBusy
from raftmft.store.format import Location, Place
from raftmft.store.scan import Scan, scan
from raftmft.store.table import ChunkTable

LOCK_WAIT_S = 2.0
"""How long opening waits for processes that are just dying (a node's workers end within 1 s of it)."""
LOCK_POLL_S = 0.02


class ChunkIndex:
    """Chunk id -> Location. Methods other than opening and adopting take microseconds; all may be called from any
    thread.

    `problems`: one line for each damage found in what had been durable; those chunks are to be repaired from other
    members. `busy`: segments that a living process was still writing when the index was opened; `adopt` them once it is
    gone.
    """

    def __init__(self, directory: str | os.PathLike[str], *, lock_wait_s: float = LOCK_WAIT_S) -> None:
        """Opens the directory, made if need be. Blocks. CorruptFile if another version of the program wrote it;
        OSError.
        """
        self._directory = os.fspath(directory)
        self._table = ChunkTable()
        self.problems: list[str] = []
        self.busy: list[str] = []
        os.makedirs(self._directory, files.DIRECTORY_MODE, exist_ok=True)
        give_up = time.monotonic() + lock_wait_s
        for segment in files.list_segments(self._directory):
            while True:
                try:
                    self.adopt(segment)
                except SegmentBusy:
                    if time.monotonic() < give_up:
                        time.sleep(LOCK_POLL_S)
                        continue
                    self.busy.append(segment)
                break

    def __len__(self) -> int:
        """How many copies are held: a chunk that two writers stored counts twice."""
        return len(self._table)

    def __contains__(self, chunk_id: bytes) -> bool:
        return self._table.get(chunk_id) is not None

    def get(self, chunk_id: bytes) -> Location | None:
        """A place of the chunk, or None if it is not held."""
        return self._table.get(chunk_id)

    def all(self, chunk_id: bytes) -> list[Location]:
        """Every place of the chunk: two writers may have stored it at the same time."""
        return self._table.all(chunk_id)

    def add(self, chunk_id: bytes, location: Place) -> bool:
        """The chunk lies at `location`; True if it was not held before."""
        return self._table.add(chunk_id, location)

    def discard(self, chunk_id: bytes, location: Place) -> bool:
        """The copy at `location` is bad or gone; True if it was known. Another copy, if there is one, takes its
        place.
        """
        return self._table.discard(chunk_id, location)

    def ids(self) -> Iterator[bytes]:
        """Every chunk held, once, in no useful order. What changes meanwhile may be seen or not."""
        return self._table.ids()

    def adopt(self, segment: str) -> None:
        """The segment that a dead writer left is durable and sealed, and the index names exactly what is whole in it.

        Adopting a sealed one only adds what was not known. Blocks: call it in a thread. SegmentBusy if the writer
        lives; CorruptFile if another version wrote it; OSError.
        """
        path = os.path.join(self._directory, segment)
        fd = os.open(path, os.O_RDWR)
        try:
            salt = format.parse_segment_header(files.pread_all(fd, format.SEGMENT_HEADER, 0), path)
            if not self._load_sealed(segment, os.fstat(fd).st_size, salt is None):
                if not files.try_lock(fd):
                    raise SegmentBusy(f"{path} is still being written by another process")
                # Its writer may have sealed it between our look and our lock.
                if not self._load_sealed(segment, os.fstat(fd).st_size, salt is None):
                    self._scan_and_seal(segment, fd, salt)
        finally:
            os.close(fd)

    def adopt_all(self, writer: str) -> list[str]:
        """Adopts every segment of a writer that has died; returns their names. Errors as of `adopt`."""
        segments = [name for name in files.list_segments(self._directory)
                    if (format.parse_segment_name(name) or ("",))[0] == writer]
        for segment in segments:
            self.adopt(segment)
        return segments

    def _load_sealed(self, segment: str, size: int, header_damaged: bool) -> bool:
        """Takes the hint file's word; False if there is none that fits the segment."""
        hint = files.read_hint(self._directory, segment)
        if hint is None or hint.end > size:
            return False
        if header_damaged:
            self.problems.append(f"{segment}: its header is damaged; its chunks are read by the hint file")
        self._table.load(segment, hint.entries)
        return True

    def _scan_and_seal(self, segment: str, fd: int, salt: bytes | None) -> None:
        """The segment's lock is held."""
        os.fdatasync(fd)
        hinted = os.path.exists(os.path.join(self._directory, format.hint_name(segment)))
        if salt is None:
            if hinted or any(files.pread_all(fd, format.SEGMENT_HEADER, 0)):
                self.problems.append(f"{segment}: its header is damaged; its chunks are lost here")
                self._table.drop(segment)
                return
            self._table.drop(segment)
            os.unlink(os.path.join(self._directory, segment))
            return
        found: Scan = scan(fd, segment, salt)
        if hinted:
            self.problems.append(f"{segment}: its hint file was damaged; it is made anew")
        self.problems += found.problems
        if found.torn or found.problems:
            self._table.drop(segment)  # what its writer told us of and did not bring to the disk
        if found.hint.entries:
            files.seal(self._directory, segment, fd, found.hint)
            self._table.load(segment, found.hint.entries)
        elif not found.problems:
            os.unlink(os.path.join(self._directory, segment))
