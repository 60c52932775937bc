"""Proposes commands under ids, so that one asked for twice is applied once (contract, promise 4)."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import trio

from raftmft.core.commands import Command, CommandId, Envelope
from raftmft.core.errors import NoQuorum, NotApplied, OutcomeUnknown, RaftmftError
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


class EpochOver(OutcomeUnknown):
    """An earlier attempt may have been applied; then the member's epoch ended, and no further attempt can tell."""


class Numbers:
    """The ids of this member's commands under one epoch, and from which on it still wants their outcomes."""

    def __init__(self, member: str, epoch: int) -> None:
        self._member, self._epoch = member, epoch
        self._last_seq = 0
        self._open: deque[int] = deque()
        self._ended: set[int] = set()

    @property
    def acked_below(self) -> int:
        """Every command of this epoch with a lower sequence has ended: its outcome may be forgotten."""
        return self._open[0] if self._open else self._last_seq + 1

    def begin(self, command: Command) -> Envelope:
        """The command under the next id. `end` is owed for it."""
        self._last_seq += 1
        self._open.append(self._last_seq)
        return Envelope(command, CommandId(self._member, self._epoch, self._last_seq), self.acked_below)

    def end(self, envelope: Envelope) -> None:
        """Nobody will ask for this command's outcome any more."""
        assert envelope.id is not None
        self._ended.add(envelope.id.seq)
        while self._open and self._open[0] in self._ended:
            self._ended.discard(self._open.popleft())


class Attempts:
    """What the attempts at one command have shown so far. Pure, so that the simulation's clients judge by it too."""

    __slots__ = ("pause_s", "_maybe_applied")

    def __init__(self) -> None:
        self.pause_s = PAUSE_S
        self._maybe_applied = False

    def judge(self, result: Outcome | RaftmftError) -> Outcome | RaftmftError | None:
        """The command's end; None if it is to be tried again after `pause_s`."""
        if isinstance(result, Outcome):
            code = result.rejection and result.rejection.code
            if code == Code.STALE_COMMAND:
                self._maybe_applied = True  # an earlier attempt was applied, and its outcome is forgotten already
                return self.given_up()
            if code == Code.STALE_EPOCH and self._maybe_applied:
                return EpochOver("outcome unknown: this node was taken for dead meanwhile; it may have happened")
            return result
        if isinstance(result, OutcomeUnknown):
            self._maybe_applied = True
        elif not isinstance(result, NotApplied):
            return result
        self.pause_s = min(MAX_PAUSE_S, 2 * self.pause_s)
        return None

    def given_up(self) -> RaftmftError:
        """What the caller is told when there is no time for another attempt."""
        if self._maybe_applied:
            return OutcomeUnknown("outcome unknown: no majority confirmed the change in time; it may have happened")
        return NoQuorum("no quorum: the change did not happen; try again later")


class Proposer:
    """Gives commands ids of (member, epoch), where `epoch` is what this boot's MemberBoot returned."""

    def __init__(self, driver: Driver, member: str, epoch: int) -> None:
        self._driver = driver
        self._numbers = Numbers(member, epoch)
        self._slots = trio.Semaphore(MAX_IN_FLIGHT)

    @property
    def acked_below(self) -> int:
        """See Numbers."""
        return self._numbers.acked_below

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
        envelope = self._numbers.begin(command)
        try:
            result = await self._attempts(envelope, deadline)
        finally:
            self._numbers.end(envelope)
        if isinstance(result, Outcome):
            return result
        raise result

    async def _attempts(self, envelope: Envelope, deadline: float) -> Outcome | RaftmftError:
        attempts = Attempts()
        while (left_s := deadline - trio.current_time()) > 0:
            pause_s = attempts.pause_s
            try:
                end = attempts.judge(await self._driver.propose(envelope, timeout_s=min(left_s, ATTEMPT_S)))
            except RaftmftError as trouble:
                end = attempts.judge(trouble)
            if end is not None:
                return end
            await trio.sleep(min(pause_s, max(0.0, deadline - trio.current_time())))
        return attempts.given_up()
