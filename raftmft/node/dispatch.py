"""Which service answers which request of a worker, and how a session begins and ends."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from raftmft.core.commands import Logout
from raftmft.core.errors import RaftmftError
from raftmft.core.outcome import Code
from raftmft.node import oplog
from raftmft.node.chunks import Chunks
from raftmft.node.epoch import Epoch
from raftmft.node.files import Files
from raftmft.node.link import Rejected
from raftmft.node.logins import Logins
from raftmft.node.workers import Worker
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

Operation = Callable[[Worker, dict[str, Any]], Awaitable[Any]]


class Dispatch:
    """The handler of all workers' links. `greeting` gives what a worker is told when it says hello."""

    def __init__(self, epoch: Epoch, logins: Logins, files: Files, chunks: Chunks,
                 greeting: Callable[[Worker], dict[str, Any]]) -> None:
        self._epoch, self._logins, self._files, self._chunks = epoch, logins, files, chunks
        self._greeting = greeting
        self._operations: dict[str, Operation] = {
            "hello": self._hello, "load": self._load, "session.end": self._session_end,
            "conn.end": self._connection_end,
            "auth.password": self._password, "auth.keys": self._keys, "auth.login": self._login,
            "auth.refused": self._refused,
            "chunk.put": chunks.put, "chunk.offer": chunks.offer,
            "chunk.locate": lambda _, args: chunks.locate_request(args),
            "chunk.fetch": lambda _, args: chunks.fetch(args), "chunk.bad": lambda _, args: chunks.bad(args),
            **files.operations,
        }

    async def handle(self, worker: Worker, op: str, args: dict[str, Any]) -> Any:
        """Answers one request; Rejected or another RaftmftError becomes the answer's status."""
        operation = self._operations.get(op)
        if operation is None:
            raise RaftmftError(f"there is no operation {op[:40]!r}")
        if not oplog.is_told(op):
            return await operation(worker, args)
        session = args.get("session")
        who = (worker.sessions.get(session, ""), worker.addresses.get(session, "")) if session else ("", "")
        return await oplog.told(op, args, who, operation(worker, args))

    async def worker_gone(self, worker: Worker) -> None:
        """A worker crashed: its sessions end, what they checkpointed stays."""
        self._chunks.forget(worker)
        for session in list(worker.sessions):
            about = worker.about(session)
            try:
                await self._end(worker, session, "worker died")
            except RaftmftError as trouble:
                log.warning("the end of session %d is not committed (%s); it expires with this node's epoch",
                            session, trouble, extra=fields(worker=worker.number, **about))

    async def _hello(self, worker: Worker, _: dict[str, Any]) -> Any:
        await self._epoch.begun.wait()
        return self._greeting(worker)

    async def _load(self, worker: Worker, args: dict[str, Any]) -> None:
        worker.bytes_in, worker.bytes_out = int(args["bytes_in"]), int(args["bytes_out"])

    async def _connection_end(self, worker: Worker, args: dict[str, Any]) -> None:
        worker.half_open.pop(int(args["connection"]), None)  # it ended without a login

    async def _password(self, worker: Worker, args: dict[str, Any]) -> Any:
        user = str(args["user"])
        value = await self._logins.password(user, str(args["password"]), str(args["address"]))
        return self._entered(worker, user, value, args)

    async def _keys(self, _: Worker, args: dict[str, Any]) -> Any:
        return await self._logins.keys(str(args["user"]))

    async def _login(self, worker: Worker, args: dict[str, Any]) -> Any:
        user = str(args["user"])
        return self._entered(worker, user, await self._logins.login(
            user, str(args["address"]), str(args["method"]), int(args["credential"])), args)

    async def _refused(self, _: Worker, args: dict[str, Any]) -> None:
        self._logins.refused(str(args["user"]), str(args["address"]), str(args["reason"]))

    def _entered(self, worker: Worker, user: str, value: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
        worker.sessions[int(value["session"])] = user
        worker.addresses[int(value["session"])] = str(args["address"])
        worker.half_open.pop(int(args["connection"]), None)
        return value

    async def _session_end(self, worker: Worker, args: dict[str, Any]) -> Any:
        session = int(args["session"])
        if session not in worker.sessions:
            raise Rejected(Code.NO_SESSION, "the session has ended")
        await self._files.finish()
        await self._end(worker, session, str(args.get("reason") or "closed")[:64])
        return {}

    async def _end(self, worker: Worker, session: int, reason: str) -> None:
        about = worker.about(session)
        worker.sessions.pop(session, None)
        worker.addresses.pop(session, None)
        outcome = await self._epoch.execute(Logout(session, reason))
        if outcome.rejection is not None and outcome.rejection.code not in (Code.NO_SESSION, Code.STALE_EPOCH):
            log.warning("session %d: %s", session, outcome.rejection.text, extra=fields(index=outcome.index, **about))
