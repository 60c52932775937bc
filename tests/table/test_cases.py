"""What random operations found, each one small; and copy-on-write views at the edges of chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE as C
from raftmft.core.manifest import INLINE_IDS
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from raftmft.sftp.upload import Upload
from tests.sftp.raw_client import PUT, Status, s
from tests.table.world import Client, TwoNodes

R_PLUS = p.FXF_READ | p.FXF_WRITE
NO_SUCH_FILE, FAILURE = 2, 4


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[TwoNodes, Client, Client]]:
    """A cluster, and two sessions of one user through its two nodes."""
    cluster = TwoNodes(folder, ["ann"])
    try:
        async with asyncio.timeout(60):
            yield cluster, await cluster.login("ann", 0), await cluster.login("ann", 1)
    finally:
        await cluster.close()


async def fails(code: int, work: Awaitable[Any]) -> None:
    with pytest.raises(Status) as caught:
        await work
    assert caught.value.code == code, caught.value


def upload_of(client: Client) -> Upload:
    """The only one that the session has."""
    (upload,) = client.server.session.uploads()
    return upload


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0)


def begin_checkpoint(upload: Upload) -> None:
    """One that comes by itself begins, as if its time had come."""
    upload.checkpoints._written_at = 0.0
    upload.checkpoints.tick()


def test_a_checkpoint_while_the_file_is_cut(tmp_path: Path) -> None:
    """It sees the file before or after, and never a prefix that has lost its chunks."""
    async def main() -> None:
        async with two_nodes(tmp_path) as (_, w, o):
            handle = await w.open_file("f", PUT)
            data = bytes(range(256)) * (10 * C // 1024)
            await w.write(handle, 0, data)
            await w.fsync(handle)
            upload, is_loading, may_go_on = upload_of(w), asyncio.Event(), asyncio.Event()
            await upload.truncate(len(data) - 1)  # the slots leave memory as others need it
            for number in list(upload.slots):
                while not upload.let_go(number):
                    await upload.seals.changed.wait()
            await upload.seals.acknowledged()
            load = w.node.reader.load

            async def slow(*args: Any) -> bytes:
                is_loading.set()
                await may_go_on.wait()
                return await load(*args)
            w.node.reader.load = slow  # type: ignore[method-assign]
            number = w.send(p.FSETSTAT, s(handle), b"\0\0\0\1" + (100).to_bytes(8, "big"))
            await is_loading.wait()
            begin_checkpoint(upload)
            for _ in range(50):
                await asyncio.sleep(0)
            may_go_on.set()
            await w.answer(number)
            await w.fsync(handle)
            assert (await o.stat("f")).size == 100
            await w.close_handle(handle)
            assert await o.read_all("f") == data[:100]
    asyncio.run(main())


def test_a_cut_that_fails_poisons(tmp_path: Path) -> None:
    """Half of it may be done: such a file is never published."""
    async def main() -> None:
        async with two_nodes(tmp_path) as (_, w, o):
            await o.put("f", b"x" * (2 * C))
            handle, load = await w.open_file("f", R_PLUS), w.node.reader.load

            async def fail(*args: Any) -> Any:
                raise RaftmftError("no good copy came")
            w.node.reader.load = fail  # type: ignore[method-assign]
            await fails(FAILURE, w.fsetstat(handle, FileAttrs(size=100)))
            w.node.reader.load = load  # type: ignore[method-assign]
            await fails(FAILURE, w.write(handle, 0, b"y"))
            await fails(FAILURE, w.close_handle(handle))
            assert (await o.stat("f")).size == 2 * C
    asyncio.run(main())


def test_a_checkpoint_while_the_next_chunk_is_begun(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_nodes(tmp_path) as (_, w, o):
            handle = await w.open_file("f", PUT)
            await w.write(handle, 0, b"a" * (C - 10))
            w.node.gates["chunk.put"] = asyncio.Event()
            begin_checkpoint(upload_of(w))
            await until(lambda: w.node.held)
            await w.write(handle, C - 10, b"b" * 110)
            w.node.gates.pop("chunk.put").set()
            await upload_of(w).checkpoints._idle()
            await w.fsync(handle)
            assert (await o.stat("f")).size == C + 100
            await w.close_handle(handle)
            assert await o.read_all("f") == b"a" * (C - 10) + b"b" * 110
    asyncio.run(main())


def test_bytes_that_cannot_be_stored_for_whatever_reason_are_no_hole(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_nodes(tmp_path) as (_, w, o):
            handle, append = await w.open_file("f", PUT), w.node.writer.append_new

            async def fail_once(*args: Any) -> Any:
                w.node.writer.append_new = append  # type: ignore[method-assign]
                raise MemoryError
            w.node.writer.append_new = fail_once  # type: ignore[method-assign]
            await w.write(handle, 0, b"bytes")
            await fails(FAILURE, w.close_handle(handle))
            await fails(NO_SUCH_FILE, o.stat("f"))
    asyncio.run(main())


def test_fsync_commits_a_prefix_though_it_stands(tmp_path: Path) -> None:
    """Another session's file may have come and gone at its place, and the partial with it."""
    async def main() -> None:
        async with two_nodes(tmp_path) as (_, w, o):
            handle = await w.open_file("f", PUT)
            await w.write(handle, 0, b"data")
            await w.fsync(handle)
            await o.put("f", b"theirs")
            await o.remove("f")
            await fails(NO_SUCH_FILE, o.stat("f"))
            await w.fsync(handle)
            assert (await o.stat("f")).size == 4
    asyncio.run(main())


def test_attributes_of_an_unchanged_file_that_its_session_removed(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_nodes(tmp_path) as (_, w, _o):
            await w.put("f", b"data")
            handle = await w.open_file("f", R_PLUS)
            await w.remove("f")
            await w.fsetstat(handle, FileAttrs(mode=0o600, atime=5, mtime=6))
            assert (await w.call(p.FSTAT, s(handle))).mode == 0o100600
            assert await w.read(handle, 0, 99) == b"data"
            await w.close_handle(handle)
    asyncio.run(main())


@pytest.mark.parametrize("chunks", [INLINE_IDS - 1, INLINE_IDS, INLINE_IDS + 1])
def test_small_changes_of_files_around_the_second_level(tmp_path: Path, chunks: int) -> None:
    """64 ids stand in the manifest itself; with one chunk more it holds the ids of index chunks."""
    async def main() -> None:
        async with two_nodes(tmp_path) as (cluster, w, o):
            def depth() -> int:
                return cluster.world.machine.namespace.manifests_since(0, 9)[0][2].depth
            last = (chunks - 1) * C
            handle = await w.open_file("f", PUT)
            await w.write(handle, last, b"end")  # a hole of zeros, and a byte or two at its end
            await w.close_handle(handle)
            want = bytearray(last) + b"end"
            for place, piece in ((5, b"five"), (last - 2, b"edge"), (C - 1, b"ab"), (last + 3, b"longer"),
                                 (last + C - 1, b"more"), (40 * C, b"x" * 4096)):
                handle = await w.open_file("f", R_PLUS)
                await w.write(handle, place, piece)
                want.extend(bytes(max(0, place - len(want))))
                want[place : place + len(piece)] = piece
                await w.close_handle(handle)
                await same(o, want)
                assert depth() == (len(want) > INLINE_IDS * C)
            for size in (last + 1, last, last - 1, last + 2 * C, 3):
                await w.setstat("f", FileAttrs(size=size))
                del want[size:]
                want.extend(bytes(size - len(want)))
                await same(o, want)
            assert depth() == 0

    async def same(o: Client, want: bytearray) -> None:
        """The size, and what lies around every edge."""
        assert (await o.stat("f")).size == len(want)
        handle = await o.open_file("f", p.FXF_READ)
        for edge in range(0, len(want) + 1, C):
            start = max(0, edge - 5)
            piece = bytes(want[start : start + 4200])
            if piece:
                assert await o.read(handle, start, 4200) == piece
        await o.close_handle(handle)
    asyncio.run(main())
