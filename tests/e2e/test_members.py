"""Members are steered and removed while clients write: nobody's upload fails, and who was removed is shut out."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from raftmft.cluster.keyring import FIRST, KeyRing
from tests.e2e.harness import Cluster, process_is_alive, wait_for

pytestmark = pytest.mark.slow


class Load:
    """Uploads through one node, one after another, until told to stop; the longest time between two successes."""

    def __init__(self, cluster: Cluster, node: str, folder: Path) -> None:
        self._cluster, self._node = cluster, node
        self._file = folder / f"load-{node}"
        self._file.write_bytes(b"x" * 100_000)
        self._stop = threading.Event()
        self.done: list[float] = []
        self.failed: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            number = len(self.done) + len(self.failed)
            result = self._cluster.sftp(self._node, f"put {self._file} {self._node}-{number}", check=False)
            if result.returncode == 0:
                self.done.append(time.monotonic())
            else:
                self.failed.append(result.stderr.decode())

    def __enter__(self) -> Load:
        self._thread.start()
        wait_for("the first upload", lambda: self.done)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    @property
    def longest_gap_s(self) -> float:
        return max(b - a for a, b in zip(self.done, self.done[1:], strict=False))


def names_and_modes(cluster: Cluster, node: str) -> dict[str, str]:
    return {m["name"]: m["mode"] for m in json.loads(cluster.run("member", "list", "-o", "json", node=node).stdout)}


def test_five_shrink_to_two_under_load(five: Cluster, tmp_path: Path) -> None:
    leader = five.leader()
    stays = [name for name in five.names if name != leader][:2]
    goes = [name for name in five.names if name not in stays and name != leader]
    five.sftp(stays[0], f"put {Path(__file__)} kept")
    with Load(five, stays[0], tmp_path) as load:
        five.run("member", "remove", goes[0], node=stays[1])
        wait_for("the end of the removed node", lambda: not process_is_alive(five.pid_or(goes[0])))
        assert goes[0] not in names_and_modes(five, stays[0])
        # The leader goes, too: it hands over before.
        five.run("member", "remove", leader, node=stays[1])
        assert leader not in names_and_modes(five, stays[1]) and five.status(stays[0])["leader"] != leader
        count = len(load.done)
        wait_for("more uploads", lambda: len(load.done) > count + 2)
    assert not load.failed, load.failed[:3]
    print(f"{len(load.done)} uploads, longest time between two: {load.longest_gap_s:.2f} s")
    # A host that was stolen or is dead is not waited for.
    five.kill(goes[1])
    begun = time.monotonic()
    five.run("member", "remove", goes[1], "--force", node=stays[0])
    assert time.monotonic() - begun < 15  # a busy machine takes seconds to start the command alone
    wait_for("two healthy members", lambda: five.status(stays[0]).get("verdict") == "ok")
    document = five.status(stays[1])
    assert {m["name"] for m in document["members"]} == set(stays) and document["can_lose"]["members"] == 0
    five.sftp(stays[1], f"get kept {tmp_path}/back")
    assert (tmp_path / "back").read_bytes() == Path(__file__).read_bytes()
    # What the removed ones knew is of no use: all that is left has one new cluster key, and the old ones are erased.
    def keys(*names: str) -> list[str]:
        return [key for name in names for key in KeyRing.load(five.folder / name / "keys" / "cluster.key").names()]

    known = {FIRST, *keys(*goes, leader)}
    wait_for("one new key on both", lambda: len(keys(*stays)) == 2 and len(set(keys(*stays)) - known) == 1)
    # A removed host that is started again is nobody: one line, and it does not disturb the others.
    term = five.status(stays[0])["term"]
    five.restart(goes[1])
    wait_for("two members still", lambda: five.status(stays[0]).get("verdict") == "ok")
    assert five.status(stays[0])["term"] == term


def test_drain_mode_weight_and_leadership(cluster: Cluster) -> None:
    leader = cluster.leader()
    other, third = (name for name in cluster.names if name != leader)
    cluster.run("member", "transfer-leader", other, node=third)
    wait_for("the new leader", lambda: cluster.status(third)["leader"] == other)
    cluster.run("member", "drain", third)
    assert names_and_modes(cluster, other)[third] == "draining"
    wait_for("gossip to tell of it", lambda: cluster.status(third)["verdict"] == "ok")
    before = len([r for r in cluster.audit("--kind", "login") if r["member"] == third])
    for _ in range(6):
        cluster.sftp(third, "ls")
    after = len([r for r in cluster.audit("--kind", "login") if r["member"] == third])
    assert after == before, "a draining member sends new sessions on"
    cluster.run("member", "undrain", third)
    assert names_and_modes(cluster, other)[third] == "active"
    cluster.run("member", "set-mode", third, "standby")
    cluster.run("member", "set-weight", third, "250")
    listed = json.loads(cluster.run("member", "list", "-o", "json", node=other).stdout)
    assert [(m["mode"], m["weight"]) for m in listed if m["name"] == third] == [("standby", 250)]
    refused = cluster.run("member", "remove", "nobody", "--force", check=False)
    assert refused.returncode == 1 and b"there is no member" in refused.stderr


def test_what_only_a_leaving_member_has_is_shown_read_and_taken_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(12 << 20))
    cluster = Cluster(tmp_path / "c", 3)
    try:
        one, _, goes = cluster.start().names
        cluster.run("config", "set", "replicas", "1")
        cluster.sftp(goes, f"put {source} file")

        def holders() -> set[str]:
            told = json.loads(cluster.run("file", "show", "/demo/file", "-o", "json", node=one).stdout)
            assert told["health"] in ("ok", "degraded")
            return {name for chunk in told["chunks"] if len(chunk["holders"]) == 1 for name in chunk["holders"]}

        assert goes in holders(), "12 chunks, and it has none of them alone"
        cluster.run("member", "remove", goes, node=one)
        wait_for("the end of the removed node", lambda: not process_is_alive(cluster.pid_or(goes)))
        assert goes not in holders()
        cluster.sftp(one, f"get file {tmp_path}/got")
        assert (tmp_path / "got").read_bytes() == source.read_bytes()
    finally:
        cluster.stop()
