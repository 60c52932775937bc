"""SFTP attributes set on an inode: what a client may change, and within which bounds."""

from __future__ import annotations

from typing import Any

from raftmft.core.commands import Attrs
from raftmft.core.namespace import PERMISSION_BITS
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse

MAX_TIME_S = 1 << 40
"""Far beyond SFTP v3's 32 bits, far below what SQLite's integers hold."""


def check_attrs(attrs: Attrs, *, uid: int, gid: int) -> None:
    """Raises Refuse: INVALID for values out of range, PERMISSION for another owner than the present one."""
    for what in ("atime", "mtime"):
        value = getattr(attrs, what)
        if value is not None and not 0 <= value < MAX_TIME_S:
            raise Refuse(Code.INVALID, f"{what} must be seconds since 1970, not {value}")
    if attrs.mode is not None and attrs.mode < 0:
        raise Refuse(Code.INVALID, "a mode is not negative")
    if (attrs.uid is not None and attrs.uid != uid) or (attrs.gid is not None and attrs.gid != gid):
        raise Refuse(Code.PERMISSION, "the owner of a file cannot be changed")


def columns_of(attrs: Attrs) -> dict[str, Any]:
    """The inode columns that the attributes set; size and owner are not among them."""
    columns: dict[str, Any] = {}
    if attrs.mode is not None:
        columns["mode"] = attrs.mode & PERMISSION_BITS
    if attrs.atime is not None:
        columns["atime"] = attrs.atime
    if attrs.mtime is not None:
        columns["mtime"] = attrs.mtime
    return columns
