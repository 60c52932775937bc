"""Members of a cluster within one process, as far as peers go: real TLS on 127.0.0.1, stores in memory or on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from blake3 import blake3

from raftmft.cluster import certificates, hello
from raftmft.cluster.bulk import BulkPool
from raftmft.cluster.bulk_server import BulkServer
from raftmft.cluster.certificates import CertificateFiles
from raftmft.cluster.fetcher import Fetcher
from raftmft.cluster.hello import Self
from raftmft.cluster.holdings import ChunkDamaged, Holdings
from raftmft.cluster.links import PeerLinks
from raftmft.cluster.listener import PeerListener, open_port
from raftmft.cluster.passing import Passing
from raftmft.cluster.replicator import Replicator
from raftmft.store.index import ChunkIndex
from raftmft.store.segments import SegmentReader, SegmentWriter
from raftmft.wire import peer

CLUSTER = "c-1"


def make_files(folder: Path, member: str, authority: certificates.Issued) -> tuple[CertificateFiles, str]:
    """A member's TLS files in `folder`, and its fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    files = CertificateFiles(folder / "ca.pem", folder / "node.pem", folder / "node.key")
    issued = certificates.issue_member(authority, member)
    certificates.write_member_files(files, authority.certificate, issued)
    return files, issued.fingerprint


def make_self(folder: Path, member: str, authority: certificates.Issued) -> tuple[Self, str]:
    files, fingerprint = make_files(folder, member, authority)
    return Self(member, CLUSTER, certificates.server_context(files), certificates.client_context(files)), fingerprint


@dataclass
class MemoryPlace:
    segment: str
    offset: int
    length: int


@dataclass
class MemoryStorage:
    """A store that tells what a power cut would leave, and that can be made slow, full or broken."""

    chunks: dict[bytes, tuple[MemoryPlace, bytes]] = field(default_factory=dict)
    appended: dict[str, int] = field(default_factory=dict)
    synced: dict[str, int] = field(default_factory=dict)
    syncs: int = 0
    before_sync: Callable[[], None] = lambda: None
    before_append: Callable[[], None] = lambda: None

    def find(self, chunk_id: bytes):
        known = self.chunks.get(chunk_id)
        return known and known[0]

    def append(self, chunk_id: bytes, data, segment: str = "own") -> MemoryPlace:
        self.before_append()
        place = MemoryPlace(segment, self.appended.get(segment, 0), len(data))
        self.appended[segment] = place.offset + place.length
        self.chunks.setdefault(chunk_id, (place, bytes(data)))  # as ChunkIndex: the place known first is the one named
        return place

    def sync(self, segments: Iterable[str]) -> None:
        ends = {segment: self.appended[segment] for segment in segments}
        self.before_sync()
        self.syncs += 1
        self.synced.update(ends)

    def read(self, place, chunk_id: bytes) -> bytes:
        data = self.chunks[chunk_id][1]
        if blake3(data).digest() != chunk_id:
            raise ChunkDamaged("bad")
        return data

    def forget(self, chunk_id: bytes, place) -> None:
        if self.find(chunk_id) == place:
            del self.chunks[chunk_id]

    def survivors(self) -> set[bytes]:
        return {i for i, (p, _) in self.chunks.items() if p.offset + p.length <= self.synced.get(p.segment, 0)}

    def damage(self, chunk_id: bytes) -> None:
        place, data = self.chunks[chunk_id]
        self.chunks[chunk_id] = (place, bytes([data[0] ^ 1]) + data[1:])


class SegmentStorage:
    """The real store: segments on disk, an index, a reader."""

    def __init__(self, folder: Path, run: str = "node") -> None:
        self.folder = folder
        self.index = ChunkIndex(folder, lock_wait_s=0)
        self.reader = SegmentReader(folder)
        self.writer = SegmentWriter(folder, run, 4 << 20, reserve_bytes=0)
        self._own: set[str] = set()

    def find(self, chunk_id: bytes):
        return self.index.get(chunk_id)

    def append(self, chunk_id: bytes, data):
        place = self.writer.append(chunk_id, data)
        self._own.add(place.segment)
        self.index.add(chunk_id, place)
        return place

    def sync(self, segments: Iterable[str]) -> None:
        names = set(segments)
        if names & self._own:
            self.writer.sync()
        self.reader.sync(names - self._own)

    def read(self, place, chunk_id: bytes) -> bytes:
        return self.reader.read(place, chunk_id)

    def forget(self, chunk_id: bytes, place) -> None:
        self.index.discard(chunk_id, place)

    def damage(self, chunk_id: bytes) -> None:
        """Flips a bit of the chunk on the disk."""
        place = self.index.get(chunk_id)
        with open(self.folder / place.segment, "r+b") as file:
            file.seek(place.offset + place.length // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))


class Node:
    """One member: listener, links, bulk, store. `cluster` is shared: its directory may be changed at will."""

    def __init__(self, cluster: Cluster, name: str, storage) -> None:
        self.name, self.cluster, self.storage = name, cluster, storage
        self.me, self.fingerprint = make_self(cluster.folder / name, name, cluster.authority)
        cluster.directory[self.fingerprint] = name
        self.listening = open_port("127.0.0.1", 0)
        self.address = self.listening.getsockname()
        self.events: list[tuple[str, str]] = []
        self.relayed: list = []
        self.damaged: list = []
        self.holdings = Holdings(storage)
        self.links = PeerLinks(self.me, self.others, lambda: cluster.directory,
                               on_up=lambda m: self.events.append(("up", m)), on_down=self.on_down)
        self.pool = BulkPool(self.dial_bulk)
        self.passing = Passing(name, self.pool.chain, lambda m: m in cluster.directory.values())
        self.server = BulkServer(self.holdings, on_damaged=lambda i: self.damaged.append((name, i)),
                                 passing=self.passing)
        self.replicator = Replicator(name, self.pool.chain, lambda m: m in self.links.connected(), self.links.hears,
                                     cluster.ranking)
        self.fetcher = Fetcher(name, self.pool.get, self.holdings, lambda m: m in self.links.connected(),
                               cluster.ranking, on_damaged=lambda m, i: self.damaged.append((m, i)))
        self.listener = PeerListener(self.me, lambda: cluster.directory, on_control=self.links.serve,
                                     on_bulk=self.server.serve, on_relay=self.take_relay)
        self.scope = trio.CancelScope()
        self.stopped = trio.Event()

    def others(self) -> dict[str, tuple[str, int]]:
        return {n.name: n.address for n in self.cluster.nodes.values()
                if n.name != self.name and n.fingerprint in self.cluster.directory}

    def on_down(self, member: str) -> None:
        self.events.append(("down", member))
        self.pool.cut_off(member)

    async def dial_bulk(self, member: str):
        return await hello.dial(self.me, member, self.cluster.nodes[member].address, peer.BULK,
                                lambda: self.cluster.directory)

    async def take_relay(self, sock) -> None:
        self.relayed.append(sock)

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.listener.serve, self.listening)
                    for part in (self.holdings, self.pool, self.replicator, self.links):
                        await nursery.start(part.run)
                    task_status.started()
        finally:
            self.stopped.set()

    async def kill(self) -> None:
        self.scope.cancel()
        await self.stopped.wait()


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = certificates.make_authority("test")
        self.directory: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}

    def ranking(self, chunk_id: bytes) -> tuple[str, ...]:
        return tuple(sorted(self.nodes))


async def until(condition: Callable[[], object], timeout_s: float = 8.0) -> None:
    """Returns once the condition holds; fails the test if it does not in time."""
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.005)


@asynccontextmanager
async def cluster_of(folder: Path, *names: str, storage: Callable[[str], object] = lambda name: MemoryStorage(),
                     ) -> AsyncIterator[Cluster]:
    """A running cluster, every pair linked."""
    cluster = Cluster(folder)
    for name in names:
        cluster.nodes[name] = Node(cluster, name, storage(name))
    async with trio.open_nursery() as nursery:
        for node in cluster.nodes.values():
            await nursery.start(node.run)
        await until(lambda: all(len(n.links.connected()) == len(names) - 1 for n in cluster.nodes.values()))
        yield cluster
        nursery.cancel_scope.cancel()
