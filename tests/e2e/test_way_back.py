"""The other two troubles that `raftmft recover` ends: every certificate has expired, every address is another one.

Both as README's "When the worst happens" tells it, on real processes and through the command line alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from raftmft.cluster.certificates import NODE_DAYS, expires_at
from raftmft.node.datadir import DataDir
from tests.e2e.harness import wait_for
from tests.e2e.hosts import Host, Hosts
from tests.e2e.test_recover import add_user, get, names, put, recover, three

pytestmark = pytest.mark.slow
DAY_S = 86_400
CONTENT = b"kept through it all" * 100_000


@pytest.fixture(scope="module")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload that shifts the wall clock by CLOCK_SHIFT_S, also for what is written in C (OpenSSL)."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for a shifted clock")
    made = tmp_path_factory.mktemp("clock") / "clock_shift.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(Path(__file__).with_name(
        "clock_shift.c")), "-ldl"], check=True)
    return made


def address(host: Host, at: str) -> None:
    """Has a host's settings say another address."""
    file = host.data_dir / "raftmft.toml"
    changed = [f'{line.split("=")[0]}= "{at}"' if line.startswith(("advertise ", "listen ")) else line
               for line in file.read_text().splitlines()]
    file.write_text("\n".join(changed) + "\n")


def replaced(hosts: Hosts, by: Host, host: Host) -> None:
    """`join --replace` on a host whose node is stopped, and its start."""
    token = hosts.folder / "again.token"
    token.write_text(hosts.token(by))
    done = hosts.run("join", "--replace", "--token-file", str(token), "--data-dir", str(host.data_dir))
    assert done.returncode == 0, done.stderr.decode()
    hosts.start(host)


def come_back(hosts: Hosts, survivor: Host, *others: Host) -> None:
    """What README says: one goes on alone, the others join it again. No node runs before, all do afterwards."""
    recover(hosts, survivor)
    hosts.start(survivor)
    hosts.wait_ready(survivor)
    for host in others:
        replaced(hosts, survivor, host)
        hosts.wait_ready(host)
    hosts.wait_members(survivor, 1 + len(others))


def no_quorum(hosts: Hosts, host: Host) -> None:
    wait_for("no quorum", lambda: hosts.run("status", "--data-dir", str(host.data_dir)).returncode == 4, 30)


def test_every_certificate_has_expired(hosts: Hosts, clock_library: Path) -> None:
    a, b, c = every = three(hosts)
    put(a, "kept", CONTENT)
    hosts.wait_ready(*every)
    for host in every:
        hosts.end(host)
    hosts.env = {**os.environ, "LD_PRELOAD": str(clock_library), "CLOCK_SHIFT_S": str((NODE_DAYS + 1) * DAY_S)}
    hosts.start(*every)
    for host in every:
        wait_for(f"{host.name} to say so", lambda host=host: "certificate of this member has expired" in
                 host.log.read_text())
    no_quorum(hosts, a)
    for host in every:
        hosts.end(host)
    old = expires_at(DataDir(a.data_dir).certificates.certificate.read_bytes())
    come_back(hosts, a, b, c)
    assert names(hosts, b) == ["a", "b", "c"]
    for host in every:
        assert expires_at(DataDir(host.data_dir).certificates.certificate.read_bytes()) > old
    # Nobody rests on the one member that was certain before: another leader, another reader.
    hosts.end(a)
    assert get(b, "kept") == CONTENT
    put(c, "after", b"written by two of them")
    assert get(b, "after") == b"written by two of them"


def test_a_host_joins_a_cluster_whose_first_certificates_have_expired(hosts: Hosts, clock_library: Path) -> None:
    a = hosts.init("a", "--name", "a")
    for days in (0, 2 * NODE_DAYS // 3 + 2, NODE_DAYS + 5):
        hosts.env = {**os.environ, "LD_PRELOAD": str(clock_library), "CLOCK_SHIFT_S": str(days * DAY_S)}
        hosts.start(a)
        hosts.wait_ready(a)
        wait_for("one certificate, renewed", lambda days=days: [
            row["state"] for row in hosts.json(a, "cert", "list")].count("retired") == (days > 0))
        if days <= NODE_DAYS:
            hosts.end(a)
    b = hosts.join("b", hosts.token(a))
    hosts.start(b)
    hosts.wait_members(a, 2)


def test_every_host_has_another_address(hosts: Hosts) -> None:
    a, b, c = every = three(hosts)
    put(a, "kept", CONTENT)
    hosts.wait_ready(*every)
    for host in every:
        hosts.end(host)
    for host, at in zip(every, ("127.0.0.2", "127.0.0.3", "127.0.0.4"), strict=True):
        address(host, at)
    hosts.start(*every)
    no_quorum(hosts, b)
    for host in every:
        hosts.end(host)
    come_back(hosts, b, a, c)
    assert {m["name"]: m["host"] for m in hosts.members(c)} == {
        "a": "127.0.0.2", "b": "127.0.0.3", "c": "127.0.0.4"}
    hosts.end(b)
    add_user(hosts, a, "bob")
    assert b"bob" in hosts.run("user", "list", "--data-dir", str(c.data_dir)).stdout
