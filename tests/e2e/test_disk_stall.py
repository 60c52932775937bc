"""A disk that does not answer for a while, below a real node: 3 s move no leader, 10 s do.

What node processes write into the page cache goes on, what must reach the disk waits, as with a real disk that stalls.
(tests/raft/test_stall.py has the same without processes, and what the syncs themselves do.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.harness import wait_for
from tests.e2e.power import PoweredCluster, StallingDisk, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]
SHORT_S, LONG_S = 3.0, 10.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[PoweredCluster]:
    cluster = PoweredCluster(tmp_path / "c", kind=StallingDisk)
    try:
        yield cluster.start()
    finally:
        cluster.close()


def stall(cluster: PoweredCluster, name: str) -> StallingDisk:
    disk = cluster.disks[name]
    assert isinstance(disk, StallingDisk)
    return disk


def add_user(cluster: PoweredCluster, name: str, node: str) -> None:
    cluster.run("user", "add", name, "--key", f"{cluster.about['users'][0]['key']}.pub", node=node)


def test_three_seconds_move_no_leader_and_ten_do(cluster: PoweredCluster) -> None:
    leader = cluster.leader()
    other = next(name for name in cluster.names if name != leader)
    term = cluster.status(other)["term"]
    with ThreadPoolExecutor(1) as beside, stall(cluster, leader).stalled():
        begun = time.monotonic()
        waits = beside.submit(cluster.sftp, other, "mkdir during-a-stall\n")
        wait_for("the end of a short stall", lambda: time.monotonic() > begun + SHORT_S)
        assert (cluster.leader(), cluster.status(other)["term"]) == (leader, term)
    waits.result()  # it waited, since the leader's own sync did, and was acknowledged
    with stall(cluster, leader).stalled():
        begun = time.monotonic()
        wait_for("another leader", lambda: any(
            m["role"] == "leader" and m["name"] != leader for m in cluster.status(other)["members"]), LONG_S)
        print(f"moved after {time.monotonic() - begun:.1f} s")
        add_user(cluster, "long", other)
    cluster.wait_ready()
    assert "long" in cluster.run("user", "list", node=leader).stdout.decode()
    assert "during-a-stall" in cluster.sftp(leader, "ls -1\n").stdout.decode()
    assert cluster.status(other)["term"] <= term + 2
