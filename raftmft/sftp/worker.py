"""The session worker process: `python -m raftmft.sftp.worker --link-fd N --door-fd M`, started by its node only.

It takes accepted connections through the door (SEQPACKET, one descriptor a message), and the log file when that was
opened again, which is its standard error from then on. It asks its node over the link. It never outlives its node: the
kernel kills it when the node's starting thread dies, and it ends at the link's EOF. It ignores SIGTERM, SIGINT and
SIGHUP, which are for the node. It ends at once, without any cleaning up, when the disk fails: what was not acknowledged
is not promised.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import socket
import struct
import sys
from typing import Any

import uvloop

from raftmft.core.errors import RaftmftError
from raftmft.sftp.chunks import ChunkWriter
from raftmft.sftp.content import ChunkReader
from raftmft.sftp.link import Link
from raftmft.sftp.rooms import Rooms
from raftmft.sftp.server import Client, Connection, assert_patched_names, server_options
from raftmft.wire.frames import FrameError, unpack
from raftmft.wire.loglines import LineFormatter, fields, log_what_nobody_catches

log = logging.getLogger("raftmft.sftp.worker")

PR_SET_PDEATHSIG = 1
MOST_DOOR_BYTES = 4096
MOST_ARRIVALS_A_TURN = 16
EXIT_NODE_GONE, EXIT_DISK_FAILED, EXIT_REFUSED = 0, 3, 4


class Worker:
    """One process's wiring: link, store, connections."""

    def __init__(self, link_socket: socket.socket, door: socket.socket) -> None:
        self._link_socket, self._door = link_socket, door
        self._link = Link(self._asked, lambda: _leave(EXIT_NODE_GONE))
        self._rooms: Rooms | None = None
        self._options: Any = None

    async def run(self) -> None:
        """Serves until the process is ended."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._link, sock=self._link_socket)
        try:
            hello = await self._link.request("hello", {"pid": os.getpid()})
        except RaftmftError as trouble:
            log.error("the node refused this worker: %s", trouble)
            _leave(EXIT_REFUSED)
        writer = ChunkWriter(self._link, hello["store_dir"], hello["writer"], int(hello["segment_bytes"]),
                             self._disk_failed)
        reader = ChunkReader(self._link, hello["store_dir"])
        self._rooms = Rooms(self._link, writer, reader, int(hello["window_chunks"]))
        self._options = server_options(bytes(hello["host_key"]), str(hello["banner_version"]), self._rooms)
        self._door.setblocking(False)
        loop.add_reader(self._door.fileno(), self._arrivals)
        await self._rooms.tick()

    def _arrivals(self) -> None:
        for _ in range(MOST_ARRIVALS_A_TURN):
            try:
                body, fds, _, _ = socket.recv_fds(self._door, MOST_DOOR_BYTES, 4)
            except BlockingIOError:
                return
            except OSError as error:
                log.error("the door is broken: %s", error)
                asyncio.get_running_loop().remove_reader(self._door.fileno())
                return
            if not body and not fds:
                asyncio.get_running_loop().remove_reader(self._door.fileno())
                return
            self._arrived(body, fds)

    def _arrived(self, body: bytes, fds: list[int]) -> None:
        assert self._rooms is not None
        for extra in fds[1:]:
            os.close(extra)
        if not fds:
            return
        try:
            message = unpack(body)
        except FrameError:
            message = None  # said below
        if message == {"log": True}:
            os.dup2(fds[0], 2)
            os.close(fds[0])
            log.info("lines go to the log file that was opened again")
            return
        connection = socket.socket(fileno=fds[0])
        self._rooms.handed_over += 1
        try:
            client = Client(str(message["address"]), int(message["connection"]), float(message["limit_s"]))
        except (KeyError, TypeError, ValueError) as error:
            log.error("a message at the door makes no sense (%s)", type(error).__name__)
            connection.close()
            return
        if self._rooms.has_room():
            self._rooms.spawn(self._serve(connection, client))
        else:
            connection.close()
            self._rooms.ended(client)

    async def _serve(self, connection: socket.socket, client: Client) -> None:
        assert self._rooms is not None
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        try:
            await loop.connect_accepted_socket(lambda: Connection(loop, self._options, client), connection)
        except OSError as error:
            log.debug("a connection from %s was gone before it began: %s", client.address, error,
                      extra=fields(address=client.address))
            connection.close()
            self._rooms.ended(client)

    async def _asked(self, op: str, args: dict[str, Any]) -> Any:
        if self._rooms is None:
            raise RaftmftError("the worker is not ready")
        if op == "session.kill":
            await self._rooms.kill(int(args["session"]), str(args.get("reason") or ""))
        elif op == "upload.revoked":
            self._rooms.revoked(int(args["upload"]))
        elif op == "conn.kill":
            self._rooms.kill_half_open([int(number) for number in args["connections"]], str(args.get("reason") or ""))
        elif op == "drain":
            if self._door.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(self._door.fileno())
                self._door.close()
            await self._rooms.drain(float(args["timeout_s"]))
        else:
            raise RaftmftError(f"there is no operation {op[:40]!r}")
        return {}

    def _disk_failed(self, text: str) -> None:
        log.critical("%s", text)
        _leave(EXIT_DISK_FAILED)


def die_with_parent(link_socket: socket.socket) -> bool:
    """The kernel kills this process when the thread that started it dies. False if the starter is gone already.

    Who made the link's socketpair is this process's parent as long as it lives (SO_PEERCRED).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    (maker, _, _) = struct.unpack("iII", link_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(os.getppid() == maker)


def main(arguments: list[str] | None = None) -> int:
    """Runs a worker; see the module."""
    parser = argparse.ArgumentParser(prog="raftmft.sftp.worker", description="Started by `raftmft node` only.")
    parser.add_argument("--link-fd", type=int, required=True)
    parser.add_argument("--door-fd", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(f"worker[{os.getpid()}]", as_json=options.log_format == "json"))
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler])
    log_what_nobody_catches()
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    assert_patched_names()
    try:
        link, door = socket.socket(fileno=options.link_fd), socket.socket(fileno=options.door_fd)
    except OSError as error:
        print(f"raftmft.sftp.worker: not started by a node ({error.strerror})", file=sys.stderr)
        return 2
    for inherited in (link, door):
        inherited.set_inheritable(False)
    link.setblocking(False)
    if not die_with_parent(link):
        return EXIT_NODE_GONE
    uvloop.run(Worker(link, door).run())
    return 0


def _leave(code: int) -> None:
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
