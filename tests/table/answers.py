"""How the operations of play.py are asked for, compared, and told of in its trace."""

from __future__ import annotations

from typing import Any

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from tests.sftp.raw_client import RawSftp, Status
from tests.table import things as m

MOST_READ = min(CHUNK_SIZE, p.MAX_DATA)
"""The product's largest READ touches two chunks; one that touches more than are kept would never come to its end."""


def is_doomed(handle: m.Handle) -> bool:
    """Taken over, removed, or without a directory: it fails by its next checkpoint, at the latest."""
    upload = handle.upload
    return (not upload.is_live or not upload.directory.is_there) and (
        upload.is_unsaved or (upload.saved > 0 and not upload.is_told))


async def write(sftp: RawSftp, handle: m.Handle, offset: int, data: bytes) -> None:
    """WRITE."""
    await sftp.answer(sftp.send_write(handle.real, offset, data))


async def read(sftp: RawSftp, handle: m.Handle, offset: int, count: int) -> bytes:
    """READ; empty at the end."""
    try:
        return await sftp.read(handle.real, offset, count)
    except Status as status:
        if status.code != 1:
            raise
        return b""


async def look(sftp: RawSftp, path: str) -> bytes:
    """OPEN, READ of everything, CLOSE."""
    handle, data = m.Handle(m.Session(""), real=await sftp.open_file(path, m.READ)), bytearray()
    while piece := await read(sftp, handle, len(data), MOST_READ):
        data += piece
    await sftp.close_handle(handle.real)
    return bytes(data)


def same_attrs(want: m.Stat, got: FileAttrs) -> bool:
    """Whether the attributes are what the model says."""
    if want.size is None:
        return got.mode is not None and got.mode & 0o170000 == 0o040000
    return (got.size == want.size and got.mode == 0o100000 | want.mode and
            (want.mtime is None or got.mtime == want.mtime))


def same_names(want: dict[str, int | None], got: dict[bytes, FileAttrs]) -> bool:
    """Whether a listing is."""
    return {name.encode(): size for name, size in want.items()} == {
        name: None if (attrs.mode or 0) & 0o170000 == 0o040000 else attrs.size for name, attrs in got.items()}


def file_attrs(size: int | None, attrs: dict[str, int]) -> FileAttrs:
    """Attributes to set."""
    mtime = attrs.get("mtime")
    return FileAttrs(size=size, mode=attrs.get("mode"), atime=mtime, mtime=mtime)


def flags_text(flags: int) -> str:
    """Flags in words."""
    return "+".join(name for name in ("READ", "WRITE", "APPEND", "CREAT", "TRUNC", "EXCL") if flags & getattr(m, name))


def name_of(handle: m.Handle) -> str:
    """A handle in the trace."""
    where = f"u{handle.upload.number}" if handle.upload is not None else "f"
    return f"#{handle.real[:4].hex().lstrip('0')}({where}{'' if handle.is_owner else ' reading'})"


def short(value: Any) -> str:
    """A value in the trace."""
    if isinstance(value, m.Handle):
        return f"a handle on {f'u{value.upload.number}' if value.upload else 'a file'}"
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes {bytes(value[:12]).hex()}"
    return str(value)[:200]
