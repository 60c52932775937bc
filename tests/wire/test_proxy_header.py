"""A PROXY header is taken to its last byte and not a byte further, however it is cut; anything else is refused."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.wire import proxy_header as ph
from raftmft.wire.frames import FrameError
from raftmft.wire.proxy_header import V1_MOST_BYTES, V2_MOST_BYTES, V2_SIGNATURE, HeaderReader, ProxyHeader

PORTS = st.integers(0, 65535)
V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None)


def v1(source, target, port: int, target_port: int) -> bytes:
    return f"PROXY TCP{source.version} {source} {target} {port} {target_port}\r\n".encode()


def v2(command: int, family: int, block: bytes) -> bytes:
    return V2_SIGNATURE + struct.pack(">BBH", command, family, len(block)) + block


def v2_tcp(source, target, port: int, target_port: int, more: bytes) -> bytes:
    block = source.packed + target.packed + struct.pack(">HH", port, target_port) + more
    return v2(0x21, 0x11 if source.version == 4 else 0x21, block)


def pair(addresses):
    return st.tuples(addresses, addresses)


PAIRS = pair(V4) | pair(V6)
HEADERS = st.one_of(
    st.builds(lambda p, a, b: (v1(*p, a, b), (str(p[0]), a)), PAIRS, PORTS, PORTS),
    st.builds(lambda p, a, b, more: (v2_tcp(*p, a, b, more), (str(p[0]), a)), PAIRS, PORTS, PORTS,
              st.binary(max_size=200)),
    st.builds(lambda family, block: (v2(0x20, family, block), None), st.integers(0, 255), st.binary(max_size=200)),
    st.builds(lambda block: (v2(0x21, 0, block), None), st.binary(max_size=200)),
    st.just((b"PROXY UNKNOWN\r\n", None)),
    st.just((b"PROXY UNKNOWN ffff:f...f 65535 65535\r\n", None)),
)


def read(pieces: list[bytes]) -> tuple[ProxyHeader | None, int]:
    """The header, and how many bytes were taken."""
    reader, taken = HeaderReader(), 0
    for piece in pieces:
        used = reader.feed(piece)
        taken += used
        if reader.header is not None:
            break
        assert used == len(piece), "an incomplete header leaves bytes behind"
    return reader.header, taken


@settings(max_examples=300, deadline=None)
@given(HEADERS, st.binary(max_size=40), st.data())
def test_the_header_is_taken_to_its_last_byte_however_it_is_cut(header, after, data):
    whole, client = header
    stream = whole + after
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    found, taken = read(pieces)
    assert found == ProxyHeader(client)
    assert taken == len(whole), "a byte of the client's stream was swallowed, or one of the header left"


@settings(max_examples=100, deadline=None)
@given(HEADERS)
def test_byte_by_byte_and_never_too_early(header):
    whole, client = header
    reader = HeaderReader()
    for i in range(len(whole)):
        assert reader.header is None
        assert reader.feed(whole[i : i + 1]) == 1
    assert reader.header == ProxyHeader(client)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE, V2_SIGNATURE + b"\x21"]))
def test_garbage_is_refused_or_waited_for_within_a_bound(garbage, opening):
    reader, taken = HeaderReader(), 0
    data = opening + garbage + bytes(V2_MOST_BYTES + 1)
    try:
        taken = reader.feed(data)
    except FrameError:
        return
    assert reader.header is not None and taken <= V2_MOST_BYTES


@pytest.mark.parametrize("data", [
    b"SSH-2.0-OpenSSH_9.2\r\n", b"S", b"\0", b"PROXZ", b"\r\nX",
    b"PROXY \r\n", b"PROXY TCP4\r\n", b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n", b"PROXY UNKNOWNX\r\n",
    b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
    b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n", b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
    b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
    b"PROXY TCP6 fe80::1%\x1b[2J ::1 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 1.2.3.4 1\xb2 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n" + b"x" * 107,
    b"PROXY TCP4 " + b"1" * V1_MOST_BYTES,
    v2(0x11, 0x11, bytes(12)), v2(0x22, 0x11, bytes(12)), v2(0x31, 0x11, bytes(12)),
    v2(0x21, 0x12, bytes(12)), v2(0x21, 0x31, bytes(216)), v2(0x21, 0x11, bytes(11)), v2(0x21, 0x21, bytes(35)),
    v2(0x20, 0, bytes(V2_MOST_BYTES)),
])
def test_what_is_no_header_is_refused(data):
    with pytest.raises(FrameError):
        HeaderReader().feed(data)


def test_an_over_long_header_is_refused_by_its_head_alone():
    with pytest.raises(FrameError, match="at most"):
        HeaderReader().feed(V2_SIGNATURE + struct.pack(">BBH", 0x21, 0x11, 65535))


def test_the_longest_line_is_taken():
    address = b":".join([b"ffff"] * 8)
    most = b"PROXY UNKNOWN " + address + b" " + address + b" 65535 65535\r\n"
    assert len(most) == ph.V1_MOST_BYTES
    assert read([most + b"SSH-"]) == (ProxyHeader(None), len(most))


def test_ipv4_in_ipv6_counts_as_ipv4():
    mapped = ipaddress.ip_address("::ffff:192.0.2.7")
    target = ipaddress.ip_address("::1")
    assert read([v2_tcp(mapped, target, 5, 22, b"")])[0] == ProxyHeader(("192.0.2.7", 5))
    assert read([b"PROXY TCP6 ::ffff:192.0.2.7 ::1 5 22\r\n"])[0] == ProxyHeader(("192.0.2.7", 5))
