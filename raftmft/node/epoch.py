"""This process's boot epoch: under it every command of this member is proposed, and with it its sessions live and die.

A member asks for an epoch when it begins, by a nonce (the same nonce twice gives the same epoch). If the leader took
the member for dead it raised the epoch: then commands are rejected as stale, all sessions here are over in the eyes
of the cluster, and the member must end them and boot again.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

import trio

from raftmft import __version__
from raftmft.core import features
from raftmft.core.commands import Command, Envelope, MemberBoot
from raftmft.core.errors import NotApplied, OutcomeUnknown
from raftmft.core.features import FIRST
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.node import oplog
from raftmft.node.link import value_of
from raftmft.raft.driver import RaftDriver
from raftmft.raft.proposer import EpochOver, Proposer
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

OPERATION_LIMIT_S = 4.5
"""One deadline across barrier, proposal and retries, under the 5 s that contract 7 gives."""
BOOT_ATTEMPT_S = 5.0


class Epoch:
    """Proposes this member's commands under its present epoch."""

    def __init__(self, driver: RaftDriver, member: str, level: Callable[[], int] = lambda: FIRST) -> None:
        """`level`: the feature level in force, as this member has it applied."""
        self._driver, self._member, self._level = driver, member, level
        self._proposer: Proposer | None = None
        self.number = 0
        self.over = trio.Event()
        self.begun = trio.Event()

    async def begin(self) -> int:
        """Boots under a new epoch; waits as long as it takes to find a quorum. Commands wait until it is done. Rejected
        if this member is not listed, or its program too old for the cluster's feature level.
        """
        self._proposer = None
        nonce = secrets.token_bytes(16)
        while True:
            try:
                outcome = await self._driver.propose(
                    Envelope(MemberBoot(self._member, nonce, __version__, features.CURRENT.newest)),
                    timeout_s=BOOT_ATTEMPT_S)
            except (NotApplied, OutcomeUnknown):
                await trio.sleep(0.1)  # no leader yet; the nonce makes another attempt harmless
                continue
            if outcome.rejection is not None and outcome.rejection.code == Code.INVALID:
                await trio.sleep(0.1)  # not bootstrapped yet: the leader is about to propose it
                continue
            self.number = int(value_of(outcome)["epoch"])
            self._proposer = Proposer(self._driver, self._member, self.number)
            self.over = trio.Event()
            self.begun.set()
            log.info("member %s serves under epoch %d", self._member, self.number,
                     extra=fields(member=self._member, epoch=self.number, index=outcome.index))
            return self.number

    async def execute(self, command: Command, *, timeout_s: float = OPERATION_LIMIT_S) -> Outcome:
        """Applies a command once. NoQuorum: it certainly did not happen; OutcomeUnknown: it may have. A command of a
        feature level that is not in force is rejected without being proposed.
        """
        level = features.CURRENT.level_of(type(command))
        if level > self._level():
            return Outcome(0, rejection=Rejection(Code.CONFLICT, features.not_yet(level, self._level())))
        if self._proposer is None:
            raise NotApplied("this node has not joined its cluster yet; try again in a moment")
        try:
            outcome = await self._proposer.execute(command, timeout_s=timeout_s)
        except EpochOver:
            self.over.set()
            raise
        oplog.committed(outcome.index)
        if outcome.rejection is not None and outcome.rejection.code == Code.STALE_EPOCH:
            self.over.set()
        return outcome

    async def value(self, command: Command, *, timeout_s: float = OPERATION_LIMIT_S) -> dict[str, Any]:
        """As `execute`, and the outcome's value; raises Rejected."""
        return value_of(await self.execute(command, timeout_s=timeout_s))

    async def barrier(self, *, timed: bool = False) -> None:
        """Returns when the local state holds all that was acknowledged anywhere before the call; and the cluster's
        present time, if `timed`.
        """
        await self._driver.barrier(timeout_s=OPERATION_LIMIT_S, timed=timed)
