"""A chunk that is on this node's disk and on its way to others takes no memory in the worker any more."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

from raftmft.core.manifest import CHUNK_SIZE, EMPTY
from raftmft.sftp.buffers import Budget
from raftmft.sftp.chunks import ChunkWriter
from raftmft.sftp.content import ChunkReader, Content
from raftmft.sftp.seals import Seals
from raftmft.sftp.slots import SlotTable

WINDOW = 4


class Watched(bytearray):
    """A buffer that one can hold weakly."""


class SlowOwners:
    """A link to a node whose other owners do not answer before they are let."""

    def __init__(self) -> None:
        self.asked, self.answer = 0, asyncio.Event()

    async def request(self, kind: str, _: dict[str, Any]) -> dict[str, Any]:
        if kind == "chunk.offer":
            return {"held": False}
        self.asked += 1
        await self.answer.wait()
        return {}


async def run(folder: Path) -> None:
    link: Any = (owners := SlowOwners())
    writer, reader = ChunkWriter(link, str(folder), "w", 64 << 20, lambda _: None), ChunkReader(link, str(folder))
    budget = Budget()
    seals = Seals(writer, SlotTable(Content(reader, EMPTY)), budget, 1, WINDOW, lambda _: None)
    seen = []
    for number in range(WINDOW):
        data = Watched(bytes([number]) * CHUNK_SIZE)
        seen.append(weakref.ref(data))
        seals.begin(number, data, None)
        del data
    kept = asyncio.create_task(writer.store(1, last := Watched(b"index" * 1000), is_index=True))
    seen.append(weakref.ref(last))
    del last
    while owners.asked < WINDOW + 1:
        await asyncio.sleep(0)
    gc.collect()
    assert [held() is None for held in seen] == [True] * len(seen), "bytes are kept while they are copied"
    owners.answer.set()
    await seals.acknowledged()
    await kept


def test_what_is_being_copied_is_not_in_memory(tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(run(tmp_path), 30))
