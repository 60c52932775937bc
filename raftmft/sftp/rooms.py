"""All connections of one worker: who is here, how sessions end, and what everyone shares.

A session ends in this order: its connection is gone, its engines have brought what was open to an end (a CLOSE under
way is finished, uploads are checkpointed), then the node is told. `kill` and `drain` only disconnect and wait for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from raftmft.core.errors import RaftmftError
from raftmft.core.outcome import Code
from raftmft.sftp.buffers import WorkerBudget
from raftmft.sftp.checking import Checker
from raftmft.sftp.checkpoint import TICK_S
from raftmft.sftp.chunks import ChunkWriter
from raftmft.sftp.content import ChunkReader
from raftmft.sftp.engine import Channel, Engine, Traffic
from raftmft.sftp.files import Session
from raftmft.sftp.link import Link, Refused
from raftmft.sftp.operations import Operations
from raftmft.wire.loglines import fields

if TYPE_CHECKING:
    from raftmft.sftp.server import Client, Server

log = logging.getLogger(__name__)

KILL_LIMIT_S = 4.5
LOAD_EVERY_S = 1.0
MOST_LOGGING_IN = 256
"""Connections that have not logged in yet; further ones are closed at once."""


class Rooms:
    """What the connections of a worker share."""

    def __init__(self, link: Link, writer: ChunkWriter, reader: ChunkReader, window_chunks: int) -> None:
        self.link, self._writer, self._reader, self._window = link, writer, reader, window_chunks
        self._checker = Checker(link, reader)
        self._servers: set[Server] = set()
        self._sessions: dict[int, Server] = {}
        self._reasons: dict[int, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.traffic = Traffic()
        self.memory = WorkerBudget()
        self.handed_over = 0
        """Connections that came through the door. The node counts each until the load is told again."""

    # --- coming and going ------------------------------------------------------------------------
    def has_room(self) -> bool:
        """Whether one more connection may try to log in."""
        return len(self._servers) - len(self._sessions) < MOST_LOGGING_IN

    def came(self, server: Server) -> None:
        """A connection began."""
        self._servers.add(server)

    def entered(self, server: Server) -> None:
        """It logged in."""
        assert server.session is not None
        self._sessions[server.session.id] = server

    def left(self, server: Server, engines: list[asyncio.Task[None]]) -> None:
        """Its connection is over; its engines are ending."""
        self._servers.discard(server)
        if server.session is not None:
            self.spawn(self._end(server.session, engines))

    def ended(self, client: Client) -> None:
        """A connection is over without a login."""
        self.link.notify("conn.end", {"connection": client.number})

    def end_orphan(self, asked: asyncio.Future[Any]) -> None:
        """A login was committed (or refused) after its connection had gone."""
        if not asked.cancelled() and asked.exception() is None:
            number = int(asked.result()["session"])
            self.spawn(self._say_end(number, {"session": number}, "closed"))

    def engine(self, session: Session, channel: Channel, is_clear: asyncio.Event) -> Engine:
        """The engine of a new SFTP channel."""
        operations = Operations(self.link, self._writer, self._reader, self._checker, session, self._window)
        return Engine(channel, operations, self.traffic, is_clear)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs work that outlives whoever began it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- asked by the node -----------------------------------------------------------------------
    async def kill(self, number: int, reason: str) -> None:
        """Ends a session; returns when it has ended, or after KILL_LIMIT_S. One that is not here has ended."""
        server = self._sessions.get(number)
        if server is None or server.session is None:
            return
        self._reasons[number] = reason or "killed"
        server.disconnect(reason or "the session was ended by an administrator")
        await self._ends([server.session], KILL_LIMIT_S)

    def revoked(self, number: int) -> None:
        """An upload was taken over by another session: it fails, and its session sees what others see of the name."""
        for server in list(self._sessions.values()):
            for upload in server.session.uploads() if server.session is not None else ():
                if upload.id == number and server.session is not None:
                    upload.seals.poison(Refused(Code.STALE_UPLOAD, "the upload was taken over by another session"))
                    server.session.closed(upload)

    def kill_half_open(self, numbers: list[int], reason: str) -> None:
        """Ends those of these connections that have not logged in."""
        for server in [s for s in self._servers if s.session is None and s.client.number in numbers]:
            server.disconnect(reason)

    async def drain(self, timeout_s: float) -> None:
        """Ends all sessions and returns when they have ended, or when the time is over. One that is busy (a file
        open, or in the midst of a batch) goes on as long as time is left to checkpoint what is open then.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        sessions = [server.session for server in self._sessions.values() if server.session is not None]
        while any(server.is_busy() for server in self._servers) and loop.time() < deadline - KILL_LIMIT_S:
            self._dismiss([server for server in self._servers if not server.is_busy()])
            await asyncio.sleep(TICK_S)
        self._dismiss(list(self._servers))
        await self._ends(sessions, max(0.0, deadline - loop.time()))

    def _dismiss(self, servers: list[Server]) -> None:
        for server in servers:
            if server.session is not None:
                self._reasons[server.session.id] = "drained"
            server.disconnect("this server is going down; connect again")

    async def _ends(self, sessions: list[Session], timeout_s: float) -> None:
        waits = [asyncio.create_task(session.ended.wait()) for session in sessions]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for wait in late:
                wait.cancel()

    # --- in the background -----------------------------------------------------------------------
    async def tick(self) -> None:
        """Begins due checkpoints and reports the load, for ever."""
        loop = asyncio.get_running_loop()
        reported, told = loop.time(), (-1, 0, 0, 0)
        while True:
            await asyncio.sleep(TICK_S)
            for server in list(self._sessions.values()):
                if server.session is not None:
                    for upload in server.session.uploads():
                        upload.checkpoints.tick()
            load = (len(self._servers), self.traffic.bytes_in, self.traffic.bytes_out, self.handed_over)
            if load != told and loop.time() - reported >= LOAD_EVERY_S:
                reported, told = loop.time(), load
                self.link.notify("load", {"sessions": load[0], "bytes_in": load[1], "bytes_out": load[2]})

    async def _end(self, session: Session, engines: list[asyncio.Task[None]]) -> None:
        for result in await asyncio.gather(*engines, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("session %d: what was open could not be ended", session.id, exc_info=result,
                          extra=fields(**session.about))
        await self._say_end(session.id, session.about, self._reasons.pop(session.id, "closed"))
        self._sessions.pop(session.id, None)
        session.ended.set()

    async def _say_end(self, number: int, about: dict[str, Any], reason: str) -> None:
        try:
            await self.link.request("session.end", {"session": number, "reason": reason})
        except RaftmftError as trouble:
            log.info("the end of session %d is not committed (%s); it expires with this node's epoch", number, trouble,
                     extra=fields(reason=reason, **about))
