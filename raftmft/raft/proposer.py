"""Proposes commands under ids, so that one asked for twice is applied once (contract, promise 4)."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import trio

from raftmft.core.commands import Command, CommandId, Envelope
from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown
from raftmft.core.outcome import Code, Outcome

MAX_IN_FLIGHT = 4096
"""Commands of this member between their id and their end; further callers wait, within their own deadline."""
ATTEMPT_S = 1.5
"""An attempt without an answer (a forward lost on the way) is repeated under the same id after this."""
PAUSE_S = 0.02
"""Between attempts; doubles up to MAX_PAUSE_S."""
MAX_PAUSE_S = 0.2


class Driver(Protocol):
    """What a Proposer needs of a RaftDriver."""

    async def propose(self, envelope: Envelope, *, timeout_s: float) -> Outcome:
        """See RaftDriver.propose."""


class Proposer:
    """Gives commands ids of (member, epoch), where `epoch` is what this boot's MemberBoot returned."""

    def __init__(self, driver: Driver, member: str, epoch: int) -> None:
        self._driver, self._member, self._epoch = driver, member, epoch
        self._last_seq = 0
        self._open: deque[int] = deque()
        self._ended: set[int] = set()
        self._slots = trio.Semaphore(MAX_IN_FLIGHT)

    @property
    def acked_below(self) -> int:
        """Every command of this epoch with a lower sequence has ended: its outcome may be forgotten."""
        return self._open[0] if self._open else self._last_seq + 1

    async def execute(self, command: Command, *, timeout_s: float = 5.0) -> Outcome:
        """The command's outcome, applied once however often it had to be proposed.

        Raises NoQuorum if `timeout_s` passed and it certainly never happens, OutcomeUnknown if it may have happened. It
        is never proposed again afterwards. Cancelled: as OutcomeUnknown.
        """
        deadline = trio.current_time() + timeout_s
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            # The deadline cancels the wait for a slot only: an attempt keeps to it by itself and says what it left.
            with trio.move_on_at(deadline) as wait:
                await self._slots.acquire()
            if wait.cancelled_caught:
                raise NoQuorum("no quorum: too many commands were waiting, this one was not proposed") from None
        try:
            return await self._execute(command, deadline)
        finally:
            self._slots.release()

    async def _execute(self, command: Command, deadline: float) -> Outcome:
        self._last_seq += 1
        seq = self._last_seq
        self._open.append(seq)
        envelope = Envelope(command, CommandId(self._member, self._epoch, seq), self.acked_below)
        try:
            return await self._attempts(envelope, deadline)
        finally:
            self._ended.add(seq)
            while self._open and self._open[0] in self._ended:
                self._ended.discard(self._open.popleft())

    async def _attempts(self, envelope: Envelope, deadline: float) -> Outcome:
        maybe_applied = False
        pause_s = PAUSE_S
        while (left_s := deadline - trio.current_time()) > 0:
            try:
                outcome = await self._driver.propose(envelope, timeout_s=min(left_s, ATTEMPT_S))
                if outcome.rejection is None or outcome.rejection.code != Code.STALE_COMMAND:
                    return outcome
                maybe_applied = True  # an earlier attempt was applied, and its outcome is forgotten already
                break
            except OutcomeUnknown:
                maybe_applied = True
            except NotApplied:
                pass
            await trio.sleep(min(pause_s, max(0.0, deadline - trio.current_time())))
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)
        if maybe_applied:
            raise OutcomeUnknown("outcome unknown: no majority confirmed the change in time; it may have happened")
        raise NoQuorum("no quorum: the change did not happen; try again later")
