"""A disk that loses power: what was not synced is dropped, cut short, or torn sector by sector."""

from __future__ import annotations

from random import Random

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

    def open(self, path: str) -> SimFile | None:
        return self.files.get(path)

    def create(self, path: str, content: bytes) -> SimFile:
        self.files[path] = SimFile(content)
        return self.files[path]

    def lose_power(self, rng: Random) -> None:
        for path in sorted(self.files):
            self.files[path].lose_power(rng)
