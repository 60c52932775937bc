"""The contract's table "What each session sees of a name", cell by cell, through two nodes.

Two sessions of one user, `w` (the writing one) and `o` (any other), served by different members; `u` is another user's.
A cell is a row of the table and a column: each is an async function here, and its docstring says what the cell does.
Requests are sent packet by packet: OpenSSH's client can express only some of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from tests.e2e.harness import Cluster
from tests.sftp.raw_client import PUT, RESUME, RW_CREAT, RawSftp, Status, s

MIB = 1 << 20
NO_SUCH_FILE, FAILURE = 2, 4
APPEND = p.FXF_WRITE | p.FXF_APPEND | p.FXF_CREAT
R_PLUS = p.FXF_READ | p.FXF_WRITE
_count = itertools.count()


class Views:
    """The three sessions of a test, each through a channel of its own, and a name that no other test uses."""

    def __init__(self, home: Sessions, w: RawSftp, o: RawSftp, u: RawSftp) -> None:
        self.sessions, self.w, self.o, self.u = home, w, o, u
        self.name = f"view{next(_count)}"

    async def writing(self, data: bytes, flags: int = PUT, *, by: RawSftp | None = None) -> bytes:
        """`w` writes to the name, and has had it checkpointed. The handle."""
        sftp = by or self.w
        handle = await sftp.open_file(self.name, flags)
        await sftp.write(handle, 0, data)
        await sftp.fsync(handle)
        return handle

    async def published(self, data: bytes) -> None:
        """The name has this content."""
        await self.o.put(self.name, data)


class Sessions:
    """Connections that live as long as the module, on a loop of the main thread."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.loop = cluster, asyncio.new_event_loop()
        self.all: list[Any] = []
        cluster.run("user", "add", "stranger", "--key", cluster.about["users"][0]["key"] + ".pub")
        self.w, self.o = self.loop.run_until_complete(self._two())
        self.u = self.loop.run_until_complete(self.connect(cluster.names[0], "stranger"))

    async def connect(self, node: str, user: str = "demo") -> Any:
        """A new session."""
        host, port = self.cluster.node(node)["sftp"].rsplit(":", 1)
        connection = await asyncssh.connect(
            host, int(port), known_hosts=self.cluster.about["known_hosts"], username=user, config=[], agent_path=None,
            client_keys=[self.cluster.about["users"][0]["key"]])
        self.all.append(connection)
        return connection

    async def _two(self) -> tuple[Any, Any]:
        """Two sessions of one user that different members serve: any node may pass a connection on to another."""
        by_member: dict[str, Any] = {}
        for node in self.cluster.names * 3:
            connection = await self.connect(node)
            host, port = connection.get_extra_info("sockname")[:2]
            logins = self.cluster.audit("--kind", "login", "--user", "demo")
            by_member[next(r["member"] for r in logins if r["address"] == f"{host}:{port}")] = connection
            if len(by_member) == 2:
                one, two = by_member.values()
                return one, two
        raise AssertionError("all sessions went to one member")

    @asynccontextmanager
    async def views(self) -> AsyncIterator[Views]:
        """The sessions of one test."""
        w, o, u = [await RawSftp.open(None, connection) for connection in (self.w, self.o, self.u)]
        try:
            yield Views(self, w, o, u)
        finally:
            for sftp in (w, o, u):
                sftp.channel.close()

    def close(self) -> None:
        """Ends them all."""
        for connection in self.all:
            connection.abort()
        for connection in self.all:
            self.loop.run_until_complete(connection.wait_closed())
        self.loop.close()


@pytest.fixture(scope="module")
def sessions(shared_cluster: Cluster) -> Iterator[Sessions]:
    """One pair for all cells."""
    made = Sessions(shared_cluster)
    yield made
    made.close()


async def fails(code: int, work: Awaitable[Any], text: str = "") -> None:
    with pytest.raises(Status) as caught:
        await work
    assert caught.value.code == code and text in caught.value.text, caught.value


async def eventually(what: str, ask: Callable[[], Awaitable[Any]]) -> None:
    """Until `ask` gives something true."""
    async with asyncio.timeout(15):
        while not await ask():
            pass
    assert what


# --- READDIR -----------------------------------------------------------------------------------------------------
async def readdir_writer(v: Views) -> None:
    """Published names, and its own unpublished ones with their present size."""
    await v.o.call(p.MKDIR, s(v.name))
    await v.o.put(f"{v.name}/old", b"123")
    await v.o.put(f"{v.name}/over", b"1234")
    new, over = await v.w.open_file(f"{v.name}/new", PUT), await v.w.open_file(f"{v.name}/over", PUT)
    await v.w.write(new, 0, b"x" * 70)
    await v.w.write(over, 0, b"x" * 9)
    assert {n: a.size for n, a in (await v.w.names(v.name)).items()} == {b"old": 3, b"new": 70, b"over": 9}
    await v.w.write(new, 70, b"x")
    assert (await v.w.names(v.name))[b"new"].size == 71


async def readdir_other(v: Views) -> None:
    """Published names only, as they are published."""
    await v.o.call(p.MKDIR, s(v.name))
    await v.o.put(f"{v.name}/over", b"1234")
    new, over = await v.w.open_file(f"{v.name}/new", PUT), await v.w.open_file(f"{v.name}/over", PUT)
    for handle in (new, over):
        await v.w.write(handle, 0, b"x" * 70)
        await v.w.fsync(handle)
    assert {n: a.size for n, a in (await v.o.names(v.name)).items()} == {b"over": 4}
    await v.w.close_handle(new)
    assert {n: a.size for n, a in (await v.o.names(v.name)).items()} == {b"over": 4, b"new": 70}


# --- OPEN to read ------------------------------------------------------------------------------------------------
async def open_read_writer(v: Views) -> None:
    """Its own unpublished bytes, through any of its handles, in any of its channels."""
    await v.published(b"old content")
    writing = await v.writing(b"new", RW_CREAT | p.FXF_TRUNC)
    assert await v.w.read(writing, 0, 99) == b"new"
    reading = await v.w.open_file(v.name, p.FXF_READ)
    await v.w.write(writing, 3, b"er")
    assert await v.w.read(reading, 0, 99) == b"newer"
    second = await RawSftp.open(None, v.sessions.w)
    assert await second.read_all(v.name) == b"newer"
    second.channel.close()


async def open_read_other(v: Views) -> None:
    """The published version, pinned until it is closed; NO_SUCH_FILE if there is none."""
    writing = await v.writing(b"first")
    await fails(NO_SUCH_FILE, v.o.open_file(v.name, p.FXF_READ))
    await v.w.close_handle(writing)
    reading = await v.o.open_file(v.name, p.FXF_READ)
    writing = await v.writing(b"second and longer")
    assert await v.o.read_all(v.name) == b"first"
    await v.w.close_handle(writing)
    assert await v.o.read(reading, 0, 99) == b"first"
    assert (await v.o.call(p.FSTAT, s(reading))).size == 5
    assert await v.o.read_all(v.name) == b"second and longer"
    await v.w.remove(v.name)
    assert await v.o.read(reading, 0, 99) == b"first"


# --- STAT, LSTAT -------------------------------------------------------------------------------------------------
async def stat_writer(v: Views) -> None:
    """Its own unpublished size and times, of new names and of published ones."""
    for _ in range(2):
        writing = await v.w.open_file(v.name, PUT)
        await v.w.write(writing, 0, b"x" * 33)
        await v.w.fsetstat(writing, FileAttrs(atime=1, mtime=2))
        for attrs in (await v.w.stat(v.name), await v.w.lstat(v.name), await v.w.call(p.FSTAT, s(writing))):
            assert (attrs.size, attrs.mtime) == (33, 2)
        await v.w.close_handle(writing)
        await v.published(b"four")


async def stat_other(v: Views) -> None:
    """The published version; without one the same user gets the partial's checkpointed size; else NO_SUCH_FILE."""
    writing = await v.w.open_file(v.name, PUT)
    for sftp in (v.o, v.u):
        await fails(NO_SUCH_FILE, sftp.stat(v.name))
    await v.w.write(writing, 0, b"x" * 33)
    await v.w.fsync(writing)
    await v.w.write(writing, 33, b"x")
    for ask in (v.o.stat, v.o.lstat):
        assert (await ask(v.name)).size in (33, 34), "34 if a checkpoint came by itself"
    await fails(NO_SUCH_FILE, v.u.stat(v.name))
    await v.w.close_handle(writing)
    await v.writing(b"x" * 90)
    for ask in (v.o.stat, v.o.lstat):
        assert (await ask(v.name)).size == 34


# --- OPEN to write -----------------------------------------------------------------------------------------------
async def open_new_other(v: Views) -> None:
    """TRUNC, or CREAT on nothing: a new upload; of several the last CLOSE wins whole."""
    one, two = os.urandom(2 * MIB + 1), os.urandom(MIB)
    for flags in (PUT, RESUME, PUT):  # on nothing, on nothing, on a published file
        first = await v.w.open_file(v.name, flags)
        second = await v.o.open_file(v.name, flags)
        await v.w.write(first, 0, one)
        await v.o.write(second, 0, two)
        await v.o.close_handle(second)
        assert await v.w.read_all(v.name) == one and await v.o.read_all(v.name) == two
        await v.w.close_handle(first)
        assert await v.o.read_all(v.name) == one
        if flags == PUT:
            await v.o.remove(v.name)


async def open_partial_writer(v: Views) -> None:
    """Without TRUNC on its own partial: continues."""
    data = os.urandom(2 * MIB + 500)
    await v.writing(data[: MIB + 100])
    again = await v.w.open_file(v.name, RESUME)
    assert (await v.w.call(p.FSTAT, s(again))).size == MIB + 100
    await v.w.write(again, MIB + 100, data[MIB + 100:])
    await v.w.close_handle(again)
    assert await v.o.read_all(v.name) == data


async def open_partial_other(v: Views) -> None:
    """Without TRUNC on a partial: takes it over; what the old upload does later fails."""
    data = os.urandom(2 * MIB + 500)
    old = await v.writing(data[: MIB + 100])
    size = (await v.o.stat(v.name)).size
    assert size == MIB + 100
    taken = await v.o.open_file(v.name, RESUME)

    async def is_refused() -> bool:
        try:  # one that is on its way to be told may still be answered well; nobody ever publishes it
            await v.w.write(old, size, b"late")
        except Status as refusal:
            return "taken over" in refusal.text
        return False
    await eventually("a WRITE fails", is_refused)
    await fails(FAILURE, v.w.fsync(old), "taken over")
    await fails(FAILURE, v.w.close_handle(old), "taken over")
    assert (await v.w.stat(v.name)).size == size, "it is like any other session now"
    await v.o.write(taken, size, data[size:])
    await v.o.close_handle(taken)
    assert await v.w.read_all(v.name) == data


async def open_published_writer(v: Views) -> None:
    """Without TRUNC on a published file: a view of its base version, changed where it was written."""
    base = os.urandom(2 * MIB + 9)
    await v.published(base)
    handle = await v.w.open_file(v.name, R_PLUS)
    await v.w.write(handle, MIB - 1, b"ab")
    want = base[: MIB - 1] + b"ab" + base[MIB + 1:]
    assert await v.w.read_all(v.name) == want and await v.o.read_all(v.name) == base
    await v.w.close_handle(handle)
    assert await v.o.read_all(v.name) == want


async def open_published_other(v: Views) -> None:
    """The same; at CLOSE with APPEND rebased onto a newer version, otherwise FAILURE if the base changed."""
    await v.published(b"base\n")
    in_place = await v.o.open_file(v.name, R_PLUS)
    appending = await v.o.open_file(v.name, APPEND)
    await v.o.write(in_place, 0, b"B")
    await v.o.write(appending, 0, b"appended\n")
    await v.w.put(v.name, b"newer version\n")
    await fails(FAILURE, v.o.close_handle(in_place), "changed by another session")
    assert await v.w.read_all(v.name) == b"newer version\n"
    await v.o.close_handle(appending)
    assert await v.w.read_all(v.name) == b"newer version\nappended\n"


async def open_published_many(v: Views) -> None:
    """APPEND of two sessions again and again: every line is there once."""
    await v.published(b"")
    for turn in range(6):
        handles = [(sftp, await sftp.open_file(v.name, APPEND)) for sftp in (v.w, v.o)]
        for number, (sftp, handle) in enumerate(handles):
            await sftp.write(handle, 0, b"%d.%d\n" % (turn, number))
        await asyncio.gather(*(sftp.close_handle(handle) for sftp, handle in handles))
    lines = (await v.w.read_all(v.name)).splitlines()
    assert sorted(lines) == [b"%d.%d" % (turn, number) for turn in range(6) for number in range(2)]


# --- REMOVE ------------------------------------------------------------------------------------------------------
async def remove_writer(v: Views) -> None:
    """Removes both: the published file and what is being written; also what is only being written."""
    for is_published in (True, False):
        if is_published:
            await v.published(b"old")
        writing = await v.writing(b"new")
        await v.w.remove(v.name)
        for sftp in (v.w, v.o):
            await fails(NO_SUCH_FILE, sftp.stat(v.name))
        await v.w.write(writing, 3, b"open handles survive")
        await fails(NO_SUCH_FILE, v.w.close_handle(writing))
        await fails(NO_SUCH_FILE, v.o.stat(v.name))


async def remove_other(v: Views) -> None:
    """The published one; the partial too, if it is the user's."""
    await v.published(b"old")
    writing = await v.writing(b"new")
    await v.o.remove(v.name)
    await fails(NO_SUCH_FILE, v.o.stat(v.name))
    await fails(NO_SUCH_FILE, v.w.close_handle(writing))
    writing = await v.writing(b"partial")
    await fails(NO_SUCH_FILE, v.u.remove(v.name))
    assert (await v.o.stat(v.name)).size == 7
    await v.o.remove(v.name)
    await fails(NO_SUCH_FILE, v.o.stat(v.name))
    await fails(FAILURE, v.w.close_handle(writing))


# --- RENAME ------------------------------------------------------------------------------------------------------
async def rename_writer(v: Views) -> None:
    """A partial stays a partial, under its new name; CLOSE publishes it there."""
    writing = await v.writing(b"partial")
    await v.w.rename(v.name, v.name + ".to")
    assert (await v.w.stat(v.name + ".to")).size == (await v.o.stat(v.name + ".to")).size == 7
    assert v.name.encode() + b".to" not in await v.o.names("")
    for sftp in (v.w, v.o):
        await fails(NO_SUCH_FILE, sftp.stat(v.name))
    await v.w.rename(v.name + ".to", v.name + ".too", replace=True)
    await v.w.close_handle(writing)
    assert await v.o.read_all(v.name + ".too") == b"partial"


async def rename_other(v: Views) -> None:
    """Published names only; what is being written follows its file."""
    writing = await v.writing(b"partial")
    await fails(NO_SUCH_FILE, v.o.rename(v.name, v.name + ".to"))
    await v.w.close_handle(writing)
    writing = await v.writing(b"over")
    await v.o.rename(v.name, v.name + ".to")
    assert await v.o.read_all(v.name + ".to") == b"partial"
    assert await v.w.read_all(v.name + ".to") == b"over" and (await v.w.stat(v.name + ".to")).size == 4
    assert (await v.w.names(""))[v.name.encode() + b".to"].size == 4
    await fails(NO_SUCH_FILE, v.w.stat(v.name))
    await v.w.close_handle(writing)
    assert await v.o.read_all(v.name + ".to") == b"over"
    await fails(NO_SUCH_FILE, v.o.stat(v.name))


# --- what stands below the table ---------------------------------------------------------------------------------
async def partial_append_offset(v: Views) -> None:
    """On a partial the WRITE offset counts even with APPEND."""
    await v.writing(b"0123456789")
    handle = await v.o.open_file(v.name, APPEND)
    await v.o.write(handle, 5, b"ABCDEFG")
    await v.o.close_handle(handle)
    assert await v.o.read_all(v.name) == b"01234ABCDEFG"


async def partial_prefix(v: Views) -> None:
    """Only contiguous bytes count as prefix."""
    writing = await v.writing(b"x" * 100)
    await v.w.write(writing, 200, b"y" * 100)
    await v.w.fsync(writing)
    assert (await v.o.stat(v.name)).size == 100 and (await v.w.stat(v.name)).size == 300
    await v.w.write(writing, 100, b"z" * 100)
    await v.w.fsync(writing)
    assert (await v.o.stat(v.name)).size == 300


async def interrupted_overwrite(v: Views) -> None:
    """It leaves the old file and no partial; an interrupted new file leaves its partial."""
    await v.published(b"old")
    for how in ("eof", "abort"):
        connection = await v.sessions.connect(v.sessions.cluster.names[2])
        third = await RawSftp.open(None, connection)
        for name in (v.name, f"{v.name}.{how}"):
            handle = await third.open_file(name, PUT)
            await third.write(handle, 0, b"unfinished")
        if how == "eof":
            third.stdin.write_eof()
            await third.channel.wait_closed()
        connection.abort()
        await connection.wait_closed()

        async def is_kept(name: str = f"{v.name}.{how}") -> bool:
            with suppress(Status):
                return (await v.o.stat(name)).size == 10
            return False
        await eventually("the partial", is_kept)
        assert await v.o.read_all(v.name) == b"old"
        assert f"{v.name}.{how}".encode() not in await v.o.names("")
    await v.o.remove(v.name)
    await fails(NO_SUCH_FILE, v.o.stat(v.name))


async def fsync_never_publishes(v: Views) -> None:
    """fsync is a checkpoint, of an overwrite too, and publishes nothing."""
    await v.published(b"old")
    writing = await v.writing(b"new")
    assert await v.o.read_all(v.name) == b"old"
    await v.w.close_handle(writing)
    assert await v.o.read_all(v.name) == b"new"


async def parent_gone(v: Views) -> None:
    """An upload whose directory is gone: NO_SUCH_FILE at CLOSE. One whose directory was renamed follows it."""
    await v.o.call(p.MKDIR, s(v.name))
    await v.o.call(p.MKDIR, s(v.name + ".moving"))
    gone, moved = await v.w.open_file(f"{v.name}/x", PUT), await v.w.open_file(f"{v.name}.moving/x", PUT)
    for handle in (gone, moved):
        await v.w.write(handle, 0, b"data")
        await v.w.fsync(handle)
    await v.o.call(p.RMDIR, s(v.name))
    await v.o.rename(v.name + ".moving", v.name + ".moved")
    assert list(await v.w.names(v.name + ".moved")) == [b"x"] and await v.w.read_all(v.name + ".moved/x") == b"data"
    await fails(NO_SUCH_FILE, v.w.close_handle(gone))
    await v.w.close_handle(moved)
    assert await v.o.read_all(f"{v.name}.moved/x") == b"data"


async def truncated(v: Views) -> None:
    """Sizes set by path and by handle: what is published changes at once or at CLOSE, and whole."""
    await v.published(b"0123456789")
    await v.o.setstat(v.name, FileAttrs(size=4))
    assert await v.w.read_all(v.name) == b"0123"
    await v.o.setstat(v.name, FileAttrs(size=6))
    assert await v.w.read_all(v.name) == b"0123\0\0"
    handle = await v.w.open_file(v.name, R_PLUS)
    await v.w.fsetstat(handle, FileAttrs(size=2))
    assert (await v.w.stat(v.name)).size == 2 and (await v.o.stat(v.name)).size == 6
    await v.w.close_handle(handle)
    assert await v.o.read_all(v.name) == b"01"
    await v.w.setstat(v.name, FileAttrs(size=0))
    assert (await v.o.stat(v.name)).size == 0


CELLS = {
    "READDIR": [readdir_writer, readdir_other],
    "OPEN to read": [open_read_writer, open_read_other],
    "STAT, LSTAT": [stat_writer, stat_other],
    "OPEN to write, TRUNC or CREAT on nothing": [open_new_other],
    "OPEN to write without TRUNC on a partial": [open_partial_writer, open_partial_other],
    "OPEN to write without TRUNC on a published file": [open_published_writer, open_published_other,
                                                        open_published_many],
    "REMOVE": [remove_writer, remove_other],
    "RENAME": [rename_writer, rename_other],
    "below the table": [partial_append_offset, partial_prefix, interrupted_overwrite, fsync_never_publishes,
                        parent_gone, truncated],
}


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.__name__) for cells in CELLS.values() for cell in cells])
def test_cell(sessions: Sessions, cell: Callable[[Views], Awaitable[None]], tmp_path: Path) -> None:
    async def run() -> None:
        async with sessions.views() as views, asyncio.timeout(60):
            await cell(views)
    sessions.loop.run_until_complete(run())
