"""How much memory do a node and its workers take while several large files come and go at once?

    .venv/bin/python bench/memory.py [--files 8] [--mib 1024] [--limit-mib 0] [--dir DISK]

One real node and OpenSSH's clients. Told: the peak resident memory (VmHWM) of the node and of its largest worker while
so many uploads run, then while so many downloads do. The node, its workers and the program that starts them lie in a
memory cgroup (version 1, as root) of `--limit-mib`, page cache and all (0: in none). Every byte that comes back is
compared, and `failcnt` tells how often the kernel had to reclaim. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.e2e.harness import Cluster

GROUPS = Path("/sys/fs/cgroup/memory")
TRANSFER_S = 900


@contextmanager
def limited(mib: int) -> Iterator[Path | None]:
    """What this process starts within has so much memory together; the process itself does not stay in it."""
    if not mib:
        yield None
        return
    group = GROUPS / f"raftmft-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(mib << 20))
        yield group
    finally:
        group.rmdir()


def family(node: int) -> dict[int, str]:
    """The node and its workers, by process id."""
    found = {node: "node"}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == node:
            found[int(path.parent.name)] = "worker"
    return found


def peaks(node: int) -> dict[str, float]:
    """The peak of the node and of the largest worker, in MiB, since `forget`."""
    found: dict[str, float] = {}
    for pid, kind in family(node).items():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
        found[f"{kind}_mib"] = round(max(peak, found.get(f"{kind}_mib", 0)), 1)
    return found


def forget(node: int) -> None:
    """Peaks are counted from now on."""
    for pid in family(node):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def measure(folder: Path, files: int, mib: int, limit_mib: int) -> list[dict[str, object]]:
    """One row for uploads, one for downloads."""
    source, rows = folder / "source", list[dict[str, object]]()
    with open(source, "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(mib))
    with limited(limit_mib) as group:
        cluster = Cluster(folder / "c", 1)
        home = GROUPS / "cgroup.procs"
        try:
            if group:
                (group / "cgroup.procs").write_text(str(os.getpid()))
            try:
                cluster.start()
            finally:
                if group:
                    home.write_text(str(os.getpid()))
            (name,) = cluster.names
            for way in ("put", "get"):
                forget(cluster.pid(name))
                with ThreadPoolExecutor(files) as clients:
                    orders = [f"put {source} m{n}\n" if way == "put" else f"get m{n} {folder}/back{n}\n"
                              for n in range(files)]
                    list(clients.map(lambda order: cluster.sftp(name, order, timeout_s=TRANSFER_S), orders))
                reclaimed = int((group / "memory.failcnt").read_text()) if group else 0
                rows.append({"way": way, **peaks(cluster.pid(name)), "failcnt": reclaimed})
            for n in range(files):
                if not filecmp.cmp(source, folder / f"back{n}", shallow=False):
                    raise SystemExit(f"file m{n} did not come back as it went")
        finally:
            cluster.stop()
    return rows


def main() -> None:
    """Prints one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--limit-mib", type=int, default=0)
    parser.add_argument("--dir", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        rows = measure(Path(folder), args.files, args.mib, args.limit_mib)
    for row in rows:
        print(row, file=sys.stderr)
    print(json.dumps({"files": args.files, "mib": args.mib, "limit_mib": args.limit_mib, "rows": rows}))


if __name__ == "__main__":
    main()
