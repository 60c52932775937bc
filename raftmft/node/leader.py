"""What the leader does for all: makes the cluster once, ends the sessions of members that died, and has those vote who
are listed.

A listed host is made a learner, and a voter once it runs and has nearly the whole log; then MemberReady has it count in
the placement. Who is not listed any more is taken out. Every step is looked at anew each time, so that a leader's death
between two steps is mended by the next one. The feature level is raised likewise.

A member is expired only if gossip holds it for dead *and* it gave no Raft acknowledgement for 3 s (contract, Identity).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from raftmft.core import features
from raftmft.core.commands import Bootstrap, Envelope, ExpireMember, FeatureRaise, MemberReady
from raftmft.core.errors import RaftmftError
from raftmft.node.state import ReplicatedState
from raftmft.raft.driver import RaftDriver
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
SILENT_FOR_S = 3.0
ATTEMPT_S = 4.0
CAUGHT_UP_ENTRIES = 256
"""A learner this near to the log's end has it all in a moment: making it a voter holds up nothing."""
FRESH_S = 1.0
HAND_OVER_LIMIT_S = 2.0


class LeaderDuties:
    """Runs on every member and acts only on the one that leads. Every command may be proposed twice without harm."""

    def __init__(self, driver: RaftDriver, state: ReplicatedState, bootstrap: Bootstrap | None,
                 dead_members: Callable[[], Mapping[str, float]], me: str) -> None:
        self._driver, self._state, self._bootstrap, self._dead = driver, state, bootstrap, dead_members
        self._me = me

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
            if self._bootstrap is None:
                return  # a joined host that leads has applied the bootstrap, or is about to
            await self._driver.propose(Envelope(self._bootstrap), timeout_s=ATTEMPT_S)
            return
        for member, silent_s in self._dead().items():
            if silent_s < SILENT_FOR_S:
                continue
            epoch = machine.members.epoch(member)
            if machine.sessions.count(member):
                log.warning("member %s is dead; its sessions end", member, extra=fields(member=member, epoch=epoch))
                await self._driver.propose(Envelope(ExpireMember(member, epoch)), timeout_s=ATTEMPT_S)
        await self._walk_members()
        await self._raise_level()

    async def _raise_level(self) -> None:
        """Puts the highest feature level in force that every listed member knows."""
        machine = self._state.machine
        level = min((row.supports for row in machine.members.list()), default=0)
        if machine.settings.level < level <= features.CURRENT.newest:
            log.info("every member knows feature level %d: the cluster goes from level %d to it", level,
                     machine.settings.level)
            await self._driver.propose(Envelope(FeatureRaise(level)), timeout_s=ATTEMPT_S)

    async def _walk_members(self) -> None:
        members, status = self._state.machine.members, self._driver.status()
        rows = members.list()
        if not any(row.id == self._me for row in rows):
            with trio.move_on_after(HAND_OVER_LIMIT_S):
                await self._driver.hand_over()  # whoever leads next takes this member out
            return
        near = status.last_index - CAUGHT_UP_ENTRIES
        ready = [row.id for row in rows if row.epoch and status.matched.get(row.id, 0) >= near
                 and status.contacts.get(row.id, float("inf")) < FRESH_S]
        self._driver.want_members([row.id for row in rows], ready)
        if status.is_settled:
            for row in rows:
                if not row.joined and row.id in status.configuration.voters:
                    log.info("member %s has caught up and votes", row.name, extra=fields(member=row.id))
                    await self._driver.propose(Envelope(MemberReady(row.id)), timeout_s=ATTEMPT_S)
