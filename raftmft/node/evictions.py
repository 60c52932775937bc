"""Sessions whose user was disabled or removed are ended on the node that has them, as soon as that is applied here."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from raftmft.core.commands import UserRemove, UserSet
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.node.workers import Workers

log = logging.getLogger(__name__)


class Evictions:
    """`applied` is a subscriber of the replicated state; `run` ends the sessions."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._users: set[str] = set()
        self._wake = trio.Event()

    def applied(self, entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        """Notes whose sessions are over."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            command = entry.envelope.command
            if outcome.ok and (type(command) is UserRemove or type(command) is UserSet and command.enabled is False):
                self._users.add(command.name)
                self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            users, self._users = self._users, set()
            for worker in list(self._workers.live.values()):
                for session, user in list(worker.sessions.items()):
                    if user in users:
                        log.info("session %d ends: user %s was disabled or removed", session, user)
                        await self._workers.kill_session(session, "user disabled or removed")
