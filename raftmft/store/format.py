"""What stands on disk: segments of chunk records, and the hint file beside each sealed one. All integers big-endian.

    segment  <writer>-<n>.seg    magic "RMFTSEGM" | u32 version | 16 B salt | u32 CRC of the 28 before   (32 B)
                                 then records, each at a multiple of 8
    record                       magic "RCHK" | u32 length | 32 B chunk id | u32 synced | u32 CRC        (48 B), data
    hint     <writer>-<n>.hint   magic "RMFTHINT" | u32 version | u32 count | u64 end | 16 B salt        (40 B)
                                 count x (32 B chunk id | u32 offset of the data | u24 length) | u32 CRC of all before

A record's CRC covers its header, the segment's random salt and the record's own place. So content that happens to look
like a record (a stored copy of a segment, say) is not taken for one when a scan has to search for the next record.

`synced` says through which offset the segment was durable when the record was written. A scan after a crash takes what
lies below the highest mark it finds as having been durable, and hashes only what lies beyond it: there, a header may
have reached the disk without its data, in any order. The data of every record are checked against its BLAKE3 id when
read.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import NamedTuple, Protocol

from raftmft.core.errors import CorruptFile
from raftmft.core.manifest import CHUNK_SIZE, ID_SIZE

VERSION = 1
ALIGNMENT = 8
SALT_SIZE = 16
MAX_CHUNK = CHUNK_SIZE
MAX_SEGMENT = (1 << 32) - 1
"""Offsets are 32 bits wide."""
SEGMENT_MAGIC, RECORD_MAGIC, HINT_MAGIC = b"RMFTSEGM", b"RCHK", b"RMFTHINT"
SEGMENT_SUFFIX, HINT_SUFFIX = ".seg", ".hint"

_SEGMENT = struct.Struct(f">8sI{SALT_SIZE}sI")
_RECORD = struct.Struct(f">4sI{ID_SIZE}sII")
_RECORD_START = struct.Struct(f">4sI{ID_SIZE}s")
_HINT = struct.Struct(f">8sIIQ{SALT_SIZE}s")
_CRC = struct.Struct(">I")
SEGMENT_HEADER, RECORD_HEADER, HINT_ENTRY = _SEGMENT.size, _RECORD.size, ID_SIZE + 7
_WRITER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_SEGMENT_NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})-([0-9]{6,12})\.seg")


class Location(NamedTuple):
    """Where a chunk's data lie: the segment's file name, the offset of the data (not of the header), the length in
    bytes.
    """

    segment: str
    offset: int
    length: int


class Place(Protocol):
    """What can be read as a location."""

    @property
    def segment(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


class Record(NamedTuple):
    """A valid record header. `offset` is that of the data."""

    chunk_id: bytes
    offset: int
    length: int
    synced: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return aligned(self.offset + self.length)


def aligned(offset: int) -> int:
    """The next place at which a record may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def check_writer(writer: str) -> str:
    """`writer` itself if it may name segments, else ValueError."""
    if not _WRITER.fullmatch(writer):
        raise ValueError(f"a writer's name is 1 to 64 letters, digits, '_', '.' or '-', not {writer!r}")
    return writer


def segment_name(writer: str, number: int) -> str:
    """The file name of a writer's n-th segment."""
    return f"{writer}-{number:06d}{SEGMENT_SUFFIX}"


def parse_segment_name(name: str) -> tuple[str, int] | None:
    """(writer, n), or None if that is no segment's name; such a name never holds a '/'."""
    match = _SEGMENT_NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def hint_name(segment: str) -> str:
    """The hint file of a segment."""
    return segment.removesuffix(SEGMENT_SUFFIX) + HINT_SUFFIX


def pack_segment_header(salt: bytes) -> bytes:
    """The first bytes of a segment."""
    head = _SEGMENT.pack(SEGMENT_MAGIC, VERSION, salt, 0)[:-_CRC.size]
    return head + _CRC.pack(zlib.crc32(head))


def parse_segment_header(head: bytes, name: str) -> bytes | None:
    """The salt; None if the header is damaged or was never written. CorruptFile if another version wrote it."""
    if len(head) < SEGMENT_HEADER:
        return None
    magic, version, salt, crc = _SEGMENT.unpack_from(head)
    if magic != SEGMENT_MAGIC:
        return None
    if version != VERSION:
        raise CorruptFile(f"{name} has segment format {version}, this program knows {VERSION}: "
                          "start it with the version of raftmft that wrote it")
    return bytes(salt) if crc == zlib.crc32(head[:SEGMENT_HEADER - _CRC.size]) else None


class RecordCodec:
    """Writes and checks the record headers of one segment."""

    __slots__ = ("_seed",)

    def __init__(self, salt: bytes) -> None:
        self._seed = zlib.crc32(salt)

    def pack(self, chunk_id: bytes, length: int, offset: int, synced: int) -> bytes:
        """The header of a record whose header begins at `offset`."""
        head = _RECORD.pack(RECORD_MAGIC, length, chunk_id, synced, offset)
        return head[:-_CRC.size] + _CRC.pack(zlib.crc32(head, self._seed))

    def parse(self, head: bytes | memoryview, offset: int) -> Record | None:
        """The record whose header begins at `offset`, or None if these 48 bytes are none written there."""
        if len(head) < RECORD_HEADER or offset % ALIGNMENT:
            return None
        magic, length, chunk_id, synced, crc = _RECORD.unpack_from(head)
        if magic != RECORD_MAGIC or not 0 < length <= MAX_CHUNK or synced > offset:
            return None
        # The place stands where the CRC will: it is part of what is checked, and costs no byte on disk.
        if crc != zlib.crc32(_RECORD.pack(magic, length, chunk_id, synced, offset), self._seed):
            return None
        return Record(chunk_id, offset + RECORD_HEADER, length, synced)


def header_matches(record: bytes, chunk_id: bytes, length: int) -> bool:
    """Whether a record's header names this chunk; its data may follow. No CRC: who asks knows what must stand there,
    and hashes the data.
    """
    return len(record) >= RECORD_HEADER and record.startswith(_RECORD_START.pack(RECORD_MAGIC, length, chunk_id))


def pack_entry(chunk_id: bytes, offset: int, length: int) -> bytes:
    """One entry of a hint file."""
    return chunk_id + (offset << 24 | length).to_bytes(7, "big")


class Hint(NamedTuple):
    """A hint file's content. `entries`: packed entries; `end`: the segment's size; `salt`: as in the segment."""

    entries: bytes | bytearray | memoryview
    end: int
    salt: bytes


def pack_hint(hint: Hint) -> bytes:
    """The whole hint file."""
    count = len(hint.entries) // HINT_ENTRY
    body = _HINT.pack(HINT_MAGIC, VERSION, count, hint.end, hint.salt) + bytes(hint.entries)
    return body + _CRC.pack(zlib.crc32(body))


def parse_hint(content: bytes) -> Hint | None:
    """The hint, or None if it is damaged or of another version: then the segment itself is scanned."""
    if len(content) < _HINT.size + _CRC.size:
        return None
    view = memoryview(content)
    magic, version, count, end, salt = _HINT.unpack_from(content)
    if magic != HINT_MAGIC or version != VERSION or len(content) != _HINT.size + count * HINT_ENTRY + _CRC.size:
        return None
    if _CRC.unpack_from(content, len(content) - _CRC.size)[0] != zlib.crc32(view[:-_CRC.size]):
        return None
    return Hint(view[_HINT.size:-_CRC.size], end, salt)
