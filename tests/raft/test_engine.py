"""Every defect of the stock library that matters now: shown to be there in stock_defects.py, shown to be gone here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pysyncobj.journal
import pysyncobj.pickle
import pysyncobj.syncobj
import pysyncobj.tcp_connection
import pytest
from pysyncobj import SyncObj

from raftmft.core.commands import Envelope, NoOp
from raftmft.core.errors import CorruptFile, NotApplied, OutcomeUnknown
from raftmft.raft import patches, proposals
from raftmft.raft.engine import CANDIDATE, FOLLOWER, LEADER
from raftmft.raft.journal import Journal
from raftmft.raft.messages import (
    MAX_BATCH_BYTES,
    AppendEntries,
    AppendReply,
    Confirm,
    Confirmed,
    Forward,
    ForwardReply,
    LogEntry,
    Message,
    PreVote,
    PreVoteReply,
    ReadIndexReply,
    ReadIndexRequest,
    RequestVote,
    SnapshotOffer,
    Vote,
    decode,
    encode,
)
from raftmft.raft.progress import WINDOW_BYTES
from raftmft.raft.proposals import Proposal
from raftmft.raft.replica import Replica
from raftmft.wire.commands import encode_envelope
from tests.sim.disk import SimDisk
from tests.sim.machine import MemoryMachine

IDS = ["a", "b", "c"]
NO_OPS: list[LogEntry] = [(b"\x01", index, 1) for index in range(2, 12)]


@pytest.fixture(scope="module")
def stock() -> dict[str, bool]:
    """What stock pysyncobj does, run in a process where nothing is patched."""
    program = Path(__file__).with_name("stock_defects.py")
    result = subprocess.run([sys.executable, str(program)], capture_output=True, timeout=60, check=True)
    return json.loads(result.stdout)


class Bench:
    """One replica, messages by hand, time by hand."""

    def __init__(self, me: str = "b", ids: list[str] = IDS, disk: SimDisk | None = None,
                 machine: MemoryMachine | None = None) -> None:
        self.disk, self.now = disk or SimDisk(), 1000.0
        self.machine = machine or MemoryMachine()
        self.ids, self.me = ids, me

    def start(self) -> Bench:
        self.replica = Replica(self.me, self.ids, Journal("j", disk=self.disk), self.machine, rng=Random(1),
                               wall_ms=lambda: 5)
        for other in self.ids:
            if other != self.me:
                self.replica.connected(other)
        self.replica.engine._last_tick = self.now
        return self

    @property
    def engine(self):  # type: ignore[no-untyped-def]
        return self.replica.engine

    def tell(self, member: str, message: Message) -> list[tuple[str, Message]]:
        self.replica.receive(member, encode(message))
        return self.flush()

    def flush(self) -> list[tuple[str, Message]]:
        """What leaves, with the disk in between."""
        work = self.replica.collect()
        if work.batch is not None:
            self.replica.persist(work.batch)
            self.replica.persisted(work.batch)
        return [(out.member, decode(out.body)) for out in (*work.early, *work.late)]

    def tick(self, seconds: float = 0.02) -> list[tuple[str, Message]]:
        """Time passes in ticks; returns what the last of them sent."""
        end = self.now + seconds
        sent: list[tuple[str, Message]] = []
        while self.now < end - 1e-9:
            self.now += 0.02
            self.replica.tick()
            sent = self.flush()
        return sent

    def ask(self) -> PreVote:
        """Time passes until it asks for pre-votes."""
        while True:
            questions = [m for _, m in self.tick() if isinstance(m, PreVote)]
            if questions:
                return questions[0]

    def stand(self) -> list[tuple[str, Message]]:
        """It hears no leader, asks, gets its pre-votes and is a candidate; what that sent."""
        question = self.ask()
        for other in self.engine.configuration.voters:
            if other != self.me:
                self.tell(other, PreVoteReply(question.term, question.round, True))
        sent = self.tick()
        assert self.engine.state() == CANDIDATE
        return sent

    def lead(self) -> Bench:
        """Makes it the leader of a term, its no-op committed."""
        self.stand()
        voters = [other for other in self.ids if other != self.me][: len(self.ids) // 2]
        for voter in voters:
            self.tell(voter, Vote(self.engine.term()))
        assert self.engine.state() == LEADER
        for voter in voters:
            self.acknowledge(voter)
        self.tick()
        assert self.engine.commit_index() == self.replica.journal.last_index
        return self

    def acknowledge(self, member: str) -> None:
        last = self.replica.journal.last_index
        self.tell(member, AppendReply(self.engine.term(), True, last, last + 1))

    def propose(self, text: bytes = b"x") -> Proposal:
        proposal = Proposal(encode_envelope(Envelope(NoOp(text))), self.now + 5, lambda: None)
        self.replica.propose(proposal)
        return proposal


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with patches.use_clock(lambda: made.now):
        yield made.start()


# --- the append handler ---------------------------------------------------------------------------------------------
def test_late_and_repeated_appends_change_nothing(bench: Bench, stock: dict[str, bool]) -> None:
    assert stock["a duplicate truncates"] and stock["a stale heartbeat truncates"]
    bench.tell("a", AppendEntries(1, 1, 1, 0, NO_OPS))
    for late in ([], NO_OPS[:5], NO_OPS[:9], NO_OPS):
        bench.now += 0.06  # a message without entries is answered again once the last answer is not fresh
        ((_, reply),) = bench.tell("a", AppendEntries(1, 1, 1, 0, late))
        assert bench.replica.journal.last_index == 11
        assert reply == AppendReply(1, True, 1, 2 + len(late)), "it acknowledges what this message verified, no more"


def test_what_was_said_a_moment_ago_is_not_said_again_but_after_a_new_link_or_in_a_new_term(bench: Bench) -> None:
    """A follower need not answer the mere news of a commit: that is a message and a round there for each commit."""
    def news(term: int) -> AppendEntries:
        return AppendEntries(term, 8, 11, 1, [])

    bench.tell("a", AppendEntries(1, 1, 1, 0, NO_OPS))
    assert bench.tell("a", news(1)) == [] and bench.engine.commit_index() == 8
    bench.replica.disconnected("a")
    bench.replica.connected("a")
    answer = ("a", AppendReply(1, True, 11, 12))
    assert bench.tell("a", news(1)) == [answer], "the acknowledgement may be lost"
    assert bench.tell("a", news(1)) == []
    bench.now += 0.06
    assert bench.tell("a", news(1)) == [answer], "and so may this one: the leader's contact must stay fresh"
    assert bench.tell("c", news(2)) == [("c", AppendReply(2, True, 11, 12))], "a new leader was told nothing"


def test_all_are_told_of_a_commit_at_once(bench: Bench) -> None:
    bench.lead()
    bench.tick(0.04)
    while not bench.tick():
        pass  # until a heartbeat left: the next one is five ticks away
    payload = encode_envelope(Envelope(NoOp()))
    bench.tell("c", Forward(bench.engine.term(), 1, [(1, payload)]))
    bench.tick()
    last, term = bench.replica.journal.last_index, bench.engine.term()
    bench.tell("a", AppendReply(term, True, last - 1, last + 1))
    told = bench.tick()
    assert bench.engine.commit_index() == last
    assert [(member, type(m), m.commit_index) for member, m in told] == [
        ("a", AppendEntries, last), ("c", AppendEntries, last)]


def test_of_the_acknowledgements_only_the_one_that_makes_the_majority_asks_for_a_round(bench: Bench) -> None:
    bench.lead()
    bench.propose()
    bench.tick()
    last, term = bench.replica.journal.last_index, bench.engine.term()
    said = encode(AppendReply(term, True, last - 1, last + 1))
    assert bench.replica.receive("a", said)
    bench.tick()
    assert bench.engine.commit_index() == last
    assert bench.replica.receive("c", encode(AppendReply(term, False, last, 2))), "entries are to be sent again"
    bench.flush()
    assert not bench.replica.receive("c", said) and not bench.replica.receive("a", said)
    assert bench.replica.receive("c", encode(RequestVote(term + 9, last, term, True)))


def test_only_a_real_conflict_truncates_and_only_from_there(bench: Bench) -> None:
    bench.tell("a", AppendEntries(1, 1, 1, 0, NO_OPS))
    new = [*NO_OPS[:4], (b"\x01", 6, 2)]
    bench.tell("c", AppendEntries(2, 1, 1, 0, new))
    assert bench.replica.journal[1:] == new


def test_a_committed_entry_is_never_truncated(bench: Bench) -> None:
    bench.tell("a", AppendEntries(1, 8, 1, 0, NO_OPS))
    assert bench.engine.commit_index() == 8
    with pytest.raises(AssertionError, match="contradicts the committed entry 5"):
        bench.tell("c", AppendEntries(2, 8, 4, 1, [(b"\x01", 5, 2)]))
    assert bench.replica.journal.last_index == 11


def test_it_commits_no_further_than_the_message_verified(bench: Bench) -> None:
    """A tail of an old leader must not be committed by a heartbeat that says nothing about it."""
    bench.tell("a", AppendEntries(1, 1, 1, 0, NO_OPS))
    bench.tell("c", AppendEntries(2, 11, 3, 1, []))
    assert bench.engine.commit_index() == 3


def test_a_gap_is_refused_with_the_place_to_go_on_from(bench: Bench) -> None:
    assert bench.tell("a", AppendEntries(1, 1, 20, 1, [])) == [("a", AppendReply(1, False, 20, 2))]
    bench.tell("a", AppendEntries(1, 1, 1, 0, NO_OPS))
    ((_, reply),) = bench.tell("c", AppendEntries(3, 1, 8, 2, []))
    assert reply == AppendReply(3, False, 8, 2), "a whole term that does not fit is skipped at once"


def test_what_answers_an_offer_is_within_the_log_of_who_offers(bench: Bench) -> None:
    """The tail of an older term may be longer than all that the leader has (seed 745 of the soak)."""
    bench.tell("a", AppendEntries(1, 1, 1, 0, NO_OPS))
    offer = SnapshotOffer(2, 6, 2, bytes(32))
    assert bench.tell("c", offer) == [("c", AppendReply(2, False, 6, 6))]
    assert bench.engine.offered == ("c", offer)
    short = Bench()
    with patches.use_clock(lambda: short.now):
        assert short.start().tell("c", offer) == [("c", AppendReply(2, False, 6, 2))], "it has its first entry"


def test_a_deposed_leader_is_told(bench: Bench) -> None:
    bench.tell("a", AppendEntries(5, 1, 1, 0, []))
    ((_, reply),) = bench.tell("c", AppendEntries(4, 1, 1, 0, NO_OPS))
    assert reply == AppendReply(5, False, 1, 1) and bench.replica.journal.last_index == 1


# --- the barrier ----------------------------------------------------------------------------------------------------
def test_votes_and_acknowledgements_leave_after_the_disk_has_them(bench: Bench) -> None:
    replica = bench.replica
    bench.flush()
    for message, kind in ((RequestVote(4, 1, 0), Vote), (AppendEntries(4, 1, 1, 0, NO_OPS), AppendReply)):
        replica.receive("a", encode(message))
        work = replica.collect()
        assert not work.early and work.batch is not None and [type(decode(o.body)) for o in work.late] == [kind]
        replica.persist(work.batch)
        replica.persisted(work.batch)
    again = Journal("j", disk=bench.disk)
    assert (again.getCurrentTerm(), again.getVotedForNodeId(), again.last_index) == (4, "a", 11)


def test_a_candidacy_leaves_after_its_own_vote_is_durable(bench: Bench) -> None:
    question = bench.ask()
    bench.replica.receive("c", encode(PreVoteReply(0, question.round, True)))
    while True:
        bench.now += 0.02
        bench.replica.tick()
        work = bench.replica.collect()
        if work.late:
            break
    assert not work.early and work.batch is not None
    assert {type(decode(out.body)) for out in work.late} == {RequestVote}


def test_a_vote_is_kept_over_a_restart(bench: Bench) -> None:
    assert bench.tell("a", RequestVote(4, 1, 0)) == [("a", Vote(4))]
    bench.disk.lose_power(Random(1))
    bench.start()
    assert bench.tell("c", RequestVote(4, 1, 0)) == [], "one vote a term, whatever happens between"
    assert bench.tell("a", RequestVote(4, 1, 0)) == [("a", Vote(4))]


def test_a_leader_does_not_count_its_own_copy_before_it_is_on_disk(bench: Bench) -> None:
    bench.lead()
    commit = bench.engine.commit_index()
    bench.propose()
    bench.now += 0.02
    bench.replica.tick()
    work = bench.replica.collect()
    assert work.early and work.batch is not None, "the entries leave while the leader's own sync is under way"
    last = bench.replica.journal.last_index
    bench.replica.receive("a", encode(AppendReply(bench.engine.term(), True, last, last + 1)))
    bench.replica.tick()
    assert bench.engine.commit_index() == commit
    bench.replica.persist(work.batch)
    bench.replica.persisted(work.batch)
    bench.replica.tick()
    assert bench.engine.commit_index() == last


def test_a_lone_member_leads_only_after_its_vote_is_durable() -> None:
    bench = Bench("a", ["a"])
    with patches.use_clock(lambda: bench.now):
        bench.start().flush()
        work = bench.replica.collect()
        while work.batch is None:
            bench.now += 0.02
            bench.replica.tick()
            work = bench.replica.collect()
        assert bench.engine.state() == CANDIDATE
        bench.replica.persist(work.batch)
        bench.replica.persisted(work.batch)
        assert bench.engine.state() == LEADER
        assert bench.engine.commit_index() == 1
        bench.flush()
        bench.tick()
        assert bench.engine.commit_index() == 2


def test_a_follower_applies_only_what_is_on_its_disk(bench: Bench) -> None:
    bench.replica.receive("a", encode(AppendEntries(1, 11, 1, 0, NO_OPS)))
    bench.replica.tick()
    bench.replica.apply()
    assert bench.engine.commit_index() == 11 and bench.engine.applied() == 1
    bench.flush()
    bench.replica.apply()
    assert bench.engine.applied() == 11


# --- terms, votes, acknowledgements ---------------------------------------------------------------------------------
def test_a_repeated_vote_counts_once(stock: dict[str, bool]) -> None:
    assert stock["one voter's repeated vote counts twice"]
    bench = Bench("a", ["a", "b", "c", "d", "e"])
    with patches.use_clock(lambda: bench.now):
        bench.start()
        bench.stand()
        for _ in range(3):
            bench.tell("b", Vote(bench.engine.term()))
        assert bench.engine.state() == CANDIDATE
        bench.tell("c", Vote(bench.engine.term() - 1))
        assert bench.engine.state() == CANDIDATE
        bench.tell("c", Vote(bench.engine.term()))
        assert bench.engine.state() == LEADER


def test_acknowledgements_count_in_their_own_term_and_within_the_log(bench: Bench, stock: dict[str, bool]) -> None:
    assert stock["an acknowledgement beyond the log counts"]
    bench.lead()
    term, last = bench.engine.term(), bench.replica.journal.last_index
    bench.propose()
    bench.tick()
    bench.tell("c", AppendReply(term - 1, True, last, last + 2))
    bench.tick()
    assert bench.engine.commit_index() == last
    bench.tell("c", AppendReply(term, True, last, last + 50))
    bench.tick()
    assert bench.engine.commit_index() == last and bench.replica.status().dropped_messages == 1
    bench.tell("c", AppendReply(term, False, last + 70, last + 70))
    assert bench.replica.status().dropped_messages == 1, "an honest answer to what it said as leader of an old term"
    bench.tell("c", AppendReply(term, True, last, last + 2))
    bench.tick()
    assert bench.engine.commit_index() == last + 1


@pytest.mark.parametrize("kind", range(10))
def test_a_higher_term_in_any_message_deposes_a_leader(bench: Bench, kind: int) -> None:
    bench.lead()
    term = bench.engine.term() + 3
    message: Message = (AppendEntries(term, 1, 1, 0, []), AppendReply(term, False, 1, 1), RequestVote(term, 1, 0, True),
                        Vote(term), Forward(term, 1, [(1, b"x")]), ForwardReply(term, [(1, 2)]),
                        ReadIndexRequest(term, 1), ReadIndexReply(term, 1, 1), Confirm(term, 1),
                        Confirmed(term, 1))[kind]
    bench.tell("c", message)
    assert bench.engine.state() == FOLLOWER and bench.engine.term() == term
    assert Journal("j", disk=bench.disk).getCurrentTerm() == term


def test_who_is_not_in_the_configuration_counts_for_nothing(bench: Bench) -> None:
    assert bench.tell("b", RequestVote(99, 1, 0)) == [] and bench.engine.term() == 0, "its own name is not heard"
    bench.stand()
    term = bench.engine.term()
    assert bench.engine.state() == CANDIDATE
    bench.tell("x", Vote(term))
    bench.tell("y", Vote(term))
    assert bench.engine.state() == CANDIDATE, "votes of strangers do not elect"
    bench.tell("a", Vote(term))
    assert bench.engine.state() == LEADER
    commit = bench.engine.commit_index()
    bench.tell("x", AppendReply(term, True, 1, bench.engine.journal.last_index + 1))
    bench.replica.tick()
    assert bench.engine.commit_index() == commit, "an acknowledgement of a stranger commits nothing"


def test_a_log_that_lacks_entries_gets_no_vote(bench: Bench) -> None:
    bench.tell("a", AppendEntries(2, 1, 1, 0, NO_OPS))
    bench.now += 1
    assert bench.tell("c", RequestVote(3, 10, 1)) == []
    assert bench.tell("c", RequestVote(3, 11, 1)) == [("c", Vote(3))]


# --- time -----------------------------------------------------------------------------------------------------------
def test_a_member_that_was_stopped_does_not_disturb_a_live_leader(bench: Bench, stock: dict[str, bool]) -> None:
    assert stock["a paused member disturbs a live leader"]
    bench.tell("a", AppendEntries(1, 1, 1, 0, NO_OPS))
    bench.now += 5
    assert bench.tick() == [], "it does not even ask"
    assert bench.engine.state() == FOLLOWER and bench.engine.term() == 1
    bench.stand()
    assert bench.engine.term() == 2, "with no leader it stands in the end"


def test_a_leader_without_a_majority_steps_down_within_a_second(bench: Bench) -> None:
    bench.lead()
    bench.tick(0.8)
    assert bench.engine.state() == LEADER
    bench.tick(0.2)
    assert bench.engine.state() != LEADER and not bench.engine.has_quorum()


# --- commands -------------------------------------------------------------------------------------------------------
def test_commands_of_any_size_get_through(bench: Bench, stock: dict[str, bool]) -> None:
    assert stock["a command near a multiple of the batch size stalls"]
    bench.lead()
    for size in (131052, 65536, 262144 - 20, 480 * 1024 - 40):
        proposal = bench.propose(b"x" * size)
        bench.tick()
        bench.acknowledge("a")
        bench.tick()
        bench.replica.apply()
        assert proposal.outcome is not None and proposal.outcome.ok


def test_an_entry_that_is_no_command_is_rejected_alike_everywhere(bench: Bench) -> None:
    bad = [(b"\x00junk", 2, 1), (b"\x00" + bytes(8) + b"junk", 3, 1), (b"\x07" + bytes(20), 4, 1)]
    bench.tell("a", AppendEntries(1, 4, 1, 0, bad))
    bench.replica.apply()
    assert bench.engine.applied() == 4 and bench.machine.applied == 0


def test_an_exception_in_apply_stops_instead_of_wedging(bench: Bench, stock: dict[str, bool]) -> None:
    assert stock["an exception in apply wedges"]
    bench.lead()
    proposal = bench.propose()
    bench.tick()
    bench.acknowledge("a")
    bench.tick()
    bench.machine.fail = OSError("disk")
    with pytest.raises(OSError):
        bench.replica.apply()
    assert proposal.outcome is None and proposal.error is None


def test_the_leader_stamps_and_the_log_keeps_the_stamp(bench: Bench) -> None:
    seen: list[int] = []
    bench.machine._on_entry = lambda entry: seen.append(entry.stamp_ms)
    bench.lead().propose()
    bench.tick()
    bench.acknowledge("a")
    bench.tick()
    bench.replica.apply()
    assert seen == [5]


def test_forwarded_commands_are_placed_once_and_answered_once(bench: Bench) -> None:
    bench.lead()
    term, payload = bench.engine.term(), encode_envelope(Envelope(NoOp(b"x")))
    last = bench.replica.journal.last_index
    forward = Forward(term, 9, [(1, payload), (2, payload)])
    bench.tell("c", forward)
    bench.tell("c", forward)
    answers = [m for _, m in bench.tick() if isinstance(m, ForwardReply)]
    assert answers == [ForwardReply(term, [(1, last + 1), (2, last + 2)])]
    assert bench.replica.journal.last_index == last + 2
    late = Forward(term - 1, 9, [(3, payload)])
    assert bench.tell("c", late) == [], "of another term: it may have been placed there"
    bench.tick()
    assert bench.replica.journal.last_index == last + 2


def test_a_follower_refuses_forwards_and_says_so(bench: Bench) -> None:
    bench.tell("a", AppendEntries(1, 1, 1, 0, []))
    assert bench.tell("c", Forward(1, 9, [(1, b"x")])) == [("c", ForwardReply(1, [(1, 0)]))]


def test_what_a_forward_ends_as(bench: Bench) -> None:
    bench.tell("a", AppendEntries(1, 1, 1, 0, []))
    refused, taken, lost = bench.propose(), bench.propose(), bench.propose()
    ((_, forward),) = bench.tick()
    assert isinstance(forward, Forward) and forward.term == 1
    requests = [request for request, _ in forward.commands]
    bench.tell("a", ForwardReply(1, [(requests[0], 0), (requests[1], 2)]))
    assert isinstance(refused.error, NotApplied)
    bench.tell("c", AppendEntries(2, 1, 1, 0, []))
    assert isinstance(lost.error, OutcomeUnknown), "its leader is gone and may have placed it"
    other = b"\x00" + bytes(8) + encode_envelope(Envelope(NoOp(b"another")))
    bench.tell("c", AppendEntries(2, 2, 1, 0, [(other, 2, 2)]))
    bench.replica.apply()
    assert isinstance(taken.error, NotApplied), "another leader's entry is committed at its place"


def test_a_truncated_placement_is_unknown_at_once(bench: Bench) -> None:
    bench.lead()
    proposal = bench.propose()
    bench.tick()
    last, term = bench.replica.journal.last_index, bench.engine.term()
    assert proposal.error is None
    bench.tell("c", AppendEntries(term + 1, 1, last - 1, term, [(b"\x01", last, term + 1)]))
    assert isinstance(proposal.error, OutcomeUnknown)


def test_a_full_queue_is_not_applied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "MAX_PENDING", 3)
    for _ in range(3):
        bench.propose()
    with pytest.raises(NotApplied):
        bench.propose()


# --- catching up ----------------------------------------------------------------------------------------------------
def test_a_follower_far_behind_is_caught_up_without_sending_twice(bench: Bench) -> None:
    bench.lead()
    for _ in range(40):
        bench.propose(b"x" * (300 << 10))
    for _ in range(8):
        bench.tick()
        bench.acknowledge("a")
    term, last = bench.engine.term(), bench.replica.journal.last_index
    progress = bench.engine.progress["c"]
    have, sent_bytes, total = 1, 0, sum(len(e[0]) for e in bench.replica.journal[1:])
    box = bench.tell("c", AppendReply(term, False, progress.next - 1, 2))
    for _ in range(60):
        for message in [m for to, m in box if to == "c" and isinstance(m, AppendEntries)]:
            assert message.prev_index == have
            sent_bytes += sum(len(entry[0]) for entry in message.entries)
            have += len(message.entries)
        if have == last:
            break
        box = bench.tell("c", AppendReply(term, True, 1, have + 1))
    assert have == last and sent_bytes == total


def test_a_follower_far_behind_is_sent_no_more_at_once_than_a_window(bench: Bench) -> None:
    """What is packed and queued in one go holds up everybody else, and heartbeats queue behind it on a slow link."""
    bench.lead()
    for _ in range(40):
        bench.propose(b"x" * (300 << 10))
    for _ in range(8):
        bench.tick()
        bench.acknowledge("a")
    term = bench.engine.term()
    bench.tell("c", AppendReply(term, False, bench.engine.progress["c"].next - 1, 2))
    box = bench.tell("c", AppendReply(term, True, 1, 2))
    size = sum(len(entry[0]) for to, m in box if to == "c" and isinstance(m, AppendEntries) for entry in m.entries)
    assert 1 << 20 < size <= WINDOW_BYTES + MAX_BATCH_BYTES == 3 << 20


# --- start ----------------------------------------------------------------------------------------------------------
def test_replay_skips_what_the_machine_holds(bench: Bench) -> None:
    bench.lead()
    for number in range(5):
        bench.propose(b"%d" % number)
        bench.tick()
        bench.acknowledge("a")
    bench.tick()
    bench.replica.apply()
    applied = bench.machine.applied
    bench.replica.close()
    bench.start()
    assert bench.engine.applied() == applied and bench.engine.commit_index() >= applied
    bench.replica.apply()
    bench.machine = MemoryMachine()
    bench.replica.close()
    bench.start()
    while bench.replica.apply():
        pass
    assert bench.machine.applied == applied, "without its state it replays all that is known to be committed"


def test_a_lost_journal_is_refused() -> None:
    machine = MemoryMachine()
    machine.applied = 40
    with pytest.raises(CorruptFile, match="the journal was lost or replaced"):
        Bench(machine=machine).start()


def test_the_pin_and_the_patches_hold(monkeypatch: pytest.MonkeyPatch, stock: dict[str, bool]) -> None:
    assert all(stock.values()), f"fixed upstream? {[name for name, there in stock.items() if not there]}"
    for call in (pysyncobj.pickle.loads, pysyncobj.syncobj.pickle.loads, pysyncobj.tcp_connection.pickle.loads,
                 pysyncobj.journal.loads, pysyncobj.pickle.load):
        with pytest.raises(AssertionError, match="never"):
            call(b"")
    monkeypatch.setattr(patches, "VERSION", "0.3.18")
    with pytest.raises(AssertionError, match="exactly 0.3.17"):
        patches.install()
    monkeypatch.undo()
    monkeypatch.delattr(SyncObj, "_SyncObj__onBecomeLeader")
    with pytest.raises(AssertionError, match="no method _SyncObj__onBecomeLeader"):
        patches.install()
