"""One seed from its first to its last moment, and what is asked of many of them together."""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from raftmft.core import dedup
from raftmft.raft import compaction, journal, patches
from raftmft.raft.timing import Timing
from tests.sim.clients import Clients
from tests.sim.cluster import Cluster
from tests.sim.machine import MemoryState, SqliteState
from tests.sim.nemesis import Nemesis

SECONDS, COMMANDS, FAULTS = 60.0, 500, 10
MOST_SECONDS = 240.0
SMALL = {(dedup, "MAX_KEPT"): 16, (journal, "SEGMENT_BYTES"): 4 << 10, (journal, "MEMORY_BYTES"): 16 << 10,
         (compaction, "SNAPSHOT_ENTRIES"): 60, (compaction, "KEEP_BYTES"): 4 << 10}
"""Bounds that are small here, so that they are met: outcomes kept, bytes of a segment, of the log in memory, entries
between snapshots, bytes of log that are kept though a snapshot has them.
"""
COVERED = ("elections", "truncations", "membership changes", "installs")
LEAST_SHARE = 0.2


@dataclass(slots=True)
class Report:
    """What a seed came to. `failure` is empty if all held."""

    seed: int
    failure: str = ""
    trace: list[str] = field(default_factory=list)
    seconds: float = 0.0
    commands: int = 0
    reads: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    coverage: Counter[str] = field(default_factory=Counter)
    fingerprint: int = 0


def run_seed(seed: int, seconds: float = SECONDS, *, verbose: bool = False) -> Report:
    """Runs one seed. Failures are reported, not raised."""
    taste = Random(f"raftmft {seed}")
    real = taste.random() < 0.25
    narrow = taste.random() < 0.3  # elections collide more often
    timing = Timing(tick_s=taste.choice((0.02, 0.05)), election_max_s=0.6 if narrow else 1.0)
    cluster = Cluster(seed, taste.choice((3, 3, 5)), joiners=taste.choice((1, 2)), timing=timing,
                      machine=SqliteState if real else MemoryState)
    cluster.verbose = verbose
    clients = Clients(cluster)
    nemesis = Nemesis(cluster, clients)
    report = Report(seed)
    with patches.use_clock(lambda: cluster.now), _small_bounds():
        try:
            _play(cluster, clients, nemesis, seconds)
        except Exception as error:
            report.failure = f"{type(error).__name__}: {error}"
            report.trace = [*cluster.trace, *traceback.format_exc().splitlines()[-12:]]
    report.seconds, report.commands = cluster.now - cluster.started, clients.writes
    report.reads = sum(not op.writes for op in clients.history)
    report.faults, report.fingerprint = nemesis.done, cluster.fingerprint
    report.coverage = cluster.coverage
    report.coverage["elections"] += max(0, len(cluster.leaders) - 1)
    return report


@contextlib.contextmanager
def _small_bounds() -> Iterator[None]:
    before = {place: getattr(*place) for place in SMALL}
    try:
        for (module, name), value in SMALL.items():
            assert hasattr(module, name)
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def _play(cluster: Cluster, clients: Clients, nemesis: Nemesis, seconds: float) -> None:
    for name in cluster.founders:
        cluster.members[name].start()
    clients.begin()
    nemesis.begin()
    cluster.run(seconds)
    cluster.run(MOST_SECONDS - seconds, lambda: clients.writes >= COMMANDS and nemesis.done.total() >= FAULTS)
    nemesis.stopped = True
    assert clients.writes >= COMMANDS and nemesis.done.total() >= FAULTS, (
        f"too little happened: {clients.writes} commands, {nemesis.done.total()} faults")
    cluster.heal()
    cluster.run(8.0)
    clients.stopped = True
    assert cluster.run(30.0, lambda: not clients.open), "some client is never answered"
    cluster.settle()
    clients.check()


def uncovered(reports: list[Report]) -> list[str]:
    """What fewer than LEAST_SHARE of the seeds have seen."""
    return [f"{what}: in {seen} of {len(reports)} seeds only" for what in COVERED
            if (seen := sum(bool(report.coverage[what]) for report in reports)) < LEAST_SHARE * len(reports)]
