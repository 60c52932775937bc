"""The format of the journal's files, its *segments*, as bytes: heads, batches, records. See journal.py for their life.

    segment = MAGIC(16) version(u32) salt(u64) crc32(u32) batch+
    batch   = "RMFB" length(u32) offset(u64) crc32(u32, over salt, length, offset, records) records
    record  = kind(u8) length(u32) body;  all integers little-endian
    kind 1  entry: index(u64) term(u64) command         kind 2  truncate: every entry from index(u64) on is void
    kind 3  hard state: term(u64) voted-for(utf-8)      kind 4  commit: index(u64), a hint that saves work at start
    kind 5  base: index(u64) term(u64) configuration    kind 6  the same, and all before it is void: a snapshot is there

A segment's first record is its base: where the log ended when it was begun, and the configuration in force there
(empty: the founders'). So whole segments can be dropped from the front of a log. A batch is valid only at its own
offset and under its segment's own random salt, so that bytes inside a command can never be taken for one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from random import SystemRandom

from raftmft.core.errors import CorruptFile

MAGIC = b"raftmft-journal\n"
VERSION = 2
ENTRY, TRUNCATE, HARD_STATE, COMMIT, BASE, RESET = 1, 2, 3, 4, 5, 6
MARK = b"RMFB"
ANEW = "have this member made anew from the others: raftmft join --replace"
"""What a person does about a log or state that is of no use any more."""
RESTORE = f"nothing was changed; {ANEW}"
_HEAD = struct.Struct("<16sIQI")
_BATCH = struct.Struct("<4sIQI")
_RECORD = struct.Struct("<BI")
_U64 = struct.Struct("<Q")
_COVERED = struct.Struct("<QIQ")
PAIR = struct.Struct("<QQ")
ENTRY_HEAD = struct.Struct("<BIQQ")
INDEX_RECORD = struct.Struct("<BIQ")
HEAD_SIZE, BATCH_SIZE = _HEAD.size, _BATCH.size


def new_salt() -> int:
    """A salt that no other segment has."""
    return SystemRandom().getrandbits(64)


def head(salt: int) -> bytes:
    """A segment's first bytes."""
    start = _HEAD.pack(MAGIC, VERSION, salt, 0)[:-4]
    return start + struct.pack("<I", zlib.crc32(start))


def batch(salt: int, offset: int, records: bytes) -> bytes:
    """`records` as one batch that is to stand at `offset`."""
    return _BATCH.pack(MARK, len(records), offset, _crc(salt, len(records), offset, records)) + records


def base(index: int, term: int, configuration: bytes, *, reset: bool) -> bytes:
    """The record that a segment begins with."""
    return ENTRY_HEAD.pack(RESET if reset else BASE, 16 + len(configuration), index, term) + configuration


def hard_state(term: int, vote: str) -> bytes:
    """The record of a term and a vote in it."""
    body = _U64.pack(term) + vote.encode()
    return _RECORD.pack(HARD_STATE, len(body)) + body


def _crc(salt: int, length: int, offset: int, records: bytes | memoryview) -> int:
    return zlib.crc32(records, zlib.crc32(_COVERED.pack(salt, length, offset)))


def read_head(path: str, data: bytes | memoryview) -> int:
    """The salt in a segment's head. Raises CorruptFile."""
    if len(data) < _HEAD.size or bytes(data[:16]) != MAGIC:
        what = "is empty" if not data else "does not begin as a raftmft journal does"
        raise CorruptFile(f"{path} {what}; {RESTORE}")
    _, version, salt, crc = _HEAD.unpack_from(data)
    if version != VERSION:
        raise CorruptFile(f"{path} has journal format {version} and this raftmft knows format {VERSION} only; "
                          "nothing was changed. Run the release that wrote it")
    if crc != zlib.crc32(data[: _HEAD.size - 4]):
        raise CorruptFile(f"{path}: the header (byte 0) fails its checksum; nothing was changed")
    return int(salt)


def batch_at(view: memoryview, salt: int, at: int, offset: int) -> memoryview | None:
    """The records of the sound batch at position `at` of `view`, which is byte `offset` of its segment; else None."""
    start = at + _BATCH.size
    if start > len(view):
        return None
    mark, length, own, crc = _BATCH.unpack_from(view, at)
    if mark != MARK or own != offset or not 0 < length <= len(view) - start:
        return None
    records = view[start : start + length]
    return records if _crc(salt, length, offset, records) == crc else None


def later_batch(data: bytes, salt: int, offset: int) -> int | None:
    """Where behind `offset` a sound batch stands; None if none does."""
    view, later = memoryview(data), data.find(MARK, offset + 1)
    while later >= 0:
        if batch_at(view, salt, later, later) is not None:
            return later
        later = data.find(MARK, later + 1)
    return None


def split(records: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(kind, body) of each record. ValueError if one is cut short."""
    at = 0
    while at < len(records):
        if at + _RECORD.size > len(records):
            raise ValueError("a record is cut short")
        kind, length = _RECORD.unpack_from(records, at)
        at += _RECORD.size
        body = records[at : at + length]
        if len(body) < length:
            raise ValueError("a record is cut short")
        at += length
        yield kind, body


def number(body: memoryview) -> int:
    """The number at the head of a record's body. ValueError if there is none."""
    if len(body) < 8:
        raise ValueError("a record is too short for its kind")
    return int(_U64.unpack_from(body)[0])


def pair(body: memoryview) -> tuple[int, int]:
    """(index, term) at the head of a record's body. ValueError if there are none."""
    if len(body) < 16:
        raise ValueError("a record is too short for its kind")
    index, term = PAIR.unpack_from(body)
    return index, term
