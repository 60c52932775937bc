"""What a session that writes at random keeps in memory is bounded, whatever it has open (sftp/buffers.py)."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from raftmft.sftp.buffers import LEAST_SLOTS, MOST_SLOTS, Budget, Slot, WorkerBudget
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


@pytest.mark.parametrize("how", ["in order", "at random"])
def test_all_sessions_of_a_worker_are_bounded_and_none_waits_for_ever(tmp_path: Path, how: str) -> None:
    sessions, most, size, rng = 6, 8, 12 * CHUNK_SIZE, random.Random(how)
    budget, peak = WorkerBudget(most), 0

    async def upload(sftp: Client, name: str) -> None:
        nonlocal peak
        content = bytearray(rng.randbytes(size))
        offsets = list(range(0, size, p.MAX_DATA))
        if how == "at random":
            rng.shuffle(offsets)
        handle = await sftp.open_file(name, p.FXF_WRITE | p.FXF_CREAT | p.FXF_TRUNC)
        for offset in offsets:
            await sftp.write(handle, offset, content[offset : offset + p.MAX_DATA])
            peak = max(peak, sum(one.held for one in budget._budgets))
        await sftp.close_handle(handle)
        assert await sftp.read_all(name) == content

    async def main() -> None:
        cluster = TwoNodes(tmp_path, ["ann"])
        cluster.nodes[0].rooms.memory = budget
        clients = [await cluster.login("ann", 0) for _ in range(sessions)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(upload(sftp, f"f{n}") for n, sftp in enumerate(clients)))
        await cluster.close()
    asyncio.run(main())
    assert most < peak <= most + sessions * LEAST_SLOTS
