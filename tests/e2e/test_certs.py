"""Certificates of a running cluster: told, renewed while it serves, revoked at once everywhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from raftmft.cluster.certificates import fingerprint_of_pem
from raftmft.node.datadir import DataDir
from tests.e2e.harness import Cluster, wait_for

pytestmark = pytest.mark.slow


def certs(cluster: Cluster, node: str) -> list[dict[str, Any]]:
    return json.loads(cluster.run("cert", "list", "-o", "json", node=node).stdout)


def on_disk(cluster: Cluster, node: str) -> str:
    return fingerprint_of_pem((Path(cluster.node(node)["data_dir"]) / "keys" / "node.crt").read_bytes())


def test_certificates_are_told_renewed_and_revoked(cluster: Cluster) -> None:
    ids = {name: DataDir(cluster.node(name)["data_dir"]).read_seed().me for name in cluster.names}
    third = min(ids, key=ids.__getitem__)  # all others are to dial it, and then none does
    if cluster.leader() == third:
        cluster.run("member", "transfer-leader", max(ids, key=ids.__getitem__))
        wait_for("another leader", lambda: cluster.leader() != third)
    leader = cluster.leader()
    (other,) = set(cluster.names) - {leader, third}
    wait_for("all ends to be known", lambda: all(c["not_after"] for c in certs(cluster, other)))
    for name in (other, leader):
        before = on_disk(cluster, name)
        cluster.run("cert", "renew", node=name)
        after = on_disk(cluster, name)
        assert after != before
        states = {c["fingerprint"]: c["state"] for c in certs(cluster, third)}
        assert states[after] == "listed" and states[before] == "retired"
        wait_for("a healthy cluster", lambda: cluster.status(third)["verdict"] == "ok")
        cluster.sftp(name, f"put {Path(__file__)} through-{name}")
    # It starts with what it renewed.
    cluster.kill(other)
    cluster.restart(other)
    cluster.wait_ready(other)
    revoked = json.loads(cluster.run("cert", "revoke", third, "-o", "json", node=other).stdout)["revoked"]
    assert revoked == [on_disk(cluster, third)]
    began = time.monotonic()
    wait_for("the others to shut it out", lambda: all(
        next(m for m in cluster.status(name)["members"] if m["name"] == third)["state"] != "alive"
        for name in (leader, other)), 10)
    wait_for("it to know that it is alone", lambda: cluster.status(third)["verdict"] == "no-quorum", 10)
    print(f"no quorum and not alive after {time.monotonic() - began:.1f} s")
    for name in (leader, other):
        assert "no longer listed" in (cluster.folder / f"{name}.log").read_text(), "people can read why"
    wait_for("it to log that each refused it", lambda: all(
        f"{ids[name]} refused the link: your certificate is not listed" in (cluster.folder / f"{third}.log").read_text()
        for name in (leader, other)))
    refused = cluster.run("cert", "revoke", "nobody", check=False, node=other)
    assert refused.returncode == 1 and b"there is no listed certificate" in refused.stderr
    cluster.sftp(other, f"put {Path(__file__)} after")
