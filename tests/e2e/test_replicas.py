"""Owners that hang, crawl or die under a transfer: clients go on, memory is bounded, and what is owed is made good."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from raftmft.store.index import ChunkIndex
from tests.e2e.harness import Cluster, process_is_alive, wait_for

pytestmark = pytest.mark.slow
MIB = 1 << 20
MOST_GROWTH_MIB = 110
"""Of a node with its workers: what replication may hold (16 MiB a member, 32 MiB of its links' budget and 32 MiB that
are passed on) and what one session may (16 MiB), with some air. The file is larger."""


def begun(cluster: Cluster, name: str, command: str, target: str,
          speed_mbyte: int) -> tuple[subprocess.Popen[bytes], str]:
    """A transfer of `target` that is under way at this speed, and the member that serves it."""
    before = len(cluster.audit("--path", target, "--kind", "open"))
    client = subprocess.Popen(cluster.sftp_command(name, "-l", str(speed_mbyte * 8000)), stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert client.stdin
    client.stdin.write(f"{command}\n".encode())
    client.stdin.close()
    opens = wait_for("an open", lambda: cluster.audit("--path", target, "--kind", "open")[before:])
    return client, opens[0]["member"]


def finished(client: subprocess.Popen[bytes], timeout_s: float) -> None:
    """The client is done, and well."""
    client.wait(timeout_s)
    assert client.stderr
    assert client.returncode == 0, client.stderr.read().decode()


def holds(cluster: Cluster, name: str, content: bytes) -> bool:
    """Whether the index of a stopped node names every chunk of the content."""
    index = ChunkIndex(Path(cluster.node(name)["data_dir"]) / "chunks")
    return all(blake3(content[at : at + MIB]).digest() in index for at in range(0, len(content), MIB))


def memory_mib(pid: int) -> float:
    """The peak of a node and its workers since their peaks were forgotten; RSS counts what they share several times."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = [line for p in (pid, *children) for line in Path(f"/proc/{p}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def forget_peak(pid: int) -> None:
    for p in (pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        Path(f"/proc/{p}/clear_refs").write_text("5")


def test_a_hung_owner_is_routed_around_and_gets_its_copies_although_every_node_is_killed(
        cluster: Cluster, tmp_path: Path) -> None:
    content = os.urandom(40 * MIB + 12345)
    (tmp_path / "s").write_bytes(content)
    client, member = begun(cluster, cluster.names[0], f"put {tmp_path}/s s", "s", 10)
    hung = next(name for name in cluster.names if name not in (member, cluster.leader()))
    os.kill(cluster.pid(hung), signal.SIGSTOP)
    stopped = time.monotonic()
    finished(client, 30)
    assert time.monotonic() - stopped < 12, "4 s at this speed"
    status = cluster.status(member)
    assert status["under_replicated"] >= 41 and status["verdict"] == "degraded", status
    cluster.kill(*cluster.names)
    cluster.restart(*cluster.names)
    cluster.wait_ready()
    wait_for("nothing is owed", lambda: cluster.status(member)["under_replicated"] == 0)
    os.kill(cluster.pid(hung), signal.SIGTERM)
    wait_for("a clean stop", lambda: cluster.pid_or(hung) == 0 or not process_is_alive(cluster.pid_or(hung)), 25)
    assert holds(cluster, hung, content)


@contextmanager
def crawling(pid: int, stopped_s: float, runs_s: float) -> Iterator[None]:
    """The process runs only now and then meanwhile: as slow as a machine that is busy with something else."""
    over = threading.Event()

    def crawl() -> None:
        while not over.wait(runs_s):
            os.kill(pid, signal.SIGSTOP)
            over.wait(stopped_s)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=crawl)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_slow_owner_slows_the_client_and_fills_no_memory(cluster: Cluster, tmp_path: Path) -> None:
    contents = [os.urandom(160 * MIB) for _ in range(3)]  # the same ones would not be sent again
    for number, content in enumerate(contents):
        (tmp_path / f"s{number}").write_bytes(content)
    slow, *others = sorted(cluster.names, key=lambda name: name == cluster.leader())
    cluster.run("member", "set-mode", slow, "standby")  # it stores, and takes no sessions
    cluster.sftp(others[0], f"put {tmp_path}/s0 warm\n")
    began = time.monotonic()
    cluster.sftp(others[0], f"put {tmp_path}/s1 quick\n")
    quick = time.monotonic() - began
    for name in others:
        forget_peak(cluster.pid(name))
    before = {name: memory_mib(cluster.pid(name)) for name in others}
    began = time.monotonic()
    with crawling(cluster.pid(slow), 0.2, 0.02):
        cluster.sftp(others[0], f"put {tmp_path}/s2 slow\n")
        took = time.monotonic() - began
    grown = {name: memory_mib(cluster.pid(name)) - before[name] for name in others}
    assert took > quick + 1, f"{took:.1f} s with a slow owner, {quick:.1f} s without"
    assert max(grown.values()) < MOST_GROWTH_MIB, grown
    cluster.wait_ready()
    wait_for("nothing is owed", lambda: cluster.status(others[0])["under_replicated"] == 0)
    cluster.sftp(slow, f"get slow {tmp_path}/back\n")
    assert (tmp_path / "back").read_bytes() == contents[2]


def test_a_holder_that_dies_under_a_read_costs_a_retry_and_not_the_read(five: Cluster, tmp_path: Path) -> None:
    content = os.urandom(48 * MIB)
    (tmp_path / "s").write_bytes(content)
    five.sftp(five.names[0], f"put {tmp_path}/s s\n")
    five.wait_ready()
    client, member = begun(five, five.names[1], f"get s {tmp_path}/back", "s", 10)
    others = [name for name in five.names if name not in (member, five.leader())]
    five.kill(others[0])
    os.kill(five.pid(others[1]), signal.SIGSTOP)  # and one that does not even close its connections
    try:
        finished(client, 40)
        assert (tmp_path / "back").read_bytes() == content
    finally:
        os.kill(five.pid(others[1]), signal.SIGCONT)
