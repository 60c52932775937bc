"""Hosts whose power can be cut: each node on a file system of its own, which loses what was never synced.

The file systems are ext4 on loop devices, mounted so that nothing but fsync makes anything durable for five minutes.
`PoweredCluster.cut` shuts them all down at one moment without writing their journals (EXT4_IOC_SHUTDOWN, as xfstests
does it), kills the nodes, and mounts them again: what is there then is what a disk holds after a power cut.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.harness import RAFTMFT, Cluster, wait_for

CHECKOUT = Path(__file__).parents[2]
DISK_BYTES = 2 << 30
COMMIT_EVERY_S = 300
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH

SMALL_SNAPSHOTS = """
from raftmft.raft import compaction, journal, snapshots, snapshotter
compaction.SNAPSHOT_ENTRIES, compaction.KEEP_BYTES, journal.SEGMENT_BYTES = 60, 0, 8192
snapshotter.LOOK_EVERY_S, snapshots.BLOCK_BYTES = 0.01, 16384
"""
"""For `bent`: snapshots are made all the time, and the log before them is dropped."""

_FORGET = """
import os
def forgetful(sync):
    def skip(fd):
        number = fd if isinstance(fd, int) else fd.fileno()
        return None if %r in os.readlink("/proc/self/fd/%%d" %% number) + "/" else sync(fd)
    return skip
os.fsync, os.fdatasync = forgetful(os.fsync), forgetful(os.fdatasync)
os.posix_fadvise = lambda *_: None
"""
"""POSIX_FADV_DONTNEED begins to write what is dirty, and so would make up for a lacking sync, most of the time."""


def forgetting(part: str) -> str:
    """For `bent`: no file and no folder whose path holds `part` is synced, and nobody is told."""
    return _FORGET % part


def why_not() -> str:
    """Why no power can be cut here; empty if it can."""
    tools = ("mount", "umount", "mkfs.ext4", "fsfreeze")
    able = os.geteuid() == 0 and all(map(shutil.which, tools)) and os.path.exists("/dev/loop-control")
    return "" if able else "needs root for loop-mounted disks"


class PowerDisk:
    """One ext4 in the file `image`, mounted at `folder`."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image, self.folder = image, folder
        folder.mkdir(parents=True, exist_ok=True)
        with open(image, "wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)

    def mount(self) -> None:
        """Mounts it; what its journal holds is replayed."""
        options = f"loop,commit={COMMIT_EVERY_S},noinit_itable"
        subprocess.run(["mount", "-t", "ext4", "-o", options, str(self.image), str(self.folder)], check=True)

    def cut(self) -> None:
        """From now on nothing reaches the disk, and everything that tries fails."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Takes it away, once the last process on it has ended. No error if it is not mounted."""
        if os.path.ismount(self.folder):
            wait_for(f"{self.folder} to be left by all", lambda: subprocess.run(
                ["umount", str(self.folder)], capture_output=True).returncode == 0, 30)

    def remove(self) -> None:
        """Once it is taken away: its image goes, too."""
        self.image.unlink()


_FREEZE = 'trap "" INT TERM HUP; fsfreeze --freeze "$1" && echo frozen; read _; fsfreeze --unfreeze "$1"'
"""Ends with its standard input: a test that is killed leaves no disk frozen."""


class StallingDisk(PowerDisk):
    """A PowerDisk that can stop answering: its image lies on a file system of its own, which can be frozen. Whoever
    writes to files still fills the page cache; what must reach the disk waits.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        self._below = folder.with_name(folder.name + ".below")
        self._below_image = image.with_suffix(".below.img")
        self._below.mkdir(parents=True)
        with open(self._below_image, "wb") as file:
            file.truncate(DISK_BYTES * 3 // 2)
        subprocess.run(["mkfs.ext4", "-q", str(self._below_image)], check=True)
        subprocess.run(["mount", "-t", "ext4", "-o", "loop", str(self._below_image), str(self._below)], check=True)
        super().__init__(self._below / "disk.img", folder)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Nothing that is written reaches the disk until this ends, or the process of the caller does. Meanwhile nobody
        may sync all disks of the machine: it would wait.
        """
        keeper = subprocess.Popen(["sh", "-c", _FREEZE, "sh", str(self._below)], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        with keeper:
            assert keeper.stdin is not None and keeper.stdout is not None
            try:
                assert keeper.stdout.readline() == b"frozen\n", f"{self._below} cannot be frozen"
                yield
            finally:
                keeper.stdin.close()
                assert keeper.wait(30) == 0

    def remove(self) -> None:
        super().remove()
        subprocess.run(["umount", str(self._below)], check=True)
        self._below_image.unlink()


class PoweredCluster(Cluster):
    """Three nodes, each on a PowerDisk. `bent` is Python that their processes run before anything else."""

    def __init__(self, folder: Path, bent: str = "", kind: type[PowerDisk] = PowerDisk) -> None:
        self._kind = kind
        super().__init__(folder)
        self._bent = folder.with_name(folder.name + "-bent")
        self._bent.mkdir()
        (self._bent / "sitecustomize.py").write_text(bent)
        self.disks: dict[str, PowerDisk] = {}
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> PoweredCluster:
        """Makes the cluster, moves it to the disks, and starts it there."""
        super().start()
        self.stop()
        for name in self.names:
            folder, plain = self.folder / name, self.folder / f"{name}.plain"
            folder.rename(plain)
            disk = self.disks[name] = self._kind(self.folder / f"{name}.img", folder)
            disk.mount()
            shutil.copytree(plain, folder, dirs_exist_ok=True, symlinks=True)
            os.chmod(folder, 0o700)
        os.sync()
        self.switch_on(*self.names)
        self.wait_ready()
        return self

    def switch_on(self, *names: str) -> None:
        """Starts these nodes; returns at once."""
        path = os.pathsep.join([str(self._bent), str(CHECKOUT)])
        for name in names:
            with open(self.folder / f"{name}.log", "ab") as log:
                self.nodes[name] = subprocess.Popen(
                    [*RAFTMFT, "node", "--data-dir", str(self.folder / name)], stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})

    def kill_nodes(self, *names: str) -> None:
        """SIGKILL to these; their disks keep their power."""
        for name in names:
            self.nodes[name].kill()
        for name in names:
            self.nodes[name].wait()

    def cut(self) -> None:
        """The power of all hosts goes at one moment, and comes again; the nodes are not started."""
        cuts = [threading.Thread(target=disk.cut) for disk in self.disks.values()]
        for thread in cuts:
            thread.start()
        for thread in cuts:
            thread.join()
        self.kill_nodes(*self.names)
        for disk in self.disks.values():
            disk.unmount()
            disk.mount()

    def come_up(self) -> str:
        """Starts all nodes and waits until they serve; what went wrong, if they do not."""
        self.switch_on(*self.names)
        waits = {name: subprocess.Popen(
            [*RAFTMFT, "status", "--wait", "ready", "--timeout", "60"], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "RAFTMFT_DATA_DIR": str(self.folder / name)})
            for name in self.names}
        try:
            wait_for("an end of waiting", lambda: all(wait.poll() is not None for wait in waits.values())
                     or any(node.poll() is not None for node in self.nodes.values()), 70)
        finally:
            for wait in waits.values():
                wait.kill()
                wait.wait()
        ended = [name for name, node in self.nodes.items() if node.poll() is not None]
        if ended:
            return f"{ended[0]} does not start: {self.log(ended[0]).strip().splitlines()[-1]}"
        late = [name for name, wait in waits.items() if wait.returncode not in (0, 3)]  # 3: degraded, and serves
        if late:
            last = self.log(late[0]).strip().splitlines()[-3:]
            return f"{late} are not ready after 60 s; the log of {late[0]} ends with {last}"
        return ""

    def log(self, name: str) -> str:
        """What the node wrote since the beginning."""
        return (self.folder / f"{name}.log").read_text()

    def close(self) -> None:
        """Ends every process and takes the disks away."""
        for node in self.nodes.values():
            node.kill()
            node.wait()
        self.stop()
        for disk in self.disks.values():
            disk.unmount()
            disk.remove()


