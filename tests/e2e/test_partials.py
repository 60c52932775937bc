"""Contract 3, what an interrupted upload leaves and who may go on with it, where nodes are killed and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncssh
import pytest

from raftmft.sftp import packets as p
from tests.e2e.harness import Cluster, process_is_alive
from tests.e2e.test_real_clients import connect
from tests.sftp.raw_client import PUT, RESUME, RawSftp, Status, s

pytestmark = pytest.mark.slow
MIB = 1 << 20
LOST = (asyncssh.Error, asyncio.IncompleteReadError, OSError)


@pytest.fixture
def whole(mortal_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with all its nodes again afterwards."""
    yield mortal_cluster
    dead = [name for name in mortal_cluster.names if not process_is_alive(mortal_cluster.pid(name))]
    mortal_cluster.restart(*dead)
    mortal_cluster.wait_ready()


def member_of(cluster: Cluster, sftp: RawSftp) -> str:
    """The node that serves a session."""
    host, port = sftp.connection.get_extra_info("sockname")[:2]
    sessions = json.loads(cluster.run("sessions", "list", "-o", "json").stdout)
    return str(next(s["member"] for s in sessions if s["address"] == f"{host}:{port}"))


async def content(cluster: Cluster, node: str, name: str) -> bytes:
    """A file, through a node."""
    sftp = await connect(cluster, node)
    data = await sftp.read_all(name)
    await sftp.close()
    return data


async def served_by_two(cluster: Cluster) -> list[tuple[str, RawSftp]]:
    """Two sessions of one user that different members serve, neither of them relayed by another member."""
    found: dict[str, RawSftp] = {}
    for node in cluster.names * 4:
        sftp = await connect(cluster, node)
        if member_of(cluster, sftp) == node:
            found[node] = sftp
        if len(found) == 2:
            return list(found.items())
    raise AssertionError("all sessions went to one member")


def test_what_was_fsynced_is_there_when_its_node_is_killed(whole: Cluster) -> None:
    """To the byte; of a published file that is written anew nothing is there but the old version."""
    data = os.urandom(5 * MIB + 777)

    async def run() -> None:
        sftp = await connect(whole, whole.names[0])
        await sftp.put("anew", b"old version")
        victim = member_of(whole, sftp)
        for name in ("anew", "fsynced"):
            handle = await sftp.open_file(name, PUT)
            await sftp.write(handle, 0, data[: 3 * MIB + 99])
            await sftp.fsync(handle)
        whole.kill(victim)  # at once: before a checkpoint comes by itself
        sftp.connection.abort()
        one, two = [name for name in whole.names if name != victim]
        other = await connect(whole, one)
        assert (await other.stat("fsynced")).size == 3 * MIB + 99
        assert (await other.stat("anew")).size == 11
        handle = await other.open_file("fsynced", RESUME | p.FXF_APPEND)
        await other.write(handle, 3 * MIB + 99, data[3 * MIB + 99 :])
        await other.close_handle(handle)
        assert await content(whole, two, "fsynced") == data
        assert await content(whole, two, "anew") == b"old version"
        await other.rename("anew", "renamed")
        with pytest.raises(Status, match="2:"):
            await other.stat("anew")  # a partial would stay, and show now
        await other.close()
    asyncio.run(run())


@pytest.mark.parametrize("pause_s", [0.0, 6.0])
def test_who_was_paused_cannot_publish_what_was_taken_over(whole: Cluster, pause_s: float) -> None:
    """The node that serves the old session stands still while another goes on with the upload, for a moment, or for so
    long that it is held for dead. Its worker lives and goes on to take WRITEs.
    """
    data, late, name = os.urandom(4 * MIB), os.urandom(4 * MIB), f"paused{pause_s:g}"

    async def run() -> None:
        (member, old), (_, other) = await served_by_two(whole)
        handle = await old.open_file(name, PUT)
        await old.write(handle, 0, data[: 2 * MIB])
        await old.fsync(handle)
        pid = whole.pid(member)
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        try:
            numbers = [old.send_write(handle, at, late[at : min(at + p.MAX_DATA, 4 * MIB)])
                       for at in range(2 * MIB, 4 * MIB, p.MAX_DATA)]
            closing = old.send(p.CLOSE, s(handle))
            taken = await goes_on(other, name)
            await other.write(taken, 2 * MIB, data[2 * MIB :])
            await other.close_handle(taken)
            while time.monotonic() < begun + pause_s:
                await asyncio.sleep(0.05)
        finally:
            os.kill(pid, signal.SIGCONT)
        try:
            async with asyncio.timeout(30):
                for number in numbers:
                    with suppress(Status):
                        await old.answer(number)
                with pytest.raises(Status):
                    await old.answer(closing)
        except LOST:
            assert pause_s, "a session that was never held for dead was cut off"
        for sftp in (old, other):
            sftp.connection.abort()
        whole.wait_ready()
        for node in whole.names:
            assert await content(whole, node, name) == data
    asyncio.run(run())


async def goes_on(sftp: RawSftp, name: str) -> bytes:
    """Takes the upload over; a new leader may have to be found first."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await sftp.open_file(name, RESUME)
            except Status as refusal:
                assert "no quorum" in refusal.text, refusal


def test_a_poisoned_upload_leaves_a_partial_that_counts(shared_cluster: Cluster, tmp_path: Path) -> None:
    """Over the quota a checkpoint fails: so do later WRITEs and the CLOSE, and what was checkpointed before is kept."""
    one, two, _ = shared_cluster.names
    key = shared_cluster.about["users"][0]["key"]
    shared_cluster.run("user", "add", "tight", "--quota", "10MiB", "--key", f"{key}.pub")
    data = os.urandom(14 * MIB)

    def used() -> int:
        return int(json.loads(shared_cluster.run("user", "show", "tight", "-o", "json").stdout)["used_bytes"])

    async def run() -> None:
        sftp = await connect(shared_cluster, one, "tight")
        handle = await sftp.open_file("poisoned", PUT)
        await sftp.write(handle, 0, data[: 9 * MIB])
        await sftp.fsync(handle)
        assert used() == 9 * MIB
        with pytest.raises(Status, match="quota"):
            await sftp.write(handle, 9 * MIB, data[9 * MIB :])
            await sftp.fsync(handle)
        for work in (sftp.write(handle, 0, b"x"), sftp.fsync(handle), sftp.close_handle(handle)):
            with pytest.raises(Status, match="quota"):
                await work
        other = await connect(shared_cluster, two, "tight")
        assert (await other.stat("poisoned")).size == 9 * MIB and await other.names("/") == {}
        assert used() == 9 * MIB
        shared_cluster.run("user", "set", "tight", "--quota", "20MiB")
        handle = await other.open_file("poisoned", RESUME)
        await other.write(handle, 9 * MIB, data[9 * MIB :])
        await other.close_handle(handle)
        assert await other.read_all("poisoned") == data and used() == len(data)
        for each in (sftp, other):
            await each.close()
    asyncio.run(run())
    kinds = [record["kind"] for record in shared_cluster.audit("--user", "tight", "--path", "/poisoned")]
    assert kinds == ["open", "partial", "open", "publish", "open", "read_end"], kinds
