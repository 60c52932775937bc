"""Snapshots on real nodes: a member that was away while its log was dropped, one that is killed, all that are killed.

The bounds are lowered in the processes themselves (a sitecustomize on PYTHONPATH): a snapshot after a few hundred
entries, of which hardly any log is kept.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Cluster, wait_for
from tests.e2e.hosts import Host, Hosts
from tests.e2e.test_recover import get, put, three

LOWERED = """
import sys
if "raftmft" in sys.argv[0] or "-m" in sys.orig_argv:
    from raftmft.raft import compaction, journal
    compaction.SNAPSHOT_ENTRIES, compaction.KEEP_BYTES = 300, 0
    journal.SEGMENT_BYTES, journal.MEMORY_BYTES = 16 << 10, 64 << 10
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    (tmp_path / "lowered").mkdir()
    (tmp_path / "lowered" / "sitecustomize.py").write_text(LOWERED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "lowered"), str(Path(__file__).parents[2])]))
    cluster = Cluster(tmp_path / "c")
    try:
        yield cluster.start()
    finally:
        cluster.stop()


def segments(cluster: Cluster, name: str) -> list[int]:
    """The numbers of a node's journal segments."""
    folder = Path(cluster.node(name)["data_dir"]) / "raft"
    return sorted(int(path.suffix[1:]) for path in folder.glob("journal.*"))


def put_many(cluster: Cluster, name: str, source: Path, first: int, count: int) -> None:
    cluster.sftp(name, "".join(f"put {source} f{number}\n" for number in range(first, first + count)))


def names_seen(cluster: Cluster, name: str) -> set[str]:
    listing = cluster.sftp(name, "ls -1\n").stdout.decode().splitlines()
    return {line.strip() for line in listing if not line.startswith("sftp>")}


def log_of(cluster: Cluster, name: str) -> str:
    return (cluster.folder / f"{name}.log").read_text()


def test_the_log_is_dropped_and_nobody_loses_anything(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "content"
    source.write_bytes(os.urandom(5000))
    leader = cluster.leader()
    serving, away = [name for name in cluster.names if name != leader]
    put_many(cluster, serving, source, 0, 20)
    cluster.kill(away)
    # Until that is known a client may still be sent on to it, and see its connection close.
    wait_for("its death", lambda: {m["name"]: m["state"] for m in cluster.status(serving)["members"]}[away] != "alive")
    last, count = max(segments(cluster, away)), 20
    while min(segments(cluster, leader)) <= last or min(segments(cluster, serving)) <= last:
        put_many(cluster, serving, source, count, 100)
        count += 100
        assert count < 5000, "no log is dropped"
    wanted = {f"f{number}" for number in range(count)}

    term = cluster.status(leader)["term"]
    cluster.restart(away)
    cluster.wait_ready(away)
    wait_for("the installed state", lambda: "the state of entry" in log_of(cluster, away))
    assert names_seen(cluster, away) == wanted and cluster.status(leader)["term"] == term
    cluster.sftp(away, f"get f{count - 1} {tmp_path}/back\n")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    cluster.run("user", "add", "later", "--key", f"{cluster.about['users'][0]['key']}.pub", node=away)

    cluster.kill(*cluster.names)
    cluster.restart(*cluster.names)
    cluster.wait_ready()
    for name in cluster.names:
        assert "the state begins with the snapshot of entry" in log_of(cluster, name)
        assert names_seen(cluster, name) == wanted
        assert b"later" in cluster.run("user", "list", node=name).stdout
        cluster.run("audit", "verify", node=name)
    put_many(cluster, away, source, count, 3)
    assert len(names_seen(cluster, serving)) == count + 3


def snapshots(host: Host) -> list[Path]:
    return sorted((host.data_dir / "raft").glob("snapshot.*"))


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x40
    file.write_bytes(data)


def test_damaged_snapshots(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(LOWERED.replace("= 300,", "= 60,"))
    hosts.env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    a, b, c = three(hosts)
    put(a, "kept", b"z" * 1_000_000)

    def made(count: int) -> bool:
        put(a, f"more{count}", b"more")
        log = {file.name for file in (c.data_dir / "raft").glob("journal.*")}
        return len(snapshots(c)) == 2 and not any(file.suffix == ".new" for file in snapshots(c)) and not log & first

    first = {file.name for file in (c.data_dir / "raft").glob("journal.*")}
    wait_for("two snapshots and a log that begins behind them", lambda count=iter(range(10_000)): made(next(count)), 60)
    hosts.end(c, signal.SIGKILL)
    older, newer = snapshots(c)
    damage(newer)
    hosts.start(c)  # the older one and the log behind it are enough, and the damaged one is offered to nobody
    hosts.wait_ready(c)
    assert "the one before it must do" in c.log.read_text() and newer not in snapshots(c)
    assert get(c, "kept") == b"z" * 1_000_000
    hosts.end(c, signal.SIGKILL)
    for file in snapshots(c):
        damage(file)
    hosts.end(b)
    hosts.start(c)
    assert c.process is not None and c.process.wait(30) == 1
    line = c.log.read_text().splitlines()[-1]
    assert "no sound snapshot bridges them" in line and "raftmft join --replace" in line
    hosts.start(b)
    hosts.wait_ready(a, b)
    token = hosts.folder / "again.token"
    token.write_text(hosts.token(a))
    done = hosts.run("join", "--replace", "--token-file", str(token), "--data-dir", str(c.data_dir))
    assert done.returncode == 0, done.stderr.decode()
    hosts.start(c)
    hosts.wait_ready(c)
    hosts.wait_members(a, 3)
    assert get(c, "kept") == b"z" * 1_000_000
