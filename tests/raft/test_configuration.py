"""Changes of membership: one at a time, in force from the log, taken back when cut off; learners count in nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.raft import patches
from raftmft.raft.configuration import KIND, Configuration, decode, next_step
from raftmft.raft.engine import CANDIDATE, FOLLOWER, LEADER
from raftmft.raft.messages import AppendEntries, AppendReply, RequestVote, TimeoutNow, Vote, encode
from raftmft.raft.messages import decode as decode_message
from raftmft.wire.frames import FrameError
from tests.raft.test_engine import Bench

IDS = st.sets(st.sampled_from("abcdefg"), max_size=6)


@pytest.fixture
def lone() -> Iterator[Bench]:
    made = Bench("a", ["a"])
    with patches.use_clock(lambda: made.now):
        made.start()
        made.tick(5.0)
        assert made.engine.state() == LEADER
        yield made


@pytest.fixture
def three() -> Iterator[Bench]:
    made = Bench("b", ["a", "b", "c"])
    with patches.use_clock(lambda: made.now):
        yield made.start()


def restarted(bench: Bench) -> Bench:
    bench.replica.journal.close()
    return bench.start()


@given(IDS.filter(bool), IDS)
def test_there_and_back(voters: set[str], learners: set[str]) -> None:
    made = Configuration(tuple(sorted(voters)), tuple(sorted(learners - voters)))
    assert decode(made.encode()) == made


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x93\x01\x90\x90", b"\x93\x01\x92\xa1b\xa1a\x90",
                                  b"\x93\x02\x91\xa1a\x90", b"\x93\x01\x91\xa1a\x91\xa1a", b"\x93\x01\x91\x01\x90",
                                  b"\x93\x01\xa1a\x90"])
def test_nonsense_is_refused_before_it_is_in_the_log(body: bytes, three: Bench) -> None:
    with pytest.raises(FrameError):
        decode(KIND + body)
    with pytest.raises(FrameError):
        decode_message(encode(AppendEntries(1, 1, 1, 0, [(KIND + body, 2, 1)])))


@given(IDS.filter(bool), IDS, IDS, IDS)
def test_steps_change_at_most_one_voter_and_come_to_an_end(
        voters: set[str], learners: set[str], listed: set[str], ready: set[str]) -> None:
    present = Configuration(tuple(sorted(voters)), tuple(sorted(learners - voters)))
    leader = min(voters)
    for _ in range(40):
        step = next_step(present, leader, listed, ready)
        if step is None:
            break
        assert len(set(step.voters) ^ set(present.voters)) <= 1 and leader in step.voters
        present = step
    else:
        raise AssertionError("it never comes to an end")
    assert set(present.voters) | set(present.learners) == listed | {leader}
    assert not set(present.learners) & ready


def test_a_cluster_of_one_grows(lone: Bench) -> None:
    lone.replica.want_members(["a", "b"], [])
    lone.tick()
    assert lone.engine.configuration == Configuration(("a",), ("b",))
    lone.replica.connected("b")
    lone.tick()
    assert lone.engine.commit_index() == lone.replica.journal.last_index, "a learner's acknowledgement is not needed"
    lone.replica.want_members(["a", "b"], ["b"])
    lone.tick()
    assert lone.engine.configuration == Configuration(("a", "b"))
    lone.tick()
    last = lone.replica.journal.last_index
    assert lone.engine.commit_index() < last, "the new voter's is"
    lone.acknowledge("b")
    lone.tick()
    assert lone.engine.commit_index() == last


def test_one_change_at_a_time(three: Bench) -> None:
    three.lead()
    three.replica.want_members(["a", "b", "c", "d", "e"], [])
    three.tick()
    assert three.engine.configuration.learners == ("d",)
    three.replica.want_members(["a", "b", "c", "d", "e"], [])
    three.tick(0.1)
    assert three.engine.configuration.learners == ("d",), "the first is not committed yet"
    three.acknowledge("a")
    three.tick()
    three.replica.want_members(["a", "b", "c", "d", "e"], [])
    three.tick()
    assert three.engine.configuration.learners == ("d", "e")


def test_a_new_leader_waits_for_an_entry_of_its_own_term(three: Bench) -> None:
    three.stand()
    three.tell("a", Vote(three.engine.term()))
    assert three.engine.state() == LEADER
    three.replica.want_members(["a", "b"], [])
    three.tick()
    assert three.engine.configuration == Configuration(("a", "b", "c"))


def test_what_is_cut_off_counts_no_more(three: Bench) -> None:
    grown = Configuration(("a", "b", "c"), ("d",)).encode()
    three.tell("a", AppendEntries(1, 1, 1, 0, [(b"\x01", 2, 1), (grown, 3, 1)]))
    assert three.engine.configuration.learners == ("d",)
    three.tell("c", AppendEntries(2, 1, 2, 1, [(b"\x01", 3, 2)]))
    assert three.engine.configuration == Configuration(("a", "b", "c"))


def test_a_restart_finds_the_configuration_in_the_log(three: Bench) -> None:
    three.tell("a", AppendEntries(1, 1, 1, 0, [(b"\x01", 2, 1), (Configuration(("a", "c"), ("b",)).encode(), 3, 1)]))
    assert restarted(three).engine.configuration == Configuration(("a", "c"), ("b",))


def test_a_host_that_joined_learns_and_neither_stands_nor_leads(tmp_path: Path) -> None:
    bench = Bench("d", ["d"])
    with patches.use_clock(lambda: bench.now):
        bench.ids = []
        bench.start()
        bench.replica.connected("a")
        bench.tick(5.0)
        assert (bench.engine.state(), bench.engine.term()) == (FOLLOWER, 0)
        grown = Configuration(("a",), ("d",))
        sent = bench.tell("a", AppendEntries(3, 2, 1, 0, [(b"\x01", 2, 3), (grown.encode(), 3, 3)]))
        assert sent == [("a", AppendReply(3, True, 1, 4))]
        bench.tell("a", TimeoutNow(3))
        bench.tick(5.0)
        assert bench.engine.state() == FOLLOWER, "a learner is no candidate"
        assert bench.tell("a", RequestVote(4, 3, 3)) == [("a", Vote(4))], "it may be a voter that does not know it yet"
        bench.tell("a", AppendEntries(4, 3, 3, 3, [(Configuration(("a", "d")).encode(), 4, 4)]))
        bench.stand()
        assert bench.engine.state() == CANDIDATE, "a voter is"


def test_a_removed_member_is_not_sent_to_and_not_counted(three: Bench) -> None:
    three.lead()
    three.replica.want_members(["a", "b"], ["a"])
    three.tick()
    assert three.engine.configuration == Configuration(("a", "b"))
    last = three.replica.journal.last_index
    three.tell("c", AppendReply(three.engine.term(), True, last, last + 1))
    three.tick()
    assert three.engine.commit_index() < last, "who was removed commits nothing"
    assert "c" not in {member for member, _ in three.tick(0.2)} and "c" not in three.engine.contacts()
    three.acknowledge("a")
    three.tick()
    assert three.engine.commit_index() == last


def test_a_leader_that_is_not_listed_stays_until_it_handed_over(three: Bench) -> None:
    three.lead()
    three.replica.want_members(["a", "c"], ["a", "c"])
    three.tick()
    assert three.engine.configuration == Configuration(("a", "b", "c"))
