"""Real RaftDrivers with real journals in one trio process, joined by links in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import trio

from raftmft.core.errors import CorruptFile
from raftmft.raft.disk import Disk
from raftmft.raft.driver import RaftDriver
from raftmft.raft.journal import Journal
from raftmft.raft.replica import Replica
from raftmft.raft.snapshots import SnapshotFolder
from raftmft.raft.snapshotter import Snapshotter
from raftmft.raft.timing import Timing
from tests.sim.machine import MemoryMachine

QUICK = Timing(tick_s=0.01, heartbeat_s=0.03, election_min_s=0.15, election_max_s=0.3, step_down_s=0.2)


class Host:
    """One member: its directory lives on; start and kill its driver at will."""

    def __init__(self, cluster: LiveCluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.machine = MemoryMachine()
        self.driver: RaftDriver | None = None
        self.error: BaseException | None = None
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def path(self) -> Path:
        return self.cluster.directory / f"{self.name}.journal"

    @property
    def snapshots_path(self) -> str:
        return str(self.path) + "-snapshot"

    @property
    def base_index(self) -> int:
        """Behind which entry its log begins; 0 while it is down."""
        return self.driver._replica.journal.base_index if self.driver is not None else 0

    async def start(self, disk: Disk | None = None) -> None:
        cluster = self.cluster
        self.machine = MemoryMachine()
        journal = Journal(str(self.path), disk=disk)
        folder = self.folder = SnapshotFolder(self.snapshots_path)
        for snapshot in reversed(folder.held):
            with suppress(CorruptFile):
                folder.restore(snapshot, str(self.path) + "-state")
                self.machine.load(str(self.path) + "-state")
                break
        try:
            replica = Replica(self.name, cluster.names, journal, self.machine, timing=QUICK, rng=Random(),
                              snapshots=folder.held)
        except BaseException:
            journal.close()
            raise
        self.driver = RaftDriver(replica, lambda member, body: cluster.send(self.name, member, body))
        self.snapshotter = Snapshotter(self.driver, folder, self.machine, str(self.path) + "-state", cluster.fetch)
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        await cluster.nursery.start(self._run)
        for other in cluster.hosts.values():
            if other is not self and other.driver is not None:
                self.driver.peer_connected(other.name)
                other.driver.peer_connected(self.name)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        assert self.driver is not None
        driver = self.driver
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.snapshotter.run)
                    await driver.run(task_status=task_status)
                    nursery.cancel_scope.cancel()
        except Exception as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            self.error = error
        finally:
            self.driver = None
            for other in self.cluster.hosts.values():
                if other.driver is not None:
                    other.driver.peer_disconnected(self.name)
            self._ended.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()

    async def ended(self) -> None:
        await self._ended.wait()


class LiveCluster:
    def __init__(self, nursery: trio.Nursery, directory: Path, size: int = 3) -> None:
        self.nursery, self.directory = nursery, directory
        self.names = [f"n{i}" for i in range(size)]
        self.hosts = {name: Host(self, name) for name in self.names}
        self.cut: set[str] = set()
        self.drop: Callable[[str, str, bytes], bool] = lambda source, target, body: False
        self.spoil: Callable[[str, bytes, bytes | None], bytes | None] = lambda member, wanted, data: data

    async def start(self) -> None:
        for host in self.hosts.values():
            await host.start()

    async def stop(self) -> None:
        for host in self.hosts.values():
            if host.driver is not None:
                await host.stop()

    async def fetch(self, member: str, wanted: bytes) -> bytes | None:
        """A part of a member's snapshots, as the bulk links give it."""
        await trio.lowlevel.checkpoint()
        return self.spoil(member, wanted, self.hosts[member].folder.find(wanted))

    def send(self, source: str, target: str, body: bytes) -> bool:
        driver = self.hosts[target].driver
        if driver is None:
            return False
        if source in self.cut or target in self.cut or self.drop(source, target, body):
            return True
        trio.lowlevel.spawn_system_task(_deliver, driver, source, body)
        return True

    async def leader(self, among: list[Host] | None = None) -> Host:
        """The member that leads and whom a majority still answers; waits for it."""
        while True:
            for host in among or list(self.hosts.values()):
                if host.driver is not None and (status := host.driver.status()).role == "leader" and status.has_quorum:
                    return host
            await trio.sleep(0.005)


async def _deliver(driver: RaftDriver, source: str, body: bytes) -> None:
    driver.receive(source, body)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; the test's own timeout bounds it."""
    while not condition():
        await trio.sleep(0.005)
