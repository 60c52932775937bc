"""Files of the store's directory: made, locked, sealed and fsynced in the order that a power cut cannot undo."""

from __future__ import annotations

import fcntl
import os

from raftmft.store import format
from raftmft.store.format import Hint

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


def fsync_directory(directory: str) -> None:
    """The directory's present entries are durable. OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Takes the exclusive lock of a segment; False if a living process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def list_segments(directory: str) -> list[str]:
    """The names of all segments, sorted."""
    return sorted(name for name in os.listdir(directory) if format.parse_segment_name(name))


def pread_all(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes, or fewer at the end of the file. One call but for short reads. OSError."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    done = len(data)
    while done < length and (data := os.pread(fd, length - done, offset + done)):
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def seal(directory: str, segment: str, fd: int, hint: Hint) -> None:
    """The segment is cut to its content, durable, and has its hint file. OSError: it may lack the hint, and no more.

    The caller holds the segment's lock. The order matters: a hint that stands on disk describes a segment that does
    too.
    """
    os.ftruncate(fd, hint.end)
    os.fsync(fd)
    path = os.path.join(directory, format.hint_name(segment))
    temporary = path + ".tmp"
    out = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    try:
        content = memoryview(format.pack_hint(hint))
        while content:
            content = content[os.write(out, content):]
        os.fsync(out)
    finally:
        os.close(out)
    os.rename(temporary, path)
    fsync_directory(directory)


def read_hint(directory: str, segment: str) -> Hint | None:
    """The segment's hint; None if there is none or it is damaged. OSError other than its absence."""
    try:
        with open(os.path.join(directory, format.hint_name(segment)), "rb") as file:
            return format.parse_hint(file.read())
    except FileNotFoundError:
        return None
