"""A program for OpenSSH's `sftp -S`: runs ssh, and counts what passes between the two, packet by packet.

What is counted stands in a file that the test has mapped too (`Meter`). Before the first WRITE it waits until the test
opened the gate, so that the test can find out which node serves the session; then it can kill that node itself, at the
very byte that was asked for. A process of its own, with nothing but the standard library: it starts within 30 ms.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HOLD, RUN = 0, 1
WHEN_CLOSED = 1 << 62
_FIELDS = ("gate", "victim", "kill_at", "delay_ns", "is_held", "first", "sent_to", "acked_to", "is_closing",
           "killed_ns", "acks")
_MOST_ACKS = 1 << 14
_ACK_STEP_NS = 5_000_000
_CLOSE, _WRITE, _STATUS = 4, 6, 101
_HEAD = 64


class Meter:
    """`gate`: HOLD, or RUN; `victim`: a process that is killed `delay_ns` after byte `kill_at` of the file was passed
    on (WHEN_CLOSED: after CLOSE); `first`: where the first WRITE began (-1: none); `sent_to`, `acked_to`: how far the
    file was sent, and acknowledged without a gap; `killed_ns`: when (monotonic).
    """

    def __init__(self, path: Path) -> None:
        size = 8 * (len(_FIELDS) + 2 * _MOST_ACKS)
        if not path.exists():
            path.write_bytes(bytes(size))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._map).cast("q")

    def __getitem__(self, name: str) -> int:
        return self._words[_FIELDS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[_FIELDS.index(name)] = value

    def acked(self, to: int) -> None:
        """One more acknowledgement came."""
        self["acked_to"] = to
        now, count = time.monotonic_ns(), self["acks"]
        at = len(_FIELDS) + 2 * count
        if count < _MOST_ACKS and (not count or now - self._words[at - 2] >= _ACK_STEP_NS):
            self._words[at], self._words[at + 1] = now, to
            self["acks"] = count + 1

    def seconds_behind(self, durable: int) -> float:
        """How long before the kill the first byte behind `durable` was acknowledged; 0 if none was."""
        for number in range(self["acks"]):
            at = len(_FIELDS) + 2 * number
            if self._words[at + 1] > durable:
                return max(0.0, (self["killed_ns"] - self._words[at]) / 1e9)
        return 0.0

    def close(self) -> None:
        """Unmaps the file."""
        self._words.release()
        self._map.close()


def program_in(folder: Path) -> str:
    """The path of an executable that is this program, for a client that wants one; it is made if need be."""
    program = folder / "metered"
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {__file__} "$@"\n')
        program.chmod(0o755)
    return str(program)


class Packets:
    """Cuts a stream into SFTP packets and gives the beginning of each; the rest is not looked at."""

    def __init__(self) -> None:
        self._head, self._skip = bytearray(), 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The first bytes of each packet that became known with `data`, without the length."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip, at = self._skip - step, at + step
                continue
            want = 4 if len(self._head) < 4 else 4 + min(_HEAD, int.from_bytes(self._head[:4], "big"))
            step = min(want - len(self._head), len(data) - at)
            self._head += data[at : at + step]
            at += step
            if len(self._head) >= 4:
                length = int.from_bytes(self._head[:4], "big")
                if len(self._head) == 4 + min(_HEAD, length):
                    yield bytes(self._head[4:])
                    self._skip, self._head = length - min(_HEAD, length), bytearray()


class Tap:
    """Both directions of one client's channel."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._writes: dict[int, tuple[int, int]] = {}
        self._to_server, self._to_client = Packets(), Packets()
        meter["first"] = -1

    def sent(self, data: bytes) -> bool:
        """The client sends this. True if CLOSE of a written file is in it. Waits at the gate."""
        meter, is_closing = self._meter, False
        for head in self._to_server.feed(data):
            kind, number = head[0], int.from_bytes(head[1:5], "big")
            if kind == _WRITE:
                (size,) = struct.unpack_from(">I", head, 5)
                offset, length = struct.unpack_from(">QI", head, 9 + size)
                if meter["first"] < 0:
                    meter["first"] = meter["acked_to"] = offset
                    meter["is_held"] = 1
                    while meter["gate"] == HOLD:
                        time.sleep(0.001)
                self._writes[number] = (offset, offset + length)
                meter["sent_to"] = max(meter["sent_to"], offset + length)
            elif kind == _CLOSE and meter["first"] >= 0:
                is_closing = True
                meter["is_closing"] = 1  # before it leaves: who sees the file earlier saw too much
        return is_closing

    def received(self, data: bytes) -> None:
        """The server answered this."""
        for head in self._to_client.feed(data):
            written = self._writes.pop(int.from_bytes(head[1:5], "big"), None)
            if written and head[0] == _STATUS and head[5:9] == bytes(4) and written[0] <= self._meter["acked_to"]:
                self._meter.acked(max(self._meter["acked_to"], written[1]))


def kill_if_due(meter: Meter, is_closing: bool) -> None:
    """Kills the victim if enough was passed on."""
    due = is_closing if meter["kill_at"] == WHEN_CLOSED else meter["sent_to"] >= meter["kill_at"]
    if meter["victim"] and due and not meter["killed_ns"]:
        time.sleep(meter["delay_ns"] / 1e9)
        os.kill(meter["victim"], signal.SIGKILL)
        meter["killed_ns"] = time.monotonic_ns()


def _all_to(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main() -> None:
    """Arguments are ssh's. The file of the meter stands in METER."""
    meter = Meter(Path(os.environ["METER"]))
    tap = Tap(meter)
    ssh = subprocess.Popen(["ssh", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert ssh.stdin and ssh.stdout
    to_server, from_server = ssh.stdin.fileno(), ssh.stdout.fileno()

    def up() -> None:
        try:
            while data := os.read(0, 65536):
                is_closing = tap.sent(data)
                _all_to(to_server, data)
                kill_if_due(meter, is_closing)
        except OSError:
            pass  # ssh has ended
        ssh.stdin.close()  # type: ignore[union-attr]

    threading.Thread(target=up, daemon=True).start()
    try:
        while data := os.read(from_server, 65536):
            tap.received(data)
            _all_to(1, data)
    except OSError:
        ssh.kill()
    os._exit(ssh.wait() & 255)


if __name__ == "__main__":
    main()
