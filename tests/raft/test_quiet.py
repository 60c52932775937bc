"""Trouble on the network, of the processes and of disks raises no terms and stops no majority: minutes of virtual time.

The bound that is promised is five terms a minute; what is asserted is what the engine does.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from raftmft.core.errors import NotApplied, OutcomeUnknown
from raftmft.raft import patches
from tests.raft.virtual import Member, Virtual

WRITE_PAUSE_S = 3.0


@pytest.fixture(params=[(3, 1), (5, 2)], ids=lambda p: f"{p[0]}-{p[1]}")
def world(request: pytest.FixtureRequest) -> Iterator[Virtual]:
    made = Virtual(*request.param)
    with patches.use_clock(lambda: made.now):
        yield made.start()


def others(world: Virtual, member: Member) -> list[str]:
    return [name for name in world.names if name != member.name]


def quiet(world: Virtual, minutes: float, elections: int, writers: list[str]) -> None:
    """For `minutes`: at most `elections` new terms, and each of `writers` goes on writing (none given: as before)."""
    before, began = max(world.terms()), world.now
    world.writers = set(writers) or world.writers
    world.run(60 * minutes)
    assert max(world.terms()) - before <= elections, f"terms rose from {before} to {max(world.terms())}"
    for name in writers:
        assert world.longest_pause(name, began) < WRITE_PAUSE_S, f"{name} could not write"


def heals(world: Virtual) -> None:
    world.cut.clear()
    before = max(world.terms())
    world.settle()
    world.run(3)
    assert len(set(world.terms())) == 1 and max(world.terms()) <= before + 1


# --- one-way cuts ----------------------------------------------------------------------------------------------------
def test_a_follower_that_cannot_hear_its_leader(world: Virtual) -> None:
    leader = world.settle()
    deaf, *rest = others(world, leader)
    world.cut = {(leader.name, deaf)}
    quiet(world, 0.5, 0, [])  # nothing is written yet: its log is as good as any
    quiet(world, 1, 0, [leader.name, *rest])
    assert leader.leads
    heals(world)


def test_a_follower_whose_answers_do_not_arrive(world: Virtual) -> None:
    leader = world.settle()
    mute, *rest = others(world, leader)
    world.cut = {(mute, leader.name)}
    quiet(world, 1, 0, [leader.name, *rest])
    assert leader.leads
    heals(world)


def test_a_leader_that_can_send_but_not_hear(world: Virtual) -> None:
    leader = world.settle()
    rest = others(world, leader)
    world.cut = {(name, leader.name) for name in rest}
    quiet(world, 1, 1, rest)
    assert not leader.leads
    heals(world)


def test_a_leader_that_can_hear_but_not_send(world: Virtual) -> None:
    leader = world.settle()
    rest = others(world, leader)
    world.cut = {(leader.name, name) for name in rest}
    quiet(world, 1, 1, rest)
    assert not leader.leads
    heals(world)


def test_a_ring_of_one_way_links_elects_nobody_and_raises_no_term(world: Virtual) -> None:
    world.settle()
    names = world.names
    ring = {(name, names[(at + 1) % len(names)]) for at, name in enumerate(names)}
    world.cut = {(a, b) for a in names for b in names if a != b and (a, b) not in ring}
    world.writers = set()
    quiet(world, 1, 0, [])
    heals(world)


# --- bridges ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("world", [(3, 1)], indirect=True, ids=["three"])
def test_two_of_three_that_see_only_the_third(world: Virtual, at: int) -> None:
    leader = world.settle()
    middle = world.names[at]
    world.cut_both(*(name for name in world.names if name != middle))
    writers = {leader.name, middle} if leader.name != middle else set(world.names)
    quiet(world, 1, 0, sorted(writers))
    assert leader.leads
    heals(world)


@pytest.mark.parametrize("world", [(5, 1), (5, 2)], indirect=True, ids=["1", "2"])
def test_two_and_two_that_see_only_the_fifth(world: Virtual) -> None:
    world.settle()
    for one in "ab":
        for other in "de":
            world.cut_both(one, other)
    quiet(world, 1, 1, ["c"])
    heals(world)


@pytest.mark.parametrize("world", [(5, 1), (5, 2)], indirect=True, ids=["1", "2"])
def test_a_chain_of_five(world: Virtual) -> None:
    world.settle()
    for at, one in enumerate(world.names):
        for other in world.names[at + 2 :]:
            world.cut_both(one, other)
    quiet(world, 1, 2, ["c"])
    heals(world)


@pytest.mark.parametrize("world", [(5, 1), (5, 2), (5, 3)], indirect=True, ids=["1", "2", "3"])
def test_any_one_way_cuts_around_a_whole_majority(world: Virtual) -> None:
    """Every half minute other cuts, of any directions but those among three; the leader is any of five at first."""
    world.settle()
    rng = Random(world.rng.random())
    core = rng.sample(world.names, 3)
    free = [(a, b) for a in world.names for b in world.names if a != b and not {a, b} <= set(core)]
    began, before = world.now, max(world.terms())
    world.writers = set(core)
    for _ in range(6):
        world.cut = {edge for edge in free if rng.random() < 0.5}
        world.run(30)
        assert max(world.written[name][-1] for name in core) > world.now - WRITE_PAUSE_S
    assert max(world.terms()) - before <= 5 * (world.now - began) / 60
    heals(world)


# --- away and back ---------------------------------------------------------------------------------------------------
def test_a_member_that_was_cut_off_for_minutes_comes_back_unnoticed(world: Virtual) -> None:
    leader = world.settle()
    lost, *rest = others(world, leader)
    world.isolate(lost)
    quiet(world, 2, 0, [leader.name, *rest])
    world.cut.clear()
    quiet(world, 1, 0, world.names)
    assert leader.leads


def test_a_member_that_comes_and_goes_disturbs_nobody(world: Virtual) -> None:
    leader = world.settle()
    flapping, *rest = others(world, leader)
    began, before = world.now, max(world.terms())
    world.writers = {leader.name, *rest}
    for _ in range(30):
        world.isolate(flapping)
        world.run(1.7)
        world.cut.clear()
        world.run(0.3)
    assert max(world.terms()) == before and leader.leads
    assert world.longest_pause(leader.name, began) < 0.5


def test_a_member_that_was_stopped_wakes_unnoticed(world: Virtual) -> None:
    leader = world.settle()
    sleeper, *rest = others(world, leader)
    term = max(world.terms())
    for seconds in (0.4, 0.7, 1.0, 5.0, 60.0):
        world.members[sleeper].stopped = True
        quiet(world, seconds / 60, 0, [leader.name, *rest])
        world.members[sleeper].stopped = False
        quiet(world, 0.05, 0, [leader.name, *rest])
    assert world.terms() == [term] * len(world.names) and leader.leads


def test_a_stopped_leader_is_replaced_once_and_wakes_as_a_follower(world: Virtual) -> None:
    leader = world.settle()
    rest = others(world, leader)
    leader.stopped = True
    quiet(world, 0.5, 1, rest)
    leader.stopped = False
    quiet(world, 0.5, 0, world.names)
    assert not leader.leads


# --- isolation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("world", [(3, seed) for seed in range(6)], indirect=True, ids=range(6))
def test_an_isolated_leader_steps_down_within_a_second_and_requests_end_in_time(world: Virtual) -> None:
    leader = world.settle()
    rest = others(world, leader)
    follower = world.members[rest[0]]
    world.writers = set(world.names)
    world.run(world.rng.uniform(0.5, 1.5))
    placed = world.propose(leader.name, 4.5)
    forwarded = world.propose(follower.name, 4.5)
    world.isolate(leader.name)
    cut_at = world.now
    while leader.leads:
        world.run(0.01)
        assert world.now - cut_at < 1.0
    assert not leader.replica.status().has_quorum and leader.replica.status().leader is None
    queued = world.propose(leader.name, 4.5)
    world.run(3.5)
    assert isinstance(forwarded.error, OutcomeUnknown), "its leader is gone: told as soon as another leads"
    while placed.error is None or queued.error is None:
        world.run(0.05)
        assert world.now - cut_at < 5.0 + 1.0
    assert isinstance(placed.error, OutcomeUnknown) and isinstance(queued.error, NotApplied)
    assert world.written[rest[0]][-1] > world.now - 0.3


# --- disks -----------------------------------------------------------------------------------------------------------
def test_a_stall_of_three_seconds_of_any_disk_moves_no_leader(world: Virtual) -> None:
    leader = world.settle()
    world.writers = set(world.names)
    for name in world.names:
        world.members[name].hangs = True
        quiet(world, 3 / 60, 0, [])
        world.members[name].hangs = False
        world.run(1)
        assert leader.leads and max(world.terms()) == min(world.terms())
        assert all(world.written[other][-1] > world.now - 0.3 for other in world.names)


def test_a_stall_of_ten_seconds_of_the_leaders_disk_moves_it_away(world: Virtual) -> None:
    leader = world.settle()
    rest = others(world, leader)
    world.run(5)
    world.writers = set(world.names)
    world.run(1)
    leader.hangs, began = True, world.now
    quiet(world, 10 / 60, 1, [])
    assert not leader.leads and any(world.members[name].leads for name in rest)
    for name in rest:
        first = min(at for at in world.written[name] if at > began + 1)
        assert 5.0 <= first - began < 5.5, "the others write again as soon as it has handed over"
    leader.hangs = False
    quiet(world, 0.2, 0, world.names)
    assert not leader.leads and leader.replica.engine.applied() > 100


def test_a_follower_whose_disk_hangs_for_minutes_holds_nobody_up(world: Virtual) -> None:
    leader = world.settle()
    slow, *rest = others(world, leader)
    world.members[slow].hangs = True
    quiet(world, 1, 0, [leader.name, *rest])
    world.members[slow].hangs = False
    quiet(world, 0.2, 0, [leader.name, *rest])
    assert leader.leads


# --- clocks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("jump_s", [3600.0, -3600.0], ids=["forward", "back"])
def test_jumps_of_any_wall_clock_move_nobody(world: Virtual, jump_s: float) -> None:
    leader = world.settle()
    world.writers = set(world.names)
    for name in world.names:
        world.members[name].wall_jump_s += jump_s
        quiet(world, 0.1, 0, world.names)
        world.members[name].wall_jump_s -= jump_s
        quiet(world, 0.1, 0, world.names)
    assert leader.leads
