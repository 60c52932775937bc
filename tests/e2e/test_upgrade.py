"""A rolling upgrade with real processes: three members of this version become three of one that knows a feature level
more (tests/next_level.py), one after another, while clients upload. Until the last one is upgraded nothing of the new
level is used; from then on it is; and the older version cannot come back.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftmft.core import schema
from tests.e2e.harness import RAFTMFT, Cluster, wait_for
from tests.next_level import FEATURES, NEXT, VERSION

ROOT = Path(__file__).parents[2]
MOST_PAUSE_S = 3.0
"""Contract 6: for so long writes may pause. An upgrade hands leadership over, and should need much less."""
BEFORE = NEXT - 1
LINE = f"the cluster is at feature level {NEXT} and this program knows level {BEFORE} only"


@pytest.fixture
def newer(tmp_path: Path) -> dict[str, str]:
    """The environment in which `raftmft` is the next version."""
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "sitecustomize.py").write_text("from tests.next_level import install\ninstall()\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'newer'}:{ROOT}"}


class Upgradable(Cluster):
    """A cluster whose nodes are started again one by one, under an environment that makes them another version."""

    def start_node(self, name: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
        """`raftmft node` for a member."""
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen([*RAFTMFT, "node", "--data-dir", self.node(name)["data_dir"]], stdout=log,
                                       stderr=log, env=env)
        self.restarted.append(process)
        return process

    def stop_node(self, name: str) -> None:
        """SIGTERM, as `systemctl stop`; returns when it has ended."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGTERM)
        for process in self.restarted:
            if process.pid == pid:
                process.wait(40)
        wait_for(f"the end of {name}", lambda: not Path(self.node(name)["data_dir"], "node.pid").exists(), 40)

    def query(self, name: str, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a member's own state."""
        db = sqlite3.connect(f"file:{self.node(name)['data_dir']}/state/state.db?mode=ro", uri=True)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def agree(self) -> bool:
        """Whether all members are seen at the same index now. AssertionError if two have another state at one index."""
        found: dict[int, set[str]] = {}
        for name in self.names:
            db = sqlite3.connect(f"file:{self.node(name)['data_dir']}/state/state.db?mode=ro", uri=True)
            try:
                db.execute("BEGIN")
                (applied,) = db.execute("SELECT applied FROM clock").fetchone()
                found.setdefault(applied, set()).add(schema.digest(db, FEATURES))
            finally:
                db.close()
        assert all(len(digests) == 1 for digests in found.values()), "members have different states"
        return len(found) == 1


class Probe(threading.Thread):
    """How long this machine itself stands still: the longest time that a small write to the disk took."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file, self._ended = file, threading.Event()
        self.longest_s = 0.0

    def run(self) -> None:
        with open(self._file, "wb") as file:
            while True:
                began = time.monotonic()
                if self._ended.wait(0.1):
                    return
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
                self.longest_s = max(self.longest_s, time.monotonic() - began)

    def end(self) -> float:
        """Stops; the longest time."""
        self._ended.set()
        self.join()
        return self.longest_s


class Load(threading.Thread):
    """Puts one small file after another, each by a client of its own that takes whichever node answers; remembers when
    each was acknowledged, and what was not.
    """

    def __init__(self, cluster: Upgradable, source: Path) -> None:
        super().__init__()
        self._cluster, self._source, self._ended = cluster, source, threading.Event()
        self.times: list[float] = []
        self.names: list[str] = []

    def run(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            for name in self._cluster.names:
                done = self._cluster.sftp(name, f"put {self._source} load{number}\n", check=False)
                if done.returncode == 0:
                    self.times.append(time.monotonic())
                    self.names.append(f"load{number}")
                    break

    def end(self) -> float:
        """Stops; the longest time between two acknowledgements."""
        self._ended.set()
        self.join()
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Upgradable]:
    """Three nodes of this version."""
    cluster = Upgradable(tmp_path / "c")
    try:
        yield cluster.start()  # type: ignore[misc]
    finally:
        cluster.stop()


def make_folder(cluster: Cluster, name: str, folder: str) -> None:
    """Through one node; asked for until it is there, as the machine may stand still for longer than a quorum lasts."""
    wait_for(folder, lambda: cluster.sftp(name, f"-mkdir {folder}\ncd {folder}\n", check=False).returncode == 0, 60)


def wait_ready(cluster: Cluster, name: str) -> None:
    """Likewise."""
    words = ("status", "--wait", "ready", "--timeout", "30")
    wait_for(f"{name} is ready", lambda: cluster.run(*words, check=False, node=name).returncode in (0, 3), 90)


def level(cluster: Cluster, name: str) -> int:
    document = cluster.status(name)
    return int(document.get("feature_level", 0))


@pytest.mark.slow
def test_members_are_upgraded_one_by_one_under_load(
        cluster: Upgradable, newer: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.write_bytes(b"x" * 5000)
    load = Load(cluster, source)
    probe = Probe(tmp_path / "probe")
    probe.start()
    load.start()
    try:
        wait_for("uploads", lambda: len(load.times) > 2)
        for number, name in enumerate([*[n for n in cluster.names if n != cluster.leader()], cluster.leader()]):
            wait_for("equal states", cluster.agree)
            assert {level(cluster, node) for node in cluster.names} == {BEFORE}, "one does not know the next one yet"
            make_folder(cluster, cluster.names[0], f"before{number}")
            assert not cluster.query(name, "SELECT name FROM sqlite_master WHERE name = 'marks'")
            cluster.stop_node(name)
            cluster.start_node(name, newer)
            wait_ready(cluster, name)
            done = len(load.times)
            wait_for("further uploads", lambda done=done: len(load.times) > done + 1)  # type: ignore[misc]
        wait_for("the next level everywhere", lambda: {level(cluster, node) for node in cluster.names} == {NEXT})
        done = len(load.times)
        wait_for("further uploads", lambda: len(load.times) > done + 2)
    finally:
        pause_s, stalled_s = load.end(), probe.end()
    usual_s = sorted(b - a for a, b in zip(load.times, load.times[1:], strict=False))[len(load.times) // 2]
    print(f"{len(load.times)} uploads, one every {usual_s:.2f} s, longest pause {pause_s:.2f} s; "
          f"the machine stood still for up to {stalled_s:.2f} s")
    assert pause_s < MOST_PAUSE_S + 2 * max(usual_s, 1.0) + 2 * stalled_s, "what one client needs comes to it"

    # What the level brings is used from now on, through every node, and all states are the same.
    assert not cluster.query(cluster.names[0], "SELECT * FROM marks")
    for name in cluster.names:
        make_folder(cluster, name, f"after_{name}")
    for name in cluster.names:
        wait_for("marks", lambda name=name: len(cluster.query(name, "SELECT * FROM marks")) == 3)  # type: ignore[misc]
    wait_for("equal states", cluster.agree)
    listed = cluster.sftp(cluster.names[0], "ls -1\n").stdout.decode().split()
    assert {*load.names, "before0", "before1", "before2"} <= set(listed), "nothing acknowledged is lost"

    # People see it.
    members = json.loads(cluster.run("member", "list", "-o", "json").stdout)
    assert {(m["version"], m["feature_level"]) for m in members} == {(VERSION, NEXT)}
    assert f"feature level {NEXT}" in cluster.run("status").stdout.decode()

    # The older version cannot come back, nor come in.
    back = cluster.names[1]
    cluster.stop_node(back)
    older = [*RAFTMFT, "node", "--data-dir", cluster.node(back)["data_dir"]]
    old = subprocess.run(older, capture_output=True, timeout=60)
    assert old.returncode == 1 and LINE in old.stderr.decode(), old.stderr.decode()
    assert old.stderr.count(b"\n") == 1, "one line"
    Path(cluster.node(back)["data_dir"], "state", "clean").unlink()  # as after a kill: the state is made again
    old = subprocess.run(older, capture_output=True, timeout=60)
    last = old.stderr.decode().splitlines()[-1]
    assert old.returncode == 1 and last.startswith("raftmft: ") and LINE in last, old.stderr.decode()
    token = cluster.run("token", "create").stdout.decode().split()[-1]
    joining = [sys.executable, "-m", "raftmft", "join", "--token", token, "--data-dir", str(tmp_path / "new"),
               "--advertise", "127.0.0.1", "--name", "n9"]
    refused = subprocess.run(joining, capture_output=True, timeout=60)
    assert refused.returncode == 1 and LINE in refused.stderr.decode(), refused.stderr.decode()
    assert not (tmp_path / "new").exists()
    cluster.start_node(back, newer)
    wait_ready(cluster, back)


@pytest.mark.slow
def test_an_upgrade_that_was_begun_can_be_taken_back(cluster: Upgradable, newer: dict[str, str]) -> None:
    name = next(n for n in cluster.names if n != cluster.leader())
    before = {m["version"] for m in json.loads(cluster.run("member", "list", "-o", "json").stdout)}
    for env, words in ((newer, f"feature level {BEFORE}, and {NEXT} once "), (dict(os.environ), "")):
        cluster.stop_node(name)
        cluster.start_node(name, env)
        wait_ready(cluster, name)
        assert words in cluster.run("status").stdout.decode()
        make_folder(cluster, name, "new" if words else "old")
        assert level(cluster, name) == BEFORE
    assert {m["version"] for m in json.loads(cluster.run("member", "list", "-o", "json").stdout)} == before
    wait_for("equal states", cluster.agree)
