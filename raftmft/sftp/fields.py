"""The pieces that SFTP packets are made of: numbers, strings with a length before them, and the packet around them."""

from __future__ import annotations

import struct

U32 = struct.Struct(">I")
HEAD = struct.Struct(">BI")


class Short(Exception):
    """A string is cut short by the end of its packet."""


def string(body: memoryview, offset: int) -> tuple[bytes, int]:
    """The string that begins at `offset`, and where it ends. Short, struct.error if the packet ends before it."""
    (length,) = U32.unpack_from(body, offset)
    offset += 4
    end = offset + length
    if end > len(body):
        raise Short
    return bytes(body[offset:end]), end


def pack(data: bytes) -> bytes:
    """A string: u32 length, then the bytes."""
    return U32.pack(len(data)) + data


def packet(body: bytes) -> bytes:
    """A packet with this body."""
    return U32.pack(len(body)) + body
