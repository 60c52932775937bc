"""Three RaftDrivers with real journals in one process: what a caller sees when members die, links break, disks fail."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from raftmft.core.commands import CommandId, Envelope, NoOp
from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown
from raftmft.raft.journal import JournalFailed
from raftmft.raft.messages import (
    AppendEntries,
    AppendReply,
    Confirm,
    Confirmed,
    Forward,
    ForwardReply,
    ReadIndexReply,
    decode,
)
from tests.raft.cluster import Host, LiveCluster, until
from tests.sim.disk import SimDisk


def command(text: bytes, seq: int = 0) -> Envelope:
    return Envelope(NoOp(text), CommandId("test", 1, seq) if seq else None)


@pytest.fixture
async def cluster(tmp_path: Path, nursery: trio.Nursery):  # type: ignore[no-untyped-def]
    cluster = LiveCluster(nursery, tmp_path)
    with trio.fail_after(15):
        await cluster.start()
        yield cluster
        for host in cluster.hosts.values():
            if host.driver is not None:
                await host.stop()


def follower_of(cluster: LiveCluster, leader: Host) -> Host:
    return next(host for host in cluster.hosts.values() if host is not leader and host.driver is not None)


async def test_a_command_is_applied_everywhere_and_its_outcome_comes_back(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    follower = follower_of(cluster, leader)
    assert leader.driver and follower.driver
    first = await leader.driver.propose(command(b"a", 1), timeout_s=5)
    second = await follower.driver.propose(command(b"b", 2), timeout_s=5)
    assert first.ok and second.ok and second.index > first.index
    assert follower.machine.payloads == [b"a", b"b"], "a follower's outcome comes from its own state"
    await until(lambda: all(h.machine.payloads == [b"a", b"b"] for h in cluster.hosts.values()))


async def test_any_minority_may_die_and_come_back(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    for seq in range(1, 20):
        await leader.driver.propose(command(b"%d" % seq, seq), timeout_s=5)
    await leader.stop()
    second = await cluster.leader()
    assert second.driver
    for seq in range(20, 30):
        await second.driver.propose(command(b"%d" % seq, seq), timeout_s=5)
    await leader.start()
    want = [b"%d" % seq for seq in range(1, 30)]
    await until(lambda: all(h.machine.payloads == want for h in cluster.hosts.values()))


async def test_a_clean_stop_of_all_keeps_everything(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    for seq in range(1, 5):
        await leader.driver.propose(command(b"%d" % seq, seq), timeout_s=5)
    for host in cluster.hosts.values():
        await host.stop()
    for host in cluster.hosts.values():
        await host.start()
    await until(lambda: all(h.machine.payloads == [b"1", b"2", b"3", b"4"] for h in cluster.hosts.values()))


async def test_without_a_majority_a_queued_command_certainly_did_not_happen(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    survivor = follower_of(cluster, leader)
    for host in cluster.hosts.values():
        if host is not survivor:
            await host.stop()
    assert survivor.driver
    await until(lambda: survivor.driver is not None and survivor.driver.status().leader is None)
    with pytest.raises(NoQuorum, match="no quorum"):
        await survivor.driver.propose(command(b"x", 1), timeout_s=0.2)
    with pytest.raises(NoQuorum):
        await survivor.driver.barrier(timeout_s=0.2)
    assert not survivor.driver.status().has_quorum
    driver = survivor.driver
    await until(lambda: len(driver._replica.table) == 0 and not driver._barriers)


async def test_an_isolated_leader_steps_down_and_reports_unknown(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    await leader.driver.propose(command(b"first", 1), timeout_s=5)
    cluster.cut = {leader.name}
    with pytest.raises(OutcomeUnknown, match="outcome unknown"):
        await leader.driver.propose(command(b"x", 2), timeout_s=0.3)
    await until(lambda: leader.driver is not None and leader.driver.status().role != "leader")
    assert not leader.driver.status().has_quorum
    table = leader.driver._replica.table
    assert len(table) == 0 and not table.any_placed(), "what timed out must leave every table"


async def test_a_lost_forward_ends_as_unknown_and_leaves_no_trace(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    follower = follower_of(cluster, leader)
    assert follower.driver
    await until(lambda: follower.driver is not None and follower.driver.status().leader == leader.name)
    cluster.drop = lambda source, target, body: isinstance(decode(body), Forward)
    with pytest.raises(OutcomeUnknown):
        await follower.driver.propose(command(b"x", 1), timeout_s=0.3)
    cluster.drop = lambda source, target, body: isinstance(decode(body), ForwardReply)
    with pytest.raises(OutcomeUnknown):
        await follower.driver.propose(command(b"x", 1), timeout_s=0.3)
    assert len(follower.driver._replica.table) == 0 and not follower.driver._replica.table._forwarded
    cluster.drop = lambda source, target, body: False
    outcome = await follower.driver.propose(command(b"x", 1), timeout_s=5)
    assert outcome.ok and follower.machine.payloads == [b"x"], "one id, applied once, however often proposed"


async def test_a_link_that_takes_nothing_means_not_applied(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    follower = follower_of(cluster, leader)
    assert follower.driver
    await until(lambda: follower.driver is not None and follower.driver.status().leader == leader.name)
    driver = follower.driver
    real, driver._send = driver._send, lambda member, body: False
    with pytest.raises(NotApplied, match="link"):
        await driver.propose(command(b"x", 1), timeout_s=5)
    driver._send = real


@pytest.mark.parametrize("timed", [False, True])
async def test_a_barrier_sees_everything_acknowledged_before_it(cluster: LiveCluster, timed: bool) -> None:
    leader = await cluster.leader()
    follower = follower_of(cluster, leader)
    assert leader.driver and follower.driver
    for seq in range(1, 30):
        outcome = await leader.driver.propose(command(b"%d" % seq, seq), timeout_s=5)
        index = await follower.driver.barrier(timeout_s=5, timed=timed)
        assert index >= outcome.index + timed and b"%d" % seq in follower.machine.payloads


async def test_reads_leave_the_log_and_the_disk_alone(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    await leader.driver.propose(command(b"x", 1), timeout_s=5)
    for host in cluster.hosts.values():
        assert host.driver
        await host.driver.barrier(timeout_s=5)
    ends = [host.driver._replica.journal.bytes_written for host in cluster.hosts.values() if host.driver]
    for host in cluster.hosts.values():
        assert host.driver
        for _ in range(20):
            await host.driver.barrier(timeout_s=5)
    assert ends == [host.driver._replica.journal.bytes_written for host in cluster.hosts.values() if host.driver]


async def test_barriers_are_coalesced(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    driver, results = leader.driver, []
    before = driver.status().last_index

    async def read() -> None:
        results.append(await driver.barrier(timeout_s=5, timed=True))

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(read)
    assert len(results) == 200 and driver.status().last_index - before <= 3


async def test_a_caller_that_comes_during_a_barrier_waits_for_the_next(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    driver = leader.driver
    cluster.drop = lambda source, target, body: isinstance(decode(body), AppendEntries) and target != leader.name
    indexes: list[int] = []

    async def read() -> None:
        indexes.append(await driver.barrier(timeout_s=5, timed=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await until(lambda: driver._replica.table.any_placed())
        nursery.start_soon(read)
        await until(lambda: len(driver._timed_barriers) == 1)
        cluster.drop = lambda source, target, body: False
    assert len(indexes) == 2 and indexes[1] > indexes[0]


async def test_a_caller_that_comes_during_a_round_waits_for_the_next(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    driver, rounds, done = leader.driver, set[int](), list[int]()

    def confirms(_: str, target: str, body: bytes) -> bool:
        message = decode(body)
        if isinstance(message, Confirm):
            rounds.add(message.round)
        return isinstance(message, Confirmed)

    async def read() -> None:
        done.append(await driver.barrier(timeout_s=5))

    cluster.drop = confirms
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await until(lambda: bool(rounds))
        nursery.start_soon(read)
        await until(lambda: len(driver._barriers) == 1)
        assert len(rounds) == 1
        cluster.drop = lambda source, target, body: confirms(source, target, body) and False
    assert len(done) == 2 and len(rounds) == 2


@pytest.mark.parametrize("timed", [False, True])
async def test_a_barrier_outlives_the_leader_it_began_with(cluster: LiveCluster, timed: bool) -> None:
    leader = await cluster.leader()
    follower = follower_of(cluster, leader)
    assert follower.driver
    driver = follower.driver
    await until(lambda: driver.status().leader == leader.name)
    cluster.drop = lambda source, target, body: isinstance(decode(body), Forward | ReadIndexReply)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(driver.barrier, timeout_s=8, timed=timed))
        await until(lambda: bool(driver._replica.table._forwarded) if timed else driver._replica.reads._sent)
        cluster.drop = lambda source, target, body: False
        await leader.stop()


async def test_a_cancelled_caller_leaves_nothing_behind(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    driver = leader.driver
    cluster.cut = {leader.name}
    with trio.move_on_after(0.05):
        await driver.propose(command(b"x", 1), timeout_s=5)
    for timed in (False, True):
        with trio.move_on_after(0.05):
            await driver.barrier(timeout_s=5, timed=timed)
    cluster.cut = set()
    await until(lambda: len(driver._replica.table) == 0 and not driver._barriers and not driver._timed_barriers)
    assert not driver._replica.table.any_placed() and not driver._replica.reads._open


async def test_a_failed_fsync_stops_the_node_and_nothing_is_acknowledged(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    cluster = LiveCluster(nursery, tmp_path)
    disks = {name: SimDisk() for name in cluster.names}
    with trio.fail_after(15):
        for host in cluster.hosts.values():
            await host.start(disks[host.name])
        await _fail_one_disk(cluster, disks)
        for host in cluster.hosts.values():
            if host.driver is not None:
                await host.stop()


async def _fail_one_disk(cluster: LiveCluster, disks: dict[str, SimDisk]) -> None:
    host = follower_of(cluster, await cluster.leader())
    await until(lambda: host.driver is not None and host.driver.status().leader is not None)
    driver = host.driver
    assert driver
    sent: list[object] = []
    real = driver._send
    driver._send = lambda member, body: bool(sent.append(decode(body))) or real(member, body)
    on_disk = (await driver.propose(command(b"w", 1), timeout_s=5)).index  # applied here only once it is on this disk
    next(iter(disks[host.name].files.values())).fail_sync = True
    sent.clear()
    with pytest.raises((NotApplied, OutcomeUnknown)):
        await driver.propose(command(b"x", 2), timeout_s=5)
    await host.ended()
    assert isinstance(host.error, JournalFailed) and "Input/output error" in str(host.error)
    promises = [m for m in sent if not isinstance(m, Forward) and not _within(m, on_disk)]
    assert not promises, "nothing that promises what is not on disk may leave"
    with pytest.raises(NotApplied):
        await driver.propose(command(b"y", 3), timeout_s=5)


def _within(message: object, on_disk: int) -> bool:
    """The answer to a heartbeat: it promises no entry beyond `on_disk`."""
    return isinstance(message, AppendReply) and message.next_index <= on_disk + 1


async def test_an_error_in_apply_stops_the_node_before_any_outcome(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    assert leader.driver
    driver = leader.driver
    leader.machine.fail = OSError(5, "Input/output error")
    with pytest.raises(OutcomeUnknown):
        await driver.propose(command(b"x", 1), timeout_s=5)
    await leader.ended()
    assert isinstance(leader.error, OSError)
    other = await cluster.leader()
    assert other.driver
    assert (await other.driver.propose(command(b"y", 2), timeout_s=5)).ok, "the others serve on"


async def test_an_oversized_command_is_rejected_and_a_large_one_goes_through(cluster: LiveCluster) -> None:
    leader = await cluster.leader()
    follower = follower_of(cluster, leader)
    assert follower.driver
    outcome = await follower.driver.propose(command(b"x" * (481 << 10), 1), timeout_s=5)
    assert outcome.index == 0 and outcome.rejection and "over the limit" in outcome.rejection.text
    assert (await follower.driver.propose(command(b"x" * (479 << 10), 2), timeout_s=5)).ok


async def test_one_member_alone_commits_after_its_own_sync(tmp_path: Path, nursery: trio.Nursery) -> None:
    cluster = LiveCluster(nursery, tmp_path, size=1)
    with trio.fail_after(10):
        await cluster.start()
        host = await cluster.leader()
        assert host.driver
        assert (await host.driver.propose(command(b"x", 1), timeout_s=5)).ok
        await host.driver.barrier(timeout_s=5)
        await host.stop()
        await host.start()
        await until(lambda: host.machine.payloads == [b"x"])
        await host.stop()
