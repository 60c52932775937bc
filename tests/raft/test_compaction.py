"""Members whose log was dropped: who is too far behind gets the state, and nothing that was acknowledged is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
import trio
import trio.testing

from raftmft.core.commands import CommandId, Envelope, NoOp
from raftmft.core.errors import CorruptFile, ProgramTooOld
from raftmft.raft import compaction, journal, snapshots, snapshotter
from raftmft.raft.deflate import Deflater
from raftmft.raft.snapshots import SnapshotFolder
from tests.raft.cluster import Host, LiveCluster, until
from tests.sim.machine import MemoryMachine


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots after a few entries, of which hardly any log is kept."""
    monkeypatch.setattr(compaction, "SNAPSHOT_ENTRIES", 40)
    monkeypatch.setattr(compaction, "KEEP_BYTES", 0)
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(journal, "MEMORY_BYTES", 4000)


@pytest.fixture
def cluster(tmp_path: Path, nursery: trio.Nursery) -> LiveCluster:
    return LiveCluster(nursery, tmp_path)


async def fill(host: Host, first: int, count: int) -> None:
    assert host.driver
    for number in range(first, first + count):
        command = Envelope(NoOp(b"%d" % number), CommandId(host.name, 1, number))
        assert (await host.driver.propose(command, timeout_s=5)).ok


async def fill_until_compacted(host: Host, first: int, hosts: list[Host]) -> int:
    """Fills until the log of all `hosts` begins later; the next number."""
    before = [each.base_index for each in hosts]
    while any(each.base_index <= base for each, base in zip(hosts, before, strict=True)):
        await fill(host, first, 20)
        first += 20
    return first


def numbers(host: Host) -> list[int]:
    return [int(payload) for payload in host.machine.payloads]


async def test_too_old_a_program_stops_at_a_snapshot_and_keeps_what_it_has(
        cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(30):
        await cluster.start()
        leader = await cluster.leader()
        away = next(host for host in cluster.hosts.values() if host is not leader)
        await away.stop()
        others = [host for host in cluster.hosts.values() if host is not away]
        end = await fill_until_compacted(leader, 1, others)
        end = await fill_until_compacted(leader, end, others)
        kept = sorted(cluster.directory.glob(f"{away.name}*"))

        def too_old(machine: MemoryMachine, path: str) -> None:
            raise ProgramTooOld("level 2")

        monkeypatch.setattr(MemoryMachine, "check", too_old)
        await away.start()
        await away.ended()
        assert isinstance(away.error, ProgramTooOld)
        assert sorted(cluster.directory.glob(f"{away.name}*")) == kept, "neither its log nor its state was given up"
        monkeypatch.undo()
        await away.start()  # the newer version
        await until(lambda: numbers(away) == list(range(1, end)))
        await cluster.stop()


async def test_a_follower_that_was_away_too_long_is_given_the_state(cluster: LiveCluster) -> None:
    with trio.fail_after(30):
        await cluster.start()
        leader = await cluster.leader()
        away = next(host for host in cluster.hosts.values() if host is not leader)
        await fill(leader, 1, 10)
        await until(lambda: numbers(away) == list(range(1, 11)))
        await away.stop()
        next_ = await fill_until_compacted(leader, 11, [leader])
        await away.start()
        await until(lambda: numbers(away) == list(range(1, next_)))
        assert away.base_index >= leader.base_index and away.driver is not None and leader.driver is not None
        term = leader.driver.status().term
        await fill(leader, next_, 20)
        await until(lambda: numbers(away) == list(range(1, next_ + 20)))
        assert leader.driver.status().term == term, "the transfer disturbed nobody"
        # What it has now is its own: it comes back from its own disk, without the others.
        await away.stop()
        cluster.cut = {away.name}
        await away.start()
        assert len(away.machine.payloads) > 10
        cluster.cut = set()
        await cluster.stop()


async def test_the_log_and_its_part_in_memory_stay_bounded_however_long_commits_go_on(
        cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SNAPSHOT_ENTRIES", 1 << 60)
    monkeypatch.setattr(compaction, "SNAPSHOT_BYTES", 10_000)
    monkeypatch.setattr(compaction, "KEEP_BYTES", 20_000)
    monkeypatch.setattr(snapshotter, "LOOK_EVERY_S", 0.005)
    round_bytes, written = 20 * 400, 0
    with trio.fail_after(60):
        await cluster.start()
        leader = await cluster.leader()
        hosts = list(cluster.hosts.values())
        for number in range(1, 400, 20):
            async with trio.open_nursery() as nursery:
                for at in range(number, number + 20):
                    nursery.start_soon(propose, leader, Envelope(NoOp(bytes(300)), CommandId("c", 1, at)))
            drivers = [host.driver for host in hosts if host.driver is not None]
            assert len(drivers) == 3
            await until(lambda drivers=drivers, number=number: all(  # type: ignore[misc]
                driver.status().applied_index > number + 19 and not driver.compaction.is_due() for driver in drivers))
            for host, driver in zip(hosts, drivers, strict=True):
                on_disk = sum(file.stat().st_size for file in host.path.parent.glob(f"{host.path.name}.*"))
                # What is kept anyway, or what follows the older of two snapshots; and what came since it was dropped.
                assert on_disk <= max(20_000, 10_000 + round_bytes) + 10_000 + 2 * round_bytes
                assert driver._replica.journal._memory <= 4000 + round_bytes
                written = max(written, driver._replica.journal.bytes_written)
        assert written > 100_000 and all(host.base_index > 200 for host in hosts)
        await cluster.stop()


async def test_a_snapshot_in_the_making_does_not_hold_up_the_end(
        cluster: LiveCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, go_on = [], threading.Event()

    def slow(deflate: Deflater, block: bytes) -> bytes:
        calls.append(block)
        assert go_on.wait(20)
        return zlib.compress(block)

    monkeypatch.setattr(Deflater, "__call__", slow)
    monkeypatch.setattr(snapshots, "BLOCK_BYTES", 16)
    with trio.fail_after(30):
        await cluster.start()
        leader = await cluster.leader()
        await fill(leader, 1, 45)
        await until(lambda: len(calls) == 3)
        async with trio.open_nursery() as stopping:
            for host in cluster.hosts.values():
                stopping.start_soon(host.stop)
            await trio.testing.wait_all_tasks_blocked(0.01)
            go_on.set()
        assert len(calls) == 3, "each went on to its next block"
        assert not list(cluster.directory.glob("*.new"))


async def propose(host: Host, command: Envelope) -> None:
    assert host.driver and (await host.driver.propose(command, timeout_s=5)).ok


def test_stock_pysyncobj_loses_its_log_and_its_state_to_snapshots() -> None:
    """What the tests here show to be gone: see stock_defects.py."""
    program = Path(__file__).with_name("stock_defects.py")
    result = subprocess.run([sys.executable, str(program)], capture_output=True, timeout=60, check=True)
    stock = json.loads(result.stdout)
    assert stock["a dump beside a longer journal empties it"]
    assert stock["a damaged dump is swallowed, and the node leads"]


async def test_a_member_whose_state_is_lost_begins_with_its_snapshot(cluster: LiveCluster) -> None:
    with trio.fail_after(30):
        await cluster.start()
        leader = await cluster.leader()
        hosts = list(cluster.hosts.values())
        next_ = await fill_until_compacted(leader, 1, hosts)
        await cluster.stop()
        await cluster.start()
        assert all(host.machine.applied >= host.base_index > 0 for host in hosts)
        leader = await cluster.leader()
        await fill(leader, next_, 5)
        for host in hosts:
            await until(lambda host=host: numbers(host) == list(range(1, next_ + 5)))
        await cluster.stop()


async def test_of_two_snapshots_the_older_one_stands_in_for_a_damaged_one(cluster: LiveCluster) -> None:
    with trio.fail_after(30):
        await cluster.start()
        leader = await cluster.leader()
        await fill_until_compacted(leader, 1, [leader])
        await cluster.stop()
        held = SnapshotFolder(leader.snapshots_path)
        newest = Path(held.name(held.held[1]))
        content = bytearray(newest.read_bytes())
        content[30] ^= 1
        newest.write_bytes(content)
        await leader.start()
        applied = leader.machine.applied
        assert held.held[0].index <= applied < held.held[1].index
        older = Path(held.name(held.held[0]))
        older.write_bytes(older.read_bytes()[:-9])
        await leader.stop()
        with pytest.raises(CorruptFile, match="no sound snapshot bridges them"):
            await leader.start()


async def test_a_snapshot_that_is_not_given_is_asked_for_again(cluster: LiveCluster) -> None:
    with trio.fail_after(30):
        await cluster.start()
        leader = await cluster.leader()
        away = next(host for host in cluster.hosts.values() if host is not leader)
        await away.stop()
        next_ = await fill_until_compacted(leader, 1, [leader])
        refusals = []

        def spoil(member: str, wanted: bytes, data: bytes | None) -> bytes | None:
            if len(refusals) < 2:
                refusals.append(wanted)
                return None if len(refusals) == 1 else b"something else"
            return data

        cluster.spoil = spoil
        await away.start()
        await until(lambda: numbers(away) == list(range(1, next_)))
        assert len(refusals) == 2
        await cluster.stop()
