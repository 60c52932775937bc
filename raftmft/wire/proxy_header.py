"""The PROXY protocol, versions 1 and 2 (haproxy's proxy-protocol.txt): a balancer says whose connection it passes on.

The header stands in front of the stream that the client speaks. `HeaderReader` takes exactly the header: it may be
shown bytes that reach beyond it (by MSG_PEEK), and says how many of them are the header's. It has no clock and no
socket; who may send a header at all, and how long one may take, is judged by node/frontdoor.py.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from raftmft.wire.frames import FrameError

V1_PREFIX = b"PROXY "
V1_MOST_BYTES = 107
"""The longest line of version 1, CR LF included (the specification's own worst case)."""
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2_MOST_BYTES = 2048
"""The longest header of version 2 taken, with what follows the addresses (skipped here)."""
MOST_BYTES = V2_MOST_BYTES
_V2_HEAD = struct.Struct(">12sBBH")
_V2_STREAMS = {0x11: (4, 12), 0x21: (16, 36)}  # TCP over IPv4 and IPv6: bytes of an address, of the whole block
_LOCAL, _PROXY = 0x20, 0x21


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """The client's address and port. None: the connection is the balancer's own (a health check) or of unknown origin,
    and the address of the TCP connection counts.
    """

    client: tuple[str, int] | None


class HeaderReader:
    """Reads one header. `header` is None until it is complete."""

    def __init__(self) -> None:
        self._data = b""
        self.header: ProxyHeader | None = None

    def feed(self, data: bytes) -> int:
        """How many of the further bytes `data` belong to the header: all of them until it is complete.

        FrameError, as early as it can be known, if this is no header; then the connection must be closed.
        """
        assert self.header is None, "the header is complete"
        before, whole = len(self._data), self._data + data
        end = _end(whole)
        if end is None or end > len(whole):
            self._data = whole
            return len(data)
        self.header = _v2(whole[:end]) if whole.startswith(V2_SIGNATURE) else _v1(whole[: end - 2])
        return end - before


def _end(data: bytes) -> int | None:
    """Where the header ends, None if that cannot be told yet. FrameError if none begins here."""
    if data[: len(V1_PREFIX)] == V1_PREFIX[: len(data)]:
        found = data.find(b"\r\n", 0, V1_MOST_BYTES)
        if found < 0 and len(data) >= V1_MOST_BYTES:
            raise FrameError(f"a PROXY line of more than {V1_MOST_BYTES} bytes")
        return None if found < 0 else found + 2
    if data[: len(V2_SIGNATURE)] != V2_SIGNATURE[: len(data)]:
        raise FrameError("no PROXY header where one is required")
    if len(data) < _V2_HEAD.size:
        return None
    (_, command, _, length) = _V2_HEAD.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise FrameError(f"a PROXY header of version {command >> 4} with command {command & 15}")
    if _V2_HEAD.size + length > V2_MOST_BYTES:
        raise FrameError(f"a PROXY header of {_V2_HEAD.size + length} bytes; at most {V2_MOST_BYTES} are taken")
    return _V2_HEAD.size + int(length)


def _v1(line: bytes) -> ProxyHeader:
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader(None)
    fields = line.split(b" ")
    kinds = {b"TCP4": ipaddress.IPv4Address, b"TCP6": ipaddress.IPv6Address}
    if len(fields) != 6 or fields[1] not in kinds or b"%" in line:  # a scope is of the balancer's host, and any text
        raise FrameError("a malformed PROXY line")
    try:
        source, _ = (kinds[fields[1]](field.decode("ascii")) for field in fields[2:4])
    except ValueError:
        raise FrameError("a PROXY line with a malformed address") from None
    port, _ = (_port(field) for field in fields[4:6])
    return ProxyHeader((_text(source), port))


def _port(field: bytes) -> int:
    if not field.isdigit() or len(field) > 5 or field != b"0" and field.startswith(b"0") or int(field) > 65535:
        raise FrameError("a PROXY line with a malformed port")
    return int(field)


def _v2(data: bytes) -> ProxyHeader:
    (_, command, family, length) = _V2_HEAD.unpack_from(data)
    if command == _LOCAL or family == 0:
        return ProxyHeader(None)
    if family not in _V2_STREAMS:
        raise FrameError(f"a PROXY header for transport {family:#04x}; only TCP is passed on to SFTP")
    address_bytes, block_bytes = _V2_STREAMS[family]
    if length < block_bytes:
        raise FrameError("a PROXY header that is too short for its addresses")
    start = _V2_HEAD.size
    source = ipaddress.ip_address(data[start : start + address_bytes])
    (port,) = struct.unpack_from(">H", data, start + 2 * address_bytes)
    return ProxyHeader((_text(source), port))


def _text(address: object) -> str:
    """The address as text; one that is IPv4 in IPv6's clothes as IPv4, as which it is banned and counted."""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped if mapped is not None else address)
