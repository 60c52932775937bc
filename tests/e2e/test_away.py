"""A member that was away while the others renewed their certificates comes back by itself, whatever else happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raftmft.cluster.certificates import fingerprint_of_pem
from raftmft.cluster.keyring import KeyRing
from raftmft.node.datadir import DataDir
from tests.e2e.harness import Cluster, wait_for

pytestmark = pytest.mark.slow
Make = Callable[[int], Cluster]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Cluster] = []

    def cluster_of(nodes: int) -> Cluster:
        made.append(Cluster(tmp_path / "c", nodes))
        return made[-1].start()

    try:
        yield cluster_of
    finally:
        for cluster in made:
            cluster.stop()


def keys(cluster: Cluster, name: str) -> list[str]:
    return KeyRing.load(DataDir(cluster.node(name)["data_dir"]).cluster_key).names()


def member_id(cluster: Cluster, name: str) -> str:
    return DataDir(cluster.node(name)["data_dir"]).read_seed().me


def on_disk(cluster: Cluster, name: str) -> str:
    return fingerprint_of_pem(DataDir(cluster.node(name)["data_dir"]).certificates.certificate.read_bytes())


def log_of(cluster: Cluster, name: str) -> str:
    """What the node logged since it was started again."""
    path = cluster.folder / f"{name}.log"
    return path.read_text() if path.exists() else ""


def renew(cluster: Cluster, *names: str) -> None:
    for name in names:
        before = on_disk(cluster, name)
        cluster.run("cert", "renew", node=name)
        assert on_disk(cluster, name) != before


def assert_well(cluster: Cluster, *names: str) -> None:
    """All of these serve, hear each other by gossip too, and take files."""
    cluster.wait_ready(*names)
    wait_for("a healthy cluster", lambda: all(cluster.status(name).get("verdict") == "ok" for name in names), 40)
    for name in names:
        cluster.sftp(name, f"put {Path(__file__)} through-{name}")


@pytest.mark.parametrize("times", [1, 2])
def test_who_was_away_while_all_others_renewed_comes_back(make: Make, times: int) -> None:
    cluster = make(3)
    leader = cluster.leader()
    away, other = (name for name in cluster.names if name != leader)
    cluster.kill(away)
    renew(cluster, *(leader, other) * times)
    cluster.restart(away)
    assert_well(cluster, *cluster.names)
    assert "the one that is listed vouches for it" in log_of(cluster, away), "the test shows what it is for"
    renew(cluster, away)
    cluster.kill(away)
    cluster.restart(away)
    assert_well(cluster, away)


def test_the_cluster_key_was_changed_too_meanwhile(make: Make) -> None:
    cluster = make(5)
    leader = cluster.leader()
    away, gone, *stay = (name for name in cluster.names if name != leader)
    stay.append(leader)
    first = keys(cluster, leader)
    cluster.kill(away)
    renew(cluster, *stay)
    cluster.run("member", "remove", gone, "--force", node=leader)
    wait_for("another key on all that are here", lambda: all(
        len(keys(cluster, name)) == 1 and keys(cluster, name) != first for name in stay))
    renew(cluster, *stay)  # signed with what the new key unseals
    cluster.restart(away)
    assert_well(cluster, *stay, away)
    assert keys(cluster, away) == keys(cluster, leader) != first
    assert "the one that is listed vouches for it" in log_of(cluster, away)


def test_a_power_cut_right_after_all_renewed_at_once_locks_nobody_out(make: Make) -> None:
    """Their states are made again from what was known to be committed, and that is written once a second at most: so
    none of them may list what the others show.
    """
    cluster = make(3)
    cluster.wait_ready()
    with ThreadPoolExecutor(len(cluster.names)) as pool:
        list(pool.map(lambda name: renew(cluster, name), cluster.names))
    cluster.kill(*cluster.names)
    cluster.restart(*cluster.names)
    assert_well(cluster, *cluster.names)


def test_who_was_removed_while_away_hears_so_from_members_it_does_not_list(make: Make) -> None:
    cluster = make(3)
    leader = cluster.leader()
    away, other = (name for name in cluster.names if name != leader)
    cluster.kill(away)
    renew(cluster, leader, other)
    cluster.run("member", "remove", away, "--force", node=leader)
    cluster.restart(away)
    wait_for("each to refuse it", lambda: all(
        f"{member_id(cluster, name)} refused the link: your certificate is not listed" in log_of(cluster, away)
        for name in (leader, other)))
    assert cluster.run("status", node=away, check=False).returncode == 4
    cluster.sftp(other, f"put {Path(__file__)} after")


def test_a_host_that_renewed_and_was_revoked_meanwhile_is_shut_out_again(make: Make) -> None:
    """Who comes back cannot know that the host was stolen; it believes it at most until it hears of it from the log."""
    cluster = make(3)
    away, stolen = min(cluster.names), max(cluster.names)
    (stays,) = set(cluster.names) - {away, stolen}
    cluster.kill(away)
    renew(cluster, stolen, stays)
    cluster.run("cert", "revoke", stolen, node=stays)
    cluster.restart(away)
    cluster.wait_ready(away, stays)
    wait_for("it to be alone", lambda: cluster.status(stolen)["verdict"] == "no-quorum", 10)
    for name in (away, stays):
        linked = next(m for m in cluster.status(name)["members"] if m["name"] == stolen)
        assert linked["state"] != "alive"
        cluster.sftp(name, f"put {Path(__file__)} through-{name}")
    listed = cluster.run("cert", "list", "-o", "json", node=away).stdout.decode()
    assert on_disk(cluster, stolen) in listed and '"revoked"' in listed
