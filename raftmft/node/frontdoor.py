"""Where SFTP connections come in: accept, pick the member, pass the socket to a local worker or relay the stream.

Without a quorum here the connection is sent on to a member that has one, else refused before authentication with
SSH_MSG_DISCONNECT, SERVICE_NOT_AVAILABLE (contract 7).
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import trio

from raftmft.node.refusal import refusal
from raftmft.node.workers import Workers

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 4000
"""Accepted connections that are being handed over, refused or relayed at once; more wait in the kernel's backlog."""
BACKLOG = 512
PATIENCE_S = 3.0
LOOK_AGAIN_S = 0.05
REFUSAL_LIMIT_S = 2.0
OUT_OF_DESCRIPTORS_PAUSE_S = 0.1
_TRANSIENT = {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.EAGAIN}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class FrontDoor:
    """`choose` names the member for a new connection (None: nobody can serve it); `relay` carries one to another
    member, owning it; it raises OSError, with the connection open and unread, if that member does not answer.
    """

    def __init__(self, me: str, workers: Workers, choose: Callable[[], str | None],
                 relay: Callable[[socket.socket, str, str], Awaitable[None]]) -> None:
        self._me, self._workers, self._choose, self._relay = me, workers, choose, relay
        self._open = True
        self.accepted = self.refused = self.relayed = 0

    def close(self) -> None:
        """Takes no more sessions: new connections are sent on or refused (drain)."""
        self._open = False

    async def run(self, listener: trio.socket.SocketType) -> None:
        """Accepts until cancelled."""
        slots = trio.Semaphore(MOST_CONNECTIONS)
        async with trio.open_nursery() as nursery:
            while True:
                await slots.acquire()
                try:
                    connection, address = await listener.accept()
                except OSError as error:
                    slots.release()
                    if error.errno in _EXHAUSTED:
                        log.error("no connection can be accepted: %s; raise the limit of open files", error.strerror)
                        await trio.sleep(OUT_OF_DESCRIPTORS_PAUSE_S)
                    elif error.errno not in _TRANSIENT:
                        raise
                    continue
                bare = socket.socket(connection.family, connection.type, fileno=connection.detach())
                nursery.start_soon(self._serve, bare, format_address(address), slots)

    async def arrived(self, connection: socket.socket, address: str) -> None:
        """A connection that another member relayed here; `address` is the client's. It is served here or refused,
        never sent on, so that no connection goes in circles.
        """
        await self._here(connection, address)

    async def _serve(self, connection: socket.socket, address: str, slots: trio.Semaphore) -> None:
        try:
            self.accepted += 1
            target = await self._target()
            if target is not None and target != self._me:
                try:
                    self.relayed += 1
                    await self._relay(connection, address, target)
                    return
                except OSError as error:
                    self.relayed -= 1
                    log.warning("member %s did not take a connection (%s); trying here", target, error)
                    target = self._me if self._choose() is not None else None
            if target is None:
                await self.refuse(connection)
            else:
                await self._here(connection, address)
        finally:
            connection.close()
            slots.release()

    async def _target(self) -> str | None:
        """Who serves the next session. An election takes a moment, so "nobody" is only believed after PATIENCE_S."""
        with trio.move_on_after(PATIENCE_S):
            while (target := self._choose()) is None:
                await trio.sleep(LOOK_AGAIN_S)
            return target
        return None

    async def _here(self, connection: socket.socket, address: str) -> None:
        worker = self._workers.least_loaded() if self._open else None
        if worker is None:
            await self.refuse(connection)
            return
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await worker.hand_over(connection, address)
        except OSError as error:
            log.warning("worker %d did not take a connection: %s", worker.number, error)
            connection.close()

    async def refuse(self, connection: socket.socket) -> None:
        """Says why, then closes; a client that does not read costs at most REFUSAL_LIMIT_S."""
        self.refused += 1
        with trio.move_on_after(REFUSAL_LIMIT_S):
            try:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
                await stream.send_all(refusal())
                await stream.send_eof()
                while await stream.receive_some(4096):
                    pass  # read what the client sends, so that the close is no reset that eats our message
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass
        connection.close()


def format_address(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """HOST:PORT, with brackets around IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
