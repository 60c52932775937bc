"""What the leader does for all: makes the cluster once, and ends the sessions of members that died.

A member is expired only if gossip holds it for dead *and* it gave no Raft acknowledgement for 3 s (contract, Identity).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from raftmft.core.commands import Bootstrap, Envelope, ExpireMember
from raftmft.core.errors import RaftmftError
from raftmft.node.state import ReplicatedState
from raftmft.raft.driver import RaftDriver

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
SILENT_FOR_S = 3.0
ATTEMPT_S = 4.0


class LeaderDuties:
    """Runs on every member and acts only on the one that leads. Every command may be proposed twice without harm."""

    def __init__(self, driver: RaftDriver, state: ReplicatedState, bootstrap: Bootstrap,
                 dead_members: Callable[[], Mapping[str, float]]) -> None:
        self._driver, self._state, self._bootstrap, self._dead = driver, state, bootstrap, dead_members

    async def run(self) -> None:
        """Looks every LOOK_EVERY_S until cancelled."""
        while True:
            if self._driver.status().role == "leader":
                try:
                    await self._act()
                except RaftmftError as trouble:
                    log.info("leader's duty put off: %s", trouble)
            await trio.sleep(LOOK_EVERY_S)

    async def _act(self) -> None:
        machine = self._state.machine
        if not machine.is_bootstrapped:
            await self._driver.propose(Envelope(self._bootstrap), timeout_s=ATTEMPT_S)
            return
        for member, silent_s in self._dead().items():
            if silent_s < SILENT_FOR_S:
                continue
            epoch = machine.members.epoch(member)
            if machine.sessions.count(member):
                log.warning("member %s is dead; its sessions end", member)
                await self._driver.propose(Envelope(ExpireMember(member, epoch)), timeout_s=ATTEMPT_S)
