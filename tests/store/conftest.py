"""A disk that records what was made durable, and fails on demand."""

from __future__ import annotations

import os
import threading

import pytest

from raftmft.store.writer import SegmentWriter


class Disk:
    """Records, in order, what was made durable; fails on demand."""

    def __init__(self, monkeypatch):
        self.log: list[str] = []
        self.fail: OSError | None = None
        self.hold: threading.Event | None = None
        self.entered = threading.Event()
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, real):
        def call(fd):
            self.entered.set()
            if self.hold is not None:
                assert self.hold.wait(10)
            if self.fail is not None:
                raise self.fail
            real(fd)
            self.log.append(f"{name} {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
        return call


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def make(directory, size=1 << 20, name="w"):
    return SegmentWriter(directory, name, size, reserve_bytes=0)
