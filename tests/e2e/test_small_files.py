"""What small files cost in entries of the Raft log, and opens that are recorded afterwards (audit.opens relaxed)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from raftmft.sftp import packets as p
from tests.e2e.harness import Cluster, wait_for
from tests.sftp.raw_client import RawSftp

FILES = 20
QUIET_S = 0.7
"""Longer than ends of reads wait to be recorded together."""


async def connect(cluster: Cluster, name: str) -> RawSftp:
    host, port = cluster.node(name)["sftp"].rsplit(":", 1)
    user = cluster.about["users"][0]
    connection = await asyncssh.connect(host, int(port), username=user["name"], client_keys=[user["key"]],
                                        known_hosts=cluster.about["known_hosts"], config=None, agent_path=None)
    return await RawSftp.open(None, connection)


def commits(cluster: Cluster) -> int:
    return max(int(cluster.status(name)["commit_index"]) for name in cluster.names)


def settled(cluster: Cluster) -> int:
    """The log's length once nothing is added to it any more."""
    seen = [commits(cluster), time.monotonic()]

    def look() -> bool:
        now = commits(cluster)
        if now != seen[0]:
            seen[:] = [now, time.monotonic()]
        return time.monotonic() - seen[1] > QUIET_S
    wait_for("a quiet log", look, 30)
    return int(seen[0])


@pytest.fixture
def relaxed(shared_cluster: Cluster) -> Iterator[Cluster]:
    shared_cluster.run("config", "set", "audit.opens", "relaxed")
    yield shared_cluster
    shared_cluster.run("config", "set", "audit.opens", "")


def opens_of(cluster: Cluster, path: str, node: str | None = None) -> list[dict[str, Any]]:
    return [r for r in cluster.audit("--kind", "open", node=node)
            if r["path"] == path and r["outcome"] != "ok, to write"]


async def costs(cluster: Cluster, prefix: str) -> tuple[float, float]:
    """Entries of the log for each put, and for each get, of one session."""
    sftp = await connect(cluster, cluster.names[0])
    try:
        begun = settled(cluster)
        for number in range(FILES):
            await sftp.put(f"{prefix}-{number}", b"%d" % number * 100)
        put = settled(cluster)
        for number in range(FILES):
            handle = await sftp.open_file(f"{prefix}-{number}", p.FXF_READ)
            assert await sftp.read(handle, 0, 4096) == b"%d" % number * 100
            await sftp.close_handle(handle)
        return (put - begun) / FILES, (settled(cluster) - put) / FILES
    finally:
        await sftp.close()


def test_a_put_is_two_entries_and_a_get_is_one_beside_its_share_of_a_batch(shared_cluster: Cluster) -> None:
    """OPEN to write and CLOSE are acknowledged, and audited, each on its own; so is an OPEN to read. The ends of reads
    go together, at most four times a second.
    """
    put, get = asyncio.run(costs(shared_cluster, "cost"))
    assert put == 2.0
    assert 1.0 < get <= 1.5


def test_relaxed_opens_are_recorded_within_a_second_and_survive_their_reader(relaxed: Cluster) -> None:
    async def play() -> None:
        sftp = await connect(relaxed, relaxed.names[0])
        try:
            await sftp.put("relaxed-1", b"content")
            handle = await sftp.open_file("relaxed-1", p.FXF_READ)
            await sftp.remove("relaxed-1")
            assert await sftp.read(handle, 0, 100) == b"content", "the version stays pinned"
            await sftp.close_handle(handle)
        finally:
            await sftp.close()

    asyncio.run(play())
    # The session's end was recorded after its opens, and its ends of reads.
    for name in relaxed.names:
        wait_for("the record everywhere", lambda name=name: opens_of(relaxed, "/relaxed-1", name), 5)  # type: ignore[misc]
    (record,) = opens_of(relaxed, "/relaxed-1")
    assert record["outcome"].startswith("ok, as of index ") and record["size"] == 7
    (end,) = [r for r in relaxed.audit("--kind", "read_end") if r["path"] == "/relaxed-1"]
    assert end["outcome"] == "ok" and end["index"] >= record["index"]


def test_the_setting_is_switched_while_sessions_read(shared_cluster: Cluster) -> None:
    async def reader(name: str, over: asyncio.Event) -> int:
        sftp = await connect(shared_cluster, name)
        count = 0
        try:
            while not over.is_set():
                handle = await sftp.open_file("switched", p.FXF_READ)
                assert await sftp.read(handle, 0, 100) == b"content"
                await sftp.close_handle(handle)
                count += 1
        finally:
            await sftp.close()
        return count

    async def play() -> int:
        sftp = await connect(shared_cluster, shared_cluster.names[0])
        await sftp.put("switched", b"content")
        await sftp.close()
        over = asyncio.Event()
        readers = [asyncio.create_task(reader(name, over)) for name in shared_cluster.names * 2]
        for value in ("relaxed", "strict", "relaxed", ""):
            await asyncio.to_thread(shared_cluster.run, "config", "set", "audit.opens", value)
        over.set()
        return sum(await asyncio.gather(*readers))

    count = asyncio.run(play())
    wait_for("every open, once", lambda: len(opens_of(shared_cluster, "/switched")) >= count, 10)
    records = opens_of(shared_cluster, "/switched")
    assert len(records) == count, "each open that was answered is recorded once"
    assert {r["outcome"].split(" index")[0] for r in records} == {"ok", "ok, as of"}
    assert shared_cluster.run("audit", "verify").returncode == 0


def test_a_killed_node_loses_no_more_than_its_last_second(cluster: Cluster, tmp_path: Path) -> None:
    one = cluster.names[0]
    cluster.run("config", "set", "audit.opens", "relaxed")
    source = tmp_path / "x"
    source.write_bytes(b"content")
    cluster.sftp(one, f"put {source} kept\n")

    async def play() -> tuple[int, int, str]:
        """How many opens were answered in all, how many of them over a second before the kill, and of which member."""
        sftp = await connect(cluster, one)
        name = wait_for("the session", lambda: next((n for n in cluster.names if _serves(cluster, n)), None))
        times = []
        begun = time.monotonic()
        while time.monotonic() - begun < 2.5:
            handle = await sftp.open_file("kept", p.FXF_READ)
            times.append(time.monotonic())
            await sftp.close_handle(handle)
        killed = time.monotonic()
        cluster.kill(name)
        return len(times), sum(1 for at in times if at < killed - 1.0), name

    answered, due, killed = asyncio.run(play())
    other = next(name for name in cluster.names if name != killed)
    found = wait_for("what was recorded", lambda: opens_of(cluster, "/kept", other), 20)
    assert due <= len(found) <= answered and due > 0
    assert len({(r["index"], r["hash"]) for r in found}) == len(found)


def _serves(cluster: Cluster, name: str) -> bool:
    """Whether the node has a live session."""
    return any(m["name"] == name and m["sessions"] for m in cluster.status(name)["members"])
