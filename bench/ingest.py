"""What does it cost to bring a file onto three nodes, and how fast is it, without SSH: along a chain, or fanned out?

Three real node processes on loopback (bench/realnode.py), R=3, mutual TLS, a real disk. The first one takes a file of
fresh chunks of 1 MiB as from a worker (hash, append, fdatasync every 16 MiB, one upload's window) and publishes it.
A file counts as in when it is published *and* no copy is under way any more: CPU is that of all three nodes until then.
MB/s is until the publish alone, as a client would see it. Rounds alternate between both ways; medians.

On a slow disk the files take long, and what the nodes spend meanwhile just to be a cluster counts too: *idle* is what
they spend in that way, measured in the same run with nothing to do, and *bare* is what is left without it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.realnode import Handle, prefer
from bench.transfer import cpu_of_tree
from tests.e2e.harness import Cluster, wait_for

WAYS = ("chain", "fan-out")


def ingest(nodes: list[Handle], mib: int, *, chained: bool) -> dict[str, Any]:
    """One file: MB/s, CPU s/GB of each node, and what was left to repair."""
    for node in nodes:
        node.ask("forget_pages")
    left = settled(nodes[0])
    before, begun = [cpu_of_tree(node.process.pid) for node in nodes], time.monotonic()
    took = nodes[0].ask("ingest", mib=mib, chained=chained)
    after = settled(nodes[0])
    lasted, gigabytes = time.monotonic() - begun, mib * (1 << 20) / 1e9
    return {"mb_per_s": gigabytes * 1e3 / took, "s_per_gb": lasted / gigabytes,
            "cpu": [(cpu_of_tree(node.process.pid) - was) / gigabytes for node, was in zip(nodes, before, strict=True)],
            "left_to_repair": after.get("left_to_repair", 0) - left.get("left_to_repair", 0)}


def idle(nodes: list[Handle], seconds: float) -> float:
    """CPU seconds a second of all nodes together while nothing goes in; asked as often as `settled` asks."""
    before, begun = sum(cpu_of_tree(node.process.pid) for node in nodes), time.monotonic()
    while time.monotonic() - begun < seconds:
        nodes[0].ask("replicated")
        time.sleep(0.1)
    return (sum(cpu_of_tree(node.process.pid) for node in nodes) - before) / (time.monotonic() - begun)


def settled(node: Handle) -> dict[str, int]:
    """The node's counts once they stand still: no copy is under way."""
    counts: list[dict[str, int]] = []

    def still() -> bool:
        counts.append(node.ask("replicated"))
        time.sleep(0.1)
        return len(counts) > 1 and counts[-1] == counts[-2]

    wait_for("copies to end", still, 60)
    return counts[-1]


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="size of each file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=10.0, help="for how long the idle nodes are looked at")
    parser.add_argument("--dir", help="where (default: the system's temporary files; take a real disk)")
    parser.add_argument("--nice", type=int, default=0, help="go before others (negative: as root) or after them")
    options = parser.parse_args()
    if options.nice:
        prefer(options.nice)
    folder = Path(tempfile.mkdtemp(prefix="raftmft-bench-", dir=options.dir))
    nodes: list[Handle] = []
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    try:
        cluster = Cluster(folder / "c")
        try:
            cluster.start()
            cluster.wait_ready()
        finally:
            cluster.stop()
        nodes += [Handle(cluster.folder / name) for name in cluster.names]
        for node in nodes:
            wait_for("a node that serves", lambda node=node: node.ask("look")["ready"], 60)  # type: ignore[misc]
        for node in nodes:
            node.ask("numb")
        for way in WAYS:  # the first file of each pays for connections and memory
            ingest(nodes, min(64, options.mib), chained=way == "chain")
        for number in range(options.rounds):
            for way in WAYS if number % 2 else WAYS[::-1]:
                rows[way].append(ingest(nodes, options.mib, chained=way == "chain"))
        idly = idle(nodes, options.idle_s)
        counts = [node.ask("replicated") for node in nodes]
    finally:
        for node in nodes:
            node.end()
        shutil.rmtree(folder, ignore_errors=True)
    told: dict[str, Any] = {}
    print(f"{'':10}{'MB/s':>8}{'CPU s/GB':>10}{'bare':>8}   by node", file=sys.stderr)
    for way, done in rows.items():
        cpu = [round(statistics.median(row["cpu"][n] for row in done), 2) for n in range(3)]
        told[way] = {"mb_per_s": round(statistics.median(row["mb_per_s"] for row in done), 1), "cpu_by_node": cpu,
                     "cpu_s_per_gb": round(statistics.median(sum(row["cpu"]) for row in done), 2),
                     "bare_cpu_s_per_gb": round(statistics.median(
                         sum(row["cpu"]) - idly * row["s_per_gb"] for row in done), 2),
                     "left_to_repair": sum(row["left_to_repair"] for row in done)}
        print(f"{way:10}{told[way]['mb_per_s']:>8}{told[way]['cpu_s_per_gb']:>10}"
              f"{told[way]['bare_cpu_s_per_gb']:>8}   {cpu}", file=sys.stderr)
    print(f"idle: {idly:.3f} CPU s a second, all three together", file=sys.stderr)
    print(json.dumps({**told, "idle_cpu_s_per_s": round(idly, 3), "counts": counts}))


if __name__ == "__main__":
    main()
