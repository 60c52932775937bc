"""Does a member that was stopped and catches up hold up the others?

The three processes of commit.py. `--proposers` proposers run at the leader; one follower gets SIGSTOP for some seconds,
then SIGCONT. Before, meanwhile and afterwards: commits a second, latencies, the longest time without any commit, and
how late the leader's loop was at worst (which is what holds up everybody).
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parent))
from commit import Handle, Member, wait

from raftmft.cli.dev import free_ports
from raftmft.core import commands as c
from raftmft.node.genesis import FirstMember, make_cluster
from raftmft.node.link import value_of
from raftmft.node.settings import Settings

LAG_EVERY_S = 0.005


class Watched(Member):
    """Tells every commit's end and latency, and the loop's lags."""

    async def watch(self, proposers: int, seconds: float, kind: str) -> dict[str, Any]:
        """(end, latency) of each commit, (time, lag) of the loop."""
        took: list[tuple[float, float]] = []
        lags: list[tuple[float, float]] = []
        deadline = trio.current_time() + seconds

        async def propose() -> None:
            while trio.current_time() < deadline:
                begun = time.monotonic()
                if kind == "noop":
                    value_of(await self.driver.propose(c.Envelope(c.NoOp(bytes(200))), timeout_s=30))
                else:
                    value_of(await self.proposer.execute(c.NoOp(bytes(200))))
                now = time.monotonic()
                took.append((now, now - begun))

        async def lag() -> None:
            while trio.current_time() < deadline:
                due = time.monotonic() + LAG_EVERY_S
                await trio.sleep(LAG_EVERY_S)
                lags.append((time.monotonic(), time.monotonic() - due))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lag)
            for _ in range(proposers):
                nursery.start_soon(propose)
        return {"took": took, "lags": lags}


def summary(found: dict[str, Any], since: float, until: float) -> dict[str, float]:
    """Of what ended between the two times."""
    took = [(end, latency) for end, latency in found["took"] if since <= end < until]
    ends = [since, *(end for end, _ in took), until]
    return {
        "commits_per_s": round(len(took) / (until - since)),
        "p50_ms": round(1e3 * statistics.median(latency for _, latency in took), 1) if took else -1,
        "p99_ms": round(1e3 * sorted(latency for _, latency in took)[int(len(took) * 0.99)], 1) if took else -1,
        "max_ms": round(1e3 * max((latency for _, latency in took), default=-1), 1),
        "longest_pause_ms": round(1e3 * max(b - a for a, b in zip(ends, ends[1:], strict=False)), 1),
        "loop_late_ms": round(1e3 * max((lag for at, lag in found["lags"] if since <= at < until), default=0), 1),
    }


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--member", help=argparse.SUPPRESS)
    parser.add_argument("--proposers", type=int, default=128)
    parser.add_argument("--kind", choices=("noop", "command"), default="noop")
    parser.add_argument("--stop", type=float, default=5.0, help="seconds")
    parser.add_argument("--dir", default=None, help="where the journals lie (a real disk)")
    options = parser.parse_args()
    if options.member:
        gc.freeze()  # as node/process.py does
        trio.run(Watched(options.member).run)
        return
    folder = Path(tempfile.mkdtemp(prefix="raftmft-catch-up-", dir=options.dir))
    members: list[Handle] = []
    try:
        ports = free_ports(12)
        first = [
            FirstMember(folder / f"n{n}", Settings(name=f"n{n}", advertise="127.0.0.1", sftp_port=ports.pop(),
                                                   peer_port=ports.pop(), gossip_port=ports.pop(),
                                                   admin_port=ports.pop()))
            for n in range(3)
        ]
        make_cluster("bench", first)
        members = [Handle(m.data_dir, __file__) for m in first]
        wait(lambda: any(m.ask("look")["role"] == "leader" for m in members))
        members.sort(key=lambda m: m.ask("look")["role"] != "leader")
        for member in members:
            member.ask("prepare")
        leader, _, victim = members
        term = leader.ask("look")["term"]
        found: dict[str, Any] = {}
        seconds = 3 + options.stop + 8
        load = threading.Thread(target=lambda: found.update(
            leader.ask("watch", proposers=options.proposers, seconds=seconds, kind=options.kind)))
        load.start()
        begun = time.monotonic()
        time.sleep(3)
        victim.process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(options.stop)
        victim.process.send_signal(signal.SIGCONT)
        went_on = time.monotonic()
        load.join()
        rows = {
            "before": summary(found, begun + 1, stopped),
            "stopped": summary(found, stopped, went_on),
            "catching up": summary(found, went_on, went_on + 7),
        }
        terms = leader.ask("look")["term"] - term
        print(f"{'':14}{'commits/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'pause ms':>10}{'loop late ms':>14}",
              file=sys.stderr)
        for name, row in rows.items():
            print(f"{name:14}{row['commits_per_s']:>11}{row['p50_ms']:>9}{row['p99_ms']:>9}{row['max_ms']:>9}"
                  f"{row['longest_pause_ms']:>10}{row['loop_late_ms']:>14}", file=sys.stderr)
        print(f"terms that passed: {terms}", file=sys.stderr)
        print(json.dumps({"rows": rows, "terms": terms}))
    finally:
        for member in members:
            assert member.process.stdin
            member.process.send_signal(signal.SIGCONT)
            member.process.stdin.close()
        for member in members:
            member.process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
