"""Which chunk holds each 1 MiB slot of a file that is being written: overrides over a base manifest.

Slots are held in pages, so that a sparse file costs memory by what was written and not by its length (32 KiB for each
GiB touched). A slot without a chunk is a hole and reads as zeros. Only the last slot of a manifest may be short, so a
slot that was stored short is remembered in `short` until it is stored again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from raftmft.core.manifest import (
    CHUNK_SIZE,
    ID_SIZE,
    IDS_PER_INDEX,
    INLINE_IDS,
    Manifest,
    chunk_count,
    index_count,
    indexed,
)
from raftmft.sftp.content import Content

PAGE_SLOTS = 1024
NO_CHUNK = bytes(ID_SIZE)
UNCHANGED = 1 << 62
_PAGES_PER_GROUP = IDS_PER_INDEX // PAGE_SLOTS

_ZEROS = bytes(CHUNK_SIZE)

Store = Callable[[bytes], Awaitable[bytes]]


class SlotTable:
    """The ids of an upload's slots. `base` is what the upload continues from."""

    def __init__(self, base: Content) -> None:
        self._base = base
        self._pages: dict[int, bytearray] = {}
        self._group_ids: dict[int, tuple[int, bytes]] = {}  # where the index chunk ends, and its id
        self._base_slots = chunk_count(base.manifest.size)
        self.lowest_change = UNCHANGED
        self.short: dict[int, int] = {}
        tail = base.manifest.size % CHUNK_SIZE
        if tail:
            self.short[self._base_slots - 1] = tail

    def rebase(self, base: Content) -> None:
        """Begins again, with everything as it is in another base."""
        self.__init__(base)  # type: ignore[misc]

    def set(self, slot: int, chunk_id: bytes, length: int) -> None:
        """The slot's content is now this chunk of `length` bytes."""
        page, position = divmod(slot, PAGE_SLOTS)
        ids = self._pages.get(page)
        if ids is None:
            ids = self._pages[page] = bytearray(PAGE_SLOTS * ID_SIZE)
        ids[position * ID_SIZE : (position + 1) * ID_SIZE] = chunk_id
        if length == CHUNK_SIZE:
            self.short.pop(slot, None)
        else:
            self.short[slot] = length
        self._touched(slot)

    def is_stored(self, slot: int) -> bool:
        """False for a hole."""
        return slot < self._base_slots or self._own(slot) is not None

    def length_of(self, slot: int) -> int:
        """How many bytes are stored for the slot."""
        return self.short.get(slot, CHUNK_SIZE) if self.is_stored(slot) else 0

    async def id_of(self, slot: int) -> bytes | None:
        """The id of the slot's chunk; None for a hole. RaftmftError if the base cannot be read."""
        own = self._own(slot)
        if own is not None:
            return own
        return await self._base.id_of(slot) if slot < self._base_slots else None

    def cut(self, slots: int) -> None:
        """Forgets all from slot number `slots` on."""
        self._base_slots = min(self._base_slots, slots)
        for page in [p for p in self._pages if (p + 1) * PAGE_SLOTS > slots]:
            keep = max(0, slots - page * PAGE_SLOTS) * ID_SIZE
            if keep:
                self._pages[page][keep:] = bytes(PAGE_SLOTS * ID_SIZE - keep)
            else:
                del self._pages[page]
        self.short = {slot: length for slot, length in self.short.items() if slot < slots}
        self._group_ids = {group: known for group, known in self._group_ids.items() if known[0] <= slots}
        self.lowest_change = min(self.lowest_change, slots)

    def has_holes(self, slots: int) -> bool:
        """Whether one of the first `slots` slots is a hole."""
        slot = self._base_slots
        while slot < slots:
            page = self._pages.get(slot // PAGE_SLOTS)
            if page is None:
                return True
            end = min(slots, (slot // PAGE_SLOTS + 1) * PAGE_SLOTS)
            first = slot % PAGE_SLOTS
            window = page[first * ID_SIZE : (first + end - slot) * ID_SIZE]
            if NO_CHUNK in window and any(
                    window[i : i + ID_SIZE] == NO_CHUNK for i in range(0, len(window), ID_SIZE)):
                return True
            slot = end
        return False

    async def zero_id(self, size: int, store: Store) -> bytes:
        """The id of a chunk of zeros, stored by `store` if the first `size` bytes have holes, else b"". A short hole at
        their end is one no more.
        """
        slots, tail = chunk_count(size), size % CHUNK_SIZE
        if not self.has_holes(slots):
            return b""
        if tail and not self.is_stored(slots - 1):
            self.set(slots - 1, await store(bytes(tail)), tail)
        return await store(_ZEROS) if self.has_holes(slots) else b""

    async def manifest(self, size: int, zero_id: bytes, store_index: Store) -> Manifest:
        """The manifest of the first `size` bytes, the same as core.manifest.pack_ids would give; holes are `zero_id`.

        Index chunks that do not stand yet are given to `store_index`, which gives their ids. Index chunks of the base,
        and those made before, are used again. Raises what the base or `store_index` raise.
        """
        count = chunk_count(size)
        if count <= INLINE_IDS:
            return Manifest(size, 0, await self._ids(0, count, zero_id))
        return Manifest(size, 1, await self._index_ids(count, zero_id, store_index))

    async def checkpoint(self, size: int, store_index: Store, tail_id: bytes) -> Manifest:
        """As `manifest`, for a checkpoint of a prefix without holes: most often all index chunks stand already.
        `tail_id`, if given, is the last chunk in place of the table's.
        """
        count = chunk_count(size)
        if not self._pages and not tail_id and size == self._base.manifest.size and count == self._base_slots:
            return self._base.manifest  # a copy: its last index chunk need not be made shorter
        depth = 0 if count <= INLINE_IDS else 2
        first = indexed(count, depth)
        index = await self._index_ids(first, b"", store_index)
        return Manifest(size, depth, index + await self._ids(first, count - bool(tail_id), b"") + tail_id)

    async def _index_ids(self, slots: int, zero_id: bytes, store_index: Store) -> bytes:
        """The ids of the index chunks of the first `slots` slots."""
        ids: list[bytes] = []
        hole = b""  # the id of an index chunk of nothing but holes
        for group in range(index_count(slots)):
            first, end = group * IDS_PER_INDEX, min(slots, (group + 1) * IDS_PER_INDEX)
            if end - first == IDS_PER_INDEX and self._is_hole(group):
                hole = hole or await store_index(zero_id * IDS_PER_INDEX)
                ids.append(hole)
                continue
            ids.append(await self._group(group, first, end, zero_id, store_index))
        return b"".join(ids)

    def _is_hole(self, group: int) -> bool:
        return group * IDS_PER_INDEX >= self._base_slots and self._pages.keys().isdisjoint(_pages_of(group))

    async def _group(self, group: int, first: int, end: int, zero_id: bytes, store_index: Store) -> bytes:
        known_end, known_id = self._group_ids.get(group, (0, b""))
        if known_end == end:
            return known_id
        base = self._base.manifest
        is_whole = end == min(first + IDS_PER_INDEX, base.indexed) and end <= self._base_slots
        if is_whole and not any(page in self._pages for page in _pages_of(group)):
            return base.index_ids()[group]
        chunk_id = await store_index(await self._ids(first, end, zero_id))
        if self.lowest_change >= end:
            self._group_ids[group] = end, chunk_id
        return chunk_id

    async def _ids(self, first: int, end: int, zero_id: bytes) -> bytes:
        """The ids of slots first..end, which lie in one group."""
        ids = bytearray(await self._base.ids(first, min(end, self._base_slots)) if first < self._base_slots else b"")
        ids += zero_id * (end - first - len(ids) // ID_SIZE)
        for page in range(first // PAGE_SLOTS, -(-end // PAGE_SLOTS)):
            own = self._pages.get(page)
            if own is None:
                continue
            start, stop = max(first, page * PAGE_SLOTS), min(end, (page + 1) * PAGE_SLOTS)
            window = own[start % PAGE_SLOTS * ID_SIZE : (stop - page * PAGE_SLOTS) * ID_SIZE]
            if NO_CHUNK not in window:  # the usual case: a page that was written through
                ids[(start - first) * ID_SIZE : (stop - first) * ID_SIZE] = window
                continue
            for slot in range(start, stop):
                chunk_id = self._own(slot)
                if chunk_id is not None:
                    ids[(slot - first) * ID_SIZE : (slot - first + 1) * ID_SIZE] = chunk_id
        return bytes(ids)

    def _own(self, slot: int) -> bytes | None:
        page, position = divmod(slot, PAGE_SLOTS)
        ids = self._pages.get(page)
        if ids is None:
            return None
        chunk_id = bytes(ids[position * ID_SIZE : (position + 1) * ID_SIZE])
        return None if chunk_id == NO_CHUNK else chunk_id

    def _touched(self, slot: int) -> None:
        self.lowest_change = min(self.lowest_change, slot)
        group = slot // IDS_PER_INDEX
        if slot < self._group_ids.get(group, (0, b""))[0]:
            del self._group_ids[group]


def _pages_of(group: int) -> range:
    return range(group * _PAGES_PER_GROUP, (group + 1) * _PAGES_PER_GROUP)
