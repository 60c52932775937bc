"""Contract 6 and 7 with real processes: what a client sees when the leader dies, and when no majority is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from blake3 import blake3

from raftmft.store.index import ChunkIndex
from tests.e2e.harness import Cluster, process_is_alive, wait_for
from tests.e2e.test_kills import Uploader


class TimedUploader(Uploader):
    """Remembers when each acknowledgement was seen."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.times: list[float] = []

    def __setattr__(self, name: str, value: object) -> None:
        if name == "acknowledged" and hasattr(self, "times"):
            self.times.append(time.monotonic())
        super().__setattr__(name, value)


def test_writes_pause_at_most_three_seconds_when_the_leader_dies(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.write_bytes(b"x" * 4096)
    leader = cluster.leader()
    survivors = [name for name in cluster.names if name != leader]
    cluster.sftp(leader, "mkdir t\n")
    uploaders = [TimedUploader(cluster, survivors[n % 2], [source] * 1500, "t") for n in range(6)]
    for uploader in uploaders:
        uploader.start()
    for uploader in uploaders:
        wait_for("uploads", lambda u=uploader: len(u.acknowledged) > 5)  # type: ignore[misc]
    cluster.kill(leader)
    killed = time.monotonic()
    going_on = [
        u
        for u in uploaders
        if wait_for("an end or progress", lambda u=u: not u.is_alive() or (u.times and u.times[-1] > killed + 0.2), 20)  # type: ignore[misc]
        and u.is_alive()
    ]
    assert len(going_on) >= 2, "sessions on the survivors go on"
    for uploader in going_on:
        gap = max(b - a for a, b in zip(uploader.times, uploader.times[1:], strict=False))
        assert gap < 3.0, f"a write waited {gap:.2f} s"
    for uploader in uploaders:
        uploader.stop()


def test_without_a_majority_nothing_is_promised(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.write_bytes(b"x")
    left, *gone = cluster.names
    cluster.sftp(left, f"put {source} before\n")
    pids = [cluster.pid(name) for name in gone]
    # A session that lives on the node that stays: started until one was not relayed.
    clients: list[subprocess.Popen[bytes]] = []
    member = None
    while member != left:
        client = subprocess.Popen(
            [w for w in cluster.sftp_command(left) if w != "-q"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        clients.append(client)
        assert client.stdin and client.stdout
        client.stdin.write(b"pwd\n")
        client.stdin.flush()
        assert client.stdout.readline() and client.stdout.readline()
        member = cluster.audit("--kind", "login")[-1]["member"]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        client.stdin.write(b"mkdir never\n")  # type: ignore[union-attr]
        client.stdin.flush()  # type: ignore[union-attr]
        client.wait(8)
        took = time.monotonic() - stopped
        text = client.stderr.read().decode()  # type: ignore[union-attr]
        assert client.returncode != 0 and "Failure" in text, text  # the client does not print the server's own text
        assert took < 5.5, f"the answer took {took:.1f} s"
        host, port = cluster.node(left)["sftp"].rsplit(":", 1)

        def refused() -> bool:
            with socket.create_connection((host, int(port)), 5) as connection:
                connection.settimeout(10)
                connection.sendall(b"SSH-2.0-test\r\n")
                data = b""
                while part := connection.recv(4096):
                    data += part
                return b"no quorum" in data

        wait_for("new connections to be refused before authentication", refused)
        status = cluster.run("status", "-o", "json", node=left, check=False)
        assert status.returncode == 4 and b'"no-quorum"' in status.stdout
        assert cluster.run("user", "add", "nobody", node=left, check=False).returncode == 4
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for client in clients:
            client.kill()
            client.wait()
    cluster.wait_ready()
    listing = cluster.sftp(left, "ls -1\n").stdout
    assert b"before" in listing


def test_a_member_that_was_away_fetches_what_it_should_hold(cluster: Cluster, tmp_path: Path) -> None:
    away, one, _ = cluster.names
    cluster.kill(away)
    content = os.urandom(5_300_000)
    (tmp_path / "s").write_bytes(content)
    cluster.sftp(one, f"put {tmp_path}/s missed\n")
    status = cluster.status(one)
    wait_for("degraded", lambda: cluster.status(one)["verdict"] == "degraded")
    assert status["can_lose"]["members"] <= 1
    cluster.restart(away)
    cluster.wait_ready(away)
    wait_for("ok", lambda: cluster.status(one)["verdict"] == "ok")
    pid = cluster.pid(away)
    os.kill(pid, signal.SIGTERM)
    wait_for("a clean stop", lambda: not process_is_alive(pid), 25)
    index = ChunkIndex(Path(cluster.node(away)["data_dir"]) / "chunks")
    for start in range(0, len(content), 1 << 20):
        assert blake3(content[start : start + (1 << 20)]).digest() in index, f"the chunk at {start} was not fetched"


def test_a_damaged_chunk_is_never_served_and_is_repaired(cluster: Cluster, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "s").write_bytes(content)
    cluster.sftp(cluster.names[0], f"put {tmp_path}/s s\n")
    cluster.wait_ready()
    for name in cluster.names[:2]:
        chunks = Path(cluster.node(name)["data_dir"]) / "chunks"
        for segment in chunks.glob("*.seg"):
            data = bytearray(segment.read_bytes())
            at = data.find(content[(1 << 20) + 500 : (1 << 20) + 600])
            if at >= 0:
                with open(segment, "r+b") as file:
                    file.seek(at)
                    file.write(b"damage")
    for number in range(6):
        cluster.sftp(cluster.names[number % 3], f"get s {tmp_path}/back{number}\n")
        assert (tmp_path / f"back{number}").read_bytes() == content


def slow_upload(cluster: Cluster, name: str, source: Path, target: str) -> tuple[subprocess.Popen[bytes], str]:
    """An upload at about 10 MB/s that is under way; and the member that serves it."""
    before = len(cluster.audit("--kind", "login"))
    client = subprocess.Popen(
        cluster.sftp_command(name, "-l", "80000"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdin
    client.stdin.write(f"put {source} {target}\n".encode())
    client.stdin.close()
    other = next(n for n in cluster.names if n != name)
    wait_for(
        "a checkpoint",
        lambda: any(
            r["path"] == f"/{target}" and r["kind"] == "open" for r in cluster.audit("--path", target, node=other)
        ),
    )
    member = cluster.audit("--kind", "login", node=other)[before]["member"]
    wait_for("a durable prefix", lambda: partial_size(cluster, other, target) > 0)
    return client, member


def partial_size(cluster: Cluster, name: str, target: str) -> int:
    done = cluster.sftp(name, f"ls -ln {target}\n", check=False)
    fields = done.stdout.split(b"\n")[1].split() if done.returncode == 0 else []
    return int(fields[4]) if len(fields) > 4 else 0


def test_sigterm_keeps_the_prefix_and_hands_leadership_over(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(60 << 20))
    settings = [Path(n["data_dir"]) / "raftmft.toml" for n in cluster.about["nodes"]]
    assert all("drain_timeout_s = 20" in s.read_text() for s in settings)
    client, member = slow_upload(cluster, cluster.leader(), source, "drained")
    pid = cluster.pid(member)
    others = [name for name in cluster.names if name != member]
    os.kill(pid, signal.SIGTERM)
    begun = time.monotonic()
    wait_for("the node to stop", lambda: not process_is_alive(pid), 25)
    client.wait(30)
    if client.returncode != 0:  # it did not fit into the drain's 20 s; a whole file would make reput fail
        prefix = partial_size(cluster, others[0], "drained")
        assert prefix > 0
        cluster.sftp(others[0], f"reput {source} drained\n")
    cluster.sftp(others[1], f"get drained {tmp_path}/back\n")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert time.monotonic() - begun < 60
    log = (cluster.folder / f"{member}.log").read_text()
    assert "Traceback" not in log, log[-3000:]


def test_sessions_of_a_dead_member_expire(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(60 << 20))
    client, member = slow_upload(cluster, cluster.names[0], source, "cut")
    other = next(name for name in cluster.names if name != member)
    session = next(r for r in cluster.audit("--path", "cut", node=other) if r["kind"] == "open")["session"]
    cluster.kill(member)
    client.wait(30)
    wait_for(
        "the session's expiry",
        lambda: any(r["session"] == session for r in cluster.audit("--kind", "session_expired", node=other)),
        15,
    )
    cluster.sftp(other, f"reput {source} cut\nget cut {tmp_path}/back\n")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
