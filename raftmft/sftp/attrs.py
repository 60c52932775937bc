"""File attributes as SFTP version 3 has them, and the line that READDIR gives beside each name.

Source: draft-ietf-secsh-filexfer-02, section 5.
"""

from __future__ import annotations

import stat
import struct
import time
from dataclasses import dataclass
from typing import Any

SIZE, UIDGID, PERMISSIONS, ACMODTIME, EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
MODE_BITS = 0o7777
HALF_YEAR_S = 182 * 24 * 3600
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_U32, _U64, _PAIR = struct.Struct(">I"), struct.Struct(">Q"), struct.Struct(">II")
_FULL = struct.Struct(">IQIIIII")
_ALL = SIZE | UIDGID | PERMISSIONS | ACMODTIME


@dataclass(slots=True)
class FileAttrs:
    """What a client sets, or is told; None is absent. Sizes are bytes, times seconds, `mode` may have its type bits."""

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    atime: int | None = None
    mtime: int | None = None
    nlink: int = 1

    def settable(self) -> dict[str, int]:
        """The attributes but the size, as the link's `attrs` map; the mode without its type bits."""
        values = {"mode": None if self.mode is None else self.mode & MODE_BITS, "uid": self.uid, "gid": self.gid,
                  "atime": self.atime, "mtime": self.mtime}
        return {key: value for key, value in values.items() if value is not None}


def decode_attrs(data: memoryview, offset: int) -> FileAttrs:
    """The attributes that start at `offset`; struct.error if they are cut short. Extended pairs are passed over."""
    (flags,) = _U32.unpack_from(data, offset)
    offset += 4
    attrs = FileAttrs()
    if flags & SIZE:
        (attrs.size,) = _U64.unpack_from(data, offset)
        offset += 8
    if flags & UIDGID:
        attrs.uid, attrs.gid = _PAIR.unpack_from(data, offset)
        offset += 8
    if flags & PERMISSIONS:
        (attrs.mode,) = _U32.unpack_from(data, offset)
        offset += 4
    if flags & ACMODTIME:
        attrs.atime, attrs.mtime = _PAIR.unpack_from(data, offset)
    return attrs


def encode_attrs(attrs: FileAttrs) -> bytes:
    """The attributes' bytes; values beyond 32 bits are cut to the largest that fits."""
    if None not in (attrs.size, attrs.uid, attrs.gid, attrs.mode, attrs.atime, attrs.mtime):
        return _FULL.pack(_ALL, attrs.size, _u32(attrs.uid), _u32(attrs.gid), _u32(attrs.mode), _u32(attrs.atime),
                          _u32(attrs.mtime))
    flags, parts = 0, []
    if attrs.size is not None:
        flags |= SIZE
        parts.append(_U64.pack(attrs.size))
    if attrs.uid is not None and attrs.gid is not None:
        flags |= UIDGID
        parts.append(_PAIR.pack(_u32(attrs.uid), _u32(attrs.gid)))
    if attrs.mode is not None:
        flags |= PERMISSIONS
        parts.append(_U32.pack(_u32(attrs.mode)))
    if attrs.atime is not None and attrs.mtime is not None:
        flags |= ACMODTIME
        parts.append(_PAIR.pack(_u32(attrs.atime), _u32(attrs.mtime)))
    return _U32.pack(flags) + b"".join(parts)


def attrs_of(entry: dict[str, Any]) -> FileAttrs:
    """The attributes of a node's entry."""
    return FileAttrs(size=entry["size"], uid=entry["uid"], gid=entry["gid"], mode=entry["mode"],
                     atime=entry["atime"], mtime=entry["mtime"], nlink=entry["nlink"])


def longname(name: bytes, attrs: FileAttrs, user: bytes, now_s: float | None = None,
             target: bytes | None = None) -> bytes:
    """A line as `ls -l` prints it, with a link's `target`. `user` owns all that it sees; times are UTC."""
    now = time.time() if now_s is None else now_s
    moment = attrs.mtime or 0
    when = time.gmtime(moment)
    if abs(now - moment) < HALF_YEAR_S:
        date = f"{_MONTHS[when.tm_mon - 1]} {when.tm_mday:2d} {when.tm_hour:02d}:{when.tm_min:02d}"
    else:
        date = f"{_MONTHS[when.tm_mon - 1]} {when.tm_mday:2d}  {when.tm_year:4d}"
    head = f"{stat.filemode(attrs.mode or 0)} {attrs.nlink:4d} "
    line = b"%s%-8s %-8s %8d %s %s" % (head.encode(), user, user, attrs.size or 0, date.encode(), name)
    return line if target is None else b"%s -> %s" % (line, target)


def _u32(value: int | None) -> int:
    return min(max(value or 0, 0), 0xFFFFFFFF)
