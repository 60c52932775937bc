"""What does deduplication within a home give, and what does it cost an upload of new bytes?

Three real nodes on loopback and OpenSSH's client. Each round puts a file of each kind through the same node, under a
name of its own:

  new       bytes that nobody has
  same      the bytes of the round's new file
  changed   the same, but for one chunk in 20
  zeros     one chunk over and over

Told: medians of the time, of the CPU of all nodes and workers together, and of what these wrote to their disks,
journals and all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.e2e.harness import Cluster

MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
SETTLE_S = 1.0
"""The last copies arrive after the client has its answer."""


def cpu_s(cluster: Cluster) -> float:
    """CPU of all nodes and their workers, until now."""
    nodes, total = {cluster.pid(name) for name in cluster.names}, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(path.parent.name) in nodes or int(fields[1]) in nodes:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def written(cluster: Cluster) -> int:
    """Bytes that all nodes and their workers have written to files, until now."""
    nodes, total = {cluster.pid(name) for name in cluster.names}, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if int(path.parent.name) in nodes or parent in nodes:
                line = next(line for line in (path.parent / "io").read_text().splitlines() if line.startswith("wchar"))
                total += int(line.split()[1])
        except OSError:
            continue
    return total


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        rows = measure(Path(folder), args.mb, args.rounds)
    for row in rows:
        print(row, file=sys.stderr)
    print(json.dumps({"mb": args.mb, "rounds": args.rounds, "rows": rows}))


def measure(folder: Path, size_mb: int, rounds: int) -> list[dict[str, object]]:
    """One row for each kind."""
    cluster, found = Cluster(folder / "c"), dict[str, list[tuple[float, float, float]]]()
    source = folder / "source"
    try:
        cluster.start()
        for number in range(rounds):
            new = bytearray(os.urandom(size_mb * MIB))
            for kind in ("new", "same", "changed", "zeros"):
                if kind == "changed":
                    for at in range(0, len(new), 20 * MIB):
                        new[at] ^= 1
                source.write_bytes(bytes(len(new)) if kind == "zeros" else new)
                before, cpu, started = written(cluster), cpu_s(cluster), time.monotonic()
                cluster.sftp(cluster.names[0], f"put {source} {kind}{number}\n", timeout_s=600)
                took = time.monotonic() - started
                time.sleep(SETTLE_S)
                found.setdefault(kind, []).append(
                    (took, cpu_s(cluster) - cpu, (written(cluster) - before) / MIB))
    finally:
        cluster.stop()
    return [{"kind": kind, "seconds": round(statistics.median(row[0] for row in rows), 2),
             "cpu_s": round(statistics.median(row[1] for row in rows), 2),
             "written_mb": round(statistics.median(row[2] for row in rows), 1)} for kind, rows in found.items()]


if __name__ == "__main__":
    main()
