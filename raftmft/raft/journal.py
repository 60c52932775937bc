"""The Raft log, the term and the vote in one append-only file, behind pysyncobj's Journal interface.

Changes are made in memory and collect as records; `take()` wraps what has collected into one *batch*, `put()` writes
and fdatasyncs it (in a thread: it touches nothing but the file), `settle()` marks it durable. One batch is under way at
a time, so after a crash only the last batch of a file can be torn. That is the whole recovery rule: a bad batch with
nothing valid behind it was never acknowledged and is cut off; a bad batch with a valid one behind it is damage, and the
file is refused untouched. A batch is valid only at its own offset and under the file's own random salt, so that bytes
inside a command can never be taken for one.

    file    = MAGIC(16) version(u32) salt(u64) crc32(u32) batch*
    batch   = "RMFB" length(u32) offset(u64) crc32(u32, over salt, length, offset, records) records
    record  = kind(u8) length(u32) body;  all integers little-endian
    kind 1  entry: index(u64) term(u64) command         kind 2  truncate: every entry from index(u64) on is void
    kind 3  hard state: term(u64) voted-for(utf-8)      kind 4  commit: index(u64), a hint that saves work at start

The file is locked (flock) while it is open. It only grows: compaction comes with snapshots, as a new file of the same
format whose first entry may have any index.
"""

from __future__ import annotations

import logging
import struct
import zlib
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

from pysyncobj.journal import Journal as PysyncobjJournal

from raftmft.core.errors import CorruptFile, RaftmftError
from raftmft.raft.disk import Disk, File, OsDisk
from raftmft.raft.messages import LogEntry
from raftmft.wire.loglines import fields

logger = logging.getLogger(__name__)

MAGIC = b"raftmft-journal\n"
VERSION = 1
_HEADER = struct.Struct("<16sIQI")
_MARK = b"RMFB"
_BATCH = struct.Struct("<4sIQI")
_RECORD = struct.Struct("<BI")
_ENTRY = struct.Struct("<BIQQ")
_INDEX = struct.Struct("<BIQ")
_PAIR = struct.Struct("<QQ")
_U64 = struct.Struct("<Q")
_COVERED = struct.Struct("<QIQ")


class JournalFailed(RaftmftError):
    """A write or fsync of the journal failed: what is on disk is unknown, so the node must stop."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Bytes to be put on disk as one. `last_index` is the log's end when they were taken."""

    data: bytes
    last_index: int


def _crc(salt: int, length: int, offset: int, records: bytes | memoryview) -> int:
    return zlib.crc32(records, zlib.crc32(_COVERED.pack(salt, length, offset)))


class Journal(PysyncobjJournal):
    """What this member must not forget. Opening one reads it all, cuts a torn tail, and raises CorruptFile on damage.

    `durable_index` is the highest index up to which memory and disk surely agree.
    """

    def __init__(self, path: str, *, disk: Disk | None = None) -> None:
        self.path = path
        self.durable_index = 0
        self._entries: list[LogEntry] = []
        self._term, self._vote = 0, ""
        self._commit = self._commit_written = 1
        self._pending: list[bytes] = []
        self._dirty_from: int | None = None
        self._under_way: Batch | None = None
        self._failure: str | None = None
        disk = disk or OsDisk()
        file = disk.open(path)
        if file is None:
            self._salt = SystemRandom().getrandbits(64)
            head = _HEADER.pack(MAGIC, VERSION, self._salt, 0)[:-4]
            self._file: File = disk.create(path, head + struct.pack("<I", zlib.crc32(head)))
            self._end = _HEADER.size
            return
        try:
            self._recover(file)
        except BaseException:
            file.close()
            raise
        self._file = file

    # --- recovery ------------------------------------------------------------------------------------------------
    def _recover(self, file: File) -> None:
        data = file.read()
        self._check_header(data)
        view = memoryview(data)
        offset = _HEADER.size
        while (records := self._batch_at(view, offset)) is not None:
            self._replay(records, offset)
            offset += _BATCH.size + len(records)
        if offset < len(data):
            later = data.find(_MARK, offset + 1)
            while later >= 0:
                if self._batch_at(view, later) is not None:
                    raise CorruptFile(
                        f"{self.path} is damaged at byte {offset}: what is there fails its checksum and sound records "
                        f"follow at byte {later}; nothing was changed. Restore this member from the others"
                    )
                later = data.find(_MARK, later + 1)
            text = "%s: cut off %d bytes of an unfinished write at byte %d"
            logger.warning(text, self.path, len(data) - offset, offset, extra=fields(file=self.path))
            file.truncate(offset)
        file.sync()
        # The sync above: bytes that a killed process had written but not yet synced are promises from here on.
        self._end = offset
        self.durable_index = self.last_index

    def _check_header(self, data: bytes) -> None:
        if len(data) < _HEADER.size or data[:16] != MAGIC:
            what = "is empty" if not data else "does not begin as a raftmft journal does"
            raise CorruptFile(f"{self.path} {what}; nothing was changed. Restore this member from the others")
        _, version, self._salt, crc = _HEADER.unpack_from(data)
        if version != VERSION:
            raise CorruptFile(
                f"{self.path} has journal format {version} and this raftmft knows format {VERSION} only; "
                "nothing was changed. Run the release that wrote it"
            )
        if crc != zlib.crc32(data[: _HEADER.size - 4]):
            raise CorruptFile(f"{self.path}: the header (byte 0) fails its checksum; nothing was changed")

    def _batch_at(self, view: memoryview, offset: int) -> memoryview | None:
        start = offset + _BATCH.size
        if start > len(view):
            return None
        mark, length, at, crc = _BATCH.unpack_from(view, offset)
        if mark != _MARK or at != offset or not 0 < length <= len(view) - start:
            return None
        records = view[start : start + length]
        return records if _crc(self._salt, length, offset, records) == crc else None

    def _replay(self, records: memoryview, offset: int) -> None:
        """Applies sound records. What a writer of this format cannot have written is refused as damage."""
        at = 0
        try:
            while at < len(records):
                kind, length = _RECORD.unpack_from(records, at)
                at += _RECORD.size
                body = records[at : at + length]
                if len(body) < length:
                    raise ValueError("a record is cut short")
                at += length
                self._replay_record(kind, body)
        except (ValueError, struct.error) as error:
            text = f"{self.path}: the batch at byte {offset} makes no sense ({error}); nothing was changed"
            raise CorruptFile(text) from None

    def _replay_record(self, kind: int, body: memoryview) -> None:
        if kind == 1:
            index, term = _PAIR.unpack_from(body)
            if self._entries and (index != self.last_index + 1 or term < self._entries[-1][2]):
                raise ValueError(f"entry {index} of term {term} follows entry {self.last_index}")
            self._entries.append((bytes(body[16:]), index, term))
        elif kind == 2:
            (index,) = _U64.unpack(body)
            if not self._entries or not self._entries[0][1] < index <= self.last_index:
                raise ValueError(f"entries from {index} are void but the log ends at {self.last_index}")
            del self._entries[index - self._entries[0][1] :]
        elif kind == 3:
            (self._term,) = _U64.unpack_from(body)
            self._vote = str(body[8:], "utf-8")
        elif kind == 4:
            (self._commit,) = _U64.unpack(body)
            self._commit_written = self._commit
        else:
            raise ValueError(f"record kind {kind} is unknown")

    # --- the log in memory -----------------------------------------------------------------------------------------
    @property
    def last_index(self) -> int:
        """The index of the last entry, 0 for an empty log."""
        return self._entries[-1][1] if self._entries else 0

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None if there is none."""
        at = index - self._entries[0][1]
        return self._entries[at][2] if 0 <= at < len(self._entries) else None

    def slice(self, first: int, last: int) -> list[LogEntry]:
        """The entries first..last, both included."""
        base = self._entries[0][1]
        return self._entries[first - base : last + 1 - base]

    def extend(self, entries: list[LogEntry]) -> None:
        """Adds entries that directly follow the log's end."""
        if not entries:
            return
        first = entries[0][1]
        assert not self._entries or first == self.last_index + 1, f"entry {first} after {self.last_index}"
        self._entries += entries
        pending, pack = self._pending, _ENTRY.pack
        for command, index, term in entries:
            pending.append(pack(1, 16 + len(command), index, term))
            pending.append(command)
        self._dirty(first)

    def truncate_from(self, index: int) -> None:
        """Makes every entry from `index` on void. The first entry always stays."""
        assert self._entries[0][1] < index <= self.last_index
        del self._entries[index - self._entries[0][1] :]
        self._pending.append(_INDEX.pack(2, 8, index))
        self._dirty(index)

    def _dirty(self, index: int) -> None:
        self.durable_index = min(self.durable_index, index - 1)
        if self._dirty_from is None or index < self._dirty_from:
            self._dirty_from = index

    # --- to disk ---------------------------------------------------------------------------------------------------
    def take(self) -> Batch | None:
        """What has collected, to be put next; None if nothing has. The batch before must have been settled."""
        assert self._under_way is None, "the batch taken before was not settled"
        if not self._pending:
            return None
        if self._failure:
            raise JournalFailed(self._failure)
        records = b"".join(self._pending)
        self._pending, self._dirty_from = [], None
        crc = _crc(self._salt, len(records), self._end, records)
        data = _BATCH.pack(_MARK, len(records), self._end, crc) + records
        self._end += len(data)
        self._under_way = Batch(data, self.last_index)
        return self._under_way

    def put(self, batch: Batch) -> None:
        """Returns when `batch` is durable. Blocks. Raises JournalFailed, and from then on always."""
        if self._failure is None:
            try:
                self._file.append(batch.data)
                self._file.sync()
                return
            except OSError as error:
                self._failure = f"{self.path} cannot be written ({error}): mend the disk, then start the node again"
        raise JournalFailed(self._failure)

    def settle(self, batch: Batch) -> None:
        """Tells that `put(batch)` returned: its entries are durable, unless they were replaced meanwhile."""
        assert batch is self._under_way and self._failure is None
        self._under_way = None
        last = batch.last_index if self._dirty_from is None else min(batch.last_index, self._dirty_from - 1)
        self.durable_index = max(self.durable_index, last)

    def close(self) -> None:
        """Writes what is pending, if nothing ever failed and no batch is left under way, and lets go of the file."""
        try:
            if self._failure is None and self._under_way is None:
                self.onOneSecondTimer()
                if batch := self.take():
                    self.put(batch)
                    self.settle(batch)
        finally:
            self._file.close()

    # --- pysyncobj's interface ---------------------------------------------------------------------------------------
    def add(self, command: bytes, idx: int, term: int) -> None:
        """Adds one entry at the end."""
        self.extend([(command, idx, term)])

    def __getitem__(self, item: Any) -> Any:
        """Entry or entries by position, as a list gives them."""
        return self._entries[item]

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Term and vote; durable with the next batch, and no message that tells of them leaves before it."""
        vote = votedForNodeId or ""
        if (term, vote) != (self._term, self._vote):
            self._term, self._vote = term, vote
            body = _U64.pack(term) + vote.encode()
            self._pending.append(_RECORD.pack(3, len(body)) + body)

    def getCurrentTerm(self) -> int:
        """The term."""
        return self._term

    def getVotedForNodeId(self) -> str | None:
        """Whom this member voted for in the term, or None."""
        return self._vote or None

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Remembers the commit index; written once a second, since losing it costs only work."""
        self._commit = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        """The remembered commit index, never beyond the log."""
        return max(1, min(self._commit, self.last_index))

    def onOneSecondTimer(self) -> None:
        """Writes the commit index if it moved."""
        if self._commit != self._commit_written:
            self._commit_written = self._commit
            self._pending.append(_INDEX.pack(4, 8, self._commit))

    def _destroy(self) -> None:
        self.close()
