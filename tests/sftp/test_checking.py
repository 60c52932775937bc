"""check-file: digests of files and parts of them, as paramiko and WinSCP ask, beside the session's other requests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
import pytest
from blake3 import blake3

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from raftmft.sftp.checking import ALGORITHMS, LEAST_BLOCK, MOST_REPLY
from raftmft.sftp.engine import MOST_ASIDE
from raftmft.sftp.extended import OFFERED
from tests.sftp.fake_node import FakeNode, wait_for
from tests.sftp.raw_client import PUT, RW_CREAT, RawSftp, s
from tests.sftp.test_uploads import expect, run

MIB = CHUNK_SIZE
DATA = os.urandom(3 * MIB + 12_345)


def fields(algorithms: str, offset: int = 0, length: int = 0, block: int = 0) -> tuple[bytes, bytes]:
    return s(algorithms), struct.pack(">QQI", offset, length, block)


async def check(sftp: RawSftp, where: str | bytes, algorithms: str, *parts: int) -> tuple[str, bytes]:
    """By name for a str, else by handle, in the draft's form, which WinSCP reads."""
    name = "check-file-name" if isinstance(where, str) else "check-file-handle"
    return parsed(await sftp.extended(name, s(where), *fields(algorithms, *parts)))


def parsed(body: bytes) -> tuple[str, bytes]:
    (length,) = struct.unpack_from(">I", body)
    return body[4 : 4 + length].decode(), body[4 + length :]


@pytest.fixture(scope="module", autouse=True)
def file(node: FakeNode) -> None:
    """`data` is there, with the digest that an upload in order gives."""
    async def test(sftp: RawSftp) -> None:
        await sftp.put("data", DATA)
        await sftp.put("empty", b"")
    run(node, test)


@pytest.fixture
def paramiko_sftp(node: FakeNode) -> Iterator[paramiko.SFTPClient]:
    client = paramiko.SSHClient()
    client.load_host_keys(str(node.known_hosts))
    client.connect("127.0.0.1", node.port, "anna", "anna-secret", allow_agent=False, look_for_keys=False)
    yield client.open_sftp()
    client.close()


def plain(algorithm: str) -> Callable[[bytes], Any]:
    return blake3 if algorithm == "blake3" else getattr(hashlib, algorithm)


# --- clients -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_paramikos_check(paramiko_sftp: paramiko.SFTPClient, algorithm: str) -> None:
    digest = plain(algorithm)
    with paramiko_sftp.open("data") as file:
        assert file.check(algorithm) == digest(DATA).digest()
        assert file.check(algorithm, MIB - 5, 10) == digest(DATA[MIB - 5 : MIB + 5]).digest()
        assert file.check(algorithm, 100, 2 * MIB, 700_000) == b"".join(
            digest(DATA[at : min(at + 700_000, 100 + 2 * MIB)]).digest() for at in range(100, 100 + 2 * MIB, 700_000))
        assert file.read() == DATA
        with pytest.raises(OSError, match="known here"):
            file.check("crc32")


def test_winscps_request_and_what_is_announced(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        for name, names in OFFERED:
            if name.startswith(b"check-file"):
                assert names.decode().split(",") == list(ALGORITHMS) and s(name) + s(names) in sftp.extensions
        assert await check(sftp, "data", "sha256") == ("sha256", hashlib.sha256(DATA).digest())
        assert await check(sftp, "/data", "sha512,crc32,md5,sha1") == ("md5", hashlib.md5(DATA).digest())
    run(node, test)


# --- ranges and blocks -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("offset", "length", "block"), [
    (0, 0, 0), (0, 0, LEAST_BLOCK * 4), (1, 0, 65536), (0, 1, 0), (MIB, MIB, MIB), (MIB - 1, 2, 256), (5, 1000, 257),
    (0, len(DATA), len(DATA)), (0, 1 << 60, 0), (len(DATA) - 1, 0, 0), (len(DATA), 0, 0), (len(DATA), 5, 256),
    (2 * MIB, 0, 2 * MIB), (0, 0, (1 << 32) - 1), (0, 512, 256), (0, 0, 256)])
def test_ranges_and_blocks(node: FakeNode, offset: int, length: int, block: int) -> None:
    part = DATA[offset : offset + length] if length else DATA[offset:]
    blocks = [part[at : at + block] for at in range(0, len(part), block)] if block else [part]

    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("data", p.FXF_READ)
        expected = b"".join(hashlib.sha256(each).digest() for each in blocks)
        if len(expected) > MOST_REPLY:
            await expect(4, "larger blocks", check(sftp, handle, "sha256", offset, length, block))
        else:
            assert await check(sftp, handle, "sha256", offset, length, block) == ("sha256", expected)
    run(node, test)


def test_of_an_empty_file(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        for algorithm in ALGORITHMS:
            assert await check(sftp, "empty", algorithm) == (algorithm, plain(algorithm)(b"").digest())
            assert await check(sftp, "empty", algorithm, 0, 0, 256) == (algorithm, b"")
    run(node, test)


def test_what_cannot_be_asked_is_said_in_a_line(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        writing, directory = await sftp.open_file("writing", PUT), await sftp.call(p.OPENDIR, s("/"))
        await expect(4, "beyond the end", check(sftp, "data", "md5", len(DATA) + 1))
        await expect(4, "at least 256", check(sftp, "data", "md5", 0, 0, 255))
        await expect(4, "md5, sha1, sha256, blake3", check(sftp, "data", "sha3-256,\xff,"))
        await expect(4, "known here", check(sftp, "data", ""))
        await expect(2, "No such file", check(sftp, "missing", "md5"))
        await expect(4, "refused", check(sftp, "/", "md5"))
        await expect(4, "Invalid handle", check(sftp, b"nothing", "md5"))
        await expect(4, "not open to read", check(sftp, directory, "md5"))
        await expect(4, "not open to read", check(sftp, writing, "md5"))
        await expect(5, "Bad message", sftp.extended("check-file-name", s("data"), s("md5"), b"short"))
    run(node, test)


# --- own bytes, audit, what is known -----------------------------------------------------------------------------
def test_own_unpublished_bytes_are_checked_and_nobody_elses(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("own", RW_CREAT)
        await sftp.write(handle, 0, DATA)
        await sftp.write(handle, MIB + 7, b"changed")
        own = DATA[: MIB + 7] + b"changed" + DATA[MIB + 14 :]
        for where in (handle, "own"):
            assert await check(sftp, where, "sha256") == ("sha256", hashlib.sha256(own).digest())
            assert await check(sftp, where, "md5", MIB, 20) == ("md5", hashlib.md5(own[MIB : MIB + 20]).digest())
        other = await RawSftp.open(node)
        await expect(2, "No such file", check(other, "own", "sha256"))
        await other.close()
        await sftp.fsetstat(handle, FileAttrs(size=5 * MIB))
        assert (await check(sftp, handle, "sha1"))[1] == hashlib.sha1(own.ljust(5 * MIB, b"\0")).digest()
    run(node, test)


def test_a_check_by_name_is_an_open_to_read_that_ends(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        opens, ends = len(node.ops("fs.open")), _ends(node)
        await check(sftp, "data", "sha1", 1)
        await expect(4, "at least", check(sftp, "data", "sha1", 0, 0, 1))
        assert [args["path"] for args in node.ops("fs.open")[opens:]] == [[b"data"]] * 2
        await asyncio.to_thread(wait_for, "both ends", lambda: _ends(node) == ends + 2)
    run(node, test)


def test_the_published_digest_and_what_was_computed_are_told_without_reading(own_node: FakeNode) -> None:
    node = own_node

    async def test(sftp: RawSftp) -> None:
        await sftp.put("data", DATA)
        file = node.files["anna"][b"data",]
        assert (await check(sftp, "data", "md5"))[1] == hashlib.md5(DATA).digest()
        (told,) = await asyncio.to_thread(
            wait_for, "the digest", lambda: [args for op, args in node.notes if op == "digest.told"])
        assert told == {"session": told["session"], "file": file.id, "version": file.version, "algorithm": "md5",
                        "digest": hashlib.md5(DATA).hexdigest()}
        node.digests[file.id, file.version] = {"md5": told["digest"]}
        node.places.clear()  # nothing can be read from now on
        handle = await sftp.open_file("data", p.FXF_READ)
        for block in (0, len(DATA)):
            assert (await check(sftp, handle, "md5", 0, 0, block))[1] == hashlib.md5(DATA).digest()
            assert (await check(sftp, "data", "blake3", 0, len(DATA), block))[1] == blake3(DATA).digest()
        for parts in ((1,), (0, len(DATA) - 1), (0, 0, MIB)):
            await expect(4, "cannot be found", check(sftp, "data", "blake3", *parts))
        await expect(4, "cannot be found", check(sftp, handle, "sha256"))
    run(node, test)


# --- beside others -----------------------------------------------------------------------------------------------
def test_others_are_served_meanwhile_and_a_bounded_number_is_under_way(own_node: FakeNode) -> None:
    node = own_node

    async def test(sftp: RawSftp) -> None:
        await sftp.put("data", DATA)
        handle = await sftp.open_file("data", p.FXF_READ)
        node.gate("chunk.locate")
        checks = [sftp.send(p.EXTENDED, s("check-file-handle"), s(handle), *fields("md5", number))
                  for number in range(MOST_ASIDE)]
        assert (await sftp.stat("data")).size == len(DATA)
        await sftp.put("small", b"x")
        await sftp.close_handle(handle)
        assert not _ends(node), "the version stays open for the checks"
        more = [sftp.send(p.EXTENDED, s("check-file-name"), s("data"), *fields("sha1")),
                sftp.send(p.STAT, s("data"))]
        stats = len(node.ops("fs.stat"))
        await asyncio.to_thread(wait_for, "the checks", lambda: len(node.ops("chunk.locate")) >= MOST_ASIDE)
        assert len(node.ops("fs.stat")) == stats, "one more waits, and what comes behind it"
        node.open_gate("chunk.locate")
        answers = [await _any(sftp) for _ in range(MOST_ASIDE + 2)]
        assert sorted(number for number, _ in answers) == [*checks, *more]
        found = dict(answers)
        for number, sent in enumerate(checks):
            assert parsed(found[sent])[1] == hashlib.md5(DATA[number:]).digest()
        await asyncio.to_thread(wait_for, "the ends", lambda: _ends(node) == 2)
    run(node, test)


@pytest.mark.parametrize("how", ["lost", "eof"])
def test_a_check_ends_with_its_session(own_node: FakeNode, how: str) -> None:
    node = own_node

    async def test(sftp: RawSftp) -> None:
        await sftp.put("data", DATA)
        handle = await sftp.open_file("data", p.FXF_READ)
        node.gate("chunk.locate")
        sftp.send(p.EXTENDED, s("check-file-handle"), s(handle), *fields("md5"))
        await asyncio.to_thread(wait_for, "the check", lambda: node.ops("chunk.locate"))
        if how == "eof":
            sftp.stdin.write_eof()
        else:
            sftp.connection.abort()
        await asyncio.to_thread(wait_for, "the end of the read", lambda: _ends(node) == 1)
    run(node, test)
    wait_for("the session's end", lambda: node.ended)


def _ends(node: FakeNode) -> int:
    return sum(op == "read.end" for op, _ in node.notes)


async def _any(sftp: RawSftp) -> tuple[int, bytes]:
    _, body = await sftp._packet()
    return struct.unpack_from(">I", body)[0], body[4:]
