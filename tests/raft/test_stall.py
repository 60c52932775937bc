"""A disk that does not answer: what goes on without it, and who leads. Real drivers, syncs that block in their thread.

The times are a tenth of a node's or so: QUICK's elections take 0.3 s at most, and STALL_S stands for its 5 s.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from raftmft.core.errors import OutcomeUnknown
from raftmft.raft.disk import OsDisk, OsFile
from tests.raft import cluster as live
from tests.raft.cluster import Host, LiveCluster, until
from tests.raft.test_driver import command

STALL_S = 1.5


class SlowFile:
    """A file whose syncs wait while its disk hangs."""

    def __init__(self, disk: SlowDisk, file: OsFile) -> None:
        self._disk, self._file = disk, file

    def sync(self) -> None:
        self._disk.wait()
        self._file.sync()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class SlowDisk(OsDisk):
    """The real disk, and a tap."""

    def __init__(self) -> None:
        self._flows = threading.Event()
        self._flows.set()
        self.waiting = 0

    def wait(self) -> None:
        self.waiting += 1
        assert self._flows.wait(30)
        self.waiting -= 1

    def hang(self) -> None:
        self._flows.clear()

    def go_on(self) -> None:
        self._flows.set()

    def open(self, path: str):  # type: ignore[no-untyped-def]
        file = super().open(path)
        return None if file is None else SlowFile(self, file)

    def create(self, path: str, content: bytes):  # type: ignore[no-untyped-def]
        return SlowFile(self, super().create(path, content))


class Stalls:
    def __init__(self, cluster: LiveCluster) -> None:
        self.cluster = cluster
        self.disks = {name: SlowDisk() for name in cluster.names}

    async def start(self) -> None:
        for name, host in self.cluster.hosts.items():
            await host.start(self.disks[name])  # type: ignore[arg-type]

    def terms(self) -> set[int]:
        return {host.driver.status().term for host in self.cluster.hosts.values() if host.driver}


@pytest.fixture(params=[3], ids=["three"])
async def stalls(request, tmp_path: Path, nursery: trio.Nursery, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(live, "QUICK", replace(live.QUICK, stall_s=STALL_S))
    stalls = Stalls(LiveCluster(nursery, tmp_path, request.param))
    with trio.fail_after(30):
        await stalls.start()
        try:
            yield stalls
        finally:
            for disk in stalls.disks.values():
                disk.go_on()
            for host in stalls.cluster.hosts.values():
                if host.driver is not None:
                    await host.stop()


async def hold_up(stalls: Stalls, victim: Host, seq: int, seconds: float, through: Host) -> dict[str, object]:
    """`victim`'s disk hangs from the next command on, for `seconds`; what became of that command."""
    result: dict[str, object] = {}
    disk = stalls.disks[victim.name]
    disk.hang()

    async def propose() -> None:
        assert through.driver is not None
        with suppress(OutcomeUnknown):  # at the end of a test
            result["outcome"] = await through.driver.propose(command(b"%d" % seq, seq), timeout_s=20)

    stalls.cluster.nursery.start_soon(propose)
    await until(lambda: disk.waiting > 0)
    await trio.sleep(seconds)
    return result


async def test_a_stall_of_the_leaders_disk_moves_no_leader(stalls: Stalls) -> None:
    leader = await stalls.cluster.leader()
    assert leader.driver
    await leader.driver.propose(command(b"0", 1), timeout_s=5)
    before = stalls.terms()
    result = await hold_up(stalls, leader, 2, STALL_S * 0.7, leader)
    assert "outcome" not in result, "what is not on the leader's disk is not applied there"
    assert stalls.terms() == before and leader.driver.status().role == "leader" and leader.driver.status().has_quorum
    stalls.disks[leader.name].go_on()
    await until(lambda: "outcome" in result)
    assert stalls.terms() == before and await stalls.cluster.leader() is leader


async def test_a_longer_stall_of_the_leaders_disk_moves_the_leadership_away(stalls: Stalls) -> None:
    leader = await stalls.cluster.leader()
    assert leader.driver
    await leader.driver.propose(command(b"0", 1), timeout_s=5)
    (term,) = stalls.terms()
    result = await hold_up(stalls, leader, 2, 0, leader)
    began = trio.current_time()
    others = [host for host in stalls.cluster.hosts.values() if host is not leader]
    successor = await stalls.cluster.leader(among=others)
    assert STALL_S * 0.9 < trio.current_time() - began < STALL_S + 1.0
    assert successor.driver and successor.driver.status().term == term + 1, "it was handed over: one election"
    outcome = await successor.driver.propose(command(b"1", 3), timeout_s=5)
    assert outcome.ok and leader.driver.status().role == "follower" and "outcome" not in result
    stalls.disks[leader.name].go_on()
    await until(lambda: "outcome" in result)
    await until(lambda: len(leader.machine.payloads) == 3)
    assert leader.machine.payloads == successor.machine.payloads == [b"0", b"2", b"1"]
    assert stalls.terms() == {term + 1}


@pytest.mark.parametrize("stalls", [2], indirect=True, ids=["two"])
async def test_a_stall_of_the_other_disk_of_two_moves_no_leader(stalls: Stalls) -> None:
    """Its acknowledgement is needed for each command, so the leader waits; it must not take it for dead so soon."""
    leader = await stalls.cluster.leader()
    (other,) = [host for host in stalls.cluster.hosts.values() if host is not leader]
    assert leader.driver and other.driver
    await leader.driver.propose(command(b"0", 1), timeout_s=5)
    (term,) = stalls.terms()
    result = await hold_up(stalls, other, 2, STALL_S * 0.7, leader)
    assert "outcome" not in result, "a sign of life acknowledges nothing that is not on the disk"
    assert stalls.terms() == {term} and leader.driver.status().has_quorum
    stalls.disks[other.name].go_on()
    await until(lambda: "outcome" in result)
    assert stalls.terms() == {term}


@pytest.mark.parametrize("stalls", [2], indirect=True, ids=["two"])
async def test_a_disk_that_is_dead_holds_nobody_up_for_ever(stalls: Stalls) -> None:
    leader = await stalls.cluster.leader()
    (other,) = [host for host in stalls.cluster.hosts.values() if host is not leader]
    assert leader.driver
    await leader.driver.propose(command(b"0", 1), timeout_s=5)
    await hold_up(stalls, other, 2, STALL_S, leader)
    driver = leader.driver
    await until(lambda: not driver.status().has_quorum)


async def test_an_isolated_leader_steps_down_while_its_disk_hangs(stalls: Stalls) -> None:
    leader = await stalls.cluster.leader()
    assert leader.driver
    await leader.driver.propose(command(b"0", 1), timeout_s=5)
    await hold_up(stalls, leader, 2, 0, leader)
    stalls.cluster.cut = {leader.name}
    driver, began = leader.driver, trio.current_time()
    await until(lambda: driver.status().role != "leader")
    assert trio.current_time() - began < STALL_S * 0.7
