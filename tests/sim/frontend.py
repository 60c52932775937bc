"""What a node does for its clients, without trio: boot epoch, ids, retries under one id, deadlines, read barriers.

It judges by the program's own rules (Numbers, Attempts, Barriers); only the waiting is the simulation's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftmft.core.commands import Command, CommandId, Envelope, MemberBoot, NoOp
from raftmft.core.errors import NotApplied, RaftmftError
from raftmft.core.outcome import Code, Outcome
from raftmft.raft.barriers import PAUSE_S, ROUND_S, Barriers
from raftmft.raft.proposals import Proposal
from raftmft.raft.proposer import ATTEMPT_S, Attempts, EpochOver, Numbers
from raftmft.wire.commands import encode_envelope

if TYPE_CHECKING:
    from tests.sim.member import Member

OPERATION_LIMIT_S = 4.5
BOOT_ATTEMPT_S = 5.0
TIMED = 0.5
"""How often a read wants the cluster's time, too, and so an entry in the log."""

Done = Callable[[Outcome | RaftmftError | None, CommandId | None], None]
"""Told how it ended, and under which id. None: the process died."""
ReadDone = Callable[[int | None], None]
"""Told the value; None if there was no quorum, or the process died."""


class Frontend:
    """One life of one member's node process."""

    def __init__(self, member: Member) -> None:
        self.member, self.cluster = member, member.cluster
        self._boots = 0
        self._numbers: Numbers | None = None
        self._barriers, self._timed_barriers = Barriers(), Barriers()
        self._under_way = set[Barriers]()
        self._open: dict[object, Callable[[], None]] = {}
        self._boot()

    @property
    def is_ready(self) -> bool:
        """Whether it has an epoch under which it serves."""
        return self._numbers is not None

    def die(self) -> None:
        """The process is gone, and whoever waited sees his connection close."""
        ends, self._open = list(self._open.values()), {}
        for end in ends:
            end()

    # --- commands ----------------------------------------------------------------------------------------------------
    def execute(self, command: Command, done: Done) -> None:
        """As Proposer.execute."""
        assert self._numbers is not None
        envelope = self._numbers.begin(command)
        token = object()
        self._open[token] = lambda: done(None, envelope.id)
        numbers, deadline, attempts = self._numbers, self.cluster.now + OPERATION_LIMIT_S, Attempts()

        def attempt() -> None:
            left_s = deadline - self.cluster.now
            if left_s <= 0:
                end(attempts.given_up())
            else:
                self._propose(envelope, min(left_s, ATTEMPT_S), judge)

        def judge(result: Outcome | RaftmftError) -> None:
            pause_s = attempts.pause_s
            verdict = attempts.judge(result)
            if verdict is not None:
                end(verdict)
            else:
                self.member.later(min(pause_s, max(0.0, deadline - self.cluster.now)), attempt)

        def end(result: Outcome | RaftmftError) -> None:
            numbers.end(envelope)
            del self._open[token]
            done(result, envelope.id)
            over = isinstance(result, EpochOver) or (
                isinstance(result, Outcome) and result.rejection and result.rejection.code == Code.STALE_EPOCH)
            if over and numbers is self._numbers:
                self._boot()

        attempt()

    def _propose(self, envelope: Envelope, timeout_s: float, ended: Callable[[Outcome | RaftmftError], None]) -> None:
        """As RaftDriver.propose."""
        def notify() -> None:
            result = proposal.error if proposal.outcome is None else proposal.outcome
            assert result is not None
            ended(result)

        proposal = Proposal(encode_envelope(envelope), self.cluster.now + timeout_s, notify, envelope)
        assert self.member.replica is not None
        try:
            self.member.replica.propose(proposal)
        except NotApplied as error:
            ended(error)
        else:
            self.member.wake()

    def propose_bare(self, command: Command, ended: Callable[[Outcome | RaftmftError], None] = lambda _: None) -> None:
        """Without an id, once."""
        self._propose(Envelope(command), BOOT_ATTEMPT_S, ended)

    def _boot(self) -> None:
        self._numbers = None
        self._boots += 1
        nonce = b"%d.%d" % (self.member.life, self._boots)

        def booted(result: Outcome | RaftmftError) -> None:
            if isinstance(result, Outcome) and result.rejection is None:
                self._numbers = Numbers(self.member.name, int(result.value["epoch"]))
            else:
                self.member.later(0.1, ask)

        def ask() -> None:
            self.propose_bare(MemberBoot(self.member.name, nonce, "sim"), booted)

        self.member.later(0.0, ask)

    # --- reads -------------------------------------------------------------------------------------------------------
    def read(self, key: int, done: ReadDone) -> None:
        """A register as of after all that was acknowledged before; None after OPERATION_LIMIT_S."""
        token = object()

        def may_go_on() -> None:
            if self._open.pop(token, None):
                done(self.member.state.read(key))

        def too_late() -> None:
            if self._open.pop(token, None):
                waiter.gone = True
                done(None)

        timed = self.cluster.rng.random() < TIMED
        barriers = self._timed_barriers if timed else self._barriers
        try:
            waiter = barriers.add(may_go_on)
        except NotApplied:
            done(None)
            return
        self._open[token] = lambda: done(None)
        self.member.later(OPERATION_LIMIT_S, too_late)
        self._begin_round(barriers)

    def _begin_round(self, barriers: Barriers) -> None:
        """As RaftDriver: a question to the leader, or a no-op in the log."""
        if barriers in self._under_way:
            return
        if round_ := barriers.begin():
            self._under_way.add(barriers)

            def ended(index: int) -> None:
                self._under_way.remove(barriers)
                if index:
                    barriers.passed(round_, index)
                    self._begin_round(barriers)
                else:
                    barriers.failed(round_)
                    self.member.later(PAUSE_S, lambda: self._begin_round(barriers))

            if barriers is self._timed_barriers:
                self._propose(Envelope(NoOp()), ROUND_S,
                              lambda result: ended(result.index if isinstance(result, Outcome) else 0))
            else:
                self._ask_leader(ended)

    def _ask_leader(self, ended: Callable[[int], None]) -> None:
        assert self.member.replica is not None
        reads, is_open = self.member.replica.reads, True

        def told(index: int) -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                ended(index)

        def too_late() -> None:
            if is_open:
                reads.forget()
                told(0)

        reads.ask(told)
        self.member.later(ROUND_S, too_late)
        self.member.wake()
