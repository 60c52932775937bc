"""Contract 1 and 6, with real processes and OpenSSH's client: any node may be killed at any time, even all at once;
what was acknowledged is there afterwards, whole, through every node.

SIGKILL does not test fsync (the page cache survives it): that order is tested on a simulated disk in tests/sim.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.harness import Cluster, wait_for

ROUNDS = 10
SIZES = (0, 1, 4096, 4096, 70_000, 1 << 20, (1 << 20) + 1, 3_000_000)


class Uploader(threading.Thread):
    """One OpenSSH client that puts files, one after another, until its connection is lost or it is through."""

    def __init__(self, cluster: Cluster, node: str, files: list[Path], folder: str) -> None:
        super().__init__()
        self.files, self.folder = files, folder
        self._command = cluster.sftp_command(node)
        self.acknowledged: list[Path] = []
        self.begun = threading.Event()
        self._client: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """A put is acknowledged when the client goes on to the next command, or ends well."""
        batch = "".join(f"put {file} {self.folder}/{file.name}\n" for file in self.files) + "pwd\n"
        with tempfile.TemporaryFile() as commands:
            commands.write(batch.encode())
            commands.seek(0)
            client = subprocess.Popen(self._command, stdin=commands, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._client = client
        assert client.stdout
        echoed = 0
        for line in client.stdout:
            if line.startswith(b"sftp> "):
                echoed += 1
                self.begun.set()
                self.acknowledged = self.files[: echoed - 1]
        client.wait()
        self.begun.set()

    def stop(self) -> None:
        """Ends the client."""
        if self._client is not None:
            self._client.kill()
        self.join()


def make_files(folder: Path, seed: int, count: int) -> list[Path]:
    rng = random.Random(seed)
    folder.mkdir()
    files = []
    for number in range(count):
        file = folder / f"f{number:03}"
        file.write_bytes(rng.randbytes(rng.choice(SIZES)))
        files.append(file)
    return files


def verify(cluster: Cluster, node: str, uploaders: list[Uploader], back: Path) -> list[str]:
    """The acknowledged files that are missing or differ, as read through `node`."""
    lost = []
    back.mkdir(parents=True)
    batch = "".join(
        f"-get {u.folder}/{file.name} {back}/{u.folder.replace('/', '_')}_{file.name}\n"
        for u in uploaders
        for file in u.acknowledged
    )
    cluster.sftp(node, batch, timeout_s=120)
    for uploader in uploaders:
        for file in uploader.acknowledged:
            copy = back / f"{uploader.folder.replace('/', '_')}_{file.name}"
            if not copy.exists() or copy.read_bytes() != file.read_bytes():
                lost.append(f"{node}:{uploader.folder}/{file.name}")
    return lost


def victims(cluster: Cluster, kind: str) -> list[str]:
    leader = cluster.leader()
    if kind == "leader":
        return [leader]
    if kind == "follower":
        return [next(name for name in cluster.names if name != leader)]
    return cluster.names


def enough(uploaders: list[Uploader], target: int) -> bool:
    return sum(len(u.acknowledged) for u in uploaders) >= target or not any(u.is_alive() for u in uploaders)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leader", "follower", "all"])
def test_acknowledged_files_survive_sigkill(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    acknowledged = interrupted = 0
    for number in range(ROUNDS):
        files = make_files(tmp_path / f"{kind}{number}", number, 40)
        cluster.sftp(
            cluster.names[0], f"mkdir r{number}\n" + "".join(f"mkdir r{number}/{name}\n" for name in cluster.names)
        )
        uploaders = [Uploader(cluster, name, files, f"r{number}/{name}") for name in cluster.names]
        chosen = victims(cluster, kind)
        for uploader in uploaders:
            uploader.start()
        for uploader in uploaders:
            assert uploader.begun.wait(30)
        target = rng.randrange(2, 60)
        wait_for("some uploads", partial(enough, uploaders, target), 60)
        cluster.kill(*chosen)
        for uploader in uploaders:
            uploader.join(60)
            assert not uploader.is_alive(), "a client hangs"
        cluster.restart(*chosen)
        cluster.wait_ready()
        lost = [
            name
            for node in cluster.names
            for name in verify(cluster, node, uploaders, tmp_path / f"back{number}" / node)
        ]
        assert not lost, f"round {number}: acknowledged files lost after SIGKILL of {chosen}: {lost[:5]}"
        acknowledged += sum(len(u.acknowledged) for u in uploaders)
        interrupted += sum(len(u.acknowledged) < len(u.files) for u in uploaders)
    print(
        f"SIGKILL {kind}: {ROUNDS} rounds, {acknowledged} acknowledged files, {interrupted} clients interrupted, 0 lost"
    )
    assert interrupted >= ROUNDS // 2, "the kills came too late to prove anything"
