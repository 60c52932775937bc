"""Finding the chunks of a segment that has no hint file: its writer died, the power was cut, or the hint is damaged.

Headers are followed from record to record. Where no valid header stands, the next one is searched for, so that one
damaged header hides no chunk behind it. A record is believed without hashing only if it lies below a *synced* mark
(format.py) and was reached by following; every other one is read again from the disk and hashed. What was never synced
and is torn is dropped in silence: nobody was promised it. What was synced and is damaged is reported.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from blake3 import blake3

from raftmft.store import files, format
from raftmft.store.format import Hint, Record, RecordCodec

SEARCH_WINDOW = 1 << 20
PAGE = 4096


class Scan(NamedTuple):
    """What a scan found. `problems`: one line for each place where durable bytes are damaged. `torn`: unsynced were
    dropped.
    """

    hint: Hint
    problems: list[str]
    torn: bool


def scan(fd: int, name: str, salt: bytes) -> Scan:
    """The chunks of a segment. OSError. Reads the headers, and the data that are not known to have been durable.

    The caller has fdatasynced the file, so that what is dropped from the page cache here is read again as the disk has
    it: after a failed write-back the cache may hold what the disk does not.
    """
    codec = RecordCodec(salt)
    size = os.fstat(fd).st_size
    followed, searched, gaps = _walk(fd, size, codec)
    synced = max((record.synced for record in (*followed, *searched)), default=0)
    os.posix_fadvise(fd, synced // PAGE * PAGE, 0, os.POSIX_FADV_DONTNEED)
    problems = [f"{name}: damaged from {start} to {end}" for start, end in gaps if start < synced]
    kept: list[Record] = [record for record in followed if record.end <= synced]
    torn = False
    for record in (*(r for r in followed if r.end > synced), *searched):
        if _whole(fd, record, codec):
            kept.append(record)
        elif record.end <= synced:
            problems.append(f"{name}: the chunk at {record.offset} is damaged")
        else:
            torn = True
    kept.sort(key=lambda record: record.offset)
    entries = b"".join(format.pack_entry(record.chunk_id, record.offset, record.length) for record in kept)
    end = max((record.end for record in kept), default=format.SEGMENT_HEADER)
    return Scan(Hint(entries, end, salt), problems, torn)


def _walk(fd: int, size: int, codec: RecordCodec) -> tuple[list[Record], list[Record], list[tuple[int, int]]]:
    """Records reached from one to the next, records that had to be searched for, and the gaps before the latter."""
    followed: list[Record] = []
    searched: list[Record] = []
    gaps: list[tuple[int, int]] = []
    position = format.SEGMENT_HEADER
    while position + format.RECORD_HEADER < size:
        record = codec.parse(os.pread(fd, format.RECORD_HEADER, position), position)
        if record is not None and record.offset + record.length <= size:
            followed.append(record)
        else:
            record = _search(fd, size, codec, position + format.ALIGNMENT)
            gaps.append((position, size if record is None else record.offset - format.RECORD_HEADER))
            if record is None:
                break
            searched.append(record)
        position = record.end
    return followed, searched, gaps


def _search(fd: int, size: int, codec: RecordCodec, position: int) -> Record | None:
    """The next record whose header is valid, from `position` on."""
    while position + format.RECORD_HEADER < size:
        window = os.pread(fd, SEARCH_WINDOW + format.RECORD_HEADER, position)
        at = window.find(format.RECORD_MAGIC)
        while at >= 0:
            record = codec.parse(window[at:at + format.RECORD_HEADER], position + at)
            if record is not None and record.offset + record.length <= size:
                return record
            at = window.find(format.RECORD_MAGIC, at + 1)
        position += SEARCH_WINDOW
    return None


def _whole(fd: int, record: Record, codec: RecordCodec) -> bool:
    """Whether header and data stand on the disk."""
    start = record.offset - format.RECORD_HEADER
    if codec.parse(os.pread(fd, format.RECORD_HEADER, start), start) != record:
        return False
    return bool(blake3(files.pread_all(fd, record.length, record.offset)).digest() == record.chunk_id)
