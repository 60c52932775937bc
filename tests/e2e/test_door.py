"""The front door of real nodes: bans, PROXY headers and forged prefaces, over raw sockets and by OpenSSH."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from raftmft.cluster.keyring import FIRST, KeyRing
from raftmft.cluster.relay import PrefaceGuard
from tests.e2e.harness import Cluster, wait_for


def greeting(cluster: Cluster, name: str, first: bytes = b"", port: str = "sftp") -> bytes:
    """What the port answers to these bytes: the beginning of SSH's banner, or b"" when it is closed."""
    host, number = cluster.node(name)[port].rsplit(":", 1)
    with socket.create_connection((host, int(number)), 10) as connection:
        try:
            if first:
                connection.sendall(first)
            return connection.recv(8)
        except ConnectionError:
            return b""


def test_a_ban_holds_on_every_node_at_once_and_ends_live_sessions(cluster: Cluster) -> None:
    one, two, three = cluster.names
    assert cluster.run("ban", "add", "127.0.0.1", check=False).returncode == 1, "locks out without --force"
    assert cluster.run("ban", "add", "nonsense", check=False).returncode == 1
    assert cluster.run("ban", "add", "192.0.2.1", "--ttl", "soon", check=False).returncode == 2
    session = cluster.sftp_process(two)
    try:
        wait_for("the session", lambda: json.loads(cluster.run("sessions", "list", "-o", "json").stdout))
        done = json.loads(cluster.run("ban", "add", "127.0.0.0/8", "--ttl", "1h", "--reason", "test", "--force", "-o",
                                      "json", node=three).stdout)
        assert done["network"] == "127.0.0.0/8" and len(done["sessions"]) == 1
        assert [greeting(cluster, name) for name in cluster.names] == [b""] * 3
        session.communicate(b"ls\n", 10)
        assert session.returncode != 0, "the live session goes on"
        assert json.loads(cluster.run("sessions", "list", "-o", "json").stdout) == []
        (ban,) = json.loads(cluster.run("ban", "list", "-o", "json", node=one).stdout)
        assert ban["network"] == "127.0.0.0/8" and ban["reason"] == "test" and ban["until"]
        assert cluster.run("ban", "remove", "127.0.0.0/8", node=two).returncode == 0
        for name in cluster.names:
            cluster.sftp(name, "ls\n")
        assert cluster.run("ban", "remove", "127.0.0.0/8", check=False).returncode == 1
    finally:
        session.kill()
        session.wait()


def test_a_trusted_balancers_word_is_in_the_audit_log_and_bans_what_it_names(cluster: Cluster) -> None:
    one, two, _ = cluster.names
    assert greeting(cluster, one, b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 22\r\n") == b"SSH-2.0-", "never looked for"
    cluster.run("config", "set", "proxy.trusted", "127.0.0.0/8")
    assert greeting(cluster, two, b"SSH-2.0-client\r\n") == b"", "the header is required"
    assert greeting(cluster, two, b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 22\r\n") == b"SSH-2.0-"
    cluster.run("ban", "add", "203.0.113.0/24")
    assert greeting(cluster, two, b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 22\r\n") == b""
    assert greeting(cluster, two, b"PROXY TCP4 203.0.114.9 10.0.0.1 4711 22\r\n") == b"SSH-2.0-"


def test_only_a_fresh_preface_for_this_member_from_the_cluster_is_taken(shared_cluster: Cluster) -> None:
    one, two, _ = shared_cluster.names
    data_dir = Path(shared_cluster.node(one)["data_dir"])
    members = {m["name"]: m["id"] for m in json.loads(shared_cluster.run("member", "list", "-o", "json").stdout)}
    key = KeyRing.load(data_dir / "keys" / "cluster.key").present(FIRST)
    good = PrefaceGuard(key, members[two])
    fresh = good.make(members[one], "192.0.2.7", 4711, 30)
    assert greeting(shared_cluster, one, fresh, "peer") == b"SSH-2.0-"
    assert greeting(shared_cluster, one, fresh, "peer") == b"", "replayed"
    assert greeting(shared_cluster, one, good.make(members[two], "192.0.2.7", 1, 30), "peer") == b"", "misaddressed"
    stale = PrefaceGuard(key, members[two], clock_ms=lambda: 1_700_000_000_000)
    assert greeting(shared_cluster, one, stale.make(members[one], "192.0.2.7", 1, 30), "peer") == b"", "stale"
    forged = PrefaceGuard(bytes(32), members[two])
    assert greeting(shared_cluster, one, forged.make(members[one], "192.0.2.7", 1, 30), "peer") == b"", "forged"
