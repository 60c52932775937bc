"""Commits per second of three RaftDrivers in one process, fsync on: what the consensus core costs in CPU.

Usage: bench/raft_inproc.py [seconds] [--profile]. The three members share one core and one loop, so the rate is about
a third of what three processes reach; microseconds of CPU per command (of all three together) is the figure to watch.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

import trio

from raftmft.core.commands import CommandId, Envelope, NoOp
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.raft.driver import RaftDriver
from raftmft.raft.journal import Journal
from raftmft.raft.replica import Replica

NAMES = ("n0", "n1", "n2")


class NullMachine:
    """Applies nothing: the state machine is measured elsewhere."""

    applied = 0

    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]:
        self.applied = entries[-1].index
        return [Outcome(entry.index) for entry in entries]


class Links:
    """Messages between members of this process, delivered by one task each."""

    def __init__(self) -> None:
        self.drivers: dict[str, RaftDriver] = {}
        self.boxes: dict[str, deque[tuple[str, bytes]]] = {name: deque() for name in NAMES}
        self.wakes = {name: trio.Event() for name in NAMES}

    def send(self, source: str, target: str, body: bytes) -> bool:
        self.boxes[target].append((source, body))
        self.wakes[target].set()
        return True

    async def deliver(self, name: str) -> None:
        while True:
            await self.wakes[name].wait()
            self.wakes[name] = trio.Event()
            while self.boxes[name]:
                self.drivers[name].receive(*self.boxes[name].popleft())


async def load(driver: RaftDriver, count: int, seconds: float) -> dict[str, float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def proposer(number: int) -> None:
        seq = 0
        while (begun := time.perf_counter()) < end:
            seq += 1
            envelope = Envelope(NoOp(b"x" * 100), CommandId("bench", number + 1, seq), seq)
            await driver.propose(envelope, timeout_s=5)
            latencies.append(time.perf_counter() - begun)

    cpu, started = time.process_time(), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(proposer, number)
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    latencies.sort()
    many = len(latencies)
    return {"proposers": count, "per_s": round(many / elapsed), "p50_ms": round(1e3 * latencies[many // 2], 2),
            "p99_ms": round(1e3 * latencies[many * 99 // 100], 2), "cpu_us": round(1e6 * cpu / many, 1)}


async def main(seconds: float, profile: bool) -> None:
    with tempfile.TemporaryDirectory(dir=".") as directory:
        links = Links()
        async with trio.open_nursery() as nursery:
            for name in NAMES:
                replica = Replica(name, NAMES, Journal(f"{directory}/{name}"), NullMachine())
                links.drivers[name] = RaftDriver(replica, partial(links.send, name))
                await nursery.start(links.drivers[name].run)
                nursery.start_soon(links.deliver, name)
            for name in NAMES:
                for other in NAMES:
                    if other != name:
                        links.drivers[name].peer_connected(other)
            while not (leaders := [d for d in links.drivers.values() if d.status().role == "leader"]):
                await trio.sleep(0.01)
            follower = next(d for d in links.drivers.values() if d is not leaders[0])
            await follower.barrier(timeout_s=5)
            for who, driver in (("leader", leaders[0]), ("follower", follower)):
                for count in (1, 16, 128, 1000):
                    profiler = cProfile.Profile() if profile and count == 128 else None
                    if profiler:
                        profiler.enable()
                    result = await load(driver, count, seconds)
                    if profiler:
                        profiler.disable()
                        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
                    print(json.dumps({"through": who, **result}), flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    numbers = [float(a) for a in sys.argv[1:] if not a.startswith("-")]
    trio.run(main, numbers[0] if numbers else 2.0, "--profile" in sys.argv)
