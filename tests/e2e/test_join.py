"""`token create` and `join` with real processes: who is admitted, and each bad input answered by one line."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from raftmft.cli.dev import free_ports
from raftmft.cluster.certificates import make_key, public_key_of
from raftmft.cluster.joining import ask_to_join
from raftmft.core.errors import RaftmftError
from raftmft.node.datadir import DataDir
from raftmft.wire.joining import JoinRequest
from raftmft.wire.token import JoinToken, decode_token, encode_token
from tests.e2e.harness import Cluster, wait_for
from tests.e2e.hosts import Host, Hosts, port_options, refused, small_disk, snapshot, taken_port

FIRST = "first"
YEAR_S = 365 * 86_400
CLOCK = """
import time
of_day, of_day_ns = time.time, time.time_ns
time.time = lambda: of_day() + {shift_s}
time.time_ns = lambda: of_day_ns() + {shift_s} * 10**9
"""


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


@pytest.fixture
def token(hosts: Hosts, first: Host) -> str:
    return hosts.token(first)


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


def is_good(hosts: Hosts, token: str) -> bool:
    """Whether a token can still be used; that of a used one is told before a name that is taken."""
    line = refused(hosts.run_join("asked", token, "--name", FIRST))
    assert "exists already" in line or "used already" in line
    return "exists already" in line


def test_a_used_token_is_not_good(hosts: Hosts, first: Host, token: str) -> None:
    assert is_good(hosts, token)
    hosts.join("e", token)
    assert not is_good(hosts, token)


@pytest.mark.parametrize("setting", ["sftp-port", "peer-port", "admin-port", "gossip-port"])
def test_a_port_in_use_is_named(hosts: Hosts, token: str, setting: str) -> None:
    with taken_port(setting) as port:
        line = refused(hosts.run_join("c", token, f"--{setting}", str(port)))
    assert f":{port}" in line and f"--{setting}" in line and not (hosts.folder / "c").exists()
    assert is_good(hosts, token)


def test_a_member_is_not_made_anew(hosts: Hosts, first: Host, token: str) -> None:
    member = hosts.join("f", hosts.token(first))
    before = snapshot(member.data_dir)
    assert "made there already" in refused(hosts.run_join("f", token))
    assert "made there already" in refused(hosts.run_init("f", *port_options()))
    assert snapshot(member.data_dir) == before
    keys = snapshot(first.data_dir / "keys")
    assert "made there already" in refused(hosts.run_join(FIRST, token)), "while it runs"
    assert snapshot(first.data_dir / "keys") == keys and is_good(hosts, token)


def test_too_few_open_files_are_told(hosts: Hosts, token: str) -> None:
    assert "LimitNOFILE" in refused(hosts.run_limited(200, *hosts.join_words("c", token)))
    assert not (hosts.folder / "c").exists() and is_good(hosts, token)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
@pytest.mark.parametrize(("options", "text"), [("size=64k", "No space left"), ("size=16m,ro", "Read-only")])
def test_a_full_or_read_only_disk_is_told_and_left_as_it_was(hosts: Hosts, token: str, options: str,
                                                             text: str) -> None:
    with small_disk(hosts.folder / f"disk-{text.split()[0]}", options) as disk:
        assert text in refused(hosts.run_join(f"{disk.name}/c", token))
        assert list(disk.iterdir()) == []
    assert is_good(hosts, token)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_another_users_directory_is_refused(hosts: Hosts, token: str) -> None:
    folder = hosts.folder / "given"
    folder.mkdir()
    os.chown(folder, 12345, 0)
    assert "belongs to user 12345" in refused(hosts.run_join("given", token))
    assert list(folder.iterdir()) == [] and folder.stat().st_uid == 12345 and is_good(hosts, token)


@pytest.mark.parametrize("shift_s", [-YEAR_S, YEAR_S])
def test_a_clock_that_is_a_year_off_is_called_by_its_name(hosts: Hosts, token: str, tmp_path: Path,
                                                          shift_s: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(shift_s=shift_s))
    done = hosts.run(*hosts.join_words("c", token), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    off_s = re.search(r"clock differs from that of \S+ by (\d+) s; set it \(NTP\) and try again", refused(done))
    assert off_s and abs(int(off_s[1]) - YEAR_S) < 60
    assert not (hosts.folder / "c").exists() and is_good(hosts, token)


def test_the_member_too_looks_at_the_clock(hosts: Hosts, token: str) -> None:
    def ask(shift_s: int) -> None:
        request = JoinRequest(decode_token(token).secret, FIRST, "127.0.0.1", 1, 2, 3, public_key_of(make_key()),
                              (int(time.time()) + shift_s) * 1000, "1.0", 1)
        trio.run(ask_to_join, decode_token(token), lambda: request)

    with pytest.raises(RaftmftError, match="clock differs from that of this cluster"):
        ask(YEAR_S)
    with pytest.raises(RaftmftError, match="exists already"):
        ask(0)


@pytest.mark.parametrize("how", ["closed", "silent", "full"])
def test_nobody_answers(hosts: Hosts, token: str, how: str) -> None:
    with ExitStack() as opened:
        address = ("127.0.0.1", free_ports(1)[0])
        if how != "closed":
            listening = opened.enter_context(socket.socket())
            listening.bind(address)
            listening.listen(0 if how == "full" else 10)
            for _ in range(3 if how == "full" else 0):  # the kernel drops what comes after the first
                waiting = opened.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
        good = decode_token(token)
        nowhere = replace(good, addresses=(f"{address[0]}:{address[1]}",))
        began = time.monotonic()
        line = refused(hosts.run_join("c", encode_token(nowhere)), code=5)
        assert "no member answers" in line and f":{address[1]}" in line and not (hosts.folder / "c").exists()
        assert time.monotonic() - began < 10
    assert is_good(hosts, token)


@pytest.mark.slow
def test_without_a_quorum_it_is_told_soon_and_the_token_stays_good(cluster: Cluster) -> None:
    hosts = Hosts(cluster.folder)
    stopped, also, alive = cluster.names
    token = cluster.run("token", "create").stdout.decode().split()[-1]
    cluster.kill(stopped, also)
    began = time.monotonic()
    line = refused(hosts.run_join("c", token, cluster.node(alive)["peer"]), code=4)
    took_s = time.monotonic() - began
    print(f"no quorum told after {took_s:.1f} s")
    assert "no quorum" in line and "raftmft status" in line and took_s < 12, (line, took_s)
    assert not (hosts.folder / "c").exists()
    cluster.restart(stopped, also)
    cluster.wait_ready()
    hosts.join("c", token)
