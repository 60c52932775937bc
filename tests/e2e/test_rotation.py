"""The cluster key after somebody was shut out: changed for all that stay, also for who was away, and after kill -9."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftmft.cluster.keyring import KeyRing
from raftmft.node.datadir import DataDir
from tests.e2e.harness import Cluster, wait_for
from tests.e2e.hosts import Hosts

pytestmark = pytest.mark.slow


def keys(cluster: Cluster, name: str) -> list[str]:
    return KeyRing.load(Path(cluster.node(name)["data_dir"]) / "keys" / "cluster.key").names()


def test_who_was_away_fetches_the_key_and_a_power_cut_changes_nothing(five: Cluster) -> None:
    leader = five.leader()
    away, gone, *stay = (name for name in five.names if name != leader)
    stay.append(leader)
    first = keys(five, leader)
    five.kill(away)
    five.run("member", "remove", gone, "--force", node=leader)
    wait_for("another key on all that are here", lambda: all(
        len(keys(five, name)) == 1 and keys(five, name) != first for name in stay))
    new = keys(five, leader)
    assert {tuple(keys(five, name)) for name in stay} == {tuple(new)} and keys(five, away) == first
    five.restart(away)
    five.wait_ready(away)
    wait_for("the key where it was away", lambda: keys(five, away) == new)
    everyone = [*stay, away]
    wait_for("all to hear each other's gossip", lambda: all(
        five.status(name).get("verdict") == "ok" for name in everyone), 30)
    five.kill(*everyone)
    five.restart(*everyone)
    five.wait_ready(*everyone)
    assert {tuple(keys(five, name)) for name in everyone} == {tuple(new)}
    five.sftp(away, f"put {Path(__file__)} after")
    assert keys(five, gone) != new


def test_a_host_that_joins_after_a_rotation_knows_the_new_key_only(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    try:
        first = hosts.init("h1", "--name", "h1")
        hosts.start(first)
        hosts.wait_ready(first)
        second = hosts.join("h2", hosts.token(first))
        assert hosts.run("member", "remove", "h2", "--force", "--data-dir", str(first.data_dir)).returncode == 0
        ring = first.data_dir / "keys" / "cluster.key"
        old = KeyRing.load(second.data_dir / "keys" / "cluster.key").names()
        wait_for("another key", lambda: KeyRing.load(ring).names() != old and len(KeyRing.load(ring).names()) == 1)
        third = hosts.join("h3", hosts.token(first))
        assert KeyRing.load(third.data_dir / "keys" / "cluster.key").names() == KeyRing.load(ring).names()
        hosts.start(third)
        hosts.wait_members(first, 2)
        # The host that was removed before it ever ran is nobody when it runs now.
        hosts.start(second)
        refusal = f"{DataDir(first.data_dir).read_seed().me} refused the link: your certificate is not listed"
        wait_for("it to say so, whichever of the two was to dial", lambda: refusal in second.log.read_text())
        assert second.process is not None and second.process.wait(20) == 1, "it stops, as it was removed"
        term = hosts.json(first, "status")["term"]
        assert [m["name"] for m in hosts.members(first)] == ["h1", "h3"]
        hosts.end(second)
        assert hosts.json(first, "status")["term"] == term, "it disturbed nobody"
    finally:
        hosts.stop()
