"""Two members that store and a witness: one of the two dies, or the witness, and writes go on; said by status."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.e2e.harness import wait_for
from tests.e2e.hosts import Host, Hosts
from tests.e2e.test_growth import Writer
from tests.e2e.test_recover import add_user, get, put, sftp_port

pytestmark = pytest.mark.slow
GAP_S = 6.0
"""A leader's death (3 s) and the time in which the other copy is waited for, on a busy machine."""


def status(hosts: Hosts, host: Host) -> dict[str, Any]:
    done = hosts.run("status", "-o", "json", "--data-dir", str(host.data_dir))
    return dict(json.loads(done.stdout or b"{}"))


def roles(hosts: Hosts, host: Host) -> dict[str, str]:
    members = status(hosts, host).get("members", [])
    return {member["name"]: member["role"] if member["state"] == "alive" else member["state"] for member in members}


def well(hosts: Hosts, host: Host) -> bool:
    told = status(hosts, host)
    return told.get("verdict") == "ok" and told["can_lose"] == {"members": 1, "disks": 1}


def chunk_bytes(host: Host) -> int:
    """What a member's segments hold, about: they are preallocated, and an empty one begins with its head alone."""
    return sum(len(path.read_bytes().rstrip(b"\0")) for path in (host.data_dir / "chunks").glob("*.seg"))


def test_two_and_a_witness_lose_one_and_write_on(hosts: Hosts) -> None:
    a = hosts.init("a", "--name", "a")
    hosts.start(a)
    hosts.wait_ready(a)
    b = hosts.join("b", hosts.token(a))
    hosts.start(b)
    hosts.wait_members(a, 2)
    w = hosts.join("w", hosts.token(a, "--mode", "witness"))
    hosts.start(w)
    wait_for("the witness to vote", lambda: roles(hosts, a).get("w") == "witness", 40)
    hosts.wait_ready(a, b, w)
    add_user(hosts, a, "ann")
    data = bytes(range(256)) * 20_000
    put(w, "through the witness", data)  # it takes no session: the connection is sent on
    logins = hosts.json_lines(a, "audit", "query", "--kind", "login")
    assert {login["member"] for login in logins} <= {"a", "b"}
    wait_for("all to be well", lambda: well(hosts, a), 40)
    shown = hosts.json(a, "file", "show", "/ann/through the witness")
    assert shown["replicas"] == 2 and shown["health"] == "ok"
    assert all(sorted(chunk["holders"]) == ["a", "b"] for chunk in shown["chunks"])
    assert chunk_bytes(w) < 10_000
    with Writer(sftp_port(a)) as writer:
        for gone, disks in ((b, 0), (w, 1)):
            since, count = time.monotonic(), len(writer.done)
            hosts.end(gone, signal.SIGKILL)
            wait_for("writes without it", lambda count=count: len(writer.done) > count + 50, 40)  # type: ignore[misc]
            gap = writer.gap_s(since)
            print(f"without {gone.name}: longest time without a success {gap:.2f} s")
            assert gap < GAP_S, (gone.name, gap)
            wait_for("status to say what can be lost", lambda disks=disks: status(hosts, a)["can_lose"] == {  # type: ignore[misc]
                "members": 0, "disks": disks}, 30)
            hosts.start(gone)
            hosts.wait_ready(gone)
            wait_for("all to be well again", lambda: well(hosts, a), 60)
    assert not writer.failures, writer.failures[:3]
    # What was written while b was away is there, too.
    hosts.end(a, signal.SIGKILL)
    wait_for("b to serve", lambda: roles(hosts, b).get("b") in ("leader", "follower")
             and status(hosts, b)["verdict"] != "no-quorum", 30)
    assert get(b, f"f{len(writer.done) - 1}") and get(b, "through the witness") == data
    hosts.start(a)
    wait_for("all to be well at last", lambda: well(hosts, b), 60)
    # A witness becomes a member that stores, and a witness again.
    def set_mode(mode: str) -> None:
        done = hosts.run("member", "set-mode", "w", mode, "--data-dir", str(a.data_dir))
        assert done.returncode == 0, done.stderr.decode()

    def holders() -> set[str]:
        chunks = hosts.json(a, "file", "show", "/ann/through the witness")["chunks"]
        return set.intersection(*(set(chunk["holders"]) for chunk in chunks))

    set_mode("active")
    wait_for("three copies", lambda: holders() == {"a", "b", "w"}, 40)
    wait_for("status to count them", lambda: status(hosts, a)["can_lose"]["disks"] == 2)
    set_mode("witness")
    wait_for("two to count", lambda: hosts.json(a, "file", "show", "/ann/through the witness")["replicas"] == 2)
    put(w, "last", b"x")
    wait_for("a witness again", lambda: well(hosts, a) and roles(hosts, a)["w"] in ("witness", "leader"))
