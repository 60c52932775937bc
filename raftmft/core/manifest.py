"""A file's content as chunk ids: O(1) bytes in Raft whatever the file's size.

A *chunk* is CHUNK_SIZE bytes of a file (the last one may be shorter), named by its BLAKE3 digest. A manifest holds
either the ids of the data chunks (depth 0) or the ids of *index chunks* (depth 1), each of which is the plain
concatenation of up to IDS_PER_INDEX data-chunk ids and is itself stored as a chunk. With INLINE_IDS = 64 a manifest
never exceeds 2 KiB of ids and reaches 64 x 32768 x 1 MiB = 2 TiB.

A *checkpoint* of a file that grows has index chunks only for a multiple of TAIL_IDS data chunks, and holds the ids of
the 1 to TAIL_IDS data chunks behind them itself (depth 2). So its last index chunk is written again once in TAIL_IDS
MiB of data, at under 2 % of them, and not once a checkpoint; for that it holds up to 4 KiB of ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CHUNK_SIZE = 1 << 20
ID_SIZE = 32
INLINE_IDS = 64
TAIL_IDS = 64
IDS_PER_INDEX = CHUNK_SIZE // ID_SIZE
MAX_FILE_SIZE = INLINE_IDS * IDS_PER_INDEX * CHUNK_SIZE


@dataclass(frozen=True, slots=True)
class Manifest:
    """Size in bytes, depth, and the ids, concatenated: of data chunks at depth 0, of index chunks at depth 1, at depth
    2 (checkpoints only) of index chunks, followed by those of the last data chunks.
    """

    size: int
    depth: int = 0
    ids: bytes = b""

    def id_list(self) -> list[bytes]:
        """The ids held directly: `index_ids`, then `data_ids`."""
        return split_ids(self.ids)

    @property
    def indexed(self) -> int:
        """How many data chunks, from the first on, are named by index chunks."""
        return indexed(self.chunk_count, self.depth)

    def index_ids(self) -> list[bytes]:
        """The ids of index chunks; the first names the first IDS_PER_INDEX data chunks, the last may name fewer."""
        return split_ids(self.ids[: index_count(self.indexed) * ID_SIZE])

    def data_ids(self) -> list[bytes]:
        """The ids of the data chunks from number `indexed` on."""
        return split_ids(self.ids[index_count(self.indexed) * ID_SIZE :])

    @property
    def chunk_count(self) -> int:
        """How many data chunks the file has."""
        return chunk_count(self.size)

    def problem(self) -> str | None:
        """None if the manifest is well formed, else one line that says what is wrong."""
        if not (isinstance(self.size, int) and 0 <= self.size <= MAX_FILE_SIZE):
            return f"size must be 0..{MAX_FILE_SIZE}, not {self.size!r}"
        if self.depth not in (0, 1, 2) or not isinstance(self.ids, bytes):
            return f"depth must be 0, 1 or 2 and ids bytes, not {self.depth!r}"
        index, data = index_count(self.indexed), self.chunk_count - self.indexed
        if index > INLINE_IDS or data > INLINE_IDS or len(self.ids) != (index + data) * ID_SIZE or (
                self.depth == 2 and not index):
            return f"{len(self.ids)} bytes of ids do not fit size {self.size} at depth {self.depth}"
        return None


EMPTY = Manifest(0)


def chunk_count(size: int) -> int:
    """How many chunks `size` bytes take."""
    return -(-size // CHUNK_SIZE)


def indexed(chunks: int, depth: int) -> int:
    """How many of `chunks` data chunks are named by index chunks in a manifest of this depth."""
    return (0, chunks, chunks - 1 - (chunks - 1) % TAIL_IDS if chunks else 0)[depth]


def index_count(data_chunks: int) -> int:
    """How many index chunks so many data chunks take."""
    return -(-data_chunks // IDS_PER_INDEX)


def split_ids(ids: bytes) -> list[bytes]:
    """The ids of a concatenation (a manifest's or an index chunk's)."""
    return [ids[i : i + ID_SIZE] for i in range(0, len(ids), ID_SIZE)]


def distinct_ids(ids: bytes, most: int) -> Iterator[list[bytes]]:
    """The ids of a concatenation, each once, in lists of 1 to `most`: each list takes time by `most` alone, so that who
    goes through 32,768 of them may let others have their turn. Zeros have one id however many of them a file has.
    """
    seen: set[bytes] = set()
    for start in range(0, len(ids), most * ID_SIZE):
        new = [i for i in dict.fromkeys(split_ids(ids[start : start + most * ID_SIZE])) if i not in seen]
        seen.update(new)
        if new:
            yield new


def pack_ids(size: int, data_ids: list[bytes]) -> tuple[Manifest, list[bytes]]:
    """The index chunks' *contents* that `data_ids` need (empty list at depth 0), and a manifest with depth set.

    At depth 0 the manifest is complete. At depth 1 its `ids` is empty: the caller stores each content as a chunk and
    fills in their ids (core hashes nothing).
    """
    if len(data_ids) <= INLINE_IDS:
        return Manifest(size, 0, b"".join(data_ids)), []
    contents = [b"".join(data_ids[i : i + IDS_PER_INDEX]) for i in range(0, len(data_ids), IDS_PER_INDEX)]
    return Manifest(size, 1, b""), contents
