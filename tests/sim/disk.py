"""A disk that loses power: what was not synced is dropped, cut short, or torn sector by sector."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftmft.raft.journal import Batch

SECTOR = 64
"""Smaller than a real one, so that small batches tear too."""


class SimFile:
    """`content` is what a reader sees; `durable` is what survives for certain."""

    def __init__(self, content: bytes) -> None:
        self.content, self.durable = bytearray(content), bytes(content)
        self.fail_append = self.fail_sync = False
        self.syncs = 0

    def read(self) -> bytes:
        return bytes(self.content)

    def read_at(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def append(self, data: bytes) -> None:
        if self.fail_append:
            self.content += data[: len(data) // 2]
            raise OSError(28, "No space left on device")
        self.content += data

    def truncate(self, size: int) -> None:
        del self.content[size:]

    def sync(self) -> None:
        if self.fail_sync:
            raise OSError(5, "Input/output error")
        self.syncs += 1
        self.durable = bytes(self.content)

    def close(self) -> None:
        pass

    def lose_power(self, rng: Random) -> None:
        """Keeps what is durable; of the rest any sectors, the others zero, and any length."""
        assert self.content[: len(self.durable)] == self.durable or len(self.content) < len(self.durable)
        rest = bytearray(self.content[len(self.durable) :])
        for at in range(0, len(rest), SECTOR):
            if rng.random() < 0.5:
                rest[at : at + SECTOR] = bytes(len(rest[at : at + SECTOR]))
        self.content = bytearray(self.durable) + rest[: rng.randrange(len(rest) + 1)]
        self.durable = bytes(self.content)


class SimDisk:
    """Files by path."""

    def __init__(self) -> None:
        self.files: dict[str, SimFile] = {}
        self.removed: dict[str, SimFile] = {}

    def names(self, prefix: str) -> list[str]:
        return sorted(path for path in self.files if path.startswith(prefix))

    def remove(self, path: str) -> None:
        """The name may be there again after a power cut: no directory was synced."""
        if file := self.files.pop(path, None):
            self.removed[path] = file

    def last(self, prefix: str) -> SimFile:
        """The file whose name is the last of those that begin with `prefix`."""
        return self.files[self.names(prefix)[-1]]

    def open(self, path: str) -> SimFile | None:
        return self.files.get(path)

    def create(self, path: str, content: bytes) -> SimFile:
        self.files[path] = SimFile(content)
        return self.files[path]

    def lose_power(self, rng: Random) -> None:
        for path in sorted(self.removed):
            if path not in self.files and rng.random() < 0.5:
                self.files[path] = self.removed[path]
        self.removed = {}
        for path in sorted(self.files):
            self.files[path].lose_power(rng)


def tear(disk: SimDisk, batch: Batch, part: float) -> None:
    """The process ends while it puts `batch`: `part` of its bytes were written. A new segment is there whole or not."""
    if not batch.fresh:
        with suppress(OSError):  # a full disk: nobody is left to hear of it
            disk.files[batch.segment.path].append(batch.data[: int(len(batch.data) * part)])
    elif part >= 0.5:
        disk.create(batch.segment.path, batch.data)
