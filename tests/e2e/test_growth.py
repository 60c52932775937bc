"""A cluster of one grows to two, three, five while a client writes, and shrinks again: no gap, no failure, no loss."""

from __future__ import annotations

import asyncio
import re
import threading
import time

import asyncssh
import pytest

from raftmft.cli.dev import free_ports
from tests.e2e.harness import wait_for
from tests.e2e.hosts import Host, Hosts

pytestmark = pytest.mark.slow
GAP_S = 1.0
"""The longest time without a success that growth may cost (the issue's figure)."""
PASSWORD = "a password for this test only"


class Writer:
    """One session that publishes small files, one after another, until told to stop."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.done: list[float] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        async with asyncssh.connect("127.0.0.1", self._port, username="ann", password=PASSWORD, known_hosts=None,
                                    config=None, client_keys=None) as connection:
            async with connection.start_sftp_client() as sftp:
                number = 0
                while not self._stop.is_set():
                    try:
                        async with sftp.open(f"f{number}", "wb") as file:
                            await file.write(b"%d " % number * 500)
                        self.done.append(time.monotonic())
                    except (asyncssh.Error, OSError) as error:
                        self.failures.append(f"f{number}: {error}")
                    number += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        wait_for("the first file", lambda: self.done or not self._thread.is_alive())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def gap_s(self, since: float) -> float:
        """The longest time without a success since then."""
        times = [since, *(at for at in self.done if at > since), time.monotonic()]
        return max(b - a for a, b in zip(times, times[1:], strict=False))


def add(hosts: Hosts, through: Host, name: str, *options: str) -> Host:
    host = hosts.join(name, hosts.token(through, *options))
    hosts.start(host)
    return host


def test_one_grows_to_five_and_shrinks_to_three_while_a_client_writes(hosts: Hosts) -> None:
    first = hosts.init("h1", "--name", "h1")
    hosts.start(first)
    hosts.wait_ready(first)
    added = hosts.run("user", "add", "ann", "--password-stdin", "--data-dir", str(first.data_dir),
                      input=PASSWORD.encode())
    assert added.returncode == 0, added.stderr.decode()
    port = hosts.json(first, "member", "list")[0]["sftp_port"]
    gaps: dict[str, float] = {}
    with Writer(port) as writer:
        def step(what: str, since: float) -> None:
            gaps[what] = round(writer.gap_s(since), 2)

        since = time.monotonic()
        second = hosts.join("h2", hosts.token(first))
        count = len(writer.done)
        wait_for("writes while h2 is admitted and does not run", lambda: len(writer.done) > count + 20)
        step("admitted", since)
        since = time.monotonic()
        hosts.start(second)
        hosts.wait_members(first, 2)
        hosts.wait_ready(second)
        step("1 to 2", since)
        since = time.monotonic()
        third = add(hosts, second, "h3")
        hosts.wait_members(first, 3)
        hosts.wait_ready(third)
        step("2 to 3", since)
        since = time.monotonic()
        more = [add(hosts, third, "h4"), add(hosts, first, "h5")]
        hosts.wait_members(first, 5)
        hosts.wait_ready(*more)
        step("3 to 5", since)
        since = time.monotonic()
        for gone in more:
            done = hosts.run("member", "remove", gone.name, "--data-dir", str(third.data_dir), timeout_s=120)
            assert done.returncode == 0, done.stderr.decode()
        hosts.wait_members(first, 3)
        step("5 to 3", since)
    print(f"{len(writer.done)} files; longest time without a success, s: {gaps}")
    assert not writer.failures, writer.failures[:3]
    assert max(gaps.values()) < GAP_S, gaps
    for gone in more:
        assert gone.process is not None and gone.process.wait(20) == 1, "a removed member stops"
        assert "was removed from its cluster" in gone.log.read_text()
    # Nothing is lost: all is there when the member that took it is gone.
    hosts.end(first)
    published = hosts.json_lines(second, "audit", "query", "--kind", "publish", "--limit", "10000")
    assert len(published) == len(writer.done)


def test_a_witness_votes_and_stores_nothing(hosts: Hosts) -> None:
    first = hosts.init("h1", "--name", "h1")
    hosts.start(first)
    hosts.wait_ready(first)
    second = add(hosts, first, "h2")
    hosts.wait_members(first, 2)
    third = add(hosts, first, "w", "--mode", "witness")
    wait_for("the witness", lambda: [m["role"] for m in hosts.json(first, "status")["members"]
                                     if m["name"] == "w"] == ["witness"], 40)
    assert hosts.json(first, "status")["can_lose"]["members"] == 1
    hosts.end(second, 9)
    wait_for("the witness to make a majority", lambda: hosts.json(first, "status")["leader"] in ("h1", "w"))
    added = hosts.run("user", "add", "bob", "--data-dir", str(third.data_dir))
    assert added.returncode == 0, added.stderr.decode()


def test_a_host_that_comes_back_under_another_address_is_found_again(hosts: Hosts) -> None:
    first = hosts.init("h1", "--name", "h1")
    hosts.start(first)
    hosts.wait_ready(first)
    others = [add(hosts, first, "h2"), add(hosts, first, "h3")]
    hosts.wait_members(first, 3)
    ids = {m["name"]: m["id"] for m in hosts.json(first, "member", "list")}
    # The one with the smallest id is dialled by all others; the one with the largest dials all.
    for number, moving in enumerate(sorted([first, *others], key=lambda host: ids[host.name])):
        asked = next(host for host in others if host is not moving)
        hosts.end(moving)
        wait_for("its absence to show", lambda asked=asked: hosts.json(asked, "status")["verdict"] != "ok")  # type: ignore[misc]
        toml = moving.data_dir / "raftmft.toml"
        text = toml.read_text().replace('"127.0.0.1"', f'"127.0.0.{number + 2}"')
        for port in ("sftp_port", "peer_port", "gossip_port"):
            text = re.sub(rf"{port} = \d+", f"{port} = {free_ports(1)[0]}", text)
        toml.write_text(text)
        hosts.start(moving)
        hosts.wait_members(asked, 3)
        hosts.wait_ready(moving)
        listed = {m["name"]: m for m in hosts.json(asked, "member", "list")}
        assert listed[moving.name]["host"] == f"127.0.0.{number + 2}" and listed[moving.name]["id"] == ids[moving.name]
        wait_for("a healthy cluster", lambda asked=asked: hosts.json(asked, "status")["verdict"] == "ok")  # type: ignore[misc]
