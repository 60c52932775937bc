"""The slot table gives the manifests that core.manifest.pack_ids gives, over any base, with any overrides."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from blake3 import blake3

from raftmft.core.manifest import (
    CHUNK_SIZE,
    ID_SIZE,
    IDS_PER_INDEX,
    INLINE_IDS,
    MAX_FILE_SIZE,
    TAIL_IDS,
    Manifest,
    distinct_ids,
    pack_ids,
    split_ids,
)
from raftmft.sftp.buffers import Prefix, Slot
from raftmft.sftp.content import Content
from raftmft.sftp.slots import SlotTable

ZERO = blake3(bytes(CHUNK_SIZE)).digest()


def id_of(text: str) -> bytes:
    return blake3(text.encode()).digest()


class IndexStore:
    """Keeps index chunks, and gives them to a Content as a ChunkReader would."""

    cache: Any = None

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.stored = 0

    async def store(self, content: bytes) -> bytes:
        self.stored += 1
        self.chunks[blake3(content).digest()] = content
        return blake3(content).digest()

    async def load(self, chunk_id: bytes, place: Any = None) -> bytes:
        return self.chunks[chunk_id]

    async def ids_in(self, manifest: Manifest) -> list[bytes]:
        """The ids of all its data chunks."""
        return split_ids(b"".join([await self.load(i) for i in manifest.index_ids()])) + manifest.data_ids()

    def reference(self, size: int, ids: list[bytes]) -> Manifest:
        """What pack_ids gives."""
        manifest, contents = pack_ids(size, ids)
        if not contents:
            return manifest
        for content in contents:
            self.chunks[blake3(content).digest()] = content
        return Manifest(size, 1, b"".join(blake3(content).digest() for content in contents))


def test_an_index_chunk_of_holes_is_stored_once() -> None:
    async def main() -> None:
        store, count = IndexStore(), 32 * IDS_PER_INDEX
        table = SlotTable(Content(store, Manifest(0)))  # type: ignore[arg-type]
        table.set(5 * IDS_PER_INDEX + 9, id_of("x"), CHUNK_SIZE)
        table.set(count - 1, id_of("y"), CHUNK_SIZE)
        made = await table.manifest(count * CHUNK_SIZE, ZERO, store.store)
        assert made.problem() is None and store.stored == 3
        ids = [ZERO] * count
        ids[5 * IDS_PER_INDEX + 9], ids[-1] = id_of("x"), id_of("y")
        assert made == store.reference(count * CHUNK_SIZE, ids)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(12))
def test_manifests_are_those_of_pack_ids(seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        store = IndexStore()
        count = rng.choice([0, 3, 64, 65, IDS_PER_INDEX, IDS_PER_INDEX + 5, 2 * IDS_PER_INDEX + 3])
        ids = [id_of(f"base{i}") for i in range(count)]
        base = store.reference(count * CHUNK_SIZE, ids)
        assert base.problem() is None
        table = SlotTable(Content(store, base))  # type: ignore[arg-type]
        for step in range(6):
            kind = rng.choice(["set", "set", "extend", "cut"])
            if kind == "cut" and ids:
                del ids[rng.randrange(len(ids)):]
                table.cut(len(ids))
            else:
                slot = rng.randrange(len(ids)) if kind == "set" and ids else len(ids) + rng.choice([0, 1, 1500])
                ids += [ZERO] * (slot + 1 - len(ids))
                ids[slot] = id_of(f"own{step}")
                table.set(slot, ids[slot], CHUNK_SIZE)
            table.lowest_change = 1 << 62
            assert table.has_holes(len(ids)) == (ZERO in ids)
            got = await table.manifest(len(ids) * CHUNK_SIZE, ZERO, store.store)
            assert got == store.reference(len(ids) * CHUNK_SIZE, ids)
            prefix = ids.index(ZERO) if ZERO in ids else len(ids)
            if prefix:
                tail = id_of(f"tail{step}")
                for tail_id, want in ((tail, [*ids[: prefix - 1], tail]), (b"", ids[:prefix])):
                    made = await table.checkpoint(prefix * CHUNK_SIZE, store.store, tail_id)
                    assert made.problem() is None and await store.ids_in(made) == want
                    assert made.depth == (2 if prefix > INLINE_IDS else 0) or made == base
                got = await table.manifest(len(ids) * CHUNK_SIZE, ZERO, store.store)
                assert got == store.reference(len(ids) * CHUNK_SIZE, ids), "a checkpoint's tail is not remembered"
            if prefix == len(ids) and rng.random() < 0.5:  # goes on from the checkpoint, as after a lost session
                table = SlotTable(Content(store, made))  # type: ignore[arg-type]
            for slot in {*rng.sample(range(len(ids)), min(5, len(ids))), *range(max(0, len(ids) - 2), len(ids))}:
                assert (await table.id_of(slot) or ZERO) == ids[slot]

    asyncio.run(main())


def test_a_table_that_begins_again_has_the_new_base_alone() -> None:
    async def main() -> None:
        store = IndexStore()
        table = SlotTable(Content(store, Manifest(0)))  # type: ignore[arg-type]
        table.set(3, id_of("own"), 17)
        base = store.reference(70 * CHUNK_SIZE - 5, [id_of(str(i)) for i in range(70)])
        table.rebase(Content(store, base))  # type: ignore[arg-type]
        assert await table.manifest(base.size, ZERO, store.store) == base and not store.stored
        assert table.short == {69: CHUNK_SIZE - 5} and not table.has_holes(70) and table.has_holes(71)
    asyncio.run(main())


def test_checkpoints_write_little_of_the_index_again_and_hold_few_ids() -> None:
    """At each chunk and twice, as of a slow upload: 16 times as often as a fast one is checkpointed."""
    async def main() -> None:
        written, chunks, most = 0, 2 * IDS_PER_INDEX + 100, 0

        async def store_index(content: bytes) -> bytes:
            nonlocal written
            written += len(content)
            return blake3(content[:ID_SIZE] + content[-ID_SIZE:]).digest()

        table = SlotTable(Content(IndexStore(), Manifest(0)))  # type: ignore[arg-type]
        for slot in range(chunks):
            for tail_id in (b"t" * ID_SIZE, b""):
                if not tail_id:
                    table.set(slot, slot.to_bytes(ID_SIZE, "big"), CHUNK_SIZE)
                table.lowest_change = 1 << 62
                made = await table.checkpoint((slot + 1) * CHUNK_SIZE, store_index, tail_id)
                most = max(most, len(made.ids))
            assert written < 0.02 * max(slot + 1, TAIL_IDS) * CHUNK_SIZE, slot
        assert made.problem() is None and made.indexed == 2 * IDS_PER_INDEX + TAIL_IDS
        assert written < 0.01 * chunks * CHUNK_SIZE
        assert most <= (2 + TAIL_IDS) * ID_SIZE

    asyncio.run(main())


def test_what_is_overwritten_changes_an_index_chunk_that_was_made() -> None:
    async def main() -> None:
        store = IndexStore()
        table = SlotTable(Content(store, Manifest(0)))  # type: ignore[arg-type]
        ids = [id_of(str(slot)) for slot in range(150)]
        for slot, chunk_id in enumerate(ids):
            table.set(slot, chunk_id, CHUNK_SIZE)
        for slot in (149, 64, 63, 0):
            table.lowest_change = 1 << 62
            await table.checkpoint(150 * CHUNK_SIZE, store.store, b"")
            ids[slot] = id_of(f"again {slot}")
            table.set(slot, ids[slot], CHUNK_SIZE)
            table.lowest_change = 1 << 62
            assert await store.ids_in(await table.checkpoint(150 * CHUNK_SIZE, store.store, b"")) == ids
        table.cut(100)
        table.set(100, id_of("other"), CHUNK_SIZE)
        table.lowest_change = 1 << 62
        got = await table.checkpoint(101 * CHUNK_SIZE, store.store, b"")
        assert await store.ids_in(got) == [*ids[:100], id_of("other")]
        for kept in (10, 5):
            table.cut(kept)
            table.lowest_change = 1 << 62
            holes = await table.manifest(128 * CHUNK_SIZE, ZERO, store.store)
            assert await store.ids_in(holes) == ids[:kept] + [ZERO] * (128 - kept)

    asyncio.run(main())


def test_distinct_ids_come_once_in_small_lists() -> None:
    ids = [id_of(str(i % 300)) for i in range(1000)] + [ZERO] * 5000 + [id_of("last")]
    lists = list(distinct_ids(b"".join(ids), 128))
    assert [i for some in lists for i in some] == list(dict.fromkeys(ids))
    assert all(0 < len(some) <= 128 for some in lists) and list(distinct_ids(b"", 128)) == []


def test_manifests_of_depth_2_that_do_not_fit_are_refused() -> None:
    assert Manifest(MAX_FILE_SIZE, 2, bytes((64 + TAIL_IDS) * ID_SIZE)).problem() is None
    assert Manifest(65 * CHUNK_SIZE, 2, bytes(2 * ID_SIZE)).problem() is None
    assert Manifest(128 * CHUNK_SIZE, 2, bytes(65 * ID_SIZE)).problem() is None
    for size, ids in ((0, 0), (1, 1), (64, 64), (64, 1), (65, 1), (65, 65), (129, 66), (129, 3)):
        assert Manifest(size * CHUNK_SIZE, 2, bytes(ids * ID_SIZE)).problem(), (size, ids)
    assert Manifest(65 * CHUNK_SIZE, 3, bytes(2 * ID_SIZE)).problem()


def test_index_chunks_are_made_once() -> None:
    async def main() -> None:
        store = IndexStore()
        table = SlotTable(Content(store, Manifest(0)))  # type: ignore[arg-type]
        for slot in range(IDS_PER_INDEX + 10):
            table.set(slot, id_of(str(slot)), CHUNK_SIZE)
        for _ in range(3):
            table.lowest_change = 1 << 62
            await table.manifest((IDS_PER_INDEX + 10) * CHUNK_SIZE, ZERO, store.store)
        assert store.stored == 2

    asyncio.run(main())


def test_the_prefix_grows_over_islands_in_any_order() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        pieces = [(i * 10, i * 10 + 10) for i in range(30)]
        rng.shuffle(pieces)
        prefix, seen = Prefix(0), bytearray(301)
        for start, end in pieces:
            prefix.add(start, end)
            seen[start:end] = b"\1" * 10
            assert prefix.end == seen.index(0)
        prefix.cut(55)
        assert prefix.end == 55


def test_a_slot_knows_what_of_it_is_stored() -> None:
    slot = Slot(bytearray(b"stored"), is_dirty=False)
    slot.write(6, memoryview(b" more"))
    assert slot.stable == 6 and slot.is_dirty
    slot.write(3, memoryview(b"X"))
    assert slot.stable == 0 and slot.buffer == b"stoXed more"
    slot.write(13, memoryview(b"!"))
    assert slot.buffer == b"stoXed more\0\0!"
