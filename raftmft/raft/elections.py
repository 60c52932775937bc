"""Elections: who may stand, who votes for whom, and how leadership is handed over. engine.py adds the log.

A member that hears no leader *asks before it stands* (pre-vote, Ongaro's thesis 9.6): "would you vote for me in the
next term?" Asking changes nothing, here or there. Only when a majority of the voters say yes within one round does it
raise its term and stand. Who was cut off for minutes, or was removed unawares, asks in vain and disturbs nobody.

A member that heard its leader within `election_min_s` says no to both questions and does not even take a candidate's
term (*stickiness*, 4.2.3); so does a leader whom a majority answered in that time. An election that the leader itself
asked for (TimeoutNow) says so and is exempt.

A member whose own term is the higher one cannot get a vote, but it answers the leader's entries with its term; then the
leader steps down, and one election puts all on one term: without that it could never come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pysyncobj.node import Node

from raftmft.raft import patches
from raftmft.raft.base import CANDIDATE, FOLLOWER, LEADER, BaseEngine
from raftmft.raft.messages import PreVote, PreVoteReply, RequestVote, TimeoutNow, Vote


@dataclass(slots=True)
class _Round:
    """One question to all voters. Only answers that name its number count, one for each voter."""

    number: int
    term: int
    granted: set[str] = field(default_factory=set)
    won: bool = False


class Elections(BaseEngine):
    """One member's votes and candidacies."""

    _round: _Round | None = None
    stands_for_its_leader = False
    """Whether the latest candidacy of this member was asked for by the leader."""

    # --- standing ----------------------------------------------------------------------------------------------------
    def _onTick(self, timeToWait: float = 0.0) -> None:
        self._stand_or_ask()
        super()._onTick(timeToWait)

    def _stand_or_ask(self) -> None:
        """Before pysyncobj's tick, which stands when the deadline is over: asks first, and lets it stand if it may."""
        if (self.state() == LEADER or self._SyncObj__raftElectionDeadline >= patches.monotonic()
                or not (self.is_alone or self._SyncObj__connectedNodes)):
            return
        handed = self._SyncObj__transferInProgress
        if handed or self.is_alone or (self._round is not None and self._round.won):
            self._round, self.stands_for_its_leader = None, handed
            return
        self._put_off_election()
        self._round = _Round(self._rng.getrandbits(48), self.term())
        question = PreVote(self.term(), self._round.number, *self._log_end())
        for voter in sorted(node.id for node in self._SyncObj__otherNodes):
            self.outbox.late(voter, question)

    def _put_off_election(self) -> None:
        self._round = None
        super()._put_off_election()

    def _log_end(self) -> tuple[int, int]:
        journal = self.journal
        term = journal.term_at(journal.last_index)
        assert term is not None
        return journal.last_index, term

    # --- asking ------------------------------------------------------------------------------------------------------
    def _on_pre_vote(self, node: Node, message: PreVote) -> None:
        """Answers, and changes nothing. Late, as a vote would be: who cannot write could not vote either."""
        granted = message.term >= self.term() and not self._hears_leader() and self._is_behind(message)
        self.outbox.late(node.id, PreVoteReply(self.term(), message.round, granted))

    def _on_pre_vote_reply(self, node: Node, message: PreVoteReply) -> None:
        round_ = self._round
        if (not message.granted or round_ is None or round_.number != message.round or round_.term != self.term()
                or node not in self._SyncObj__otherNodes):
            return
        round_.granted.add(node.id)
        if 2 * (1 + len(round_.granted)) > 1 + len(self._SyncObj__otherNodes):
            round_.won = True
            self._SyncObj__raftElectionDeadline = float("-inf")

    def _hears_leader(self) -> bool:
        """Whether this member follows a living leader, or is one, so that an election could only disturb."""
        if self.state() == LEADER:
            return self._majority_within(self.timing.election_min_s)
        return patches.monotonic() - self.heard_leader_at < self.timing.election_min_s

    def _is_behind(self, candidate: PreVote | RequestVote) -> bool:
        last_index, last_term = self._log_end()
        return (candidate.last_term, candidate.last_index) >= (last_term, last_index)

    # --- votes -------------------------------------------------------------------------------------------------------
    def _disturbs(self, message: RequestVote) -> bool:
        """Whether a candidacy is not even to be heard."""
        return not message.handed_over and message.term > self.term() and self._hears_leader()

    def _on_request_vote(self, node: Node, message: RequestVote) -> None:
        if message.term < self.term() or self.state() == LEADER:
            return
        if not (message.handed_over or not self._hears_leader()) or not self._is_behind(message):
            return
        if self._SyncObj__votedForNodeId not in (None, node.id):
            return
        self._SyncObj__setCurrentTerm(message.term, node.id)
        self._put_off_election()
        self.outbox.late(node.id, Vote(message.term))

    def _on_vote(self, node: Node, message: Vote) -> None:
        if message.term != self.term() or self.state() != CANDIDATE or node not in self._SyncObj__otherNodes:
            return
        if self._voters[0] != message.term:
            self._voters = (message.term, set())
        self._voters[1].add(node.id)
        self._SyncObj__votesCount = 1 + len(self._voters[1])
        if 2 * self._SyncObj__votesCount > 1 + len(self._SyncObj__otherNodes):
            self._SyncObj__onBecomeLeader()

    def _see_term(self, term: int) -> None:
        if term > self.term():
            self._SyncObj__setCurrentTerm(term, None)
            self._SyncObj__transferInProgress = False
            self._round, self.heard_leader_at = None, float("-inf")
            self._SyncObj__setState(FOLLOWER)
            self._set_leader(None)

    def _set_leader(self, node: Node | None) -> None:
        if self._SyncObj__raftLeader != node:
            self._SyncObj__raftLeader = node
            self._SyncObj__onLeaderChanged()

    # --- handing over ------------------------------------------------------------------------------------------------
    def _on_timeout_now(self, node: Node, message: TimeoutNow) -> None:
        if (message.term == self.term() and self._SyncObj__raftLeader == node
                and self.member in self.configuration.voters):
            # A heartbeat that was sent before may still come: it must not put this election off.
            self._SyncObj__transferInProgress = True
            self._SyncObj__raftElectionDeadline = float("-inf")

    def hand_over(self, to: str | None = None) -> str | None:
        """Asks a follower (`to`, if given) that has the whole log to lead. Its id; None if there is none, or this is no
        leader.
        """
        if self.state() != LEADER:
            return None
        last = self.journal.last_index
        ready = [m for m, p in self.progress.items()
                 if p.match == last and m in self.configuration.voters and self.connected_to(m) and to in (None, m)]
        if not ready:
            return None
        # Early: it promises nothing about this disk, and a disk that does not answer is one reason to hand over.
        self.outbox.early(min(ready), TimeoutNow(self.term()))
        return min(ready)
