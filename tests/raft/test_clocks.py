"""The leader writes the median of the voters' clocks: one clock that is wrong, its own too, moves nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raftmft.core.machine import Entry
from raftmft.raft import patches
from raftmft.raft.clocks import HEARD_WITHIN_S, Clocks
from raftmft.raft.messages import AppendEntries, AppendReply
from tests.raft.test_engine import Bench
from tests.raft.virtual import Virtual

HOUR_S = 3600


def made(own_ms: int, **others: int) -> Clocks:
    clocks = Clocks(lambda: own_ms)
    for member, clock_ms in others.items():
        clocks.heard(member, clock_ms, 10.0)
    return clocks


@pytest.mark.parametrize(("own", "b", "c"), [(9000, 1000, 1001), (1000, 9000, 1001), (1, 1000, 1001), (1000, 1001, 1)])
def test_of_three_the_one_that_is_wrong_does_not_count(own: int, b: int, c: int) -> None:
    assert made(own, b=b, c=c).stamp_ms("abc", "a", 10.0) in (1000, 1001)


def test_of_two_the_earlier_counts_and_one_alone_goes_by_its_own() -> None:
    assert made(9000, b=1000).stamp_ms("ab", "a", 10.0) == 1000
    assert made(1000, b=9000).stamp_ms("ab", "a", 10.0) == 1000
    assert made(9000).stamp_ms("a", "a", 10.0) == 9000


def test_less_than_a_majority_knows_no_time() -> None:
    assert made(1000).stamp_ms("abc", "a", 10.0) is None
    assert made(1000, b=1000).stamp_ms("abcd", "a", 10.0) is None
    assert made(1000, x=1000, y=1000).stamp_ms("abc", "a", 10.0) is None, "who does not vote does not count"
    assert made(1000, b=1000).stamp_ms("abc", "a", 11.0 + HEARD_WITHIN_S) is None, "nor one that was heard long ago"


def test_a_clock_goes_on_between_two_acknowledgements() -> None:
    assert made(0, b=1000, c=1000).stamp_ms("abc", "a", 12.5) == 3500


def test_a_clock_before_1970_is_none() -> None:
    assert made(-5).stamp_ms("a", "a", 10.0) == 0


# --- in the replica --------------------------------------------------------------------------------------------------
@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with patches.use_clock(lambda: made.now):
        yield made.start()


def test_an_acknowledgement_tells_the_clock(bench: Bench) -> None:
    ((_, reply),) = bench.tell("a", AppendEntries(1, 1, 1, 0, []))
    assert isinstance(reply, AppendReply) and reply.clock_ms == 5


def test_a_new_leader_writes_nothing_before_it_knows_the_time(bench: Bench) -> None:
    stamps: list[int] = []
    bench.machine._on_entry = lambda entry: stamps.append(entry.stamp_ms)
    bench.stand()
    bench.engine._win()
    bench.propose()
    bench.tick(0.1)
    term, last = bench.engine.term(), bench.replica.journal.last_index
    assert bench.replica.journal.term_at(last) == term and bench.replica.table.has_queued()
    bench.tell("c", AppendReply(term, True, last, last + 1, 7000))
    bench.tick()
    assert not bench.replica.table.has_queued()
    bench.tell("c", AppendReply(term, True, last, last + 2, 7000))
    bench.tick()
    bench.replica.apply()
    assert stamps == [5]


class Stamps:
    """The time that each member's state has: the greatest stamp that was applied."""

    def __init__(self, world: Virtual) -> None:
        self.now_ms = dict.fromkeys(world.names, 0)
        for name, member in world.members.items():
            member.machine._on_entry = lambda entry, name=name: self._applied(name, entry)

    def _applied(self, name: str, entry: Entry) -> None:
        self.now_ms[name] = max(self.now_ms[name], entry.stamp_ms)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
@pytest.mark.parametrize("size", [3, 5])
def test_an_hours_jump_of_any_one_clock_does_not_move_the_states_time(size: int, jump_s: float) -> None:
    world = Virtual(size)
    world.now = 1_000_000.0
    with patches.use_clock(lambda: world.now):
        world.start()
        stamps = Stamps(world)
        world.settle()
        world.writers = set(world.names)
        for name in world.names:  # the leader's is among them
            world.run(2)
            world.members[name].wall_jump_s += jump_s
            world.run(2)
            assert all(abs(at - 1000 * world.now) < 500 for at in stamps.now_ms.values())
            world.members[name].wall_jump_s -= jump_s
        world.run(2)
        assert all(abs(at - 1000 * world.now) < 500 for at in stamps.now_ms.values())


def test_a_leader_that_begins_with_a_wrong_clock_does_not_move_it_either() -> None:
    world = Virtual(3)
    world.now = 1_000_000.0
    with patches.use_clock(lambda: world.now):
        world.start()
        stamps = Stamps(world)
        world.writers = set(world.names)
        first = world.settle()
        world.run(1)
        name = next(name for name in world.names if name != first.name)
        world.members[name].wall_jump_s = HOUR_S
        until = world.now + 5
        while not world.members[name].leads:
            first.replica.engine.hand_over(name)
            world.run(0.02)
            assert world.now < until
        world.run(3)
        assert all(abs(at - 1000 * world.now) < 500 for at in stamps.now_ms.values())
