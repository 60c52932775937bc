"""What a session that writes at random keeps in memory is bounded, whatever it has open (sftp/buffers.py)."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from raftmft.sftp.buffers import MOST_SLOTS, Budget, Slot
from raftmft.sftp.upload import Upload
from tests.table.world import Client, TwoNodes

R_PLUS = p.FXF_READ | p.FXF_WRITE
FILES, OPERATIONS = 60, 500


class Watch:
    """The most bytes and slots that a budget ever had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots = self.bytes = 0
        took, leaves = Budget.took, Budget.leaves

        def watched_took(budget: Budget, upload: Upload, number: int) -> None:
            took(budget, upload, number)
            self._look(budget)

        def watched_leaves(budget: Budget) -> None:
            leaves(budget)
            self._look(budget)
        monkeypatch.setattr(Budget, "took", watched_took)
        monkeypatch.setattr(Budget, "leaves", watched_leaves)

    def _look(self, budget: Budget) -> None:
        self.slots = max(self.slots, len(budget._slots) + budget._leaving)
        held: list[Slot] = [upload.slots[number] for upload, number in budget._slots if number in upload.slots]
        self.bytes = max(self.bytes, sum(len(slot.buffer) for slot in held) + budget._leaving * CHUNK_SIZE)


@pytest.mark.parametrize("what", ["writes", "cuts", "both"])
def test_a_random_writer_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    watch, rng = Watch(monkeypatch), random.Random(what)

    async def main() -> None:
        cluster = TwoNodes(tmp_path, ["ann"])
        sftp: Client = await cluster.login("ann", 0)
        data = rng.randbytes(2 * CHUNK_SIZE)
        content = {f"f{number}": bytearray(data) for number in range(FILES)}
        await sftp.put("f0", data)
        for name in list(content)[1:]:
            source, target = await sftp.open_file("f0", p.FXF_READ), await sftp.open_file(name, p.FXF_WRITE | 8)
            await sftp.copy(source, target)
            for handle in (source, target):
                await sftp.close_handle(handle)
        handles = {name: await sftp.open_file(name, R_PLUS) for name in content}
        for _ in range(OPERATIONS):
            name = rng.choice(list(content))
            own, offset = content[name], rng.randrange(3 * CHUNK_SIZE)
            if what == "cuts" or (what == "both" and rng.random() < 0.5):
                await sftp.fsetstat(handles[name], FileAttrs(size=offset))
                del own[offset:]
                own.extend(bytes(offset - len(own)))
            else:
                piece = rng.randbytes(rng.choice((1, 1000, p.MAX_DATA)))
                await sftp.write(handles[name], offset, piece)
                own.extend(bytes(max(0, offset - len(own))))
                own[offset : offset + len(piece)] = piece
        for name in content:
            await sftp.close_handle(handles[name])
            assert await sftp.read_all(name) == content[name]
        await cluster.close()
    asyncio.run(main())
    assert 4 < watch.slots <= MOST_SLOTS and watch.bytes <= MOST_SLOTS * CHUNK_SIZE
