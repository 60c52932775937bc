"""Sessions that the cluster ended (killed by an operator, user disabled or removed, address banned) are ended on the
node that serves them, as soon as that is applied here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from raftmft.core.bans import Network, covers, parse_host, parse_network
from raftmft.core.commands import BanAdd, SessionKill, UserRemove, UserSet
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.node.workers import Workers
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.25
LOOKS = 8
"""A session may be killed between its login's commit and the moment this node hears of it: look again some times."""


class Evictions:
    """`applied` is a subscriber of the replicated state; `run` ends the sessions. `cut` closes what the front door
    holds or relays for a network.
    """

    def __init__(self, workers: Workers, cut: Callable[[Network], None]) -> None:
        self._workers, self._cut = workers, cut
        self._users: set[str] = set()
        self._sessions: dict[int, tuple[int, str]] = {}
        self._networks: set[Network] = set()
        self._wake = trio.Event()

    def applied(self, entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        """Notes whose sessions are over."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            command = entry.envelope.command
            if not outcome.ok:
                continue
            if type(command) is UserRemove or type(command) is UserSet and command.enabled is False:
                self._users.add(command.name)
                self._wake.set()
            elif type(command) is SessionKill:
                self._sessions[command.session] = LOOKS, "killed by an administrator"
                self._wake.set()
            elif type(command) is BanAdd:
                self._networks.add(parse_network(outcome.value["network"]))
                self._sessions.update(dict.fromkeys(outcome.value["sessions"], (LOOKS, "address banned")))
                self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.move_on_after(LOOK_AGAIN_S if self._sessions else float("inf")):
                await self._wake.wait()
            self._wake = trio.Event()
            await self._end_connections()
            users, self._users = self._users, set()
            for worker in list(self._workers.live.values()):
                for session, user in list(worker.sessions.items()):
                    if user in users:
                        log.info("session %d ends: user %s was disabled or removed", session, user,
                                 extra=fields(**worker.about(session)))
                        await self._workers.kill_session(session, "user disabled or removed")
            for session, (looks, reason) in list(self._sessions.items()):
                about = self._workers.about(session)
                if await self._workers.kill_session(session, reason):
                    log.info("session %d ends: %s", session, reason, extra=fields(reason=reason, **about))
                    looks = 1
                if looks <= 1:
                    del self._sessions[session]
                else:
                    self._sessions[session] = looks - 1, reason

    async def _end_connections(self) -> None:
        """Those of banned addresses that have not logged in yet."""
        networks, self._networks = self._networks, set()
        for network in networks:
            self._cut(network)
        for worker in list(self._workers.live.values()):
            numbers = [number for number, (address, _) in worker.half_open.items()
                       if any(covers(network, parse_host(address)) for network in networks)]
            if numbers:
                await worker.kill_half_open(numbers, "address banned")
