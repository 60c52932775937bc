"""Reading the journal's segments: all of them at start, and single stretches of old entries later. See journal.py."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftmft.core.errors import CorruptFile
from raftmft.raft import segment
from raftmft.raft.disk import Disk, File
from raftmft.raft.messages import LogEntry

if TYPE_CHECKING:
    from raftmft.raft.journal import Journal

logger = logging.getLogger(__name__)


class _NoBeginningError(Exception):
    """The log does not begin with the first segment there is: what follows makes void entries from before it."""


class Segment:
    """One file. `can_begin`: the log may begin here, since where it ended then was never made void."""

    __slots__ = ("base", "can_begin", "file", "path", "salt", "size")

    def __init__(self, path: str, salt: int, base: tuple[int, int, bytes]) -> None:
        self.path, self.salt, self.base = path, salt, base
        self.file: File | None = None
        self.size = 0
        self.can_begin = True


@dataclass(slots=True, eq=False)
class Stretch:
    """Batches that stand one behind the other in a segment, from `offset` to `end`. The log's entries from `first` on,
    up to the next stretch's, are found by replaying them.
    """

    first: int
    segment: Segment
    offset: int
    end: int


def read_stretch(stretch: Stretch, end: int) -> list[LogEntry]:
    """The entries that the stretch leaves behind through the batch that ends at `end`, in order and without a gap.
    CorruptFile if it is damaged.
    """
    part = stretch.segment
    assert part.file is not None
    data = part.file.read_at(stretch.offset, end - stretch.offset)
    view, at, found = memoryview(data), 0, dict[int, LogEntry]()
    while stretch.offset + at < end:
        records = segment.batch_at(view, part.salt, at, stretch.offset + at)
        if records is None:
            raise CorruptFile(f"{part.path} is damaged at byte {stretch.offset + at}: what is there fails its "
                              f"checksum; {segment.RESTORE}")
        at += segment.BATCH_SIZE + len(records)
        for kind, body in segment.split(records):
            if kind == segment.ENTRY:
                index, term = segment.pair(body)
                found[index] = (bytes(body[16:]), index, term)
            elif kind == segment.TRUNCATE:
                void = segment.number(body)
                found = {index: entry for index, entry in found.items() if index < void}
    return [found[index] for index in sorted(found) if index >= stretch.first]


def recover(journal: Journal, disk: Disk) -> bool:
    """Fills a new Journal from its files; False if there are none. Raises CorruptFile: then nothing was changed."""
    names = [name for name in disk.names(journal.path + ".") if name.rpartition(".")[2].isdigit()]
    if not names:
        if disk.names(journal.path):
            file = disk.open(journal.path)
            if file is not None:
                try:
                    segment.read_head(journal.path, file.read())
                finally:
                    file.close()
        return False
    run = _last_run(names)
    while not _replay(journal, disk, run):
        # This one was being removed with those before it, and came back when the power failed.
        journal._close_files()
        journal._segments, journal._void, run = [], [], run[1:]
        if not run:
            raise CorruptFile(f"{names[-1]} makes void what stood before its own base; {segment.RESTORE}")
    for name in names[: len(names) - len(run)]:
        disk.remove(name)
    journal._remove_void()
    return True


def _replay(journal: Journal, disk: Disk, run: list[str]) -> bool:
    """Reads all segments of the run; False if the log cannot begin with the first one."""
    torn: tuple[Segment, int] | None = None
    for name in run:
        file = disk.open(name)
        assert file is not None
        part = Segment(name, 0, (0, 0, b""))
        part.file = file
        journal._segments.append(part)
        data = file.read()
        part.salt = segment.read_head(name, data)
        try:
            end = _replay_segment(journal, part, data)
        except _NoBeginningError:
            return False
        if end < len(data):
            later = segment.later_batch(data, part.salt, end)
            if later is not None or name != run[-1]:
                what = f"sound records follow at byte {later}" if later is not None else "more segments follow"
                raise CorruptFile(f"{name} is damaged at byte {end}: what is there fails its checksum and {what}; "
                                  f"{segment.RESTORE}")
            torn = (part, len(data) - end)
        journal._trim(min(journal._commit, journal.last_index))
    last = journal._segments[-1]
    assert last.file is not None
    if torn is not None:
        text = "%s: cut off %d bytes of an unfinished write at byte %d"
        logger.warning(text, last.path, torn[1], last.size)
        last.file.truncate(last.size)
    # Bytes that a killed process had written but not yet synced are promises from here on.
    last.file.sync()
    journal.durable_index = journal.last_index
    return True


def _last_run(names: list[str]) -> list[str]:
    """The last of the names whose numbers follow each other: what a removal from the front leaves."""
    numbers = [int(name.rpartition(".")[2]) for name in names]
    start = len(names) - 1
    while start and numbers[start - 1] == numbers[start] - 1:
        start -= 1
    return names[start:]


def _replay_segment(journal: Journal, part: Segment, data: bytes) -> int:
    """Takes over what a segment says; the offset behind its last sound batch."""
    view, offset = memoryview(data), segment.HEAD_SIZE
    while (records := segment.batch_at(view, part.salt, offset, offset)) is not None:
        end = offset + segment.BATCH_SIZE + len(records)
        try:
            if offset == segment.HEAD_SIZE:
                _replay_base(journal, part, records)
                part.size = end
            else:
                _replay_batch(journal, part, records, offset, end)
        except ValueError as error:
            raise CorruptFile(f"{part.path}: the batch at byte {offset} makes no sense ({error}); nothing was "
                              "changed") from None
        offset = end
    if offset == segment.HEAD_SIZE:
        raise CorruptFile(f"{part.path} is damaged at byte {offset}: a segment begins with its base; "
                          f"{segment.RESTORE}")
    return offset


def _replay_base(journal: Journal, part: Segment, records: memoryview) -> None:
    for at, (kind, body) in enumerate(segment.split(records)):
        if at == 0:
            index, term = segment.pair(body)
            part.base = (index, term, bytes(body[16:]))
            first = journal._segments[0] is part
            if kind == segment.RESET:
                journal._void += journal._segments[:-1]
                journal._segments = [part]
                journal.adopt_base(*part.base)
            elif kind != segment.BASE:
                raise ValueError("it does not begin with a base")
            elif first:
                journal.adopt_base(*part.base)
            elif part.base[:2] != journal._written[:2]:
                raise ValueError(f"it goes on from entry {index} but the segment before ends at entry "
                                 f"{journal._written[0]}")
            journal._written = part.base
        elif kind == segment.HARD_STATE:
            _hard_state(journal, body)
        elif kind == segment.COMMIT:
            journal._commit = journal._commit_written = segment.number(body)
        else:
            raise ValueError(f"record kind {kind} in a base")


def _replay_batch(journal: Journal, part: Segment, records: memoryview, offset: int, end: int) -> None:
    """What a writer of this format cannot have written is refused as damage."""
    dirty_from: int | None = None
    cut_to: int | None = None
    run: list[LogEntry] = []
    expected, newest = journal.last_index + 1, journal.term_at(journal.last_index) or 0
    for kind, body in segment.split(records):
        if kind == segment.ENTRY:
            index, term = segment.pair(body)
            if (index != expected and (journal._entries or run)) or term < newest:
                raise ValueError(f"entry {index} of term {term} follows entry {expected - 1} of term {newest}")
            run.append((bytes(body[16:]), index, term))
            expected, newest = index + 1, term
            dirty_from = index if dirty_from is None else min(dirty_from, index)
            continue
        if run:
            journal._remember(run)
            run = []
        if kind == segment.TRUNCATE:
            index = segment.number(body)
            if 1 < index <= journal.base_index:
                raise _NoBeginningError
            if not max(journal.base_index, 1) < index <= journal.last_index:
                raise ValueError(f"entries from {index} are void but the log ends at {journal.last_index}")
            journal._forget_from(index)
            expected, newest = index, journal.term_at(index - 1) or 0
            cut_to = index if cut_to is None else min(cut_to, index)
            dirty_from = index if dirty_from is None else min(dirty_from, index)
        elif kind == segment.HARD_STATE:
            _hard_state(journal, body)
        elif kind == segment.COMMIT:
            journal._commit = journal._commit_written = segment.number(body)
        else:
            raise ValueError(f"record kind {kind} is unknown")
    journal._remember(run)
    journal.note_batch(part, offset, end, dirty_from, cut_to, journal.last_index)


def _hard_state(journal: Journal, body: memoryview) -> None:
    journal._term = segment.number(body)
    journal._vote = str(body[8:], "utf-8")
