"""Two nodes in one process and one loop: the real SFTP engines, chunk writers and readers, `node/files.py`, and the
real state machine, without SSH, sockets, other processes and Raft. Clients are `RawSftp`, packet by packet.

The nodes share one machine, as linearizable nodes do; each has a chunk directory of its own, and fetches from the other
one what it lacks. What a node promises is checked where it is promised: no manifest is committed before its chunks are
synced. Nothing here takes time, and nothing ticks, so that a seed gives the same run again.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raftmft.core import commands as c
from raftmft.core.manifest import Manifest, chunk_count, split_ids
from raftmft.node.files import Files
from raftmft.node.link import Rejected, value_of
from raftmft.sftp.chunks import ChunkWriter
from raftmft.sftp.content import ChunkReader
from raftmft.sftp.engine import Engine
from raftmft.sftp.files import Session
from raftmft.sftp.link import Refused
from raftmft.sftp.rooms import Rooms
from raftmft.store.segments import Location, SegmentReader
from tests.core.machine_world import World
from tests.sftp.raw_client import RawSftp

SEGMENT_BYTES = 64 << 20


class TwoNodes:
    """A cluster of two nodes in `folder`. `login` gives sessions; `close` ends it."""

    def __init__(self, folder: Path, users: list[str]) -> None:
        self.world = World(folder / "state.db")
        for user in users:
            self.world.user(user)
        self.delays: random.Random | None = None
        self.nodes = [Node(self, folder, f"n{number}") for number in (1, 2)]

    async def pause(self) -> None:
        """A turn of the loop; several if `delays` is set, so that sessions get in each other's way differently."""
        for _ in range(self.delays.choice((0, 1, 1, 5, 30)) if self.delays is not None else 1):
            await asyncio.sleep(0)

    def apply(self, command: c.Command) -> dict[str, Any]:
        """Commits a command, and tells who had an upload taken over."""
        outcome = self.world.apply(command)
        if outcome.rejection is None and "revoked" in outcome.value:
            for node in self.nodes:
                node.rooms.revoked(int(outcome.value["revoked"]))
        return value_of(outcome)

    async def login(self, user: str, node: int) -> Client:
        """A session of a user through a node."""
        return await self.nodes[node].login(user)

    async def close(self) -> None:
        """Ends everything."""
        for node in self.nodes:
            for server in list(node.servers):
                await node.lose(server)
            node.reader._threads.shutdown()
            node.writer._appending.shutdown()
            node.writer._syncing.shutdown()
        self.world.machine.close()


class Node:
    """One node and its worker. `gates` hold chunk operations back until they are set; `held` lists those held."""

    def __init__(self, cluster: TwoNodes, folder: Path, name: str) -> None:
        self.cluster, self.name, self.store = cluster, name, folder / name
        self.places: dict[bytes, Location] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.held: list[str] = []
        self.worker = SimpleNamespace(name=name, sessions={})
        self.servers: set[Any] = set()
        state = SimpleNamespace(machine=cluster.world.machine, subscribe=lambda _: None)
        epoch = _Epoch(cluster)
        self.files = Files(state, epoch, _Chunks(self), _Reads(epoch))  # type: ignore[arg-type]
        link: Any = _Link(self)
        self.writer = ChunkWriter(link, str(self.store), "w0", SEGMENT_BYTES, _broken)
        self.reader = ChunkReader(link, str(self.store))
        self.rooms = Rooms(link, self.writer, self.reader, 8)

    async def login(self, user: str) -> Client:
        """A session, with one SFTP channel."""
        number = self.cluster.world.login(user, f"id-{self.name}")
        session = Session(number, user, 1000, "192.0.2.1:5000", self.rooms.memory.budget())
        self.worker.sessions[number] = user
        server: Any = _Server(session)
        self.rooms.came(server)
        self.rooms.entered(server)
        self.servers.add(server)
        channel = _Channel()
        is_clear = asyncio.Event()
        is_clear.set()
        channel.engine = self.rooms.engine(session, channel, is_clear)
        server.engines.append(channel.engine)
        client = Client(None, _Stdin(channel), channel.reader, channel)
        client.node, client.server = self, server
        return await client.begin()

    async def lose(self, server: Any) -> None:
        """The connection of a session breaks; returns when the session has ended."""
        self.servers.discard(server)
        for engine in server.engines:
            engine.lost()
        self.rooms.left(server, [engine.task for engine in server.engines])
        await server.session.ended.wait()

    async def serve(self, op: str, args: dict[str, Any]) -> Any:
        """A request of the worker."""
        if op in self.files.operations:
            return await self.files.operations[op](self.worker, args)  # type: ignore[arg-type]
        if op == "session.end":
            self.worker.sessions.pop(args["session"])
            return self.cluster.apply(c.Logout(args["session"], args["reason"]))
        gate = self.gates.get(op)
        if gate is not None:
            self.held.append(op)
            await gate.wait()
        if op == "chunk.put":
            self.places[args["id"]] = Location(args["segment"], args["offset"], args["length"])
            return {}
        if op == "chunk.offer":
            return {"held": any(args["id"] in node.places for node in self.cluster.nodes)}
        if op == "chunk.locate":
            return {"locations": [self.places.get(i) for i in args["ids"]]}
        assert op == "chunk.fetch", op
        return {"location": await self._fetch(args["id"])}

    async def _fetch(self, chunk_id: bytes) -> Location | None:
        for other in self.cluster.nodes:
            if chunk_id in other.places:
                reader = SegmentReader(other.store)
                data = reader.read(other.places[chunk_id], chunk_id)
                reader.close()
                self.places[chunk_id] = await self.writer.append(data, chunk_id)
                return self.places[chunk_id]
        return None


class Client(RawSftp):
    """A session's channel."""

    node: Node
    server: Any

    async def begin(self) -> Client:
        """INIT."""
        self.raw(b"\x01\x00\x00\x00\x03")
        await self._packet()
        return self

    async def lose(self) -> None:
        """The connection breaks."""
        await self.node.lose(self.server)


class _Server:
    """What Rooms needs of a connection."""

    def __init__(self, session: Session) -> None:
        self.session, self.engines = session, list[Engine]()


class _Channel:
    """An SSH channel without SSH: the engine's side is here, the client's side is `_Stdin` and `reader`."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=1 << 24)
        self.engine: Engine | None = None
        self._kept: list[bytes] | None = None

    def write(self, data: bytes) -> None:
        self.reader.feed_data(data)

    def feed(self, data: bytes) -> None:
        """From the client."""
        assert self.engine is not None
        if self._kept is None:
            self.engine.feed(data)
        else:
            self._kept.append(data)

    def pause_reading(self) -> None:
        self._kept = []

    def resume_reading(self) -> None:
        kept, self._kept = self._kept or [], None
        for data in kept:
            self.feed(data)

    def exit(self, exit_status: int) -> None:
        self.reader.feed_eof()

    def is_closing(self) -> bool:
        return False


class _Stdin:
    def __init__(self, channel: _Channel) -> None:
        self.channel, self.write = channel, channel.feed


class _Link:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def request(self, op: str, args: dict[str, Any]) -> Any:
        await self._node.cluster.pause()
        try:
            value = await self._node.serve(op, args)
            await self._node.cluster.pause()
            return value
        except Rejected as refusal:
            raise Refused(refusal.code, str(refusal)) from None

    def notify(self, op: str, args: dict[str, Any]) -> None:
        if op == "read.end":
            self._node.cluster.apply(c.ReadEnd(((args["session"], args["open"], args["bytes"], args["ok"]),)))
        assert op != "chunk.bad", "a chunk is damaged"


class _Epoch:
    """Commits at once."""

    def __init__(self, cluster: TwoNodes) -> None:
        self._cluster = cluster

    async def value(self, command: c.Command, timeout_s: float = 0) -> dict[str, Any]:
        await self._cluster.pause()
        return self._cluster.apply(command)

    async def barrier(self) -> None:
        await self._cluster.pause()


class _Reads:
    """Opens are strict: committed before their answer."""

    def __init__(self, epoch: _Epoch) -> None:
        self._epoch = epoch

    async def open(self, session: int, path: c.Path) -> dict[str, Any]:
        return await self._epoch.value(c.OpenRead(session, path))

    async def settle(self, session: int) -> None:
        """Nothing waits."""


class _Chunks:
    """Which chunks are here; what is published must be somewhere, whole."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def locate(self, ids: list[bytes]) -> list[Any]:
        return [self._node.places.get(i) for i in ids]

    def begin(self, upload: int, worker: Any, placement: int) -> None:
        """Nothing to note."""

    def inherits(self, upload: int, placement: int = 0) -> None:
        """Nothing to note."""

    def end(self, upload: int) -> None:
        """Nothing to note."""

    def check_all_held(self, upload: int) -> None:
        """See `covered`."""

    def worker_of(self, upload: int) -> None:
        """Takeovers are told by TwoNodes.apply."""

    async def covered(self, upload: int, manifest: Manifest) -> int:
        assert manifest.problem() is None, manifest.problem()
        ids = [i for index in manifest.index_ids() for i in split_ids(self._read(index))]
        assert len(ids) == manifest.indexed
        lengths = [self._length(i) for i in ids + manifest.data_ids()]
        assert sum(lengths) == manifest.size and len(lengths) == chunk_count(manifest.size), "not whole"
        return self._node.cluster.world.placement

    def _length(self, chunk_id: bytes) -> int:
        places = [node.places[chunk_id] for node in self._node.cluster.nodes if chunk_id in node.places]
        assert places, "a manifest names a chunk that nobody has"
        return places[0].length

    def _read(self, chunk_id: bytes) -> bytes:
        for node in self._node.cluster.nodes:
            if chunk_id in node.places:
                reader = SegmentReader(node.store)
                data = reader.read(node.places[chunk_id], chunk_id)
                reader.close()
                return data
        raise AssertionError("a manifest names an index chunk that nobody has")


def _broken(text: str) -> None:
    raise AssertionError(text)
