"""SFTP version 3 on the wire, sans-IO: bytes in, requests out; replies as bytes.

A packet is u32 length, u8 type, and a body whose fields have lengths of their own. The inner lengths are honoured and
bytes after the last field ignored (rclone 1.60 sends them after the last WRITE). A packet whose outer length is
impossible ends the session (PacketError); one whose fields do not fit becomes `Malformed`, which is answered in its
turn. Source: draft-ietf-secsh-filexfer-02. Extensions stand in extended.py. SYMLINK's arguments are taken in OpenSSH's
order from every client, which is not the draft's: libssh and curl send it too (OpenSSH's PROTOCOL, 4.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from raftmft.sftp import extended
from raftmft.sftp.attrs import FileAttrs, decode_attrs, encode_attrs
from raftmft.sftp.extended import MAX_DATA
from raftmft.sftp.fields import HEAD, U32, Short, pack, packet, string

VERSION = 3
MAX_PACKET = (256 << 10) + 1024

INIT, VERSION_REPLY, OPEN, CLOSE, READ, WRITE = 1, 2, 3, 4, 5, 6
LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = 7, 8, 9, 10, 11, 12
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = 13, 14, 15, 16, 17, 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS = 101, 102, 103, 104, 105
EXTENDED = 200
LSETSTAT = 256
"""Not on the wire: lsetstat@openssh.com, as the type of a SetAttrs."""

FXF_READ, FXF_WRITE, FXF_APPEND, FXF_CREAT, FXF_TRUNC, FXF_EXCL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20

_READ_TAIL = struct.Struct(">QI")
_STATUS_HEAD = struct.Struct(">IBII")


class PacketError(Exception):
    """The client's stream cannot be cut into packets any more: the session must end."""


class Init(NamedTuple):
    """The first packet; it has no request id."""

    version: int
    id: int = 0


class Open(NamedTuple):
    """OPEN with its FXF_ flags and attributes."""

    id: int
    path: bytes
    flags: int
    attrs: FileAttrs


class Read(NamedTuple):
    """READ."""

    id: int
    handle: bytes
    offset: int
    length: int


class Write(NamedTuple):
    """WRITE; `data` is a view of the received bytes, to be copied out."""

    id: int
    handle: bytes
    offset: int
    data: memoryview


class ByHandle(NamedTuple):
    """CLOSE, FSTAT or READDIR."""

    id: int
    type: int
    handle: bytes


class ByPath(NamedTuple):
    """LSTAT, STAT, OPENDIR, REMOVE, RMDIR, REALPATH or READLINK."""

    id: int
    type: int
    path: bytes


class SetAttrs(NamedTuple):
    """SETSTAT, LSETSTAT, FSETSTAT or MKDIR: `target` is a path, for FSETSTAT a handle."""

    id: int
    type: int
    target: bytes
    attrs: FileAttrs


class Rename(NamedTuple):
    """RENAME, or posix-rename@openssh.com if `replace`."""

    id: int
    source: bytes
    target: bytes
    replace: bool


class Symlink(NamedTuple):
    """SYMLINK."""

    id: int
    target: bytes
    link: bytes


class Unsupported(NamedTuple):
    """An operation or extension that is not offered."""

    id: int


class Malformed(NamedTuple):
    """A packet whose fields do not fit into it."""

    id: int


Request = (Init | Open | Read | Write | ByHandle | ByPath | SetAttrs | Rename | Symlink | Unsupported | Malformed
           | extended.Request)


class PacketReader:
    """Cuts a byte stream into packet bodies. Holds at most one unfinished packet of MAX_PACKET bytes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = self._want = 0

    def feed(self, data: bytes) -> list[memoryview]:
        """The bodies that are now whole, as views that stay valid. Raises PacketError."""
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._want:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
        bodies: list[memoryview] = []
        view, offset, end = memoryview(data), 0, len(data)
        self._want = 4
        while end - offset >= 4:
            length = _length(data, offset)
            if end - offset - 4 < length:
                self._want = 4 + length
                break
            bodies.append(view[offset + 4 : offset + 4 + length])
            offset += 4 + length
        self._have = end - offset
        if self._have:
            self._pieces.append(data[offset:])
        return bodies


def _length(data: bytes, offset: int) -> int:
    (length,) = U32.unpack_from(data, offset)
    if not 1 <= length <= MAX_PACKET:
        raise PacketError(f"a packet of {length} bytes; 1 to {MAX_PACKET} are possible")
    return int(length)


def parse(body: memoryview) -> Request:
    """The request in a packet's body. PacketError if it is too short to hold a request id."""
    if len(body) < 5:
        raise PacketError(f"a packet of {len(body)} bytes holds no request")
    kind, number = HEAD.unpack_from(body, 0)
    try:
        return _parse(kind, number, body)
    except (struct.error, Short):
        return Malformed(number)


def _parse(kind: int, number: int, body: memoryview) -> Request:
    if kind == WRITE:
        handle, offset = string(body, 5)
        where, length = _READ_TAIL.unpack_from(body, offset)
        offset += 12
        if length > len(body) - offset or length > MAX_DATA:
            raise Short
        return Write(number, handle, where, body[offset : offset + length])
    if kind == READ:
        handle, offset = string(body, 5)
        where, length = _READ_TAIL.unpack_from(body, offset)
        return Read(number, handle, where, length)
    if kind in (CLOSE, FSTAT, READDIR):
        return ByHandle(number, kind, string(body, 5)[0])
    if kind in (LSTAT, STAT, OPENDIR, REMOVE, RMDIR, REALPATH, READLINK):
        return ByPath(number, kind, string(body, 5)[0])
    if kind in (SETSTAT, FSETSTAT, MKDIR):
        target, offset = string(body, 5)
        # MKDIR without attributes is sent by some clients.
        attrs = FileAttrs() if kind == MKDIR and offset == len(body) else decode_attrs(body, offset)
        return SetAttrs(number, kind, target, attrs)
    if kind == OPEN:
        path, offset = string(body, 5)
        (flags,) = U32.unpack_from(body, offset)
        offset += 4
        return Open(number, path, flags, FileAttrs() if offset == len(body) else decode_attrs(body, offset))
    if kind == RENAME:
        source, offset = string(body, 5)
        return Rename(number, source, string(body, offset)[0], False)
    if kind == SYMLINK:
        target, offset = string(body, 5)
        return Symlink(number, target, string(body, offset)[0])
    if kind == INIT:
        return Init(number)
    if kind == EXTENDED:
        return _parse_extended(number, body)
    return Unsupported(number)


def _parse_extended(number: int, body: memoryview) -> Request:
    name, offset = string(body, 5)
    if name == b"posix-rename@openssh.com":
        source, offset = string(body, offset)
        return Rename(number, source, string(body, offset)[0], True)
    if name == b"lsetstat@openssh.com":
        target, offset = string(body, offset)
        return SetAttrs(number, LSETSTAT, target, decode_attrs(body, offset))
    return extended.parse(name, number, body, offset) or Unsupported(number)


# --- replies -----------------------------------------------------------------------------------------------------
def version_reply(extensions: Iterable[tuple[bytes, bytes]]) -> bytes:
    """VERSION, with the names and data of the extensions offered."""
    return packet(b"\x02" + U32.pack(VERSION) + b"".join(pack(name) + pack(data) for name, data in extensions))


_OK_TAIL = b"\x00\x00\x00\x00" + b"\x00\x00\x00\x07Success" + b"\x00\x00\x00\x00"
_OK_HEAD = U32.pack(5 + len(_OK_TAIL)) + b"\x65"


def ok_reply(number: int) -> bytes:
    """STATUS OK."""
    return _OK_HEAD + U32.pack(number) + _OK_TAIL


def status_reply(number: int, code: int, text: str) -> bytes:
    """STATUS with one line of text."""
    line = text.encode("utf-8", "replace")[:1024]
    return _STATUS_HEAD.pack(17 + len(line), STATUS, number, code) + pack(line) + b"\x00\x00\x00\x00"


def handle_reply(number: int, handle: bytes) -> bytes:
    """HANDLE."""
    return packet(HEAD.pack(HANDLE, number) + pack(handle))


def data_reply(number: int, parts: Sequence[bytes | bytearray | memoryview]) -> list[bytes | bytearray | memoryview]:
    """DATA as a list of buffers: the header, then `parts` as they are."""
    size = sum(map(len, parts))
    return [struct.pack(">IBII", 9 + size, DATA, number, size), *parts]


def name_reply(number: int, names: Sequence[tuple[bytes, bytes, FileAttrs]]) -> bytes:
    """NAME: (name, longname, attributes) each."""
    body = b"".join(pack(name) + pack(line) + encode_attrs(attrs) for name, line, attrs in names)
    return packet(HEAD.pack(NAME, number) + U32.pack(len(names)) + body)


def attrs_reply(number: int, attrs: FileAttrs) -> bytes:
    """ATTRS."""
    return packet(HEAD.pack(ATTRS, number) + encode_attrs(attrs))
