"""Calm seeds: nothing is lost, nobody dies, but some cannot hear some. Hardly a term may pass, and writing goes on.

Around every trouble a majority hears each other, both ways; so the promise is that it keeps writing, and that no member
anywhere raises more than five terms a minute.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from random import Random

from raftmft.raft import patches
from tests.sim.clients import Clients
from tests.sim.cluster import Cluster
from tests.sim.seeds import Report

TERMS_A_MINUTE = 5
WINDOW_S = 10.0
"""In every one of these some write is acknowledged."""


def run_seed(seed: int, seconds: float) -> Report:
    """Runs one seed. Failures are reported, not raised."""
    taste = Random(f"quiet {seed}")
    cluster = Cluster(seed, taste.choice((3, 5)), loss=0.0, repeat=0.0)
    cluster.late = 0.0
    clients, report = Clients(cluster, 3), Report(seed)
    with patches.use_clock(lambda: cluster.now):
        try:
            name = _play(cluster, clients, taste, seconds)
            report.faults[name] += 1
        except Exception as error:
            report.failure = f"{type(error).__name__}: {error}"
            report.trace = [*cluster.trace, *traceback.format_exc().splitlines()[-12:]]
    report.seconds, report.commands = cluster.now - cluster.started, clients.writes
    report.reads = sum(not op.writes for op in clients.history)
    report.coverage["elections"] = max(0, len(cluster.leaders) - 1)
    report.fingerprint = cluster.fingerprint
    return report


def _play(cluster: Cluster, clients: Clients, taste: Random, seconds: float) -> str:
    for member in cluster.members.values():
        member.start()
    assert cluster.run(5.0, lambda: cluster.leader() is not None), "no leader at the start"
    clients.begin()
    cluster.run(3.0)
    before, began = _highest_term(cluster), cluster.now
    shapes: dict[str, Callable[[], None]] = {
        "deaf, mute or both": lambda: _isolate(cluster, taste), "bridge": lambda: _bridge(cluster, taste),
        "one way around a majority": lambda: _one_way(cluster, taste),
        "comes and goes": lambda: _wander(cluster, taste), "sleeps and wakes": lambda: _sleep(cluster, taste)}
    name = taste.choice(sorted(shapes))
    cluster.note(name)
    shapes[name]()
    while cluster.now - began < seconds:
        written = len(cluster.acknowledged)
        cluster.run(WINDOW_S)
        assert len(cluster.acknowledged) > written, f"{name}: nothing was written for {WINDOW_S} s"
        rise, most = _highest_term(cluster) - before, TERMS_A_MINUTE * max(1.0, (cluster.now - began) / 60)
        assert rise <= most, f"{name}: {rise} terms in {cluster.now - began:.0f} s"
    cluster.heal()
    cluster.run(8.0)
    clients.stopped = True
    assert cluster.run(30.0, lambda: not clients.open), "some client is never answered"
    cluster.settle()
    clients.check()
    return name


def _highest_term(cluster: Cluster) -> int:
    return max(m.replica.engine.term() for m in cluster.members.values() if m.replica is not None)


def _around(cluster: Cluster, name: str, way: str) -> set[tuple[str, str]]:
    others = [other for other in cluster.names if other != name]
    return ({(name, other) for other in others} if way != "deaf" else set()) | (
        {(other, name) for other in others} if way != "mute" else set())


def _isolate(cluster: Cluster, taste: Random) -> None:
    cluster.cut_ways = _around(cluster, taste.choice(cluster.names), taste.choice(("deaf", "mute", "both")))


def _bridge(cluster: Cluster, taste: Random) -> None:
    middle, *rest = taste.sample(cluster.names, len(cluster.names))
    half = len(rest) // 2
    left, right = rest[:half], rest[half:]
    cluster.cut_ways = {(a, b) for a in left for b in right} | {(b, a) for a in left for b in right}
    cluster.note(f"bridge over {middle}")


def _one_way(cluster: Cluster, taste: Random) -> None:
    names = cluster.names
    majority = set(taste.sample(names, len(names) // 2 + 1))
    cluster.cut_ways = {(a, b) for a in names for b in names
                        if a != b and not {a, b} <= majority and taste.random() < 0.5}
    cluster.note(f"one-way cuts around {sorted(majority)}: {sorted(cluster.cut_ways)}")


def _wander(cluster: Cluster, taste: Random) -> None:
    """A follower is cut off, is back, is cut off again."""
    leader = cluster.leader()
    name = taste.choice([name for name in cluster.names if leader is None or name != leader.name])
    ways = _around(cluster, name, "both")

    def step() -> None:
        if cluster.is_healed:
            return
        cluster.cut_ways = set() if cluster.cut_ways else ways
        cluster.after(taste.uniform(1.0, 6.0), step)

    step()


def _sleep(cluster: Cluster, taste: Random) -> None:
    """A follower is stopped, goes on, is stopped again."""
    leader = cluster.leader()
    name = taste.choice([name for name in cluster.names if leader is None or name != leader.name])

    def step() -> None:
        if cluster.is_healed:
            return
        cluster.members[name].paused_until = cluster.now + taste.uniform(0.5, 5.0)
        cluster.after(taste.uniform(5.5, 8.0), step)

    step()
