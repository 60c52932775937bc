"""Compresses in a process of its own that goes behind everything else on the host.

A thread will not do: it shares the interpreter's lock with the loop, and one of low priority that is put off while it
holds that lock puts off the loop. The process holds nothing of ours: blocks come in on its standard input, compressed
ones go out, and it ends when that input does, so it cannot outlive the node. It needs no more than this file.

    either way = length(u32, little-endian) bytes
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from typing import IO

LEVEL = 1
NICE = 10
"""Not 19: on a host without a moment's rest a snapshot must come to its end, too, for the log grows until then."""
_LENGTH = struct.Struct("<I")


class Deflater:
    """A context; call it with a block to have that compressed by zlib. For one thread: it blocks. OSError if the
    process cannot be started, or ended too early.
    """

    def __enter__(self) -> Deflater:
        self.process = subprocess.Popen([sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not taken any more
                pipe.close()

    def __call__(self, block: bytes) -> bytes:
        """The block, compressed."""
        there, back = self.process.stdin, self.process.stdout
        assert there is not None and back is not None
        _put(there, block)
        done = _take(back)
        if done is None:
            raise OSError("the process that compresses ended too early")
        return done


def _put(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _take(stream: IO[bytes]) -> bytes | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which ends this
    os.nice(NICE)
    while (block := _take(sys.stdin.buffer)) is not None:
        _put(sys.stdout.buffer, zlib.compress(block, LEVEL))


if __name__ == "__main__":
    _serve()
