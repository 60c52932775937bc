"""What does a file of 1 TiB cost: each step's time, and the most memory that any process takes for it?

    .venv/bin/python bench/anysize.py [--size-gib 1024] [--nodes 3]

A sparse file goes through everything that clients do with one: written far apart, published, read anywhere through
another node, renamed, copied by copy-data, overwritten and appended to in part, cut, grown, shown by `file show`,
removed. For each step: how long it took, how much the peak of the worker and of the node that grew most rose over
what was resident before, and the CPU seconds of all nodes. While a step runs, another session on the same node asks
for a stat every few milliseconds (`lag`: the longest that it waited).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.transfer import cpu_of_tree
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import FileAttrs
from tests.e2e import memory
from tests.e2e.harness import Cluster
from tests.sftp.raw_client import PUT, RawSftp

MIB, GIB = 1 << 20, 1 << 30
PING_S = 0.005
R_PLUS = p.FXF_READ | p.FXF_WRITE
APPEND = p.FXF_WRITE | p.FXF_APPEND


async def connect(cluster: Cluster, node: str, user: str, key: str) -> RawSftp:
    """A session through a node."""
    host, port = cluster.node(node)["sftp"].rsplit(":", 1)
    return await RawSftp.open(None, await asyncssh.connect(
        host, int(port), known_hosts=cluster.about["known_hosts"], username=user, config=[], agent_path=None,
        client_keys=[key]))


class Steps:
    """Runs steps and keeps what each cost."""

    def __init__(self, cluster: Cluster, ping: RawSftp) -> None:
        self._cluster, self._ping = cluster, ping
        self.rows: list[dict[str, Any]] = []

    async def run(self, name: str, step: Callable[[], Awaitable[Any]]) -> Any:
        """One step."""
        pids = memory.processes(self._cluster)
        before = {pid: memory.resident_mib(pid) for pid in pids}
        memory.forget_peaks(pids)
        cpu = self._cpu()
        self._is_over = False
        lag = asyncio.create_task(self._lag())
        begun = time.perf_counter()
        try:
            result = await step()
        finally:
            took = time.perf_counter() - begun
            self._is_over = True
            await lag
        grown = {pid: memory.peak_mib(pid) - before[pid] for pid in pids}
        self.rows.append({
            "step": name, "ms": round(took * 1e3, 1), "cpu_ms": round((self._cpu() - cpu) * 1e3),
            "node_mib": round(max(grown[p] for p, what in pids.items() if "worker" not in what), 1),
            "worker_mib": round(max(grown[p] for p, what in pids.items() if "worker" in what), 1),
            "lag_ms": round(self._worst * 1e3, 1)})
        return result

    def _cpu(self) -> float:
        return sum(cpu_of_tree(self._cluster.pid(name)) for name in self._cluster.names)

    async def _lag(self) -> None:
        self._worst = 0.0
        while not self._is_over:
            begun = time.perf_counter()
            await self._ping.stat(".")
            self._worst = max(self._worst, time.perf_counter() - begun)
            await asyncio.sleep(PING_S)


async def life(cluster: Cluster, size: int, user: str, key: str, *, is_short: bool = False) -> list[dict[str, Any]]:
    """A sparse file of `size` bytes from its beginning to its end; what it holds is checked on the way. `is_short`:
    without copying it to another offset, which takes a step for each of its chunks.
    """
    first, other = cluster.names[0], cluster.names[-1]
    w, r, ping = [await connect(cluster, node, user, key) for node in (first, other, first)]
    steps = Steps(cluster, ping)
    marks = {0: b"begin", size // 3: b"third", size - 5: b"ends."}

    async def write(path: str, flags: int, parts: dict[int, bytes]) -> None:
        handle = await w.open_file(path, flags)
        for offset, data in parts.items():
            await w.write(handle, offset, data)
        await w.close_handle(handle)

    async def read(sftp: RawSftp, path: str, parts: dict[int, bytes]) -> None:
        handle = await sftp.open_file(path, p.FXF_READ)
        for offset, data in {**parts, size // 2: bytes(1000), MIB - 500: bytes(1000)}.items():
            assert await sftp.read(handle, offset, len(data)) == data, offset
        await sftp.close_handle(handle)

    async def copy() -> None:
        source, target = await w.open_file("renamed", p.FXF_READ), await w.open_file("copy", PUT)
        await w.copy(source, target)
        await w.close_handle(target)
        await w.close_handle(source)

    async def copy_shifted() -> None:
        source, target = await w.open_file("renamed", p.FXF_READ), await w.open_file("shifted", PUT)
        await w.copy(source, target, 0, 0, 7 * MIB)
        await w.close_handle(target)
        await w.close_handle(source)

    async def fsync_partial() -> None:
        handle = await w.open_file("partial", PUT)
        await w.write(handle, 0, b"x" * 100)
        await w.write(handle, size - 1, b"x")
        await w.fsync(handle)
        await w.close_handle(handle)
        await w.remove("partial")

    async def show(path: str) -> None:
        told = json.loads(await asyncio.to_thread(lambda: cluster.run(
            "file", "show", f"/{user}/{path}", "--first", str(size // MIB - 10), "-o", "json").stdout))
        assert told["size"] == size and told["health"] == "ok", told

    run = steps.run
    await run("write, publish", lambda: write("sparse", PUT, marks))
    assert (await run("stat", lambda: r.stat("sparse"))).size == size
    await run("read through another node", lambda: read(r, "sparse", marks))
    await run("rename", lambda: w.rename("sparse", "renamed"))
    await run("copy-data", copy)
    await read(r, "copy", marks)
    if not is_short:
        await run("copy-data to another offset", copy_shifted)
        await w.remove("shifted")
    over = {size // 2 + MIB // 2: b"over"}
    await run("overwrite 4 bytes", lambda: write("copy", R_PLUS, over))
    await read(r, "copy", {**marks, **over})
    await run("append, 4 bytes", lambda: write("copy", APPEND, {0: b"more"}))
    assert (await r.stat("copy")).size == size + 4
    await run("truncate to two thirds", lambda: w.setstat("copy", FileAttrs(size=size * 2 // 3 + 3)))
    await run("grow again", lambda: w.setstat("copy", FileAttrs(size=size)))
    await read(r, "copy", {0: b"begin", size // 3: b"third", size - 5: bytes(5)})
    await run("fsync, remove a partial", fsync_partial)
    await run("file show", lambda: show("renamed"))
    await run("remove", lambda: w.remove("renamed"))
    await w.remove("copy")
    for sftp in (w, r, ping):
        await sftp.close()
    return steps.rows


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-gib", type=int, default=1024)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="leave out what takes a step for each chunk")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raftmft-bench-"))
    cluster = Cluster(folder / "c", options.nodes)
    try:
        cluster.start()
        rows = asyncio.run(life(cluster, options.size_gib * GIB, "demo", cluster.about["users"][0]["key"],
                                is_short=options.short))
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{'':30}{'ms':>9}{'CPU ms':>9}{'node MiB':>10}{'worker MiB':>12}{'lag ms':>9}", file=sys.stderr)
    for row in rows:
        print(f"{row['step']:30}{row['ms']:>9}{row['cpu_ms']:>9}{row['node_mib']:>10}{row['worker_mib']:>12}"
              f"{row['lag_ms']:>9}", file=sys.stderr)
    print(json.dumps({"size_gib": options.size_gib, "nodes": options.nodes, "rows": rows}))


if __name__ == "__main__":
    main()
