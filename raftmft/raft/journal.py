"""The Raft log, the term and the vote in append-only *segments* (segment.py), behind pysyncobj's Journal interface.

Changes are made in memory and collect as records; `take()` wraps what has collected into one *batch*, `put()` writes
and fdatasyncs it (in a thread: it touches nothing but the file), `settle()` marks it durable. One batch is under way at
a time, so after a crash only the last batch of the last segment can be torn. That is the whole recovery rule: a bad
batch with nothing valid behind it was never acknowledged and is cut off; all else is damage, and refused untouched.

A batch that finds its segment over SEGMENT_BYTES begins the next one. `compact` drops whole segments from the front
once a snapshot holds what they say; then the log begins at `base_index`, whose term is known and whose command is not.
`reset_to` makes the log begin behind an installed snapshot. Memory holds the last MEMORY_BYTES of entries and what is
not committed; older ones are read from the segments (*stretches*: runs of batches, indexed by their first entry).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from pysyncobj.journal import Journal as PysyncobjJournal

from raftmft.core.errors import RaftmftError
from raftmft.raft import configuration, segment
from raftmft.raft.disk import Disk, OsDisk
from raftmft.raft.messages import LogEntry
from raftmft.raft.recovery import Segment, Stretch, read_stretch, recover

SEGMENT_BYTES = 8 << 20
MEMORY_BYTES = 32 << 20
ENTRY_COST_BYTES = 150
"""What an entry takes in memory beside its command, about."""
STRETCH_BYTES = 64 << 10


class JournalFailed(RaftmftError):
    """A write or fsync of the journal failed: what is on disk is unknown, so the node must stop."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Bytes to be put on disk as one. `last_index` is the log's end when they were taken; `fresh`: a new segment."""

    data: bytes
    last_index: int
    segment: Segment
    fresh: bool


class Journal(PysyncobjJournal):
    """What this member must not forget. Opening one reads it all, cuts a torn tail, and raises CorruptFile on damage.

    `path` is what the names of its files begin with. `durable_index` is the highest index up to which memory and disk
    surely agree.
    """

    def __init__(self, path: str, *, disk: Disk | None = None) -> None:
        self.path = path
        self.durable_index = 0
        self.base_index = 0
        self.bytes_written = 0
        """Since it was opened."""
        self.configurations: list[tuple[int, bytes]] = []
        """(index, command) of those in the log, and before them the one in force at its base, if any was."""
        self._entries: list[LogEntry] = []
        self._memory = 0
        self._terms: list[tuple[int, int]] = []
        self._stretches: list[Stretch] = []
        self._read: tuple[Stretch, int, list[LogEntry]] | None = None
        self._term, self._vote = 0, ""
        self._commit = self._commit_written = 1
        self._pending: list[bytes] = []
        self._dirty_from: int | None = None
        self._cut_to: int | None = None
        self._reset = False
        self._under_way: Batch | None = None
        self._failure: str | None = None
        self._disk = disk or OsDisk()
        self._segments: list[Segment] = []
        self._void: list[Segment] = []
        self._compact_to: tuple[int, int] | None = None
        self._written = (0, 0, b"")
        try:
            if not recover(self, self._disk):
                part, data = self._new_segment()
                part.file, part.size = self._disk.create(part.path, data), len(data)
                self._segments.append(part)
        except BaseException:
            self._close_files()
            raise

    @staticmethod
    def exists(path: str) -> bool:
        """Whether a journal with this path was ever written and not lost."""
        return bool(OsDisk().names(path + "."))

    # --- the log -----------------------------------------------------------------------------------------------------
    @property
    def last_index(self) -> int:
        """The index of the last entry, 0 for an empty log."""
        return self._entries[-1][1] if self._entries else 0

    @property
    def size_bytes(self) -> int:
        """What the log takes on disk."""
        return sum(part.size for part in self._segments)

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None if there is none, or it is below the base."""
        if not self._terms or not max(1, self.base_index) <= index <= self.last_index:
            return None
        first, term = self._terms[-1]
        if index >= first:
            return term
        return self._terms[bisect_right(self._terms, (index, 1 << 62)) - 1][1]

    def slice(self, first: int, last: int) -> list[LogEntry]:
        """The entries first..last, both included; if `first` must be read from the disk, perhaps not all of them, but
        one at least. CorruptFile if they cannot be read.
        """
        assert max(self.base_index, 0) < first <= last <= self.last_index
        start = self._entries[0][1]
        if first >= start and first > self.base_index:
            return self._entries[first - start : last + 1 - start]
        at = bisect_right(self._stretches, first, key=lambda stretch: stretch.first) - 1
        stretch = self._stretches[at]
        readable = stretch.end
        if self._under_way is not None and self._under_way.segment is stretch.segment:
            # Its bytes may not stand in the file yet. Its entries are in memory, as none that is not durable is let go.
            readable = min(readable, stretch.segment.size - len(self._under_way.data))
        if self._read is None or self._read[:2] != (stretch, readable):
            self._read = (stretch, readable, read_stretch(stretch, readable))
        entries = self._read[2]
        # What memory has is only there: the disk may still say what was cut off since.
        end = self._stretches[at + 1].first - 1 if at + 1 < len(self._stretches) else last
        offset = first - entries[0][1]
        return entries[offset : offset + min(last, end, max(start - 1, first)) + 1 - first]

    def extend(self, entries: list[LogEntry]) -> None:
        """Adds entries that directly follow the log's end."""
        if not entries:
            return
        first = entries[0][1]
        assert not self._entries or first == self.last_index + 1, f"entry {first} after {self.last_index}"
        self._remember(entries)
        pending, pack = self._pending, segment.ENTRY_HEAD.pack
        for command, index, term in entries:
            pending.append(pack(segment.ENTRY, 16 + len(command), index, term))
            pending.append(command)
        self._dirty(first)

    def truncate_from(self, index: int) -> None:
        """Makes every entry from `index` on void. The first entry always stays."""
        self._forget_from(index)
        self._pending.append(segment.INDEX_RECORD.pack(segment.TRUNCATE, 8, index))
        self._cut_to = index if self._cut_to is None else min(index, self._cut_to)
        self._dirty(index)

    def _remember(self, entries: list[LogEntry]) -> None:
        kind, last_term = configuration.KIND, self._terms[-1][1] if self._terms else None
        for command, index, term in entries:
            self._memory += len(command) + ENTRY_COST_BYTES
            if term != last_term:
                self._terms.append((index, term))
                last_term = term
            if command[:1] == kind:
                self.configurations.append((index, command))
        self._entries += entries

    def _forget_from(self, index: int) -> None:
        start = self._entries[0][1]
        assert max(start, self.base_index) < index <= self.last_index
        self._memory -= sum(len(entry[0]) + ENTRY_COST_BYTES for entry in self._entries[index - start :])
        del self._entries[index - start :]
        while self._terms[-1][0] >= index:
            self._terms.pop()
        while self.configurations and self.configurations[-1][0] >= index:
            self.configurations.pop()

    def _dirty(self, index: int) -> None:
        self.durable_index = min(self.durable_index, index - 1)
        if self._dirty_from is None or index < self._dirty_from:
            self._dirty_from = index

    def _trim(self, limit: int) -> None:
        """Lets go of entries in memory below `limit`, which are on disk, if there are too many."""
        if self._memory <= MEMORY_BYTES:
            return
        start, count = self._entries[0][1], 0
        most = min(limit, self.last_index) - start
        while count < most and self._memory > MEMORY_BYTES * 3 // 4:
            self._memory -= len(self._entries[count][0]) + ENTRY_COST_BYTES
            count += 1
        del self._entries[:count]

    # --- snapshots ---------------------------------------------------------------------------------------------------
    def compact(self, upto: int, keep_bytes: int) -> None:
        """Drops segments of which nothing beyond `upto` is needed, while at least `keep_bytes` of log stay. A batch
        under way is waited for: the segment that it begins may be the one to stay.
        """
        if self._under_way is not None:
            self._compact_to = (upto, keep_bytes)
            return
        self._compact_to = None
        size, drop = self.size_bytes, 0
        for at, part in enumerate(self._segments):
            size -= self._segments[at - 1].size if at else 0
            if at and (part.base[0] > upto or size < keep_bytes):
                break
            if part.can_begin:
                drop = at
        if drop:
            self._void += self._segments[:drop]
            del self._segments[:drop]
            self._begin_at(*self._segments[0].base)
            self._remove_void()

    def reset_to(self, index: int, term: int, configured: bytes) -> None:
        """Forgets the log: it begins behind entry `index` of `term`, where this configuration command is in force.
        What was there is removed once the next batch is settled.
        """
        self._void += self._segments
        self._segments, self._pending, self._cut_to, self._reset = [], [], None, True
        self._written, self._dirty_from, self.durable_index = (index, term, configured), 0, 0
        self._compact_to = None
        self.adopt_base(index, term, configured)

    def adopt_base(self, index: int, term: int, configured: bytes) -> None:
        """The log in memory is empty and begins behind entry `index`."""
        self.base_index = index
        self._entries, self._memory = ([(configured or b"\x01", index, term)] if index else []), 0
        self._terms, self._stretches, self._read = ([(index, term)] if index else []), [], None
        self.configurations = [(index, configured)] if configured else []

    def _begin_at(self, index: int, term: int, configured: bytes) -> None:
        self.base_index = index
        start = self._entries[0][1]
        if start < index:
            self._memory -= sum(len(entry[0]) + ENTRY_COST_BYTES for entry in self._entries[: index - start])
            del self._entries[: index - start]
        self._terms = [(index, term), *(run for run in self._terms if run[0] > index)]
        at = bisect_right(self._stretches, index, key=lambda stretch: stretch.first)
        self._stretches = [s for s in self._stretches[max(0, at - 1) :] if s.segment in self._segments]
        base = [(index, configured)] if configured else []
        self.configurations = base + [pair for pair in self.configurations if pair[0] > index]

    def _remove_void(self) -> None:
        void, self._void = self._void, []
        for part in void:
            if part.file is not None:
                part.file.close()
            self._disk.remove(part.path)

    # --- to disk ---------------------------------------------------------------------------------------------------
    def take(self) -> Batch | None:
        """What has collected, to be put next; None if nothing has. The batch before must have been settled."""
        assert self._under_way is None, "the batch taken before was not settled"
        if not self._pending and not (self._reset and self._entries):
            return None
        if self._failure:
            raise JournalFailed(self._failure)
        records, fresh = b"".join(self._pending), self._reset or self._segments[-1].size >= SEGMENT_BYTES
        data = b""
        if fresh:
            part, data = self._new_segment()
            self._segments.append(part)
        part = self._segments[-1]
        offset = part.size + len(data)
        if records:
            data += segment.batch(part.salt, offset, records)
        self.note_batch(part, offset, part.size + len(data), self._dirty_from, self._cut_to, self.last_index)
        self._pending, self._dirty_from, self._cut_to, self._reset = [], None, None, False
        self.bytes_written += len(data)
        self._under_way = Batch(data, self.last_index, part, fresh)
        return self._under_way

    def _new_segment(self) -> tuple[Segment, bytes]:
        number = max((int(part.path.rpartition(".")[2]) for part in self._segments + self._void), default=0) + 1
        part = Segment(f"{self.path}.{number:08d}", segment.new_salt(), self._written)
        records = segment.base(*self._written, reset=self._reset)
        records += segment.hard_state(self._term, self._vote)
        records += segment.INDEX_RECORD.pack(segment.COMMIT, 8, self._commit)
        return part, segment.head(part.salt) + segment.batch(part.salt, segment.HEAD_SIZE, records)

    def note_batch(self, part: Segment, offset: int, end: int, dirty_from: int | None, cut_to: int | None,
                   last_index: int) -> None:
        """Keeps where in the segment the entries of a batch stand."""
        part.size = end
        if cut_to is not None:
            for each in self._segments:
                if cut_to <= each.base[0]:
                    each.can_begin = False
        if dirty_from is not None:
            goes_on = dirty_from == self._written[0] + 1 and cut_to is None
            stretches = self._stretches
            while stretches and stretches[-1].first >= dirty_from:
                stretches.pop()
            stretch = stretches[-1] if stretches else None
            if dirty_from > last_index:
                pass  # it only cuts off
            elif goes_on and stretch and stretch.end == offset and stretch.segment is part and (
                    end - stretch.offset <= STRETCH_BYTES):
                stretch.end = end
            else:
                stretches.append(Stretch(dirty_from, part, offset, end))
        self._written = (last_index, self.term_at(last_index) or 0,
                         self.configurations[-1][1] if self.configurations else b"")

    def put(self, batch: Batch) -> None:
        """Returns when `batch` is durable. Blocks. Raises JournalFailed, and from then on always."""
        part = batch.segment
        if self._failure is None:
            try:
                if batch.fresh:
                    part.file = self._disk.create(part.path, batch.data)
                else:
                    assert part.file is not None
                    part.file.append(batch.data)
                    part.file.sync()
                return
            except OSError as error:
                self._failure = f"{part.path} cannot be written ({error}): mend the disk, then start the node again"
        raise JournalFailed(self._failure)

    def settle(self, batch: Batch) -> None:
        """Tells that `put(batch)` returned: its entries are durable, unless they were replaced meanwhile."""
        assert batch is self._under_way and self._failure is None
        self._under_way = None
        last = batch.last_index if self._dirty_from is None else min(batch.last_index, self._dirty_from - 1)
        self.durable_index = max(self.durable_index, last)
        if self._void and not self._reset:
            self._remove_void()
        if self._compact_to is not None and not self._reset:
            self.compact(*self._compact_to)
        self._trim(min(self._commit, self.durable_index))

    def close(self) -> None:
        """Writes what is pending, if nothing ever failed and no batch is left under way, and lets go of the files."""
        try:
            if self._failure is None and self._under_way is None:
                self.onOneSecondTimer()
                if batch := self.take():
                    self.put(batch)
                    self.settle(batch)
        finally:
            self._close_files()

    def _close_files(self) -> None:
        for part in self._segments + self._void:
            if part.file is not None:
                part.file.close()

    # --- pysyncobj's interface ---------------------------------------------------------------------------------------
    def add(self, command: bytes, idx: int, term: int) -> None:
        """Adds one entry at the end."""
        self.extend([(command, idx, term)])

    def __getitem__(self, item: Any) -> Any:
        """Entry or entries by position among those in memory, as a list gives them."""
        return self._entries[item]

    def __len__(self) -> int:
        """How many entries there are in memory; 0 only if the log is empty."""
        return len(self._entries)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Term and vote; durable with the next batch, and no message that tells of them leaves before it."""
        vote = votedForNodeId or ""
        if (term, vote) != (self._term, self._vote):
            self._term, self._vote = term, vote
            self._pending.append(segment.hard_state(term, vote))

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
        return max(1, self.base_index, min(self._commit, self.last_index))

    def onOneSecondTimer(self) -> None:
        """Writes the commit index if it moved."""
        if self._commit != self._commit_written:
            self._commit_written = self._commit
            self._pending.append(segment.INDEX_RECORD.pack(segment.COMMIT, 8, self._commit))

    def _destroy(self) -> None:
        self.close()


__all__ = ["Batch", "Journal", "JournalFailed"]
