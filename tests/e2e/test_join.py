"""`token create` and `join` with real processes: who is admitted, and each bad input answered by one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from raftmft.cli.dev import free_ports
from raftmft.node.datadir import DataDir
from raftmft.wire.token import JoinToken, decode_token, encode_token
from tests.e2e.harness import wait_for
from tests.e2e.hosts import Host, Hosts, refused

FIRST = "first"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        host = hosts.init(FIRST, "--name", FIRST)
        hosts.start(host)
        hosts.wait_ready(host)
        yield hosts
    finally:
        hosts.stop()


@pytest.fixture
def first(hosts: Hosts) -> Host:
    return hosts.started[0]


def names(hosts: Hosts, host: Host) -> set[str]:
    """Of all hosts whose admission is committed, as the audit log has it."""
    log = hosts.run("audit", "query", "--kind", "admin", "-o", "json", "--data-dir", str(host.data_dir)).stdout.decode()
    return {FIRST, *re.findall(r"member join (\S+) ", log)}


def test_two_hosts_join_at_once_and_a_used_token_admits_nobody(hosts: Hosts, first: Host) -> None:
    tokens = [hosts.token(first), hosts.token(first, "--mode", "standby")]
    with ThreadPoolExecutor() as pool:
        joined = list(pool.map(hosts.join, ("a", "b"), tokens))
    assert names(hosts, first) == {FIRST, "a", "b"}
    for host, mode in zip(joined, ("active", "standby"), strict=True):
        seed = DataDir(host.data_dir).read_seed()
        assert not seed.founder and seed.member(seed.me).name == host.name and seed.member(seed.me).mode == mode
        assert seed.cluster == "files" and FIRST in {m.name for m in seed.members}
    assert "used already" in refused(hosts.run_join("c", tokens[0]))
    assert not (hosts.folder / "c").exists()
    assert names(hosts, first) == {FIRST, "a", "b"}
    assert decode_token(tokens[0]).secret not in first.log.read_bytes()


def test_a_name_that_is_taken_leaves_the_token_good(hosts: Hosts, first: Host) -> None:
    token = hosts.token(first)
    assert "exists already" in refused(hosts.run_join("c", token, "--name", FIRST))
    assert not (hosts.folder / "c").exists() and len(names(hosts, first)) == 3
    hosts.join("d", token)


def test_a_forged_an_expired_and_a_foreign_token_are_told_apart(hosts: Hosts, first: Host) -> None:
    good = decode_token(hosts.token(first))
    forged = encode_token(JoinToken(good.cluster_id, good.ca_fingerprint, bytes(32), good.expires_ms, good.addresses))
    assert "forged" in refused(hosts.run_join("c", forged))
    short = hosts.token(first, "--ttl", "1s")

    def expired() -> str:
        return refused(hosts.run_join("c", short, "--name", FIRST))

    wait_for("the token to expire", lambda: "has expired" in expired())
    foreign = encode_token(JoinToken(good.cluster_id, "00" * 32, good.secret, good.expires_ms, good.addresses))
    assert "another cluster" in refused(hosts.run_join("c", foreign))
    assert "cut off" in refused(hosts.run_join("c", encode_token(good)[:-5]))
    assert not (hosts.folder / "c").exists()


def test_nobody_answers(hosts: Hosts, first: Host) -> None:
    good = decode_token(hosts.token(first))
    nowhere = JoinToken(good.cluster_id, good.ca_fingerprint, good.secret, good.expires_ms,
                        (f"127.0.0.1:{free_ports(1)[0]}",))
    line = refused(hosts.run_join("c", encode_token(nowhere)), code=5)
    assert "no member answers" in line and not (hosts.folder / "c").exists()
