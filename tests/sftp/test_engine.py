"""Packets as clients really send them: pipelined, malformed, too many, to handles that do not exist."""

from __future__ import annotations

import asyncio
import os
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs, encode_attrs
from raftmft.sftp.extended import OFFERED
from raftmft.sftp.files import MOST_HANDLES
from tests.sftp.fake_node import FakeNode, rss_kib, wait_for
from tests.sftp.raw_client import PUT, RW_CREAT, RawSftp, Status, s
from tests.sftp.test_uploads import expect, run

MIB = 1 << 20


def test_the_extensions_that_are_announced(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        for name, version in OFFERED:
            assert s(name) + s(version) in sftp.extensions
        limits = await sftp.call(p.EXTENDED, s("limits@openssh.com"))
        assert struct.unpack(">QQQQ", limits) == (256 << 10, 261120, 261120, MOST_HANDLES)
        await expect(8, "unsupported", sftp.call(p.EXTENDED, s("no-such@extension"), s("/")))
        await expect(8, "unsupported", sftp.call(77))
    run(node, test)


def test_malformed_requests_are_answered_in_turn(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        good = [sftp.send(p.STAT, s("/"))]
        bad = [sftp.send(p.STAT, b"\0\0\0\xffshort"), sftp.send(p.WRITE, s(b"h"), b"\0"), sftp.send(p.OPEN)]
        good.append(sftp.send(p.STAT, s("/")))
        await sftp.answer(good[0])
        for number in bad:
            await expect(5, "Bad message", sftp.answer(number))
        await sftp.answer(good[1])
        await expect(4, "NUL", sftp.stat("a\0b"))
        await expect(4, "name too long", sftp.stat("n" * 256))
    run(node, test)


@pytest.mark.parametrize("junk", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x02xx"])
def test_a_stream_that_cannot_be_cut_ends_the_session(node: FakeNode, junk: bytes) -> None:
    async def test(sftp: RawSftp) -> None:
        sftp.stdin.write(junk)
        await sftp.channel.wait_closed()
        assert sftp.channel.get_exit_status() == 1
    run(node, test)


def test_the_dots_come_first_and_say_what_stat_says(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.call(p.MKDIR, s("deep"), encode_attrs(FileAttrs(mode=0o700)))
        await sftp.call(p.MKDIR, s("deep/er"), encode_attrs(FileAttrs(mode=0o750)))
        handle = await sftp.call(p.OPENDIR, s("deep/er"))
        dots = await sftp.call(p.READDIR, s(handle))
        assert dict(dots) == {b".": await sftp.stat("deep/er"), b"..": await sftp.stat("deep")}
        await expect(1, "", sftp.call(p.READDIR, s(handle)))
    run(node, test)


def test_handles_belong_to_their_channel(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("theirs", RW_CREAT)
        other = await RawSftp.open(node, connection=sftp.connection)
        for call in (other.read(handle, 0, 1), other.close_handle(handle), other.call(p.FSTAT, s(handle)),
                     other.call(p.READDIR, s(handle))):
            await expect(4, "nvalid handle", call)
        await expect(4, "not open to write", other.write(handle, 0, b"x"))
        await expect(4, "a file's", sftp.call(p.READDIR, s(handle)))
        directory = await sftp.call(p.OPENDIR, s("/"))
        await expect(4, "not open to read", sftp.read(directory, 0, 1))
        await sftp.close_handle(handle)
        await expect(4, "Invalid handle", sftp.close_handle(handle))
    run(node, test)


def test_open_handles_are_bounded(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handles = [await sftp.call(p.OPENDIR, s("/")) for _ in range(MOST_HANDLES)]
        await expect(4, "at most", sftp.call(p.OPENDIR, s("/")))
        await sftp.close_handle(handles[0])
        await sftp.close_handle(await sftp.call(p.OPENDIR, s("/")))
    run(node, test)


def test_opendir_tells_at_once_what_is_wrong(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.close_handle(await sftp.open_file("plain", PUT))
        await expect(2, "No such file", sftp.call(p.OPENDIR, s("nowhere")))
        await expect(2, "No such file", sftp.call(p.OPENDIR, s("plain")))
        assert (await sftp.stat("/")).mode == 0o040755
        assert list(await sftp.call(p.REALPATH, s("a/../b/."))) == [b"/b"]
    run(node, test)


def test_pipelined_requests_are_done_in_order(node: FakeNode) -> None:
    """Sent before any answer is read; each answer fits the state that the ones before it made."""
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("pipe", RW_CREAT)
        sent = []
        for i in range(300):
            sent.append((sftp.send_write(handle, i * 100, bytes([i % 256]) * 100), None))
            sent.append((sftp.send(p.READ, s(handle), struct.pack(">QI", i * 100, 1000)), bytes([i % 256]) * 100))
            sent.append((sftp.send(p.STAT, s("pipe")), (i + 1) * 100))
        closing = sftp.send(p.CLOSE, s(handle))
        stat = sftp.send(p.STAT, s("pipe"))
        for number, wanted in sent:
            answer = await sftp.answer(number)
            assert wanted in (None, answer, getattr(answer, "size", None))
        await sftp.answer(closing)
        assert (await sftp.answer(stat)).size == 30000
    run(node, test)


def test_writes_at_any_offset_make_the_file_they_should(node: FakeNode) -> None:
    """Random writes, reads, sizes and reopenings of three files at once against a model in memory."""
    async def test(sftp: RawSftp) -> None:
        rng = random.Random(7)
        models = {name: bytearray() for name in ("r0", "r1", "r2")}
        handles = {name: await sftp.open_file(name, RW_CREAT) for name in models}
        for _ in range(250):
            name = rng.choice(list(models))
            model, handle = models[name], handles[name]
            kind = rng.random()
            if kind < 0.6:
                offset = rng.choice([len(model), rng.randrange(6 * MIB), MIB * rng.randrange(6) - 50])
                offset = max(0, offset)
                data = rng.randbytes(rng.choice([1, 100, 70_000, 261120]))
                await sftp.write(handle, offset, data)
                model += bytes(max(0, offset - len(model)))
                model[offset : offset + len(data)] = data
            elif kind < 0.8 and model:
                offset = rng.randrange(len(model))
                assert await sftp.read(handle, offset, 261120) == model[offset : offset + 261120]
            elif kind < 0.87:
                size = rng.randrange(6 * MIB)
                await sftp.fsetstat(handle, p.FileAttrs(size=size))
                del model[size:]
                model += bytes(size - len(model))
            elif kind < 0.92:
                await sftp.fsync(handle)
            elif kind < 0.97:
                await sftp.close_handle(handle)
                assert node.content(name) == model
                handles[name] = await sftp.open_file(name, RW_CREAT)
        for name, handle in handles.items():
            await sftp.close_handle(handle)
            assert node.content(name) == models[name]
    run(node, test)


def test_many_open_uploads_stay_within_the_memory_of_one_session(node: FakeNode) -> None:
    """60 files, each with an unfinished MiB: 16 lie in memory, the others were stored, and all end whole."""
    async def test(sftp: RawSftp) -> None:
        before = rss_kib(node.process.pid)
        handles = [await sftp.open_file(f"open{i}", PUT) for i in range(60)]
        pieces = [os.urandom(200_000) for _ in range(5)]
        for piece in range(5):
            for handle in handles:
                await sftp.write(handle, piece * 200_000, pieces[piece])
        assert rss_kib(node.process.pid) - before < 45 * 1024
        for handle in handles:
            await sftp.close_handle(handle)
        assert node.content("open0") == node.content("open59") == b"".join(pieces)
    run(node, test)


def test_a_sparse_file_is_stored_as_one_chunk_of_zeros(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("sparse", PUT)
        before = len(node.ops("chunk.put"))
        await sftp.write(handle, 30 * MIB, b"end")
        await sftp.close_handle(handle)
        assert len(node.ops("chunk.put")) - before == 2
        assert node.content("sparse") == bytes(30 * MIB) + b"end"
        handle = await sftp.open_file("sparse", PUT)
        await expect(4, "too large", sftp.write(handle, 1 << 62, b"x"))
        await sftp.close_handle(handle)
    run(node, test)


def test_a_client_that_does_not_read_stops_being_served(own_node: FakeNode) -> None:
    """Thousands of READs of 255 KiB without reading: what the worker keeps for it is bounded."""
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("much", PUT)
        await sftp.write(handle, 0, os.urandom(3 * MIB))
        await sftp.close_handle(handle)
        handle = await sftp.open_file("much", p.FXF_READ)
        before = rss_kib(own_node.process.pid)
        sftp.connection._transport.pause_reading()
        for _ in range(4000):
            sftp.send(p.READ, s(handle), struct.pack(">QI", 0, p.MAX_DATA))
        for _ in range(50):
            await asyncio.sleep(0.01)
        assert rss_kib(own_node.process.pid) - before < 40 * 1024
        other = await RawSftp.open(own_node)
        assert (await other.stat("much")).size == 3 * MIB, "others are served"
        await other.close()
        sftp.connection.abort()
    run(own_node, test)
    wait_for("both ends", lambda: len(own_node.ended) == 2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([3, 4, 5, 6, 8, 9, 10, 12, 17, 200, 99]), st.binary(max_size=60)),
                max_size=30))
def test_no_bytes_break_a_worker(node: FakeNode, packets: list[tuple[int, bytes]]) -> None:
    async def test(sftp: RawSftp) -> None:
        numbers = [sftp.send(kind, body) for kind, body in packets]
        for number in numbers:
            try:
                await sftp.answer(number)
            except Status as status:
                assert status.code in (2, 4, 5, 8) and "internal" not in status.text, status
    run(node, test)
    assert node.process.poll() is None
