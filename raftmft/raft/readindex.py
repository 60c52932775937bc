"""Reads without a log entry: ReadIndex (Ongaro's thesis, 6.4).

A member asks the leader how far it must have applied to show all that was acknowledged before it asked. The leader
notes how far it has committed, and has a majority of the voters confirm that its term is still theirs: then nobody else
had committed more when the question came. The one who asked goes on when it has applied that far. One round of
confirmations serves all who asked before it began; who asks later waits for the next. Nothing of it touches a disk, so
that users who list a directory every second wear none.

Why no answer has to wait for a sync: a leader of a later term had a majority's votes, which are on disks before they
leave, and one of those voters is in every majority that could confirm. What a member that crashes forgets of a term in
which it did not vote changes nothing of that. A leader answers only once an entry of its own term is committed, since
before that it does not know how far its predecessors were.

Lost messages: the leader asks again after a heartbeat; the member's driver gives a question up and asks another.
"""

from __future__ import annotations

from collections.abc import Callable

from raftmft.raft import patches
from raftmft.raft.base import LEADER
from raftmft.raft.engine import Engine
from raftmft.raft.messages import Confirm, Confirmed, ReadIndexReply, ReadIndexRequest

ReadMessage = ReadIndexRequest | ReadIndexReply | Confirm | Confirmed


class ReadIndex:
    """One member's questions, and, while it leads, everybody's. `first`: any number that earlier processes of this
    member hardly used for a question.
    """

    def __init__(self, engine: Engine, first: int) -> None:
        self._engine = engine
        # its own question
        self._question = first
        self._notify: Callable[[int], None] = _nobody
        self._open = self._sent = False
        self._index = 0
        # as a leader; of each member only its latest question matters
        self._waiting: dict[str, int] = {}
        self._under_way: dict[str, int] = {}
        self._term = self._round = self._commit = 0
        self._confirmed: set[str] = set()
        self._said_at = 0.0

    # --- asking ------------------------------------------------------------------------------------------------------
    def ask(self, notify: Callable[[int], None]) -> None:
        """A question, in place of any earlier one; it leaves with the next tick. `notify(index)` is called once all
        that was acknowledged anywhere before this call is applied here, or `notify(0)` if the question came to nothing.
        Perhaps neither is: then `forget` it and ask again.
        """
        self._question += 1
        self._notify, self._open, self._sent, self._index = notify, True, False, 0

    def forget(self) -> None:
        """Nobody waits for an answer any more."""
        self._notify, self._open = _nobody, False

    def lost(self) -> None:
        """The leader changed, or the link to it is gone: a question that was sent may never be answered."""
        if self._open and self._sent and not self._index:
            self._end(0)

    def applied(self) -> None:
        """To be called after entries were applied."""
        if self._open and self._index and self._engine.applied() >= self._index:
            self._end(self._index)

    def _end(self, index: int) -> None:
        notify = self._notify
        self.forget()
        notify(index)

    # --- the rounds --------------------------------------------------------------------------------------------------
    def tick(self) -> None:
        """The end of a tick: own questions leave, a leader's rounds begin or are repeated."""
        self.applied()
        engine = self._engine
        leads = engine.state() == LEADER
        if not leads:
            self._refuse_all()
        elif self._term != engine.term():  # leads anew: what was confirmed of an earlier term is worth nothing
            self._term, self._waiting, self._under_way = engine.term(), self._under_way | self._waiting, {}
        leader = engine.leader()
        if self._open and not self._sent and leader is not None and (leads or engine.connected_to(leader)):
            self._sent = True
            if leads:
                self._waiting[engine.member] = self._question
            else:
                engine.outbox.early(leader, ReadIndexRequest(engine.term(), self._question), self.lost)
        if leads:
            self._lead()

    def _lead(self) -> None:
        engine, now = self._engine, patches.monotonic()
        if self._under_way:
            if now - self._said_at >= engine.timing.heartbeat_s:
                self._ask_voters()
        elif self._waiting and engine.journal.term_at(engine.commit_index()) == self._term:
            self._under_way, self._waiting = self._waiting, {}
            self._round += 1
            self._commit, self._confirmed = engine.commit_index(), set()
            self._ask_voters()
            self._judge()

    def _ask_voters(self) -> None:
        engine = self._engine
        self._said_at = patches.monotonic()
        message = Confirm(self._term, self._round)
        for voter in engine.configuration.voters:
            if voter != engine.member and voter not in self._confirmed and engine.connected_to(voter):
                engine.outbox.early(voter, message)

    def _judge(self) -> None:
        """Ends the round if a majority of the present voters has confirmed it."""
        engine = self._engine
        voters = set(engine.configuration.voters)
        if 2 * len(voters & (self._confirmed | {engine.member})) <= len(voters):
            return
        under_way, self._under_way = self._under_way, {}
        for member, question in under_way.items():
            self._answer(member, question, self._commit)

    def _answer(self, member: str, question: int, index: int) -> None:
        if member != self._engine.member:
            self._engine.outbox.early(member, ReadIndexReply(self._engine.term(), question, index))
        elif self._open and question == self._question:
            if not index:
                self._end(0)
            else:
                self._index = index
                self.applied()

    def _refuse_all(self) -> None:
        refused = [*self._under_way.items(), *self._waiting.items()]
        self._under_way, self._waiting = {}, {}
        for member, question in refused:
            self._answer(member, question, 0)

    # --- messages ----------------------------------------------------------------------------------------------------
    def receive(self, member: str, message: ReadMessage) -> bool:
        """A message whose term the engine has seen. False if it makes no sense and was dropped."""
        engine = self._engine
        term, leads = engine.term(), engine.state() == LEADER
        if type(message) is Confirm:
            if message.term < term:
                engine.outbox.late(member, Confirmed(term, message.round))  # so that a deposed leader learns of it
            elif leads:
                return False
            else:
                engine.outbox.early(member, Confirmed(term, message.round))
        elif type(message) is ReadIndexRequest:
            if leads and message.term == term:
                self._waiting[member] = message.question
            else:
                self._answer(member, message.question, 0)
        elif type(message) is Confirmed:
            if leads and message.term == term == self._term and message.round == self._round and self._under_way:
                self._confirmed.add(member)
                self._judge()
        else:
            assert type(message) is ReadIndexReply
            if self._sent and message.question == self._question:
                self._answer(engine.member, message.question, message.index)
        return True


def _nobody(_: int) -> None:
    """Waits for no answer."""


