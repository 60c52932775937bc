"""Clusters of several hosts on IPv6, and on names: growth, a relayed session, and a member that is killed."""

from __future__ import annotations

import asyncio
import signal
import socket

import asyncssh
import pytest

from tests.e2e.hosts import Host, Hosts

PASSWORD = "a password for this test only"


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def grown(hosts: Hosts, listen: str, advertised: list[str]) -> list[Host]:
    first = hosts.init("h1", "--name", "h1", "--advertise", advertised[0], "--listen", listen)
    members = [first]
    hosts.start(first)
    hosts.wait_ready(first)
    for number, address in enumerate(advertised[1:], 2):
        member = hosts.join(f"h{number}", hosts.token(first), "--advertise", address, "--listen", listen)
        hosts.start(member)
        members.append(member)
    hosts.wait_ready(*members)
    hosts.wait_members(first, len(members))
    return members


async def _put_and_get(address: str, put: Host, get: Host, ports: dict[str, int], name: str) -> None:
    async def session(host: Host) -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(address, ports[host.name], username="ann", password=PASSWORD, known_hosts=None,
                                      config=None, client_keys=None)

    async with await session(put) as connection, connection.start_sftp_client() as sftp:
        async with sftp.open(name, "wb") as file:
            await file.write(name.encode() * 1000)
    async with await session(get) as connection, connection.start_sftp_client() as sftp:
        async with sftp.open(name, "rb") as file:
            assert await file.read() == name.encode() * 1000


def works(hosts: Hosts, listen: str, advertised: list[str]) -> None:
    members = grown(hosts, listen, advertised)
    first, second, third = members
    done = hosts.run("user", "add", "ann", "--password-stdin", "--data-dir", str(first.data_dir),
                     input=PASSWORD.encode())
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in hosts.members(first)}
    ports = {name: int(row["sftp"].rpartition(":")[2]) if "sftp" in row else row["sftp_port"]
             for name, row in rows.items()}
    asyncio.run(_put_and_get(listen, second, third, ports, "one"))
    # A drained member sends its clients on to the others: relayed over the advertised addresses.
    assert hosts.run("member", "drain", "h3", "--data-dir", str(first.data_dir)).returncode == 0
    asyncio.run(_put_and_get(listen, third, first, ports, "two"))
    assert hosts.run("member", "undrain", "h3", "--data-dir", str(first.data_dir)).returncode == 0
    hosts.end(second, signal.SIGKILL)
    asyncio.run(_put_and_get(listen, third, first, ports, "three"))
    hosts.start(second)
    hosts.wait_ready(second)
    asyncio.run(_put_and_get(listen, first, second, ports, "four"))


@pytest.mark.slow
def test_three_hosts_on_ipv6(hosts: Hosts) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    works(hosts, "::1", ["::1", "::1", "::1"])


@pytest.mark.slow
def test_three_hosts_found_by_names(hosts: Hosts) -> None:
    works(hosts, "127.0.0.1", ["localhost", "localhost", "127.0.0.1"])
