"""Snapshots on disk: the state as of one Raft index, compressed, in blocks that are named by their own hash.

    file   = MAGIC(16) version(u32) block* header footer
    block  = zlib of up to BLOCK_BYTES of the state file
    header = msgpack [index, term, configuration command, bytes of the state file, block sizes (u32 each), block ids]
    footer = offset(u64) length(u32) crc32(u32) of the header, crc32(u32) of these 16 bytes;  integers little-endian

A block's id is its BLAKE2b-256 hash, the *root* that of the header: who knows the root can take header and blocks from
anybody, in any order, and trust them. A file gets its name only when it is fsynced and was read again and found good.
The last two are kept: the older one is still being sent, and stands in should the newer one be damaged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgpack

from raftmft.core.errors import CorruptFile, RaftmftError
from raftmft.raft.deflate import Deflater
from raftmft.wire.frames import FrameError, unpack
from raftmft.wire.loglines import fields

logger = logging.getLogger(__name__)

MAGIC = b"raftmft-snapshot"
VERSION = 1
BLOCK_BYTES = 960 << 10
"""Before compression: also what cannot be compressed stays below the limit of one bulk message."""
MAX_BLOCKS = 28_000
"""So that the header fits one bulk message. 26 GB of state."""
KEPT = 2
SYNC_BYTES = 8 << 20
"""So much is synced at once: the journal's syncs, for which commits wait, queue behind it in the file system."""
_HEAD = struct.Struct("<16sI")
_FOOTER = struct.Struct("<QIII")
HEAD_BYTES = _HEAD.size
"""Where the first block begins."""
_ID_BYTES = 32
_PERSON = b"raftmft snapshot"


class SnapshotTooLarge(RaftmftError):
    """The state has outgrown what a snapshot can hold."""


def digest(data: bytes | bytearray) -> bytes:
    """The id of a block, or the root of a header. Never the id of a chunk, whatever the bytes."""
    return hashlib.blake2b(data, digest_size=_ID_BYTES, person=_PERSON).digest()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a header says. `blocks`: (size, id) of each, in order."""

    index: int
    term: int
    configuration: bytes
    raw_bytes: int
    blocks: tuple[tuple[int, bytes], ...]

    def header(self) -> bytes:
        """The header's bytes: the same for the same snapshot, on every member."""
        sizes = b"".join(size.to_bytes(4, "little") for size, _ in self.blocks)
        ids = b"".join(block for _, block in self.blocks)
        return bytes(msgpack.packb([self.index, self.term, self.configuration, self.raw_bytes, sizes, ids]))

    @property
    def root(self) -> bytes:
        """The hash of the header."""
        return digest(self.header())

    @property
    def size_bytes(self) -> int:
        """What the blocks take."""
        return sum(size for size, _ in self.blocks)


def read_header(data: bytes | bytearray) -> Snapshot:
    """The snapshot that a header describes. FrameError on anything that `Snapshot.header` would not have made."""
    value = unpack(bytes(data))
    if type(value) is not list or [type(item) for item in value] != [int, int, bytes, int, bytes, bytes]:
        raise FrameError("a snapshot's header of no known shape")
    index, term, configuration, raw_bytes, sizes, ids = value
    count = len(sizes) // 4
    if not 0 < count <= MAX_BLOCKS or len(sizes) != 4 * count or len(ids) != _ID_BYTES * count:
        raise FrameError("a snapshot's header with too many or no blocks")
    blocks = tuple((int.from_bytes(sizes[4 * n : 4 * n + 4], "little"), ids[_ID_BYTES * n : _ID_BYTES * (n + 1)])
                   for n in range(count))
    if index < 1 or term < 0 or not 0 < raw_bytes <= count * BLOCK_BYTES or any(
            not 0 < size <= 1 << 20 for size, _ in blocks):
        raise FrameError("a snapshot's header with numbers out of range")
    return Snapshot(index, term, configuration, raw_bytes, blocks)


class SnapshotFolder:
    """The snapshots whose names begin with `path`. One writes at a time, in a thread; `latest` belongs to the loop."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.held: list[Snapshot] = []
        """Sound as far as their headers tell, oldest first."""
        folder, start = os.path.split(path)
        for name in sorted(os.listdir(folder or ".")):
            if not name.startswith(start + "."):
                continue
            full = os.path.join(folder, name)
            if name.endswith(".new"):
                os.unlink(full)
                continue
            try:
                self.held.append(read_file(full))
            except (FrameError, OSError) as error:
                logger.warning("the snapshot %s is not used: %s", full, error)

    @property
    def latest(self) -> Snapshot | None:
        """The newest one."""
        return self.held[-1] if self.held else None

    def name(self, snapshot: Snapshot) -> str:
        """Where it stands."""
        return f"{self.path}.{snapshot.index:016d}"

    def make(self, state: str, index: int, term: int, configuration: bytes,
             between: Callable[[], object] = lambda: None) -> Snapshot:
        """Makes one of the file `state`, which is as of `index`. Blocks for long: for a thread. OSError,
        SnapshotTooLarge, or whatever `between`, called between blocks, raises: nothing changed. When it returns, the
        snapshot survives a power cut.
        """
        with open(state, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            if size > MAX_BLOCKS * BLOCK_BYTES:
                raise SnapshotTooLarge(f"the state has {size >> 30} GiB, a snapshot can hold "
                                       f"{MAX_BLOCKS * BLOCK_BYTES >> 30}: export and cut the audit log")
            with SnapshotWriter(self, index) as writer, Deflater() as deflate:
                while raw := source.read(BLOCK_BYTES):
                    between()
                    block = deflate(raw)
                    writer.add(block, digest(block))
                return writer.finish(term, configuration, size)

    def restore(self, snapshot: Snapshot, target: str) -> None:
        """Writes the state that it holds to the new file `target`; not synced. For a thread. CorruptFile, OSError: then
        there is no such file.
        """
        unpack_to(self.name(snapshot), snapshot, target)

    def find(self, wanted: bytes) -> bytes | None:
        """The header with this root or the block with this id, unverified; None if it is not here. Blocks shortly."""
        for snapshot in reversed(self.held):
            offset = _HEAD.size
            for size, block in snapshot.blocks:
                if block == wanted:
                    with open(self.name(snapshot), "rb") as file:
                        file.seek(offset)
                        return file.read(size)
                offset += size
            if snapshot.root == wanted:
                return snapshot.header()
        return None

    def adopt(self, snapshot: Snapshot) -> list[Snapshot]:
        """From now on `snapshot`, which `make` or a writer gave, is the latest. Gives those that are too many now,
        to be discarded.
        """
        held = [other for other in self.held if other.index < snapshot.index] + [snapshot]
        self.held = held[-KEPT:]
        return held[:-KEPT]

    def discard(self, snapshot: Snapshot) -> None:
        """Removes one that is not held. For a thread: to free a large file takes long."""
        if snapshot not in self.held:
            self._remove(snapshot)

    def drop(self, snapshot: Snapshot) -> None:
        """Removes one that was found damaged."""
        self.held.remove(snapshot)
        self._remove(snapshot)

    def drop_beyond(self, index: int) -> None:
        """Removes what is newer than the log's end: a transfer that was not installed before the process ended."""
        while self.held and self.held[-1].index > index:
            self._remove(self.held.pop())

    def _remove(self, snapshot: Snapshot) -> None:
        try:
            os.unlink(self.name(snapshot))
        except FileNotFoundError:
            return


class SnapshotWriter:
    """One snapshot in the making, as a context: what `finish` did not complete leaves no file."""

    def __init__(self, folder: SnapshotFolder, index: int) -> None:
        self._folder, self._index = folder, index
        self._path = f"{folder.path}.{index:016d}.new"
        self._blocks: list[tuple[int, bytes]] = []
        self._file: BinaryIO | None = None
        self._unsynced = 0

    def __enter__(self) -> SnapshotWriter:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "w+b")
        self._file.write(_HEAD.pack(MAGIC, VERSION))
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        if os.path.exists(self._path):
            os.unlink(self._path)

    def add(self, block: bytes | bytearray, block_id: bytes) -> None:
        """The next block."""
        assert self._file is not None
        self._file.write(block)
        self._blocks.append((len(block), block_id))
        self._unsynced += len(block)
        if self._unsynced >= SYNC_BYTES:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._unsynced = 0

    def finish(self, term: int, configuration: bytes, raw_bytes: int) -> Snapshot:
        """Ends the file, syncs it, reads it again, and gives it its name. CorruptFile if it reads otherwise."""
        file = self._file
        assert file is not None
        snapshot = Snapshot(self._index, term, configuration, raw_bytes, tuple(self._blocks))
        header, offset = snapshot.header(), file.tell()
        footer = struct.pack("<QII", offset, len(header), zlib.crc32(header))
        file.write(header + footer + struct.pack("<I", zlib.crc32(footer)))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is the disk that is read
        file.seek(_HEAD.size)
        for size, block in self._blocks:
            if digest(file.read(size)) != block:
                raise CorruptFile(f"{self._path} does not read as it was written: look after this disk")
        if read_file(self._path) != snapshot:
            raise CorruptFile(f"{self._path} does not read as it was written: look after this disk")
        os.rename(self._path, self._folder.name(snapshot))
        folder = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        logger.info("snapshot of entry %d: %d bytes of state in %d", snapshot.index, raw_bytes, snapshot.size_bytes,
                    extra=fields(index=snapshot.index))
        return snapshot


def unpack_to(name: str, snapshot: Snapshot, target: str) -> None:
    """As SnapshotFolder.restore, of the snapshot file `name`."""
    try:
        with open(name, "rb") as source, open(target, "wb") as out:
            for block in blocks_of(source, name, snapshot):
                out.write(_inflated(name, block))
            if out.tell() != snapshot.raw_bytes:
                raise CorruptFile(f"{name} holds {out.tell()} bytes and says {snapshot.raw_bytes}")
    except BaseException:
        if os.path.exists(target):
            os.unlink(target)
        raise


def blocks_of(source: BinaryIO, name: str, snapshot: Snapshot) -> Iterator[bytes]:
    """The blocks of a snapshot file, in order, each checked. CorruptFile, OSError."""
    source.seek(_HEAD.size)
    for size, block in snapshot.blocks:
        data = source.read(size)
        if digest(data) != block:
            raise CorruptFile(f"{name} is damaged at byte {source.tell() - len(data)}; nothing was changed")
        yield data


def read_file(path: str) -> Snapshot:
    """The header of a snapshot file. CorruptFile: another version's; FrameError: damaged."""
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[:16] != MAGIC:
            raise FrameError("it does not begin as a raftmft snapshot does")
        _, version = _HEAD.unpack(head)
        if version != VERSION:
            raise CorruptFile(f"{path} has snapshot format {version} and this raftmft knows format {VERSION} only; "
                              "nothing was changed. Run the release that wrote it")
        size = file.seek(0, os.SEEK_END)
        if size < _HEAD.size + _FOOTER.size:
            raise FrameError("it is cut short")
        file.seek(size - _FOOTER.size)
        footer = file.read(_FOOTER.size)
        offset, length, header_crc, crc = _FOOTER.unpack(footer)
        if crc != zlib.crc32(footer[:16]) or offset + length + _FOOTER.size != size or length > 1 << 20:
            raise FrameError("its end fails its checksum")
        file.seek(offset)
        header = file.read(length)
        if zlib.crc32(header) != header_crc:
            raise FrameError("its header fails its checksum")
        snapshot = read_header(header)
        if _HEAD.size + snapshot.size_bytes != offset:
            raise FrameError("its blocks have another size than its header says")
        return snapshot


def _inflated(name: str, data: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(data, BLOCK_BYTES)
    except zlib.error as error:
        raise CorruptFile(f"{name} holds a block that cannot be unpacked ({error})") from None
    if inflate.unconsumed_tail or not inflate.eof:
        raise CorruptFile(f"{name} holds a block that is larger than any may be")
    return raw
