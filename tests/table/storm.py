"""Sessions that do all at once what play.py does in turn. No model can say what comes of it, but this must hold always:
what is published is whole.

Every file is made of one pattern, again and again: the byte at an offset is the same whoever writes it. Uploads,
resumed partials, appended bytes and changes in place all keep to it, and a CLOSE is only sent for whole patterns. So
whoever reads a file in which a byte is wrong, or whose size is no multiple of the pattern's, has seen something torn.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from pathlib import Path
from unittest import mock

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import checkpoint, rooms
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from tests.sftp.raw_client import Status, s
from tests.table.seeds import EAGER, Report
from tests.table.world import Client, TwoNodes

NAMES = ("a", "b", "c")
SESSIONS = 4
PATTERN = random.Random(0).randbytes(5 * CHUNK_SIZE + CHUNK_SIZE // 2)
N = len(PATTERN)
LARGEST = min(2 * CHUNK_SIZE, 250_000)
OPERATIONS = ("put", "put", "resume", "resume", "append", "change", "remove", "rename", "look", "look", "look")
SAYS_NO_MORE = ("internal", "malformed", "damaged", "wrong length", "cannot be found")
"""What no answer may hold: trouble of ours, and not of two who want the same."""


def run_storm(seed: int, operations: int) -> Report:
    """So many operations of each session."""
    folder = Path(tempfile.mkdtemp(prefix="table"))
    with mock.patch.multiple(checkpoint, **EAGER), mock.patch.object(rooms, "TICK_S", 0.002):
        try:
            return asyncio.run(_run(seed, operations, folder))
        finally:
            shutil.rmtree(folder)


async def _run(seed: int, operations: int, folder: Path) -> Report:
    cluster, report = TwoNodes(folder, ["ann"]), Report(seed)
    cluster.delays = random.Random(seed)
    ticks = [asyncio.create_task(node.rooms.tick()) for node in cluster.nodes]
    try:
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for number in range(SESSIONS):
                group.create_task(_Guest(cluster, seed, number, report).run(operations))
    except* (AssertionError, TimeoutError) as failures:
        report.failure = "; ".join(f"{type(f).__name__}: {f}" for f in failures.exceptions)
    finally:
        for tick in ticks:
            tick.cancel()
        await cluster.close()
    return report


class _Guest:
    """One session after the other."""

    def __init__(self, cluster: TwoNodes, seed: int, number: int, report: Report) -> None:
        self._cluster, self._number, self._report = cluster, number, report
        self._random = random.Random(seed * 1000 + number)
        self._sftp: Client

    async def run(self, operations: int) -> None:
        """Raises AssertionError at the first thing that must not be."""
        await self._log_in()
        for _ in range(operations):
            operation, name = self._random.choice(OPERATIONS), self._random.choice(NAMES)
            what = f"{self._number} {operation} {name}"
            try:
                await getattr(self, f"_{operation}")(name)
            except Status as status:
                assert not any(word in status.text for word in SAYS_NO_MORE), f"{what}: {status}"
                what += f" -> {status}"
            self._report.trace.append(what)
            self._report.seen[f"{operation} {'refused' if '->' in what else 'ok'}"] += 1
        for name in NAMES:
            try:
                await self._look(name)
            except Status as status:
                assert status.code in (2, 4), status

    async def _log_in(self) -> None:
        self._sftp = await self._cluster.login("ann", self._number % 2)

    async def _put(self, name: str) -> None:
        await self._fill(name, p.FXF_WRITE | p.FXF_CREAT | p.FXF_TRUNC)

    async def _resume(self, name: str) -> None:
        await self._fill(name, p.FXF_WRITE | p.FXF_CREAT | self._random.choice((0, p.FXF_APPEND)))

    async def _append(self, name: str) -> None:
        await self._fill(name, p.FXF_WRITE | p.FXF_APPEND, more=True)

    async def _fill(self, name: str, flags: int, more: bool = False) -> None:
        """Writes from where the file ends to the end of a pattern, and closes; or breaks off in the middle."""
        sftp = self._sftp
        handle = await sftp.open_file(name, flags)
        at = (await sftp.call(p.FSTAT, s(handle))).size
        end = max(N, -(-at // N) * N + (N if more else 0))
        stop = self._random.randrange(at, end) if self._random.random() < 0.2 and end > at else None
        try:
            while at < (end if stop is None else stop):
                count = min(self._random.choice((1, 100, CHUNK_SIZE, LARGEST)), (stop or end) - at)
                await sftp.write(handle, at, _pattern(at, count))
                at += count
                if self._random.random() < 0.1:
                    await sftp.fsync(handle)
        except Status:
            stop = at  # never closed as if it were whole
            raise
        finally:
            if stop is None:
                await sftp.close_handle(handle)
            else:
                await sftp.lose()
                await self._log_in()

    async def _change(self, name: str) -> None:
        handle = await self._sftp.open_file(name, p.FXF_READ | p.FXF_WRITE)
        size = (await self._sftp.call(p.FSTAT, s(handle))).size
        try:
            if size % N == 0 and size:
                offset = self._random.randrange(size)
                await self._sftp.write(handle, offset, _pattern(offset, min(LARGEST, size - offset)))
                await self._sftp.fsetstat(handle, FileAttrs(size=N))
        finally:
            if size % N == 0 and size:
                await self._sftp.close_handle(handle)
            else:  # a partial: it is not whole
                await self._sftp.lose()
                await self._log_in()

    async def _remove(self, name: str) -> None:
        await self._sftp.remove(name)

    async def _rename(self, name: str) -> None:
        await self._sftp.rename(name, self._random.choice(NAMES), replace=True)

    async def _look(self, name: str) -> None:
        sftp = self._sftp
        handle, data = await sftp.open_file(name, p.FXF_READ), bytearray()
        size = (await sftp.call(p.FSTAT, s(handle))).size
        while len(data) < size:
            data += await sftp.read(handle, len(data), CHUNK_SIZE // 2)
        await sftp.close_handle(handle)
        assert data and data == _pattern(0, len(data)) and len(data) % N == 0, (
            f"session {self._number} saw {name} torn: {len(data)} bytes, a pattern has {N}")


def _pattern(offset: int, count: int) -> bytes:
    start = offset % N
    return (PATTERN * (count // N + 2))[start : start + count]

