"""The extensions of SFTP version 3 that are spoken here: their requests and replies on the wire.

Source: OpenSSH's PROTOCOL, section 4; draft-ietf-secsh-filexfer-extensions-00, section 7 (copy-data), section 5
(home-directory) and section 3 (check-file). posix-rename and lsetstat have the shape of plain requests and are read in
packets.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from raftmft.sftp.fields import HEAD, Short, pack, packet, string

EXTENDED_REPLY = 201
MAX_DATA = 261120
"""The most bytes of a READ or WRITE; with its header it fits OpenSSH's 256 KiB packets."""

OFFERED = (
    (b"posix-rename@openssh.com", b"1"), (b"statvfs@openssh.com", b"2"), (b"fstatvfs@openssh.com", b"2"),
    (b"hardlink@openssh.com", b"1"), (b"fsync@openssh.com", b"1"), (b"lsetstat@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"), (b"expand-path@openssh.com", b"1"), (b"copy-data", b"1"),
    (b"home-directory", b"1"), (b"users-groups-by-id@openssh.com", b"1"),
    (b"check-file", b"md5,sha1,sha256,blake3"), (b"check-file-handle", b"md5,sha1,sha256,blake3"),
    (b"check-file-name", b"md5,sha1,sha256,blake3"))
"""What VERSION tells of, with the versions that OpenSSH gives. The draft announces check-file, and paramiko asks under
that name, too; WinSCP looks for it or check-file-name.
"""

_OFFSETS = struct.Struct(">QQ")
_RANGE = struct.Struct(">QQI")
_VFS = struct.Struct(">11Q")


class Fsync(NamedTuple):
    """fsync@openssh.com."""

    id: int
    handle: bytes


class Limits(NamedTuple):
    """limits@openssh.com."""

    id: int


class HardLink(NamedTuple):
    """hardlink@openssh.com."""

    id: int
    source: bytes
    target: bytes


class CopyData(NamedTuple):
    """copy-data; a length of 0 means until the end of the file."""

    id: int
    source: bytes
    offset: int
    length: int
    target: bytes
    target_offset: int


class StatVfs(NamedTuple):
    """statvfs@openssh.com, or fstatvfs if it is about a handle."""

    id: int
    where: bytes
    is_handle: bool


class ExpandPath(NamedTuple):
    """expand-path@openssh.com: as REALPATH, with "~"."""

    id: int
    path: bytes


class HomeDirectory(NamedTuple):
    """home-directory."""

    id: int
    user: bytes


class UsersGroups(NamedTuple):
    """users-groups-by-id@openssh.com."""

    id: int
    uids: tuple[int, ...]
    gids: tuple[int, ...]


class CheckFile(NamedTuple):
    """check-file-handle, check-file-name: digests of blocks of `block` bytes, or one of all if that is 0. `length` 0 is
    to the end. `is_named`: as check-file-handle in an older draft, which paramiko speaks: its reply has the
    extension's name before the algorithm's.
    """

    id: int
    where: bytes
    is_handle: bool
    is_named: bool
    algorithms: bytes
    offset: int
    length: int
    block: int


class VfsStat(NamedTuple):
    """The eleven numbers of statvfs(3), in the order of the reply; blocks are counted in `frsize` bytes."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    fsid: int
    flag: int
    namemax: int


Request = Fsync | Limits | HardLink | CopyData | StatVfs | ExpandPath | HomeDirectory | UsersGroups | CheckFile


def parse(name: bytes, number: int, body: memoryview, offset: int) -> Request | None:
    """The request `name` whose fields begin at `offset`; None if there is no such extension. Short, struct.error."""
    match name:
        case b"fsync@openssh.com":
            return Fsync(number, string(body, offset)[0])
        case b"limits@openssh.com":
            return Limits(number)
        case b"hardlink@openssh.com":
            source, offset = string(body, offset)
            return HardLink(number, source, string(body, offset)[0])
        case b"copy-data":
            source, offset = string(body, offset)
            start, length = _OFFSETS.unpack_from(body, offset)
            target, offset = string(body, offset + 16)
            return CopyData(number, source, start, length, target, struct.unpack_from(">Q", body, offset)[0])
        case b"statvfs@openssh.com" | b"fstatvfs@openssh.com":
            return StatVfs(number, string(body, offset)[0], name.startswith(b"f"))
        case b"expand-path@openssh.com":
            return ExpandPath(number, string(body, offset)[0])
        case b"home-directory":
            return HomeDirectory(number, string(body, offset)[0])
        case b"users-groups-by-id@openssh.com":
            uids, offset = string(body, offset)
            return UsersGroups(number, _numbers(uids), _numbers(string(body, offset)[0]))
        case b"check-file" | b"check-file-handle" | b"check-file-name":
            where, offset = string(body, offset)
            algorithms, offset = string(body, offset)
            return CheckFile(number, where, name != b"check-file-name", name == b"check-file", algorithms,
                             *_RANGE.unpack_from(body, offset))
    return None


def _numbers(blob: bytes) -> tuple[int, ...]:
    if len(blob) % 4:
        raise Short
    return struct.unpack(f">{len(blob) // 4}I", blob)


# --- replies -----------------------------------------------------------------------------------------------------
def limits_reply(number: int, max_handles: int) -> bytes:
    """The answer to limits@openssh.com: packet, read and write sizes, handles."""
    return _reply(number, struct.pack(">QQQQ", 256 << 10, MAX_DATA, MAX_DATA, max_handles))


def vfs_reply(number: int, vfs: VfsStat) -> bytes:
    """The answer to statvfs and fstatvfs."""
    return _reply(number, _VFS.pack(*vfs))


def users_groups_reply(number: int, users: Sequence[bytes], groups: Sequence[bytes]) -> bytes:
    """The answer to users-groups-by-id: a name for each number asked, empty where there is none to tell."""
    return _reply(number, pack(b"".join(map(pack, users))) + pack(b"".join(map(pack, groups))))


def check_reply(request: CheckFile, algorithm: str, digests: bytes) -> bytes:
    """The answer to check-file: the algorithm used, and the digests one after the other to the packet's end."""
    return _reply(request.id, (pack(b"check-file") if request.is_named else b"") + pack(algorithm.encode()) + digests)


def _reply(number: int, body: bytes) -> bytes:
    return packet(HEAD.pack(EXTENDED_REPLY, number) + body)


