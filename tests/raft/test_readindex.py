"""ReadIndex, message by message: when a leader may answer, and what becomes of a question that cannot be answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raftmft.raft import patches
from raftmft.raft.engine import LEADER
from raftmft.raft.messages import (
    AppendEntries,
    AppendReply,
    Confirm,
    Confirmed,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    Vote,
)
from tests.raft.test_engine import NO_OPS, Bench

FIVE = ["a", "b", "c", "d", "e"]


@pytest.fixture
def leader() -> Iterator[Bench]:
    """b leads five."""
    made = Bench(ids=FIVE)
    with patches.use_clock(lambda: made.now):
        yield made.start().lead()


@pytest.fixture
def follower() -> Iterator[Bench]:
    """b follows a in term 3, and has applied through entry 11."""
    made = Bench()
    with patches.use_clock(lambda: made.now):
        made.start().tell("a", AppendEntries(3, 11, 1, 0, NO_OPS))
        made.replica.apply()
        yield made


def asked(bench: Bench) -> list[int]:
    """Asks a question; what is told will stand in the list."""
    told: list[int] = []
    bench.replica.reads.ask(told.append)
    return told


def of(kind: type, sent: list[tuple[str, Message]]) -> list[tuple[str, Message]]:
    return [pair for pair in sent if isinstance(pair[1], kind)]


def confirm(sent: list[tuple[str, Message]]) -> Confirm:
    """The one that went to all others."""
    confirms = of(Confirm, sent)
    assert [member for member, _ in confirms] == ["a", "c", "d", "e"] and len({id(m) for _, m in confirms}) <= 4
    message = confirms[0][1]
    assert isinstance(message, Confirm) and all(other == message for _, other in confirms)
    return message


# --- the leader -------------------------------------------------------------------------------------------------------
def test_a_leader_answers_once_a_majority_has_confirmed_its_term(leader: Bench) -> None:
    term, commit = leader.engine.term(), leader.engine.commit_index()
    assert not of(ReadIndexReply, leader.tell("c", ReadIndexRequest(term, 7)))
    told = asked(leader)
    question = confirm(leader.tick())
    assert question.term == term
    assert not leader.tell("a", Confirmed(term, question.round)) and not told
    assert not leader.tell("a", Confirmed(term, question.round)), "one voter counts once"
    assert leader.tell("d", Confirmed(term, question.round)) == [("c", ReadIndexReply(term, 7, commit))]
    assert not told, "this member has not applied so far"
    leader.replica.apply()
    assert told == [commit]
    assert not leader.tell("e", Confirmed(term, question.round)) and told == [commit]


def test_who_asks_during_a_round_waits_for_the_next(leader: Bench) -> None:
    term = leader.engine.term()
    leader.tell("c", ReadIndexRequest(term, 7))
    first = confirm(leader.tick())
    leader.tell("d", ReadIndexRequest(term, 70))
    assert not of(Confirm, leader.tick())
    leader.tell("a", Confirmed(term, first.round))
    assert [to for to, _ in leader.tell("e", Confirmed(term, first.round))] == ["c"]
    second = confirm(leader.tick())
    assert second.round != first.round
    for voter in ("a", "c", "d", "e"):
        assert not leader.tell(voter, Confirmed(term, first.round)), "what confirmed the first round comes too late"
    leader.tell("a", Confirmed(term, second.round))
    assert [to for to, _ in leader.tell("c", Confirmed(term, second.round))] == ["d"]


def test_what_is_committed_after_the_question_need_not_be_waited_for(leader: Bench) -> None:
    term, commit = leader.engine.term(), leader.engine.commit_index()
    leader.tell("c", ReadIndexRequest(term, 7))
    question = confirm(leader.tick())
    leader.propose()
    leader.tick()
    for voter in ("a", "c"):
        leader.acknowledge(voter)
    leader.tick()
    assert leader.engine.commit_index() == commit + 1
    leader.tell("a", Confirmed(term, question.round))
    assert leader.tell("c", Confirmed(term, question.round)) == [("c", ReadIndexReply(term, 7, commit))]


def test_a_new_leader_answers_nothing_before_an_entry_of_its_term_is_committed() -> None:
    bench = Bench()
    with patches.use_clock(lambda: bench.now):
        bench.start().stand()
        bench.tell("a", Vote(bench.engine.term()))
        assert bench.engine.state() == LEADER
        term = bench.engine.term()
        bench.tell("c", ReadIndexRequest(term, 7))
        assert not of(Confirm, bench.tick()) and not of(Confirm, bench.tick())
        bench.tell("a", AppendReply(term, True, 1, bench.replica.journal.last_index + 1))
        ((_, question), _) = of(Confirm, [*bench.tick(), *bench.tick()])
        assert isinstance(question, Confirm)
        assert bench.tell("a", Confirmed(term, question.round)) == [("c", ReadIndexReply(term, 7, 2))]


def test_a_leader_that_is_deposed_answers_nobody(leader: Bench) -> None:
    term = leader.engine.term()
    leader.tell("c", ReadIndexRequest(term, 7))
    told = asked(leader)
    question = confirm(leader.tick())
    leader.tell("a", Confirmed(term, question.round))
    leader.tell("d", Confirmed(term + 1, question.round))
    assert leader.engine.state() != LEADER and told == [0]
    assert of(ReadIndexReply, leader.tick()) == [("c", ReadIndexReply(term + 1, 7, 0))]
    assert not leader.tell("e", Confirmed(term, question.round)), "the last word for a term that is over"


def test_only_voters_confirm(leader: Bench) -> None:
    term = leader.engine.term()
    leader.tell("c", ReadIndexRequest(term, 7))
    question = confirm(leader.tick())
    for stranger in ("x", "y", "z"):
        assert not leader.tell(stranger, Confirmed(term, question.round))


def test_a_round_whose_messages_are_lost_is_said_again_to_those_who_did_not_answer(leader: Bench) -> None:
    term = leader.engine.term()
    leader.tell("c", ReadIndexRequest(term, 7))
    question = confirm(leader.tick())
    leader.tell("a", Confirmed(term, question.round))
    ends = leader.now + leader.engine.timing.heartbeat_s + 0.1
    again: list[tuple[str, Message]] = []
    while leader.now < ends:
        again += of(Confirm, leader.tick())
    assert [member for member, _ in again] == ["c", "d", "e"] and all(m == question for _, m in again)


def test_a_lone_member_needs_nobody() -> None:
    bench = Bench("b", ["b"])
    with patches.use_clock(lambda: bench.now):
        bench.start()
        while bench.engine.state() != LEADER or bench.replica.can_apply() or bench.engine.commit_index() < 2:
            bench.tick()
            bench.replica.apply()
        told = asked(bench)
        bench.tick()
        assert told == [bench.engine.commit_index()]


# --- a follower -------------------------------------------------------------------------------------------------------
def test_a_follower_confirms_the_term_it_is_in_and_tells_of_a_later_one(follower: Bench) -> None:
    assert follower.tell("a", Confirm(3, 9)) == [("a", Confirmed(3, 9))]
    assert follower.tell("c", Confirm(2, 4)) == [("c", Confirmed(3, 4))]
    assert follower.tell("c", Confirm(8, 1)) == [("c", Confirmed(8, 1))] and follower.engine.term() == 8


def test_a_leader_confirms_its_term_to_nobody(leader: Bench) -> None:
    assert not leader.tell("c", Confirm(leader.engine.term(), 1)) and leader.replica.status().dropped_messages == 1


def test_a_follower_refuses_questions(follower: Bench) -> None:
    assert follower.tell("c", ReadIndexRequest(3, 5)) == [("c", ReadIndexReply(3, 5, 0))]


def test_a_question_is_answered_once_all_that_was_committed_is_applied(follower: Bench) -> None:
    told = asked(follower)
    ((to, question),) = of(ReadIndexRequest, follower.tick())
    assert to == "a" and isinstance(question, ReadIndexRequest) and question.term == 3
    assert not of(ReadIndexRequest, follower.tick()), "it is asked once"
    follower.tell("a", ReadIndexReply(3, question.question - 1, 11))
    assert not told, "that was another question"
    follower.tell("a", ReadIndexReply(3, question.question, 12))
    follower.tick()
    assert not told
    follower.tell("a", AppendEntries(3, 12, 11, 1, [(b"\x01", 12, 3)]))
    follower.replica.apply()
    assert told == [12]
    follower.tell("a", ReadIndexReply(3, question.question, 12))
    assert told == [12], "an answer that comes twice"


@pytest.mark.parametrize("how", ["refused", "link", "another leader"])
def test_a_question_that_comes_to_nothing_is_over_at_once(follower: Bench, how: str) -> None:
    told = asked(follower)
    ((_, question),) = of(ReadIndexRequest, follower.tick())
    assert isinstance(question, ReadIndexRequest)
    if how == "refused":
        follower.tell("a", ReadIndexReply(3, question.question, 0))
    elif how == "link":
        follower.replica.disconnected("a")
    else:
        follower.tell("c", AppendEntries(4, 11, 11, 1, []))
    assert told == [0]
    follower.tell("a", ReadIndexReply(3, question.question, 11))
    assert told == [0]


def test_a_question_waits_for_a_leader(follower: Bench) -> None:
    follower.replica.disconnected("a")
    told = asked(follower)
    assert not of(ReadIndexRequest, follower.tick())
    follower.replica.connected("a")
    assert len(of(ReadIndexRequest, follower.tick())) == 1 and not told


def test_a_forgotten_question_tells_nobody(follower: Bench) -> None:
    told = asked(follower)
    ((_, question),) = of(ReadIndexRequest, follower.tick())
    assert isinstance(question, ReadIndexRequest)
    follower.replica.reads.forget()
    follower.tell("a", ReadIndexReply(3, question.question, 11))
    follower.replica.disconnected("a")
    assert not told
