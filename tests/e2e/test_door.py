"""The front door of real nodes, over raw sockets and by OpenSSH: bans, PROXY headers, forged prefaces, the limit to log
in, many at once.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh
import pytest

from raftmft.cluster.keyring import FIRST, KeyRing
from raftmft.cluster.relay import PrefaceGuard
from raftmft.wire.proxy_header import V2_SIGNATURE
from tests.e2e.harness import Cluster, wait_for

BANNER = b"SSH-2.0-client\r\n"
LIMIT_S = 4
HEADER = b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 22\r\n"
HEADERS = {"203.0.113.9:4711": HEADER, "[2001:db8::9]:4712": b"PROXY TCP6 2001:db8::9 2001:db8::1 4712 22\r\n",
           "203.0.113.9:4713": V2_SIGNATURE + bytes.fromhex("2111000c cb007109 0a000001 1269 0016"),
           "[2001:db8::9]:4714": V2_SIGNATURE + bytes.fromhex(
               "21210024 20010db8000000000000000000000009 20010db8000000000000000000000001 126a 0016")}
"""The client's address that a header tells, both versions of PROXY: the header."""
SAYS_HEADER = """
import array, socket, sys
host, port, header = sys.argv[1:]
connection = socket.create_connection((host, int(port)))
connection.sendall(bytes.fromhex(header))
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))]
socket.socket(fileno=1).sendmsg([b"x"], rights)
"""
"""A balancer for OpenSSH's ProxyCommand, with ProxyUseFdpass: the header goes first, the rest is the client's own."""


def serve_all_through(cluster: Cluster, name: str) -> None:
    """Drains the others, so that they relay to this node whatever comes to them."""
    for other in cluster.names:
        if other != name:
            cluster.run("member", "drain", other)
    for node in cluster.names:  # each has applied it when it answers
        cluster.run("member", "list", node=node)


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
    cluster.run("ban", "remove", "203.0.113.0/24")
    serve_all_through(cluster, one)
    says_header = cluster.folder / "says_header.py"
    says_header.write_text(SAYS_HEADER)
    for through in (one, two):
        host, port = cluster.node(through)["sftp"].rsplit(":", 1)
        for address, header in HEADERS.items():
            before = len(cluster.audit("--kind", "login"))
            cluster.sftp(through, "ls\n", "-o", "ProxyUseFdpass=yes", "-o",
                         f"ProxyCommand={sys.executable} {says_header} {host} {port} {header.hex()}")
            (login,) = cluster.audit("--kind", "login")[before:]
            assert (login["address"], login["member"], login["user"]) == (address, one, "demo"), through


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


# --- the limit to log in -----------------------------------------------------------------------------------------
def read_until(connection: socket.socket, is_enough: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not is_enough(data):
        part = connection.recv(65536)
        assert part, f"closed after {data!r}"
        data += part
    return data


def has_packet(data: bytes) -> bool:
    """Whether there is a banner and a whole SSH packet behind it."""
    rest = data.partition(b"\n")[2]
    return len(rest) > 4 and len(rest) >= 4 + int.from_bytes(rest[:4], "big")


def stays_silent(connection: socket.socket) -> None:
    """Says nothing at all."""


def sends_its_banner(connection: socket.socket) -> None:
    """Says its banner and nothing more."""
    connection.sendall(BANNER)
    read_until(connection, has_packet)


def begins_key_exchange(connection: socket.socket) -> None:
    """Says banner and KEXINIT (the server's own lists: both agree on everything), and stalls."""
    connection.sendall(BANNER)
    offer = read_until(connection, has_packet).partition(b"\n")[2]
    assert offer[5] == 20, "the server's first packet is no KEXINIT"
    connection.sendall(offer[: 4 + int.from_bytes(offer[:4], "big")])


def closed_after_s(cluster: Cluster, name: str, talk: Callable[[socket.socket], None], first: bytes = b"",
                   held_back_s: float = 0) -> float:
    """How long the node lets a client be that never logs in. `first` is sent after `held_back_s` without an answer."""
    host, port = cluster.node(name)["sftp"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as connection:
        begun = time.monotonic()
        if held_back_s:
            connection.settimeout(held_back_s)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        connection.sendall(first)
        connection.settimeout(LIMIT_S + 10)
        talk(connection)
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return time.monotonic() - begun


def test_a_client_that_does_not_log_in_is_cut_at_the_limit_relayed_or_not(cluster: Cluster) -> None:
    one, two, _ = cluster.names
    serve_all_through(cluster, one)
    cluster.run("config", "set", "login.limit_s", str(LIMIT_S))
    session = cluster.sftp_process(two)  # relayed; who has logged in may stay
    try:
        wait_for("the session", lambda: json.loads(cluster.run("sessions", "list", "-o", "json").stdout))
        cases = [(name, talk) for name in (one, two) for talk in (stays_silent, sends_its_banner, begins_key_exchange)]
        with ThreadPoolExecutor(len(cases)) as pool:
            took = dict(zip(cases, pool.map(lambda case: closed_after_s(cluster, *case), cases), strict=True))
        assert all(LIMIT_S - 0.5 <= took_s <= LIMIT_S + 2 for took_s in took.values()), took
        # What the door itself takes counts, too: here, a balancer that holds its header back.
        cluster.run("config", "set", "proxy.trusted", "127.0.0.0/8")
        with ThreadPoolExecutor(2) as pool:
            late = list(pool.map(lambda name: closed_after_s(cluster, name, sends_its_banner, HEADER, LIMIT_S - 1.2),
                                 (one, two)))
        assert all(LIMIT_S - 0.5 <= took_s <= LIMIT_S + 2 for took_s in late), late
        assert session.poll() is None
        assert len(json.loads(cluster.run("sessions", "list", "-o", "json").stdout)) == 1
    finally:
        session.kill()
        session.wait()


# --- many --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_fifty_at_once_and_two_hundred_in_a_row_from_one_address_are_all_let_in(cluster: Cluster) -> None:
    one = cluster.names[0]  # its door counts them all, wherever they are served
    processes = [subprocess.Popen(cluster.sftp_command(one), stdin=subprocess.PIPE,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(50)]
    try:
        wait_for("fifty sessions at once",
                 lambda: len(json.loads(cluster.run("sessions", "list", "-o", "json").stdout)) == 50, 60)
        ends = [process.communicate(b"ls\n", 60) for process in processes]
        assert [process.returncode for process in processes] == [0] * 50, {stderr for _, stderr in ends}
    finally:
        for process in processes:
            process.kill()
            process.wait()
    host, port = cluster.node(one)["sftp"].rsplit(":", 1)

    async def log_in_and_out() -> None:
        for _ in range(200):
            async with asyncssh.connect(
                    host, int(port), username="demo", client_keys=[cluster.about["users"][0]["key"]], config=None,
                    known_hosts=cluster.about["known_hosts"], agent_path=None) as connection:
                async with connection.start_sftp_client() as sftp:
                    await sftp.listdir(".")

    asyncio.run(log_in_and_out())
    logins = cluster.audit("--kind", "login", "--limit", "1000")
    assert len(logins) == 250 and not cluster.audit("--kind", "login_refused")
