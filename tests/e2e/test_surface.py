"""The commands of surface.md as an operator types them, against real nodes."""

from __future__ import annotations

import json

from tests.e2e.harness import Cluster


def test_config_is_set_everywhere_and_audited(shared_cluster: Cluster) -> None:
    cluster = shared_cluster
    one, two, *_ = cluster.names
    assert cluster.run("config", "get", "login.limit_s").stdout == b"30\n"
    assert b"login.limit_s is 31" in cluster.run("config", "set", "login.limit_s", "31", node=one).stdout
    assert json.loads(cluster.run("config", "get", "login.limit_s", "-o", "json", node=two).stdout)["value"] == "31"
    records = cluster.audit("--kind", "admin", node=two)
    assert [r["target"] for r in records if "login.limit_s" in r["target"]] == ["config set login.limit_s=31"]
    cluster.run("config", "set", "login.limit_s", "")
    rows = {o["key"]: o for o in json.loads(cluster.run("config", "list", "-o", "json", node=two).stdout)}
    assert rows["login.limit_s"]["value"] == "30" and not rows["login.limit_s"]["is_set"]
    assert b"replicas" in cluster.run("config", "list").stdout
