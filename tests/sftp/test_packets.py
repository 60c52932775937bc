"""The packet parser: any split gives the same packets; whatever arrives, it answers or refuses, and never breaks."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.sftp import extended as x
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs, decode_attrs, encode_attrs, longname
from tests.sftp.raw_client import s

MAYBE_U32 = st.none() | st.integers(0, 0xFFFFFFFF)


def cut(stream: bytes, splits: list[int]) -> list[bytes]:
    edges = [0, *sorted(x % (len(stream) + 1) for x in splits), len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 1000), max_size=12))
def test_any_split_gives_the_same_packets(bodies: list[bytes], splits: list[int]) -> None:
    stream = b"".join(struct.pack(">I", len(body)) + body for body in bodies)
    reader = p.PacketReader()
    got = [bytes(body) for piece in cut(stream, splits) for body in reader.feed(piece)]
    assert got == bodies


def test_byte_by_byte_and_at_once() -> None:
    bodies = [b"x", b"y" * p.MAX_PACKET, b"z" * 5]
    stream = b"".join(struct.pack(">I", len(body)) + body for body in bodies)
    reader = p.PacketReader()
    assert [bytes(b) for b in reader.feed(stream)] == bodies
    small = stream[-9:]
    assert [bytes(b) for i in range(9) for b in reader.feed(small[i : i + 1])] == [b"z" * 5]


@pytest.mark.parametrize("length", [0, p.MAX_PACKET + 1, 0xFFFFFFFF])
def test_impossible_lengths_end_the_session(length: int) -> None:
    with pytest.raises(p.PacketError):
        p.PacketReader().feed(struct.pack(">I", length) + b"x")


@given(st.binary(min_size=1, max_size=64))
def test_no_body_breaks_the_parser(body: bytes) -> None:
    try:
        request = p.parse(memoryview(body))
    except p.PacketError:
        assert len(body) < 5
        return
    if not isinstance(request, p.Init):
        assert request.id == struct.unpack(">I", body[1:5])[0]


@given(st.integers(0, 40) | st.just(200), st.binary(max_size=80), st.binary(max_size=20))
def test_every_cut_of_a_request_is_malformed_or_harmless(kind: int, path: bytes, junk: bytes) -> None:
    whole = struct.pack(">BI", kind, 9) + s(path) + s(path) + struct.pack(">IIII", 0xF, 1, 2, 3) + junk
    for end in range(5, len(whole)):
        assert p.parse(memoryview(whole[:end])).id == (0 if kind == p.INIT else 9)


@given(st.sampled_from([name for name, _ in x.OFFERED]), st.binary(max_size=99))
def test_extensions_cut_or_filled_with_junk_are_malformed_or_harmless(name: bytes, junk: bytes) -> None:
    head = struct.pack(">BI", p.EXTENDED, 9) + s(name)
    assert not isinstance(p.parse(memoryview(head + s(b"") * 9)), p.Unsupported), "offered and not known"
    for body in (junk, s(junk), s(junk) + junk, s(junk) + s(junk)):
        for end in range(len(body)):
            assert p.parse(memoryview(head + body[:end])).id == 9


def test_trailing_bytes_are_ignored() -> None:
    body = struct.pack(">BI", p.WRITE, 1) + s(b"h") + struct.pack(">Q", 5) + s(b"data") + b"rclone 1.60"
    request = p.parse(memoryview(body))
    assert isinstance(request, p.Write) and request.data == b"data" and request.offset == 5
    assert p.parse(memoryview(struct.pack(">BI", p.CLOSE, 1) + s(b"h") + b"x")) == p.ByHandle(1, p.CLOSE, b"h")


def test_a_write_beyond_its_packet_is_malformed() -> None:
    body = struct.pack(">BI", p.WRITE, 1) + s(b"h") + struct.pack(">QI", 5, 100) + b"only this"
    assert p.parse(memoryview(body)) == p.Malformed(1)


@given(st.builds(FileAttrs, size=st.none() | st.integers(0, 2**64 - 1), mode=MAYBE_U32), MAYBE_U32, MAYBE_U32)
def test_attributes_come_back(attrs: FileAttrs, one: int | None, two: int | None) -> None:
    if one is not None and two is not None:
        attrs.uid, attrs.gid, attrs.atime, attrs.mtime = one, two, two, one
    assert decode_attrs(memoryview(b"xx" + encode_attrs(attrs) + b"yy"), 2) == attrs


def test_status_replies_have_the_right_length() -> None:
    for reply in (p.ok_reply(7), p.status_reply(7, 4, "no quorum: é"), p.name_reply(7, []), x.limits_reply(7, 3)):
        assert struct.unpack(">I", reply[:4])[0] == len(reply) - 4
    assert p.ok_reply(7) == p.status_reply(7, 0, "Success")


def test_the_long_name_looks_like_ls() -> None:
    attrs = FileAttrs(size=12, uid=1, gid=1, mode=0o100640, atime=0, mtime=86400 * 365)
    assert longname(b"name", attrs, b"anna", now_s=86400 * 365 + 60) == (
        b"-rw-r-----    1 anna     anna           12 Jan  1 00:00 name")
    assert longname(b"name", attrs, b"anna", now_s=86400 * 3650).endswith(b"Jan  1  1971 name")
