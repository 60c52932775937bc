"""Session workers: started, restarted when they crash, and gone within 1 s of their node.

A worker is started from the node's main thread and never through trio's process helpers: those fork in a pool thread,
and the parent-death signal that a worker asks for is tied to the thread that made it, not to the process (prctl(2)).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import trio

from raftmft.core.errors import RaftmftError
from raftmft.node.link import Link
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 0.2
RESTART_PAUSE_MOST_S = 5.0
STEADY_AFTER_S = 10.0
LEAST_LIMIT_S = 1.0
"""The time to log in that is left to a connection in any case once a worker has it."""
FORGOTTEN_AFTER_S = 10.0
DOOR_LIMIT_S = 5.0
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
"""For glibc in workers, which handle MiBs: each has pages of its own, that go back to the system with it. Otherwise the
first that is freed raises glibc's threshold, and what later ones leave behind in the heap is never given back: 40 MiB
and more of a worker with eight sessions (bench/memory.py).
"""
Handler = Callable[["Worker", str, dict[str, Any]], Awaitable[Any]]


class Worker:
    """One worker process: its link, its door, the sessions that it logged in (session id -> user), and the connections
    that it has and that have not logged in: number -> (client's address, when it must have logged in).
    """

    def __init__(self, number: int, name: str, process: subprocess.Popen[bytes], link: Link,
                 door: trio.socket.SocketType) -> None:
        self.number, self.name, self.process, self.link, self.door = number, name, process, link, door
        self.sessions: dict[int, str] = {}
        self.addresses: dict[int, str] = {}  # of the sessions' clients
        self.half_open: dict[int, tuple[str, float]] = {}
        self._handed_over = 0
        self._at_door = trio.Lock()  # two that wait for room in one socket are an error to trio
        self.bytes_in = self.bytes_out = 0

    def about(self, session: int) -> dict[str, Any]:
        """A session of this worker in the fields of a log line."""
        return {"session": session, "user": self.sessions.get(session, ""), "address": self.addresses.get(session, "")}

    @property
    def waiting(self) -> int:
        """Connections that have not logged in yet. The worker ends each in time and says so; one it forgot to tell of
        is not counted for ever.
        """
        late = trio.current_time() - FORGOTTEN_AFTER_S
        while self.half_open and next(iter(self.half_open.values()))[1] < late:
            del self.half_open[next(iter(self.half_open))]
        return len(self.half_open)

    @property
    def load(self) -> int:
        """Sessions, and connections that were handed over and have not logged in yet."""
        return len(self.sessions) + self.waiting

    async def hand_over(self, connection: socket.socket, address: str, deadline: float) -> None:
        """Passes an accepted connection to the worker, which ends it if it has not logged in by `deadline`; this
        process's copy is closed. OSError if the worker is gone.
        """
        self._handed_over += 1
        number = self._handed_over
        limit_s = max(LEAST_LIMIT_S, deadline - trio.current_time())
        message = msgpack.packb({"address": address, "connection": number, "limit_s": limit_s})
        self.half_open[number] = (address, deadline)
        is_taken = False
        try:
            await self._pass(message, connection.fileno())
            is_taken = True
        finally:
            if not is_taken:
                self.half_open.pop(number, None)
            connection.close()

    async def write_to(self, log_fd: int) -> None:
        """The worker's log lines go to this open file from now on. OSError if the worker is gone or does not listen."""
        await self._pass(msgpack.packb({"log": True}), log_fd)

    async def _pass(self, message: bytes, fd: int) -> None:
        """Sends a message with one descriptor. Cancelled: it was not sent."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]
        try:
            with trio.fail_after(DOOR_LIMIT_S):
                async with self._at_door:
                    await self.door.sendmsg([message], rights)
        except trio.TooSlowError:
            raise OSError("the worker takes nothing from its door") from None

    async def kill_half_open(self, numbers: list[int], reason: str) -> None:
        """Ends these connections if they have not logged in."""
        try:
            with trio.move_on_after(5):
                await self.link.request("conn.kill", {"connections": numbers, "reason": reason})
        except (RaftmftError, trio.BrokenResourceError, trio.ClosedResourceError) as trouble:
            # They end at the latest when their time to log in is over, and no login of theirs is taken.
            log.warning("worker %d did not end %d connections: %s", self.number, len(numbers), trouble,
                        extra=fields(worker=self.number, count=len(numbers), reason=reason))


class Workers:
    """Keeps `count` workers running. `live` holds those that said hello."""

    def __init__(self, count: int, handler: Handler, on_gone: Callable[[Worker], Awaitable[None]],
                 name_of: Callable[[int], str], options: tuple[str, ...] = (), log_fd: int | None = None) -> None:
        self._count, self._handler, self._on_gone, self._name_of = count, handler, on_gone, name_of
        self._options, self._log_fd = options, log_fd
        self._started: set[Worker] = set()
        self._stopping = False
        self._starts = 0
        self.live: dict[int, Worker] = {}

    async def run(self) -> None:
        """Runs until cancelled; on the way out every worker is killed and reaped."""
        async with trio.open_nursery() as nursery:
            for number in range(self._count):
                nursery.start_soon(self._keep, number)

    def least_loaded(self) -> Worker | None:
        """The live worker with the fewest sessions; None if there is none."""
        return min(self.live.values(), key=lambda w: w.load, default=None)

    def about(self, session: int) -> dict[str, Any]:
        """A session in the fields of a log line, as far as it is known here."""
        worker = next((worker for worker in self.live.values() if session in worker.sessions), None)
        return {"session": session} if worker is None else worker.about(session)

    async def drain(self, timeout_s: float) -> None:
        """Asks every worker to checkpoint partials and end its sessions, for at most `timeout_s`."""
        self._stopping = True

        async def one(worker: Worker) -> None:
            try:
                await worker.link.request("drain", {"timeout_s": timeout_s})
            except (OSError, RaftmftError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # a worker that is gone, or not ready yet, has no sessions

        with trio.move_on_after(timeout_s + 1):
            async with trio.open_nursery() as nursery:
                for worker in list(self.live.values()):
                    nursery.start_soon(one, worker)

    async def log_reopened(self) -> None:
        """Hands the log file, which was opened again, to every worker; one that does not take it is told of."""
        async def one(worker: Worker, fd: int) -> None:
            try:
                await worker.write_to(fd)
            except (OSError, trio.ClosedResourceError) as trouble:
                log.warning("worker %d goes on with the log file from before: %s", worker.number, trouble,
                            extra=fields(worker=worker.number))

        if self._log_fd is not None:
            async with trio.open_nursery() as nursery:
                for worker in self._started:
                    nursery.start_soon(one, worker, self._log_fd)

    async def kill_session(self, session: int, reason: str) -> bool:
        """Ends one session wherever it is here. False if no worker has it."""
        for worker in list(self.live.values()):
            if session in worker.sessions:
                try:
                    with trio.move_on_after(5):
                        await worker.link.request("session.kill", {"session": session, "reason": reason})
                except (RaftmftError, trio.BrokenResourceError, trio.ClosedResourceError) as trouble:
                    log.warning("worker %d did not end session %d: %s", worker.number, session, trouble,
                                extra=fields(worker=worker.number, reason=reason, **worker.about(session)))
                return True
        return False

    async def kill_all_sessions(self, reason: str) -> None:
        """Ends every session of this node."""
        for worker in list(self.live.values()):
            for session in list(worker.sessions):
                await self.kill_session(session, reason)

    async def _keep(self, number: int) -> None:
        pause = RESTART_PAUSE_S
        while not self._stopping:
            begun = trio.current_time()
            try:
                await self._run_one(number)
            except OSError as error:
                log.error("worker %d could not be started: %s", number, error, extra=fields(worker=number))
            if self._stopping:
                return
            pause = RESTART_PAUSE_S if trio.current_time() - begun > STEADY_AFTER_S else min(
                2 * pause, RESTART_PAUSE_MOST_S)
            log.warning("worker %d ended; starting another in %.1f s", number, pause, extra=fields(worker=number))
            await trio.sleep(pause)

    async def _run_one(self, number: int) -> None:
        self._starts += 1
        link_here, link_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        door_here, door_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "raftmft.sftp.worker", "--link-fd", str(link_there.fileno()),
                 "--door-fd", str(door_there.fileno()), *self._options],
                pass_fds=(link_there.fileno(), door_there.fileno()), stdin=subprocess.DEVNULL,
                stderr=self._log_fd, env={**_ALLOCATOR, **os.environ})
        except BaseException:
            link_here.close()
            door_here.close()
            raise
        finally:
            link_there.close()
            door_there.close()
        link = Link(trio.SocketStream(trio.socket.from_stdlib_socket(link_here)))
        worker = Worker(number, self._name_of(self._starts), process, link,
                        trio.socket.from_stdlib_socket(door_here))

        async def handle(op: str, args: dict[str, Any]) -> Any:
            if op == "hello":
                self.live[number] = worker
            return await self._handler(worker, op, args)

        self._started.add(worker)
        try:
            await link.run(handle)
        finally:
            self._started.discard(worker)
            self.live.pop(number, None)
            worker.door.close()
            _end(process)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.wait)
                if not self._stopping:
                    await self._on_gone(worker)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
