"""Extensions as packets: what each answers, what copy-data moves and what it shares, links."""

from __future__ import annotations

import asyncio
import os
import struct

import blake3
import pytest

from raftmft.core.manifest import IDS_PER_INDEX
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from tests.sftp.fake_node import FakeNode, wait_for
from tests.sftp.raw_client import PUT, RW_CREAT, RawSftp, s
from tests.sftp.test_uploads import expect, run

MIB = 1 << 20
APPEND = p.FXF_WRITE | p.FXF_APPEND | p.FXF_CREAT


def ids(*numbers: int) -> bytes:
    return s(struct.pack(f">{len(numbers)}I", *numbers))


# --- answers -----------------------------------------------------------------------------------------------------
def test_statvfs_tells_what_the_node_says_in_blocks(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        handle = await sftp.open_file("vfs", PUT)
        for body in (await sftp.extended("statvfs@openssh.com", s("/")),
                     await sftp.extended("statvfs@openssh.com", s("vfs")),
                     await sftp.extended("fstatvfs@openssh.com", s(handle))):
            _, frsize, blocks, free, available, files, free_files, _, _, flags, longest = struct.unpack(">11Q", body)
            assert (frsize, blocks, free, available, files - free_files, flags, longest) == (1024, 98, 2, 2, 5, 3, 255)
        await expect(2, "No such file", sftp.extended("statvfs@openssh.com", s("missing")))
        await expect(4, "Invalid handle", sftp.extended("fstatvfs@openssh.com", s("x")))
    run(node, test)


def test_names_are_told_of_the_own_user_only(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        reply = await sftp.extended("users-groups-by-id@openssh.com", ids(1000, 0, 1000), ids(7, 1000))
        assert reply == s(s("anna") + s("") + s("anna")) + s(s("") + s("anna"))
        assert await sftp.extended("users-groups-by-id@openssh.com", ids(), ids()) == s("") + s("")
        await expect(4, "1024", sftp.extended("users-groups-by-id@openssh.com", ids(*range(1025)), ids()))
        await expect(5, "Bad message", sftp.extended("users-groups-by-id@openssh.com", s("abc"), ids()))
        for user in ("", "anna"):
            assert list(await sftp.extended("home-directory", s(user))) == [b"/"]
        await expect(4, "no such user", sftp.extended("home-directory", s("bert")))
    run(node, test)


@pytest.mark.parametrize(("path", "expected"), [
    ("~", b"/"), ("~/a/../b", b"/b"), ("~anna", b"/"), ("~anna/x", b"/x"), ("a", b"/a"), ("/a/./b/..", b"/a"),
    ("a~", b"/a~"), ("~/../..", b"/")])
def test_expand_path(node: FakeNode, path: str, expected: bytes) -> None:
    async def test(sftp: RawSftp) -> None:
        assert list(await sftp.extended("expand-path@openssh.com", s(path))) == [expected]
        await expect(2, "No such file", sftp.extended("expand-path@openssh.com", s("~bert/x")))
    run(node, test)


# --- links -------------------------------------------------------------------------------------------------------
def test_symlinks_in_opensshs_order(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.put("real", b"12345")
        await sftp.symlink("real", "link")
        assert await sftp.readlink("link") == b"real"
        assert (await sftp.stat("link")).size == 5
        attrs = await sftp.lstat("link")
        assert attrs.size == 4 and attrs.mode == 0o120777
        assert await sftp.realpath("link") == b"/real"
        assert await sftp.read_all("link") == b"12345"
        await expect(4, "not a symbolic link", sftp.readlink("real"))
        await expect(2, "No such file", sftp.readlink("missing"))
        await expect(4, "exists", sftp.symlink("x", "link"))
        await sftp.hardlink("real", "hard")
        assert await sftp.read_all("hard") == b"12345"
        await sftp.extended("lsetstat@openssh.com", s("link"), struct.pack(">III", 8, 1, 2))
        assert node.ops("fs.setstat")[-1]["follow"] is False
        await expect(5, "Bad message", sftp.extended("lsetstat@openssh.com", s("link"), struct.pack(">IQ", 1, 2)))
    run(node, test)


def test_the_writing_session_sees_its_bytes_through_a_link_too(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.symlink("written", "alias")
        handle = await sftp.open_file("alias", PUT)
        await sftp.write(handle, 0, b"unpublished")
        for name in ("alias", "written"):
            assert (await sftp.stat(name)).size == 11
            assert await sftp.read_all(name) == b"unpublished"
        await sftp.setstat("alias", FileAttrs(size=2))
        await sftp.close_handle(handle)
    run(node, test)
    assert node.content("written") == b"un" and not node.has("alias2")


# --- copy-data ---------------------------------------------------------------------------------------------------
DATA = os.urandom(3 * MIB + 777)


@pytest.fixture
def source(node: FakeNode) -> bytes:
    """A file of DATA, put once for the module."""
    if not node.has("source"):
        run(node, lambda sftp: sftp.put("source", DATA))
    return DATA


def copied(node: FakeNode, before: bytes, offset: int, length: int, to: int, flags: int = RW_CREAT) -> int:
    """Copies into a new file that has `before`; checks its content; gives how many chunks were stored for it."""
    async def test(sftp: RawSftp) -> int:
        read, write = await sftp.open_file("source", p.FXF_READ), await sftp.open_file("copy", flags)
        await sftp.write(write, 0, before)
        await sftp.fsync(write)
        count = len(node.ops("chunk.put"))
        await sftp.copy(read, write, offset, length, to)
        await sftp.close_handle(read)
        await sftp.close_handle(write)
        return len(node.ops("chunk.put")) - count
    if node.has("copy"):
        run(node, lambda sftp: sftp.remove("copy"))
    puts = run(node, test)
    piece = DATA[offset:] if not length else DATA[offset : offset + length]
    whole = before.ljust(to, b"\0")
    assert node.content("copy") == whole[:to] + piece + whole[to + len(piece):]
    return int(puts)


def test_a_whole_file_moves_no_bytes_and_keeps_its_digest(node: FakeNode, source: bytes) -> None:
    assert copied(node, b"", 0, 0, 0) == 0
    assert node.files["anna"][b"copy",].digest == blake3.blake3(DATA).hexdigest()
    asked = node.ops("fs.copy")[-1]
    assert (asked["bytes"], asked["size"]) == (len(DATA), len(DATA))


@pytest.mark.parametrize(("before", "offset", "length", "to", "most_puts"), [
    (0, 0, 2 * MIB, 0, 0),  # whole chunks
    (0, MIB, 0, 0, 0),  # from a chunk to the end, its short tail shared too
    (0, MIB, 0, MIB, 1),  # behind a hole
    (5 * MIB + 9, MIB, 0, 2 * MIB, 1),  # inside: the tail would be too short, so it is moved
    (5 * MIB + 9, MIB, MIB, 2 * MIB, 1),
    (0, 100, 2 * MIB, 100, 2), (0, 100, 2 * MIB + 50, MIB + 100, 4),  # only the edges move
    (0, 1, 0, 0, 4), (0, 0, MIB, 5, 2),  # nothing fits: everything moves
    (10, 3 * MIB + 700, 77, 10, 1), (10, 5, 1, 3, 1)])
def test_a_range_shares_all_chunks_that_fit(node: FakeNode, source: bytes, before: int, offset: int, length: int,
                                            to: int, most_puts: int) -> None:
    # What was not written before the copy is zeros; one put is the tail that CLOSE stores.
    assert copied(node, os.urandom(before), offset, length, to) <= most_puts


def test_large_files_are_shared_with_their_index(node: FakeNode) -> None:
    size = 66 * MIB + 5
    data = bytes(MIB) * 66 + b"12345"

    async def test(sftp: RawSftp) -> list[int]:
        writing = await sftp.open_file("large", PUT)
        await sftp.fsetstat(writing, FileAttrs(size=66 * MIB))
        await sftp.write(writing, 66 * MIB, b"12345")
        await sftp.close_handle(writing)
        read, puts = await sftp.open_file("large", p.FXF_READ), []
        for name, offset in (("all", 0), ("but-one", MIB)):
            before = len(node.ops("chunk.put"))
            write = await sftp.open_file(f"large-{name}", RW_CREAT)
            await sftp.copy(read, write, offset)
            await sftp.close_handle(write)
            puts.append(len(node.ops("chunk.put")) - before)
        return puts
    # Index chunks are shared too, and made anew only where the ids are others: for the checkpoint, and for the CLOSE.
    assert run(node, test) == [0, 2]
    assert node.files["anna"][b"large-all",].manifest == node.files["anna"][b"large",].manifest
    assert node.content("large-but-one") == data[MIB:size]


def test_within_a_file_what_is_copied_is_what_was_published(node: FakeNode, source: bytes) -> None:
    async def test(sftp: RawSftp) -> int:
        await sftp.put("within", DATA)
        read = await sftp.open_file("within", p.FXF_READ)
        write = await sftp.open_file("within", p.FXF_READ | p.FXF_WRITE)
        before = len(node.ops("chunk.put"))
        await sftp.copy(read, write, 0, 2 * MIB, MIB)  # onto itself, one chunk further
        await sftp.copy(read, write, MIB, MIB, 0)  # of what stood there before
        shared = len(node.ops("chunk.put")) - before
        await sftp.copy(read, write, 5, 100, 60)
        await sftp.close_handle(write)
        assert await sftp.read(read, MIB, 9) == DATA[MIB : MIB + 9], "who reads keeps the version"
        return shared
    assert run(node, test) == 0
    wanted = bytearray(DATA[MIB : 2 * MIB] + DATA[: 2 * MIB] + DATA[3 * MIB:])
    wanted[60:160] = DATA[5:105]
    assert node.content("within") == wanted
    assert node.files["anna"][b"within",].digest == ""


def test_a_part_of_a_huge_sparse_file_is_copied_across_the_edge_of_its_index(node: FakeNode) -> None:
    edge = IDS_PER_INDEX * MIB

    async def test(sftp: RawSftp) -> tuple[int, bytes]:
        write = await sftp.open_file("vast", PUT)
        await sftp.write(write, edge - 5, b"the edge of it")
        await sftp.fsetstat(write, FileAttrs(size=1 << 40))
        await sftp.close_handle(write)
        read, write = await sftp.open_file("vast", p.FXF_READ), await sftp.open_file("part", RW_CREAT)
        before = len(node.ops("chunk.put"))
        await sftp.copy(read, write, edge - 2 * MIB, 4 * MIB, 0)
        await sftp.copy(read, write, edge - 5, 14, 9 * MIB)
        puts = len(node.ops("chunk.put")) - before
        await sftp.close_handle(write)
        far = await sftp.open_file("far", RW_CREAT)
        await sftp.copy(read, far, edge - MIB, 2 * MIB, (1 << 40) - 2 * MIB)
        await sftp.close_handle(far)
        far = await sftp.open_file("far", p.FXF_READ)
        return puts, await sftp.read(far, (1 << 40) - MIB - 5, 14)
    puts, words = run(node, test)
    assert puts <= 1 and words == b"the edge of it", "four chunks are shared; a hole is a chunk of zeros"
    assert node.content("part") == (bytes(2 * MIB - 5) + b"the edge of it").ljust(9 * MIB, b"\0") + b"the edge of it"
    assert node.files["anna"][b"far",].manifest.size == 1 << 40


def test_a_copy_ends_with_its_session(own_node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        writing = await sftp.open_file("huge", PUT)
        await sftp.fsetstat(writing, FileAttrs(size=1 << 40))
        await sftp.close_handle(writing)
        read, write = await sftp.open_file("huge", p.FXF_READ), await sftp.open_file("copy", PUT)
        await sftp.write(write, 0, b"x")
        sftp.send(p.EXTENDED, s("copy-data"), s(read), struct.pack(">QQ", 0, 0), s(write), struct.pack(">Q", 5))
        await asyncio.to_thread(wait_for, "the copy", lambda: own_node.ops("fs.copy"))
        sftp.connection.abort()
    run(own_node, test)
    wait_for("the session's end", lambda: own_node.ended, 10)
    assert not own_node.has("copy")


def test_a_copy_is_overwritten_and_cut_like_any_content(node: FakeNode, source: bytes) -> None:
    async def test(sftp: RawSftp) -> None:
        read, write = await sftp.open_file("source", p.FXF_READ), await sftp.open_file("changed", RW_CREAT)
        await sftp.copy(read, write)
        await sftp.write(write, MIB - 2, b"edit")
        await sftp.fsetstat(write, FileAttrs(size=3 * MIB + 5))
        assert await sftp.read(write, MIB - 4, 8) == DATA[MIB - 4 : MIB - 2] + b"edit" + DATA[MIB + 2 : MIB + 4]
        await sftp.close_handle(write)
        for name, change in (("written", lambda h: sftp.write(h, 7, b"x")), ("shared", lambda h: sftp.copy(
                read, h, 0, MIB, MIB)), ("cut", lambda h: sftp.fsetstat(h, FileAttrs(size=MIB)))):
            write = await sftp.open_file(f"changed-{name}", RW_CREAT)
            await sftp.copy(read, write)
            await change(write)
            await sftp.close_handle(write)
            assert node.files["anna"][f"changed-{name}".encode(),].digest == "", name
    run(node, test)
    assert node.content("changed") == DATA[: MIB - 2] + b"edit" + DATA[MIB + 2 : 3 * MIB + 5]
    assert node.files["anna"][b"changed",].digest == "", "it is no copy any more"


def test_copies_to_the_end_beyond_it_and_of_nothing(node: FakeNode, source: bytes) -> None:
    async def test(sftp: RawSftp) -> None:
        read, write = await sftp.open_file("source", p.FXF_READ), await sftp.open_file("ends", RW_CREAT)
        await expect(1, "End of file", sftp.copy(read, write, 3 * MIB, 9999, 0))
        await expect(1, "End of file", sftp.copy(read, write, 9 * MIB, 1, 0))
        await sftp.copy(read, write, 9 * MIB, 0, 0)
        await expect(4, "itself", sftp.copy(write, write))
        await expect(4, "not open to write", sftp.copy(write, read))
        await expect(4, "Invalid handle", sftp.copy(b"none", write))
        await expect(4, "File too large", sftp.copy(read, write, 0, 0, 1 << 63))
        await sftp.write(write, 0, b"it goes on")
        only_write = await sftp.open_file("ends2", PUT)
        await expect(4, "not open to read", sftp.copy(only_write, write))
        await sftp.copy(write, only_write, 770, 7, 3)  # an own unpublished file can be a source
        await sftp.close_handle(only_write)
    run(node, test)
    assert node.content("ends2") == b"\0\0\0" + DATA[3 * MIB + 770:]


def test_a_copy_to_an_appending_handle_goes_to_its_end(node: FakeNode, source: bytes) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.put("log", b"x" * MIB)
        read, write = await sftp.open_file("source", p.FXF_READ), await sftp.open_file("log", APPEND)
        await sftp.copy(read, write, 0, 0, 0)
        await sftp.close_handle(write)
    run(node, test)
    assert node.content("log") == b"x" * MIB + DATA


def test_trouble_with_the_commit_copies_and_publishes_nothing(own_node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.put("source", DATA)
        read, write = await sftp.open_file("source", p.FXF_READ), await sftp.open_file("copy", RW_CREAT)
        own_node.trouble["fs.copy"] = ("no_quorum", "no quorum")
        await expect(4, "no quorum", sftp.copy(read, write))
        assert (await sftp.call(p.FSTAT, s(write))).size == 0
        del own_node.trouble["fs.copy"]
        await expect(4, "no quorum", sftp.copy(read, write))
        await expect(4, "no quorum", sftp.close_handle(write))
    run(own_node, test)
    assert not own_node.has("copy")


def test_an_interrupted_copy_leaves_a_partial(node: FakeNode, source: bytes) -> None:
    async def test(sftp: RawSftp) -> None:
        read, write = await sftp.open_file("source", p.FXF_READ), await sftp.open_file("cut", PUT)
        await sftp.copy(read, write)
        await sftp.fsync(write)
        assert node.partials["anna", (b"cut",)].size == len(DATA)
    run(node, test)


# --- append ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 5 * MIB + 3])
def test_what_is_appended_goes_behind_a_newer_version(node: FakeNode, size: int) -> None:
    base, other, tail = os.urandom(MIB + 5), os.urandom(2 * MIB + 9), os.urandom(size)

    async def test(sftp: RawSftp) -> None:
        await sftp.put("shared", base)
        handle = await sftp.open_file("shared", APPEND)
        await sftp.write(handle, 0, tail)
        second = await RawSftp.open(node)
        await second.put("shared", other)
        await sftp.close_handle(handle)
        await second.close()
    run(node, test)
    assert node.content("shared") == other + tail


def test_many_appenders_lose_nothing(node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.put("busy", b"start\n")
        sessions = [sftp] + [await RawSftp.open(node) for _ in range(3)]
        for turn in range(5):
            handles = [await each.open_file("busy", APPEND) for each in sessions]
            for number, (each, handle) in enumerate(zip(sessions, handles, strict=True)):
                await each.write(handle, 0, b"%d:%d\n" % (turn, number))
            for each, handle in zip(sessions, handles, strict=True):
                await each.close_handle(handle)
        for each in sessions[1:]:
            await each.close()
    run(node, test)
    lines = node.content("busy").split(b"\n")
    assert sorted(lines) == sorted([b"start", b"", *(b"%d:%d" % (t, n) for t in range(5) for n in range(4))])


@pytest.mark.parametrize("how", ["write", "truncate"])
def test_anything_but_appending_is_refused_over_a_newer_version(node: FakeNode, how: str) -> None:
    name = f"conflict-{how}"

    async def test(sftp: RawSftp) -> None:
        await sftp.put(name, b"0123456789")
        handle = await sftp.open_file(name, APPEND if how == "truncate" else RW_CREAT)
        await sftp.write(handle, 0, b"mine")
        if how == "truncate":
            await sftp.fsetstat(handle, FileAttrs(size=3))
        second = await RawSftp.open(node)
        await second.put(name, b"theirs")
        await expect(4, "changed by another session", sftp.close_handle(handle))
        await second.close()
    run(node, test)
    assert node.content(name) == b"theirs"


def test_a_file_that_is_gone_is_appended_to_by_nobody(own_node: FakeNode) -> None:
    async def test(sftp: RawSftp) -> None:
        await sftp.put("gone", b"base")
        handle = await sftp.open_file("gone", APPEND)
        await sftp.write(handle, 0, b"more")
        own_node.trouble["fs.publish"] = ("rejected", {"code": "conflict", "text": "changed"})
        own_node.trouble["fs.base"] = ("rejected", {"code": "not_found", "text": "removed"})
        await expect(2, "No such file", sftp.close_handle(handle))
        del own_node.trouble["fs.base"]
        handle = await sftp.open_file("gone", APPEND)
        await sftp.write(handle, 0, b"more")
        await expect(4, "changed", sftp.close_handle(handle))  # for ever: it gives up
        assert len(own_node.ops("fs.base")) <= 40 and len(own_node.ops("fs.end")) == 2
    run(own_node, test)
