"""A majority is lost for good: one survivor goes on, and nobody of before is believed. On real processes."""

from __future__ import annotations

import asyncio
import json
import signal

import asyncssh
import pytest

from raftmft.cluster.keyring import KeyRing
from tests.e2e.harness import wait_for
from tests.e2e.hosts import Host, Hosts, refused

pytestmark = pytest.mark.slow
PASSWORD = "a password for this test only"


def three(hosts: Hosts) -> list[Host]:
    """a, b and c, with the user ann."""
    first = hosts.init("a", "--name", "a")
    hosts.start(first)
    hosts.wait_ready(first)
    made = [first]
    for name in ("b", "c"):
        made.append(hosts.join(name, hosts.token(first)))
        hosts.start(made[-1])
        hosts.wait_members(first, len(made))
    hosts.wait_ready(*made)
    add_user(hosts, first, "ann")
    return made


def add_user(hosts: Hosts, host: Host, name: str) -> None:
    done = hosts.run("user", "add", name, "--password-stdin", "--data-dir", str(host.data_dir), input=PASSWORD.encode())
    assert done.returncode == 0, done.stderr.decode()


def sftp_port(host: Host) -> int:
    line = next(line for line in (host.data_dir / "raftmft.toml").read_text().splitlines()
                if line.startswith("sftp_port"))
    return int(line.split("=")[1])


def put(host: Host, name: str, data: bytes) -> None:
    asyncio.run(_put(host, name, data))


def get(host: Host, name: str) -> bytes:
    return asyncio.run(_get(host, name))


async def _put(host: Host, name: str, data: bytes) -> None:
    async with asyncssh.connect("127.0.0.1", sftp_port(host), username="ann", password=PASSWORD, known_hosts=None,
                                config=None, client_keys=None) as connection, connection.start_sftp_client() as sftp:
        async with sftp.open(name, "wb") as file:
            await file.write(data)


async def _get(host: Host, name: str) -> bytes:
    async with asyncssh.connect("127.0.0.1", sftp_port(host), username="ann", password=PASSWORD, known_hosts=None,
                                config=None, client_keys=None) as connection, connection.start_sftp_client() as sftp:
        async with sftp.open(name, "rb") as file:
            return bytes(await file.read())


def recover(hosts: Hosts, host: Host, *options: str) -> dict[str, object]:
    done = hosts.run("recover", "--data-dir", str(host.data_dir), "--i-accept-data-loss", "files", "-o", "json",
                     *options)
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout))


def names(hosts: Hosts, host: Host) -> list[str]:
    return sorted(member["name"] for member in hosts.members(host))


def keys(host: Host) -> list[str]:
    return KeyRing.load(host.data_dir / "keys" / "cluster.key").names()


def test_one_survivor_goes_on_and_nobody_of_before_is_believed(hosts: Hosts) -> None:
    a, b, c = three(hosts)
    put(a, "kept", b"x" * 3_000_000)
    assert "is in use by a running node" in refused(
        hosts.run("recover", "--data-dir", str(a.data_dir), "--i-accept-data-loss", "files"))
    hosts.end(a)
    line = refused(hosts.run("recover", "--data-dir", str(a.data_dir), "--i-accept-data-loss", "files"))
    assert "other members answer" in line and "b at 127.0.0.1:" in line, line
    for lost in (b, c):
        hosts.end(lost, signal.SIGKILL)
    shown = hosts.run("recover", "--data-dir", str(a.data_dir), "--dry-run", "-o", "json")
    about = json.loads(shown.stdout)
    assert sorted(about["given_up"]) == ["b", "c"]
    assert not about["recovered"] and about["last_index"] >= about["commit_index"] > 0 and about["files"] == 1
    assert "nothing was changed" in refused(
        hosts.run("recover", "--data-dir", str(a.data_dir), "--i-accept-data-loss", "other"))
    refused(hosts.run("recover", "--data-dir", str(a.data_dir)), 2)
    done = recover(hosts, a)
    assert done["cluster_id"] != about["cluster_id"] and done["last_index"] == about["last_index"]
    assert "nothing to recover" in refused(
        hosts.run("recover", "--data-dir", str(a.data_dir), "--i-accept-data-loss", "files"))
    hosts.start(a)
    hosts.wait_ready(a)
    assert names(hosts, a) == ["a"]
    assert get(a, "kept") == b"x" * 3_000_000
    put(a, "after", b"written after the recovery")
    records = hosts.json_lines(a, "audit", "query", "--kind", "admin")
    assert any("cluster recover: a goes on alone" in record["target"] for record in records)
    assert hosts.run("audit", "verify", "--data-dir", str(a.data_dir)).returncode == 0
    wait_for("another cluster key", lambda: keys(a) != keys(b))
    # An old member that comes back is nobody here, and hears it.
    term = hosts.json(a, "status")["term"]
    hosts.start(c)
    wait_for("c to hear that it is of another cluster", lambda: "refused the link" in c.log.read_text())
    # Two survivors that were both recovered are two clusters.
    hosts.end(c)
    recover(hosts, b, "--although-others-answer")
    hosts.start(b)
    hosts.wait_ready(b)
    add_user(hosts, b, "bob")
    assert names(hosts, b) == ["b"] and names(hosts, a) == ["a"]
    assert b"bob" not in hosts.run("user", "list", "--data-dir", str(a.data_dir)).stdout
    assert hosts.json(a, "status")["term"] == term, "nobody of before took part in an election"
    token = hosts.token(b)
    seed = json.loads((a.data_dir / "seed.json").read_text())
    assert seed["cluster_id"] == done["cluster_id"]
    assert "another cluster" in refused(hosts.run(*hosts.join_words("d", token, "--name", "d"), f"127.0.0.1:{port(a)}"))


def port(host: Host) -> int:
    line = next(line for line in (host.data_dir / "raftmft.toml").read_text().splitlines()
                if line.startswith("peer_port"))
    return int(line.split("=")[1])
