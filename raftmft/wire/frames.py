"""Length-prefixed msgpack frames: u32 big-endian length, then one msgpack value.

Sans-IO: feed bytes in, take values out. A frame longer than the limit, or bytes that are no msgpack, raise FrameError;
after that the connection must be dropped, since its boundaries are lost.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

_LENGTH = struct.Struct(">I")
MAX_FRAME = 8 << 20


class FrameError(ValueError):
    """The peer sent something that is no frame. The text is one line and quotes none of the bytes."""


def encode(value: Any) -> bytes:
    """One frame. Tuples become lists; only msgpack types are taken (TypeError otherwise)."""
    body = msgpack.packb(value, use_bin_type=True)
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes | memoryview) -> Any:
    """One msgpack value from an untrusted body. Raises FrameError; extension types and deep nesting are refused."""
    try:
        return msgpack.unpackb(
            body, raw=False, strict_map_key=False, max_ext_len=0, max_str_len=MAX_FRAME, max_bin_len=MAX_FRAME
        )
    except Exception as error:  # msgpack raises ValueError, its own errors and UnicodeDecodeError for bad bytes
        raise FrameError(f"not a msgpack value ({type(error).__name__})") from None


class FrameReader:
    """Cuts a byte stream into values. Holds at most one unfinished frame of `max_frame` bytes."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._max_frame = max_frame

    def feed(self, data: bytes | bytearray | memoryview) -> list[Any]:
        """Adds bytes; returns the values that are now whole. Raises FrameError."""
        buffer = self._buffer
        buffer += data
        values, offset = [], 0
        view = memoryview(buffer)
        try:
            while len(buffer) - offset >= 4:
                (length,) = _LENGTH.unpack_from(buffer, offset)
                if length > self._max_frame:
                    raise FrameError(f"a frame of {length} bytes is over the limit of {self._max_frame}")
                end = offset + 4 + length
                if len(buffer) < end:
                    break
                values.append(unpack(view[offset + 4 : end]))
                offset = end
        finally:
            view.release()
        if offset:
            del buffer[:offset]
        return values
