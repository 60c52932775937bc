"""Pre-vote and stickiness (Ongaro's thesis 9.6 and 4.2.3): who may disturb whom, message by message."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from raftmft.raft import patches
from raftmft.raft.engine import CANDIDATE, FOLLOWER, LEADER
from raftmft.raft.messages import (
    AppendEntries,
    AppendReply,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    TimeoutNow,
    Vote,
)
from tests.raft.test_engine import NO_OPS, Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with patches.use_clock(lambda: made.now):
        yield made.start()


@pytest.fixture
def five() -> Iterator[Bench]:
    made = Bench("a", ["a", "b", "c", "d", "e"])
    with patches.use_clock(lambda: made.now):
        yield made.start()


def grant(question: PreVote) -> PreVoteReply:
    return PreVoteReply(question.term, question.round, True)


# --- asking ---------------------------------------------------------------------------------------------------------
def test_who_hears_no_leader_asks_and_raises_no_term(bench: Bench) -> None:
    for _ in range(30):
        bench.ask()
    assert (bench.engine.state(), bench.engine.term()) == (FOLLOWER, 0)
    assert bench.replica.journal.getVotedForNodeId() is None


def test_a_majority_of_yes_lets_it_stand(five: Bench) -> None:
    question = five.ask()
    assert question == PreVote(0, question.round, 1, 0)
    five.tell("b", grant(question))
    five.tell("b", grant(question))
    five.tick()
    assert five.engine.state() == FOLLOWER, "one voter's yes counts once, however often it comes"
    five.tell("x", grant(question))
    five.tick()
    assert five.engine.state() == FOLLOWER, "a stranger's does not count"
    five.tell("c", PreVoteReply(0, question.round, False))
    five.tick()
    assert five.engine.state() == FOLLOWER, "and a no is none"
    five.tell("d", grant(question))
    sent = five.tick()
    assert five.engine.state() == CANDIDATE and five.engine.term() == 1
    assert sorted(sent) == [(voter, RequestVote(1, 1, 0)) for voter in "bcde"]


def test_answers_to_an_earlier_round_do_not_count(five: Bench) -> None:
    first = five.ask()
    five.tell("b", grant(first))
    second = five.ask()
    assert second.round != first.round
    for voter in "cde":
        five.tell(voter, grant(first))
    five.tell("b", grant(second))
    five.tick()
    assert five.engine.state() == FOLLOWER


@pytest.mark.parametrize("between", [AppendEntries(0, 1, 1, 0, []), RequestVote(2, 1, 0)], ids=["leader", "candidate"])
def test_a_leader_or_another_candidate_ends_the_round(five: Bench, between: Message) -> None:
    question = five.ask()
    five.tell("b", grant(question))
    five.tell("d", between)
    term = five.engine.term()
    five.tell("c", grant(question))
    five.tell("e", grant(question))
    five.tick()
    assert five.engine.state() == FOLLOWER and five.engine.term() == term


def test_a_pause_ends_the_round(five: Bench) -> None:
    question = five.ask()
    five.now += 5
    for voter in "bcd":
        five.tell(voter, grant(question))
    five.tick()
    assert five.engine.state() == FOLLOWER and five.engine.term() == 0


def test_a_candidate_that_did_not_win_asks_again_before_it_raises_its_term_again(bench: Bench) -> None:
    bench.stand()
    for _ in range(10):
        assert bench.ask().term == 1
    assert bench.engine.term() == 1


def test_a_no_tells_the_term_to_who_lags(bench: Bench) -> None:
    question = bench.ask()
    bench.tell("a", PreVoteReply(7, question.round, False))
    assert bench.engine.term() == 7
    assert bench.ask().term == 7


def test_a_lone_voter_asks_nobody() -> None:
    bench = Bench("a", ["a"])
    with patches.use_clock(lambda: bench.now):
        bench.start().tick(1.2)
        assert bench.engine.state() == LEADER


# --- answering ------------------------------------------------------------------------------------------------------
def test_an_answer_changes_nothing(bench: Bench) -> None:
    assert bench.tell("c", PreVote(99, 5, 1, 0)) == [("c", PreVoteReply(0, 5, True))]
    assert bench.engine.term() == 0
    assert bench.tell("a", PreVote(3, 6, 1, 0)) == [("a", PreVoteReply(0, 6, True))], "a yes binds nobody"
    bench.tell("a", AppendEntries(9, 1, 1, 0, NO_OPS))
    bench.now += 1
    assert bench.tell("c", PreVote(8, 7, 11, 1)) == [("c", PreVoteReply(9, 7, False))], "an old term"
    assert bench.tell("c", PreVote(9, 8, 10, 1)) == [("c", PreVoteReply(9, 8, False))], "a log that lacks an entry"
    assert bench.tell("c", PreVote(9, 9, 11, 1)) == [("c", PreVoteReply(9, 9, True))]


def test_who_hears_its_leader_says_no_and_takes_no_term(bench: Bench) -> None:
    bench.tell("a", AppendEntries(1, 1, 1, 0, []))
    bench.tell("c", Vote(2))
    assert bench.tell("c", PreVote(2, 1, 1, 0)) == [("c", PreVoteReply(2, 1, True))], "that leader's term is over"
    bench.tell("a", AppendEntries(2, 1, 1, 0, []))
    for _ in range(10):
        bench.tick(0.1)
        bench.tell("a", AppendEntries(2, 1, 1, 0, []))
        assert bench.tell("c", PreVote(9, 1, 50, 9)) == [("c", PreVoteReply(2, 1, False))]
        assert bench.tell("c", RequestVote(9, 50, 8)) == []
        assert bench.engine.term() == 2
    bench.now += 0.49
    assert bench.tell("c", RequestVote(9, 50, 8)) == []
    bench.now += 0.02
    assert bench.tell("c", PreVote(9, 2, 50, 9)) == [("c", PreVoteReply(2, 2, True))]
    assert bench.tell("c", RequestVote(9, 50, 8)) == [("c", Vote(9))]


def test_a_leader_with_a_majority_says_no_and_stays(bench: Bench) -> None:
    bench.lead()
    term = bench.engine.term()
    for _ in range(20):
        bench.tick(0.1)
        bench.acknowledge("a")
        assert bench.tell("c", PreVote(term + 5, 1, 50, term)) == [("c", PreVoteReply(term, 1, False))]
        assert bench.tell("c", RequestVote(term + 5, 50, term)) == []
    assert (bench.engine.state(), bench.engine.term()) == (LEADER, term)
    bench.tell("c", AppendReply(term + 5, False, 1, 1))
    assert bench.engine.state() == FOLLOWER, "an answer to its own entries still puts both on one term"
    assert bench.tell("c", RequestVote(term + 6, 50, term)) == [("c", Vote(term + 6))], "and then it follows nobody"


def test_a_leader_that_lost_its_majority_hears_a_candidate(bench: Bench) -> None:
    bench.lead()
    bench.tick(0.6)
    term = bench.engine.term()
    assert bench.engine.state() == LEADER
    assert bench.tell("c", RequestVote(term + 1, 50, term)) == [("c", Vote(term + 1))]


def test_an_election_that_the_leader_asked_for_is_exempt(bench: Bench) -> None:
    bench.tell("a", AppendEntries(2, 1, 1, 0, []))
    assert bench.tell("c", RequestVote(3, 50, 2, True)) == [("c", Vote(3))]
    bench.tell("c", AppendEntries(3, 1, 1, 0, []))
    bench.tell("c", TimeoutNow(3))
    assert sorted(bench.tick()) == [("a", RequestVote(4, 1, 0, True)), ("c", RequestVote(4, 1, 0, True))]
    while not (sent := [m for _, m in bench.tick() if isinstance(m, PreVote)]):
        assert bench.engine.term() == 4
    bench.tell("a", grant(sent[0]))
    assert ("a", RequestVote(5, 1, 0, False)) in bench.tick(), "the next one is its own"


def test_an_answer_leaves_after_the_disk_as_a_vote_would(bench: Bench) -> None:
    """A member whose disk does not answer could not vote either: its yes would only raise terms in vain."""
    bench.tell("a", AppendEntries(2, 1, 1, 0, []))
    bench.now += 1
    bench.engine.receive("c", PreVote(2, 1, 50, 2))
    work = bench.replica.collect()
    assert not work.early and len(work.late) == 1


# --- the whole effect -----------------------------------------------------------------------------------------------
def test_a_member_removed_without_knowing_it_asks_in_vain(bench: Bench) -> None:
    removed = Bench("c", ["a", "b", "c"])
    removed.now = bench.now
    removed.start()
    bench.tell("a", AppendEntries(1, 1, 1, 0, []))
    rng, asked = Random(3), 0
    for _ in range(3000):  # a minute
        if rng.random() < 0.3:
            bench.tell("a", AppendEntries(1, 1, 1, 0, []))
        bench.tick()
        removed.now = bench.now
        removed.replica.tick()
        for member, message in removed.flush():
            assert not isinstance(message, RequestVote)
            if member == "b":
                asked += 1
                for to, answer in bench.tell("c", message):
                    if to == "c":
                        removed.tell("b", answer)
    assert asked > 30 and bench.engine.term() == 1 and removed.engine.term() <= 1
