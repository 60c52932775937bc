"""The few things the journal asks of a disk, as a port: the real one here, one that loses power in tests/sim/disk.py.

Only `create` and `sync` promise durability. Every method may raise OSError; nothing may be assumed of a file after one.
"""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

from raftmft.core.errors import ConfigError

NEW = ".new"
"""Ends the name of a file that is still being made."""


class File(Protocol):
    """One open, locked file that grows at its end."""

    def read(self) -> bytes:
        """All of it."""

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer at the file's end."""

    def append(self, data: bytes) -> None:
        """Writes all of `data` at the end; not durable."""

    def truncate(self, size: int) -> None:
        """Cuts the file off at `size` bytes; not durable."""

    def sync(self) -> None:
        """Returns when all that was appended and cut is durable."""

    def close(self) -> None:
        """Lets go of the file and its lock. Harmless twice."""


class Disk(Protocol):
    """Opens and creates files by path."""

    def open(self, path: str) -> File | None:
        """The existing file, locked against other processes; None if there is none. ConfigError if it is in use."""

    def create(self, path: str, content: bytes) -> File:
        """A new file (0600) that after any crash either is not there or holds at least `content`."""

    def names(self, prefix: str) -> list[str]:
        """The paths that begin with `prefix`, sorted, of files that `create` made whole."""

    def remove(self, path: str) -> None:
        """Takes the file away; after a crash it may be there again. No error if there is none."""


class OsFile:
    """A File on a real disk: pwrite, fdatasync, flock."""

    def __init__(self, path: str, fd: int) -> None:
        self._path, self._fd = path, fd
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ConfigError(f"{path} is in use by another process: stop that node first") from None
        self._end = os.fstat(fd).st_size

    def read(self) -> bytes:
        """All of it."""
        parts, offset = [], 0
        while offset < self._end:
            part = os.pread(self._fd, min(self._end - offset, 64 << 20), offset)
            if not part:
                raise OSError(f"{self._path} ends at {offset}, before its size of {self._end}")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer at the file's end."""
        return os.pread(self._fd, size, offset)

    def append(self, data: bytes) -> None:
        """Writes all of `data` at the end."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self._end)
            self._end += written
            view = view[written:]

    def truncate(self, size: int) -> None:
        """Cuts the file off at `size`."""
        os.ftruncate(self._fd, size)
        self._end = size

    def sync(self) -> None:
        """fdatasync: the data and the file's size."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Closes; the lock goes with the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class OsDisk:
    """The real disk."""

    def open(self, path: str) -> OsFile | None:
        """The existing file, or None."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return OsFile(path, fd)

    def create(self, path: str, content: bytes) -> OsFile:
        """Written under another name, fsynced, renamed, and the directory fsynced."""
        temporary = path + NEW
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        file = OsFile(temporary, fd)
        try:
            file.append(content)
            os.fsync(fd)
            os.rename(temporary, path)
            directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException:
            file.close()
            raise
        return file

    def names(self, prefix: str) -> list[str]:
        """The finished files whose paths begin with `prefix`."""
        folder, start = os.path.split(prefix)
        return sorted(os.path.join(folder, name) for name in os.listdir(folder or ".")
                      if name.startswith(start) and not name.endswith(NEW))

    def remove(self, path: str) -> None:
        """Unlinks the file."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
