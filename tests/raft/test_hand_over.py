"""Leadership is handed over at a clean stop (Ongaro's thesis, 3.10), and only a sitting leader may ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from raftmft.raft.messages import TimeoutNow, encode
from tests.raft.cluster import LiveCluster
from tests.raft.test_driver import command


@pytest.fixture
async def cluster(tmp_path: Path, nursery: trio.Nursery):  # type: ignore[no-untyped-def]
    cluster = LiveCluster(nursery, tmp_path)
    with trio.fail_after(15):
        await cluster.start()
        yield cluster
        for host in cluster.hosts.values():
            if host.driver is not None:
                await host.stop()


async def test_a_follower_with_the_whole_log_takes_over_without_an_election_timeout(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    await leader.driver.propose(command(b"a", 1), timeout_s=5)
    term = leader.driver.status().term
    await leader.driver.hand_over()
    assert leader.driver.status().role != "leader"
    successor = await cluster.leader()
    assert successor is not leader and successor.driver
    assert successor.driver.status().term == term + 1, "one election, won at once"
    outcome = await leader.driver.propose(command(b"b", 2), timeout_s=5)
    assert outcome.ok and successor.machine.payloads == [b"a", b"b"]
    await leader.driver.hand_over()  # it does not lead: nothing to do


async def test_nobody_but_the_sitting_leader_starts_an_election(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    await leader.driver.propose(command(b"a", 1), timeout_s=5)
    one, two = [host for host in cluster.hosts.values() if host is not leader]
    assert one.driver and two.driver
    term = leader.driver.status().term
    one.driver.receive(two.name, encode(TimeoutNow(term)))
    one.driver.receive(leader.name, encode(TimeoutNow(term - 1)))
    for seq in range(2, 30):
        await leader.driver.propose(command(b"%d" % seq, seq), timeout_s=5)
    assert leader.driver.status().role == "leader" and leader.driver.status().term == term
