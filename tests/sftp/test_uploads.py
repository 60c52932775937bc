"""What is published, what is kept, and what each session sees meanwhile (contract, promises 1 to 3 and the table)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raftmft.core.manifest import EMPTY
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from tests.sftp.fake_node import FakeNode, key_of, wait_for
from tests.sftp.raw_client import PUT, RESUME, RW_CREAT, RawSftp, Status, s

MIB = 1 << 20


def run(node: FakeNode, test: Callable[[RawSftp], Awaitable[Any]], **options: Any) -> Any:
    """Runs a test on a channel of its own."""
    async def main() -> Any:
        sftp = await RawSftp.open(node, **options)
        try:
            async with asyncio.timeout(40):
                return await test(sftp)
        finally:
            await sftp.close()

    return asyncio.run(main())


async def expect(code: int, text: str, work: Awaitable[Any]) -> None:
    with pytest.raises(Status) as caught:
        await work
    assert caught.value.code == code and text in caught.value.text, caught.value


def test_only_a_close_publishes(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("close", PUT)
        await sftp.write(handle, 0, b"x" * 3_000_000)
        assert not node.has("close")
        await sftp.close_handle(handle)
        assert node.has("close")
    run(node, test)
    assert node.content("close") == b"x" * 3_000_000


@pytest.mark.parametrize("how", ["eof", "channel", "connection", "abort"])
def test_no_other_end_publishes(node: FakeNode, how: str) -> None:
    data = os.urandom(9 * MIB + 77)
    name = f"end-{how}"

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file(name, PUT)
        await sftp.write(handle, 0, data)
        if how == "eof":
            sftp.stdin.write_eof()
            await sftp.channel.wait_closed()
            assert sftp.channel.get_exit_status() == 0
        elif how == "channel":
            sftp.channel.close()
        elif how == "connection":
            sftp.connection.close()
        else:
            sftp.connection.abort()
    ended = len(node.ended)
    run(node, test)
    wait_for("the session's end", lambda: len(node.ended) > ended)
    assert not node.has(name)
    # What was acknowledged is kept whole when the worker lives.
    assert node.bytes_of(node.partials["anna", key_of(name)]) == data
    upload = node.ops("fs.begin")[-1]
    assert upload["path"] == [name.encode()]
    assert node.ops("fs.end")[-1]["keep"] is True


def test_requests_before_an_eof_are_done(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("eof-late", PUT)
        sftp.send_write(handle, 0, b"all of it")
        sftp.send(p.CLOSE, s(handle))
        sftp.stdin.write_eof()
        await sftp.channel.wait_closed()
    run(node, test)
    assert node.content("eof-late") == b"all of it"


def test_a_lost_connection_during_close_does_not_undo_it(own_node: FakeNode) -> None:
    own_node.gate("fs.publish")

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("mid", PUT)
        await sftp.write(handle, 0, b"data")
        sftp.send(p.CLOSE, s(handle))
        while not own_node.ops("fs.publish"):
            await asyncio.sleep(0.001)
        sftp.connection.abort()
    run(own_node, test)
    assert not own_node.has("mid")
    own_node.open_gate("fs.publish")
    wait_for("the end", lambda: own_node.ended)
    assert own_node.content("mid") == b"data"


def test_close_waits_for_every_copy(own_node: FakeNode) -> None:
    own_node.gate("chunk.put")

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("slow", PUT)
        await sftp.write(handle, 0, b"data" * 600_000)
        number = sftp.send(p.CLOSE, s(handle))
        while len(own_node.ops("chunk.put")) < 3:
            await asyncio.sleep(0.001)
        # Everything is appended and asked for; only the acknowledgements are missing.
        assert not own_node.ops("fs.publish")
        own_node.open_gate("chunk.put")
        await sftp.answer(number)
    run(own_node, test)
    assert own_node.content("slow") == b"data" * 600_000
    order = [op for op, _ in own_node.log]
    assert order.index("fs.publish") > max(i for i, op in enumerate(order) if op == "chunk.put")


def test_a_chunk_that_cannot_be_copied_fails_the_close(own_node: FakeNode) -> None:
    own_node.trouble["chunk.put"] = ("failed", "too few members hold it")

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("few", PUT)
        await sftp.write(handle, 0, b"data")
        await expect(4, "too few members", sftp.close_handle(handle))
    run(own_node, test)
    assert not own_node.has("few") and not own_node.ops("fs.publish")
    assert own_node.ops("fs.end")[-1]["keep"] is True


@pytest.mark.parametrize(("status", "value", "says"), [
    ("no_quorum", "the cluster has lost its majority", "no quorum"),
    ("unknown", "no answer came", "outcome unknown"),
    ("rejected", {"code": "conflict", "text": "the file was changed meanwhile"}, "changed meanwhile"),
    ("rejected", {"code": "quota", "text": "the quota is used up"}, "quota"),
])
def test_a_publish_that_fails_fails_the_close(own_node: FakeNode, status: str, value: Any, says: str) -> None:
    own_node.trouble["fs.publish"] = (status, value)

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("failing", PUT)
        await sftp.write(handle, 0, b"data")
        await expect(4, says, sftp.close_handle(handle))
        await expect(4, "Invalid handle", sftp.close_handle(handle))
    run(own_node, test)
    assert own_node.ops("fs.end")[-1]["keep"] is True and len(own_node.ops("fs.publish")) == 1


def test_a_failed_checkpoint_poisons_the_handle(own_node: FakeNode) -> None:
    own_node.trouble["fs.checkpoint"] = ("no_quorum", "no majority")

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("poison", PUT)
        await sftp.write(handle, 0, b"data")
        await expect(4, "no quorum", sftp.fsync(handle))
        await expect(4, "no quorum", sftp.write(handle, 4, b"more"))
        await expect(4, "no quorum", sftp.close_handle(handle))
    run(own_node, test)
    assert not own_node.has("poison")


def test_fsync_checkpoints_and_never_publishes(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("fsync", PUT)
        await sftp.write(handle, 0, b"a" * 1_500_000)
        await sftp.fsync(handle)
        assert node.bytes_of(node.partials["anna", key_of("fsync")]) == b"a" * 1_500_000
        assert not node.has("fsync")
        await sftp.write(handle, 1_500_000, b"b" * 1_500_000)
        await sftp.close_handle(handle)
    run(node, test)
    assert node.content("fsync") == b"a" * 1_500_000 + b"b" * 1_500_000
    assert node.files["anna"][key_of("fsync")].digest, "a checkpoint in the middle does not cost the digest"


def test_checkpoints_follow_the_stream_closely(own_node: FakeNode) -> None:
    """At most 16 MiB behind: with checkpoints held back, no more than that is acknowledged."""
    own_node.gate("fs.checkpoint")

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("stream", PUT)
        piece = os.urandom(p.MAX_DATA)
        numbers = [sftp.send_write(handle, i * len(piece), piece) for i in range(120)]
        acknowledged = 0
        with pytest.raises(TimeoutError):
            for number in numbers:
                await asyncio.wait_for(sftp.answer(number), 1.0)
                acknowledged += len(piece)
        assert 8 * MIB < acknowledged <= 16 * MIB
        own_node.open_gate("fs.checkpoint")
        for number in numbers[acknowledged // len(piece):]:
            await sftp.answer(number)
        await sftp.close_handle(handle)
    run(own_node, test)
    assert len(own_node.content("stream")) == 120 * p.MAX_DATA


def test_a_slow_upload_is_checkpointed_in_time(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("trickle", PUT)
        await sftp.write(handle, 0, b"only a little")
        begun = asyncio.get_running_loop().time()
        while ("anna", key_of("trickle")) not in node.partials:
            await asyncio.sleep(0.005)
        assert asyncio.get_running_loop().time() - begun < 2.0
        await sftp.close_handle(handle)
    run(node, test)
    assert node.content("trickle") == b"only a little"


def test_an_interrupted_upload_is_continued(node: FakeNode) -> None:
    data = os.urandom(5 * MIB + 1234)
    half = 3 * MIB + 99

    async def begin(sftp: RawSftp) -> None:
        await sftp.write(await sftp.open_file("resume", PUT), 0, data[:half])
        sftp.connection.abort()

    async def go_on(sftp: RawSftp) -> None:
        size = (await sftp.stat("resume")).size
        assert size == half
        handle = await sftp.open_file("resume", RESUME | p.FXF_APPEND)
        await sftp.write(handle, size, data[size:])
        await sftp.close_handle(handle)
    ended = len(node.ended)
    run(node, begin)
    wait_for("the session's end", lambda: len(node.ended) > ended)
    run(node, go_on)
    assert node.content("resume") == data


def test_an_interrupted_overwrite_leaves_the_old_file(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("old", PUT)
        await sftp.write(handle, 0, b"old")
        await sftp.close_handle(handle)
        handle = await sftp.open_file("old", PUT)
        await sftp.write(handle, 0, b"n" * 10_000_000)
        sftp.connection.abort()
    ended = len(node.ended)
    run(node, test)
    wait_for("the session's end", lambda: len(node.ended) > ended)
    assert node.content("old") == b"old" and ("anna", key_of("old")) not in node.partials


def test_the_writing_session_sees_its_own_bytes_and_nobody_else_does(node: FakeNode) -> None:
    data = os.urandom(2 * MIB + 500)

    async def test(sftp: RawSftp) -> None:
        other = await RawSftp.open(node)
        handle = await sftp.open_file("own", RW_CREAT | p.FXF_TRUNC)
        await sftp.write(handle, 0, data)
        assert (await sftp.stat("own")).size == len(data)
        assert (await sftp.call(p.FSTAT, s(handle))).size == len(data)
        assert (await sftp.names("/"))[b"own"].size == len(data)
        assert await sftp.read(handle, MIB - 100, 200) == data[MIB - 100 : MIB + 100]
        assert await sftp.read_all("own") == data
        assert b"own" not in await other.names("/")
        await expect(2, "No such file", other.open_file("own", p.FXF_READ))
        second = await RawSftp.open(node, connection=sftp.connection)
        assert (await second.stat("own")).size == len(data), "another channel of the same session"
        await sftp.close_handle(handle)
        assert await other.read_all("own") == data
        await other.close()
    run(node, test)


def test_readers_keep_the_version_they_opened(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        for content in (b"one" * 1000, b"two" * 2000):
            handle = await sftp.open_file("pinned", PUT)
            await sftp.write(handle, 0, content)
            if content.startswith(b"two"):
                other = await RawSftp.open(node)
                reading = await other.open_file("pinned", p.FXF_READ)
                assert (await sftp.stat("pinned")).size == 6000
                assert (await other.stat("pinned")).size == 3000
            await sftp.close_handle(handle)
        assert await other.read(reading, 0, 9000) == b"one" * 1000
        assert (await other.call(p.FSTAT, s(reading))).size == 3000
        await other.close_handle(reading)
        assert await other.read_all("pinned") == b"two" * 2000
        await other.close()

    def told() -> list[Any]:
        return [args for op, args in node.notes if op == "read.end"]
    before = len(told())
    run(node, test)
    wait_for("both ends", lambda: len(told()) == before + 2)
    ends = told()
    assert ends[-2]["bytes"] == 3000 and ends[-1]["bytes"] == 6000 and all(end["ok"] for end in ends)


def test_an_open_that_writes_nothing(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.close_handle(await sftp.open_file("touched", RESUME))
        assert node.content("touched") == b""
        handle = await sftp.open_file("touched", PUT)
        await sftp.write(handle, 0, b"something")
        await sftp.close_handle(handle)
        published = len(node.ops("fs.publish"))
        await sftp.close_handle(await sftp.open_file("touched", RESUME))
        assert len(node.ops("fs.publish")) == published, "an unchanged file is not published again"
        await sftp.close_handle(await sftp.open_file("touched", PUT))
        assert node.content("touched") == b""
        await expect(4, "exists", sftp.open_file("touched", PUT | p.FXF_EXCL))
    run(node, test)


def test_append_goes_to_the_end_of_a_published_file(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("log", PUT)
        await sftp.write(handle, 0, b"first ")
        await sftp.close_handle(handle)
        handle = await sftp.open_file("log", p.FXF_WRITE | p.FXF_APPEND)
        await sftp.write(handle, 0, b"second ")
        await sftp.write(handle, 0, b"third")
        await sftp.close_handle(handle)
    run(node, test)
    assert node.content("log") == b"first second third"


def test_remove_and_rename_of_what_is_being_written(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.call(p.MKDIR, s("rn"), b"\0\0\0\0")
        handle = await sftp.open_file("rn/a", PUT)
        await sftp.write(handle, 0, b"data")
        await sftp.rename("rn/a", "rn/b")
        assert list(await sftp.names("rn")) == [b"b"]
        await sftp.rename("rn", "moved")
        assert (await sftp.stat("moved/b")).size == 4
        await sftp.call(p.REMOVE, s("moved/b"))
        await expect(2, "No such file", sftp.stat("moved/b"))
        await sftp.write(handle, 4, b"more")
        await expect(2, "No such file", sftp.close_handle(handle))
    run(node, test)
    assert not node.has("moved/b") and not node.has("rn/a")


def test_own_bytes_can_be_read_when_the_upload_has_failed(node: FakeNode) -> None:
    """Until the reading handle is closed, and never as zeros."""
    data = os.urandom(MIB + 1000)

    async def test(sftp: RawSftp) -> None:
        writing = await sftp.open_file("gone", PUT)
        await sftp.write(writing, 0, data)
        reading = await sftp.open_file("gone", p.FXF_READ)
        await sftp.remove("gone")
        await expect(2, "No such file", sftp.close_handle(writing))
        assert await sftp.read(reading, MIB - 10, 2000) == data[MIB - 10:]
        # Others need its memory: what is left of it goes to the store.
        other = await sftp.open_file("other", PUT)
        for number in range(40):
            await sftp.write(other, 2 * number * MIB, b"x")
        assert await sftp.read(reading, MIB - 10, 2000) == data[MIB - 10:]
        await sftp.close_handle(reading)
        await sftp.close_handle(other)
    run(node, test)
    assert node.content("other")[:: 2 * MIB] == b"x" * 40


def test_bytes_that_a_failed_upload_lost_are_not_read_as_zeros(own_node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        writing = await sftp.open_file("lost", PUT)
        reading = await sftp.open_file("lost", p.FXF_READ)
        await sftp.write(writing, 0, b"some bytes")
        (upload,) = own_node.uploads
        await asyncio.to_thread(own_node.ask, "upload.revoked", {"upload": upload})
        await expect(4, "taken over", sftp.write(writing, 10, b"more"))
        assert await sftp.read(reading, 0, 99) == b"some bytes", "they are still here"
        other = await sftp.open_file("other", PUT)
        for number in range(40):  # the memory is wanted
            await sftp.write(other, 2 * number * MIB, b"x")
        await expect(4, "taken over", sftp.read(reading, 0, 99))
        await expect(4, "taken over", sftp.close_handle(writing))
        await sftp.close_handle(other)
    run(own_node, test)


def test_sizes_are_set(node: FakeNode) -> None:
    data = os.urandom(2 * MIB + 100)

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("cut", PUT)
        await sftp.write(handle, 0, data)
        await sftp.fsetstat(handle, FileAttrs(size=MIB + 10))
        await sftp.close_handle(handle)
        assert node.content("cut") == data[: MIB + 10]
        await sftp.setstat("cut", FileAttrs(size=500))
        assert node.content("cut") == data[:500]
        await sftp.setstat("cut", FileAttrs(size=MIB + 500))
        assert node.content("cut") == data[:500] + bytes(MIB)
        await sftp.setstat("cut", FileAttrs(mode=0o600, atime=5, mtime=6))
        await expect(2, "No such file", sftp.setstat("nothing", FileAttrs(size=5)))
        await expect(4, "too large", sftp.setstat("cut", FileAttrs(size=1 << 62)))
    run(node, test)
    file = node.files["anna"][key_of("cut")]
    assert file.mode == 0o600 and file.times == (5, 6)


def test_attributes_of_an_open_upload_are_published_with_it(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("attrs", PUT, FileAttrs(mode=0o600))
        await sftp.fsetstat(handle, FileAttrs(mode=0o640, atime=7, mtime=8))
        assert (await sftp.stat("attrs")).mtime == 8
        await expect(3, "Permission denied", sftp.fsetstat(handle, FileAttrs(uid=0, gid=0)))
        await sftp.close_handle(handle)
    run(node, test)
    file = node.files["anna"][key_of("attrs")]
    assert file.mode == 0o640 and file.times == (7, 8)


@pytest.mark.slow
def test_a_large_file_has_index_chunks_and_can_be_continued(own_node: FakeNode) -> None:
    """Over 64 chunks: index chunks, at checkpoints and when published; a copy-on-write view of it works too."""
    data = os.urandom(66 * MIB + 5)

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("large", PUT)
        await sftp.write(handle, 0, data[:-MIB])
        await sftp.fsync(handle)
        assert own_node.partials["anna", key_of("large")].depth == 2
        sftp.connection.abort()

    async def go_on(sftp: RawSftp) -> None:
        handle = await sftp.open_file("large", RESUME)
        await sftp.write(handle, len(data) - MIB, data[-MIB:])
        await sftp.close_handle(handle)
        assert await sftp.read_all("large") == data
        handle = await sftp.open_file("large", p.FXF_WRITE)
        await sftp.write(handle, 40 * MIB - 2, b"HERE")
        await sftp.close_handle(handle)
    run(own_node, test)
    wait_for("the end", lambda: own_node.ended)
    run(own_node, go_on)
    changed = data[: 40 * MIB - 2] + b"HERE" + data[40 * MIB + 2 :]
    assert own_node.files["anna"][key_of("large")].manifest.depth == 1  # type: ignore[union-attr]
    assert own_node.content("large") == changed
    assert any(args["index"] for args in own_node.ops("chunk.put"))


def test_an_upload_that_was_taken_over_fails_at_once_and_is_seen_no_more(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("taken", PUT)
        await sftp.write(handle, 0, b"x" * 100)
        await sftp.fsync(handle)
        (number,) = [number for number, about in node.uploads.items() if about["key"] == (b"taken",)]
        await asyncio.to_thread(node.ask, "upload.revoked", {"upload": number})
        await expect(4, "taken over", sftp.write(handle, 100, b"late"))
        node.partials["anna", (b"taken",)] = EMPTY
        assert (await sftp.stat("taken")).size == 0, "as everybody else sees it"
        await expect(4, "taken over", sftp.close_handle(handle))
        await asyncio.to_thread(node.ask, "upload.revoked", {"upload": 999_999})
    run(node, test)
    assert not node.has("taken")


def test_a_prefix_that_ends_inside_a_longer_chunk_does_not_shrink(node: FakeNode) -> None:
    data = os.urandom(2 * MIB)

    def kept() -> bytes:
        return node.bytes_of(node.partials["anna", (b"gap",)])

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("gap", PUT)
        await sftp.write(handle, 0, data[: MIB + 100])
        await sftp.fsync(handle)
        await sftp.write(handle, MIB + 500, data[MIB + 500 : MIB + 900])
        await sftp.fsync(handle)
        assert kept() == data[: MIB + 100]
        await sftp.write(handle, 50, b"changed")
        await sftp.fsync(handle)
        assert kept() == data[:50] + b"changed" + data[57 : MIB + 100]
        await sftp.write(handle, MIB + 100, data[MIB + 100 : MIB + 500])
        await sftp.fsync(handle)
        assert kept() == data[:50] + b"changed" + data[57 : MIB + 900]
        await sftp.close_handle(handle)
    run(node, test)
    assert node.content("gap") == data[:50] + b"changed" + data[57 : MIB + 900]
