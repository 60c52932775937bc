"""How much memory the processes of a cluster take: their own (anonymous), and the most since it was asked to count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.e2e.harness import Cluster


def processes(cluster: Cluster) -> dict[int, str]:
    """Process id -> "n1" for a node, "n1 worker" for each of its workers."""
    found = {}
    for name in cluster.names:
        node = cluster.pid(name)
        found[node] = name
        found |= dict.fromkeys(_children(node), f"{name} worker")
    return found


def forget_peaks(pids: Iterable[int]) -> None:
    """The peaks are counted anew from now on."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pid: int) -> float:
    """The most that was resident since the process began or `forget_peaks`, in MiB."""
    return _status(pid, "VmHWM") / 1024


def resident_mib(pid: int) -> float:
    """What is resident now, in MiB."""
    return _status(pid, "VmRSS") / 1024


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def _children(pid: int) -> list[int]:
    return [int(child) for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
            if b"raftmft.sftp.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
