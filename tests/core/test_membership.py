"""SWIM under a simulated network: loss, partitions, pauses, restarts. Every run replays from its seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swim_world import TICK_S, World

from raftmft.core.membership import (
    MAX_INCARNATION,
    MAX_RUMOURS,
    STARTING_GRACE_S,
    Kind,
    Load,
    Membership,
    Message,
    Rumour,
    State,
)


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_members_find_each_other_at_once(count):
    world = World(count)
    assert world.states("m0") == {"m0": "alive", **{m: "suspect" for m in world.names[1:]}}
    assert world.until(lambda: all(world.all_hold(m, "alive") for m in world.names), 1) <= 0.2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [3, 5])
def test_a_dead_member_is_held_for_dead_by_all_within_about_two_seconds(count, seed):
    world = World(count, seed)
    world.settle()
    world.run(seed * 0.05)
    world.kill("m1")
    assert world.until(lambda: world.all_hold("m1", "dead"), 5) <= 2.5
    assert {e.member for _, _, e in world.events if e.what == "dead"} == {"m1"}


def test_half_the_time_that_is_much_less_than_two_seconds():
    times = []
    for seed in range(21):
        world = World(3, seed)
        world.settle()
        world.run(seed * 0.03)
        world.kill("m1")
        times.append(world.until(lambda world=world: world.all_hold("m1", "dead"), 5))
    assert sorted(times)[10] <= 2.1


@pytest.mark.parametrize("after_s", [0.1, 1.0, 6.0])
def test_a_restarted_member_is_alive_at_once(after_s):
    world = World(5)
    world.settle()
    world.kill("m1")
    world.run(after_s)
    world.boot("m1")
    assert world.until(lambda: world.all_hold("m1", "alive")
                       and all(world.nodes[n].view()["m1"].incarnation >= 2000 for n in world.names), 5) <= 0.15
    world.run(5)
    assert world.all_hold("m1", "alive")


def test_a_member_restarted_with_its_clock_set_back_is_alive_within_a_second():
    world = World(3)
    world.settle()
    world.kill("m1")
    world.until(lambda: world.all_hold("m1", "dead"), 5)
    world.boot("m1", incarnation=7)
    assert world.until(lambda: world.all_hold("m1", "alive"), 5) <= 1


@pytest.mark.parametrize("seed", range(8))
def test_a_fifth_of_all_datagrams_lost_kills_nobody(seed):
    world = World(5, seed, loss=0.2)
    world.until(lambda: all(world.all_hold(m, "alive") for m in world.names), 5)
    world.events.clear()
    world.run(60)
    assert world.never("dead")


def test_no_false_alarm_without_trouble():
    world = World(5)
    world.settle()
    world.run(120)
    assert world.never("suspect") and world.never("dead")


def test_a_link_cut_between_two_members_is_bridged_by_a_third():
    world = World(3)
    world.settle()
    world.cut = {("m0", "m1"), ("m1", "m0")}
    world.run(30)
    assert world.never("dead")
    world.cut = {("m0", "m1")}
    world.run(30)
    assert world.never("dead")


def test_a_partition_and_its_healing():
    world = World(5)
    world.settle()
    world.partition({"m0", "m1"}, {"m2", "m3", "m4"})
    world.until(lambda: world.states("m0") == {"m0": "alive", "m1": "alive", "m2": "dead", "m3": "dead", "m4": "dead"}
                and world.states("m3") == {"m0": "dead", "m1": "dead", "m2": "alive", "m3": "alive", "m4": "alive"}, 4)
    world.run(20)
    world.partition()
    assert world.until(lambda: all(world.all_hold(m, "alive") for m in world.names), 5) <= 2.5
    world.events.clear()
    world.run(10)
    assert world.never("dead") and world.never("suspect")


def test_a_paused_member_is_dead_to_others_and_does_not_blame_them_when_it_wakes():
    world = World(3)
    world.settle()
    world.paused = {"m1"}
    world.until(lambda: world.states("m0")["m1"] == world.states("m2")["m1"] == "dead", 3)
    world.run(20)
    world.events.clear()
    world.paused = set()
    assert world.until(lambda: all(world.all_hold(m, "alive") for m in world.names), 5) <= 1
    world.run(5)
    assert [e for e in world.events if e[1] == "m1" and e[2].what in ("suspect", "dead")] == []


def test_a_short_pause_is_refuted_before_it_is_death():
    world = World(5)
    world.settle()
    world.paused = {"m1"}
    world.run(0.9)
    world.paused = set()
    world.run(5)
    assert world.never("dead")
    assert world.all_hold("m1", "alive")


def test_a_member_restarted_at_once_with_its_clock_set_back_is_listened_to():
    """Nobody noticed that it was gone, and all know a greater incarnation and load than its new ones."""
    world = World(3)
    world.settle()
    for n in range(9):
        world.nodes["m1"].set_load(Load(sessions=n))
    world.run(1)
    world.kill("m1")
    world.boot("m1", incarnation=7)
    world.nodes["m1"].set_load(Load(sessions=77))
    assert world.until(lambda: all(world.nodes[n].view()["m1"].load == Load(sessions=77) for n in world.names), 5) <= 1
    world.run(5)
    assert world.never("dead")


def test_our_own_pause_is_not_the_silence_of_others():
    node = Membership("a", incarnation=5, chance=random.Random(1))
    node.set_members(["a", "b"])
    alive = (Rumour("b", State.ALIVE, 7),)
    node.receive("b", Message(Kind.PING, 0, "a", alive), 0.0)
    ping = [m for _, m in node.tick(0.0) if m.kind is Kind.PING][-1]
    node.tick(3600.0)
    assert node.view()["b"].state == "alive"
    node.receive("b", Message(Kind.ACK, ping.number, "b", alive), 3600.0)
    node.tick(3600.2)
    assert node.view()["b"].state == "alive"


def test_a_member_never_heard_of_is_dead_after_a_grace():
    world = World(3, start=False)
    world.boot("m0")
    world.boot("m1")
    world.run(STARTING_GRACE_S - 0.2)
    assert world.states("m0")["m2"] == "suspect"
    world.run(0.4)
    assert world.states("m0")["m2"] == "dead" and world.states("m0")["m1"] == "alive"
    world.boot("m2")
    assert world.until(lambda: world.all_hold("m2", "alive"), 1) <= 0.15


# --- load ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [3, 10])
def test_everybody_has_everybodys_newest_load_soon(count):
    world = World(count)
    world.settle()
    for n, name in enumerate(world.names):
        world.nodes[name].set_load(Load(sessions=n + 1, has_quorum=True))
        world.nodes[name].set_load(Load(sessions=n + 100, has_quorum=True))

    def known():
        return all(view.load is not None and view.load.sessions == 100 + int(member[1:])
                   for name in world.names for member, view in world.nodes[name].view().items())

    assert world.until(known, 5) <= (1 if count == 3 else 2)
    reports = [e for e in world.events if e[2].what == "load"]
    assert {(name, e.member) for _, name, e in reports} == {(a, b) for a in world.names for b in world.names}


def test_a_newer_load_is_never_replaced_by_an_older_one():
    node = Membership("a", incarnation=5, chance=random.Random(1))
    node.set_members(["a", "b", "c"])

    def hear(incarnation, seq, sessions, state=State.ALIVE):
        rumour = Rumour("b", state, incarnation, seq, Load(sessions=sessions))
        node.receive("c", Message(Kind.ACK, 0, "c", (rumour,)), 0.0)
        return node.view()["b"].load.sessions

    assert hear(10, 5, 55) == 55
    assert hear(10, 4, 44) == 55
    assert hear(9, 900, 1) == 55
    assert hear(10, 6, 66, State.SUSPECT) == 66
    assert hear(11, 0, 70) == 70
    assert hear(10, 7, 77) == 70
    node.receive("c", Message(Kind.ACK, 0, "c", (Rumour("b", State.ALIVE, 12),)), 0.0)
    assert node.view()["b"].load is None
    node.receive("c", Message(Kind.ACK, 0, "c", (Rumour("b", State.ALIVE, 11, 99, Load()),)), 0.0)
    assert node.view()["b"].load is None, "a late report of the life before"


def test_the_load_of_an_earlier_life_is_forgotten_and_never_passed_on():
    world = World(3)
    world.settle()
    for n in range(40):
        world.nodes["m1"].set_load(Load(sessions=n, has_quorum=True))
    world.run(2)
    assert world.nodes["m0"].view()["m1"].load.sessions == 39
    world.kill("m1")
    world.boot("m1")
    world.run(1)
    assert all(world.nodes[n].view()["m1"].load is None for n in world.names)
    world.nodes["m1"].set_load(Load(sessions=3))
    world.run(1)
    assert all(world.nodes[n].view()["m1"].load.sessions == 3 for n in world.names)


def test_a_load_stops_ageing_only_when_a_new_one_comes():
    world = World(2)
    world.settle()
    world.nodes["m1"].set_load(Load(sessions=1))
    world.run(1)
    first = world.nodes["m0"].view()["m1"].load_age_s
    world.run(2)
    assert world.nodes["m0"].view()["m1"].load_age_s == pytest.approx(first + 2)


# --- members and hostile or odd input --------------------------------------------------------------
def test_who_is_no_member_is_ignored():
    node = Membership("a", incarnation=5, chance=random.Random(1))
    node.set_members(["a", "b"])
    stranger = Rumour("x", State.ALIVE, 5, 1, Load())
    assert node.receive("x", Message(Kind.PING, 1, "a", (stranger,)), 0.0) == []
    assert [m for m, _ in node.receive("b", Message(Kind.PING, 1, "a", (stranger,)), 0.0)] == ["b"]
    assert node.receive("b", Message(Kind.PING_REQUEST, 1, "x", ()), 0.0) == []
    assert set(node.view()) == {"a", "b"}


def test_a_removed_member_is_no_longer_probed_nor_spoken_of():
    world = World(3)
    world.settle()
    for name in ("m0", "m1"):
        world.nodes[name].set_members(["m0", "m1"])
    world.kill("m2")
    world.events.clear()
    world.run(5)
    assert set(world.states("m0")) == {"m0", "m1"}
    assert world.never("suspect") and world.never("dead")


def test_a_lie_about_myself_is_refuted_in_the_answer():
    node = Membership("a", incarnation=5, chance=random.Random(1))
    node.set_members(["a", "b"])
    for said in (5, 9, 1 << 40):
        ((_, answer),) = node.receive("b", Message(Kind.PING, 1, "a", (Rumour("a", State.DEAD, said),)), 0.0)
        assert answer.rumours[0].member == "a" and answer.rumours[0].incarnation == said + 1
        assert answer.rumours[0].state is State.ALIVE
    node.receive("b", Message(Kind.PING, 1, "a", (Rumour("a", State.DEAD, 3),)), 0.0)
    assert node.incarnation == (1 << 40) + 1
    node.receive("b", Message(Kind.PING, 1, "a", (Rumour("a", State.DEAD, MAX_INCARNATION),)), 0.0)
    assert node.incarnation == MAX_INCARNATION


def test_an_answer_to_another_ping_proves_nothing():
    node = Membership("a", incarnation=5, chance=random.Random(1))
    node.set_members(["a", "b"])
    node.receive("b", Message(Kind.PING, 0, "a", (Rumour("b", State.ALIVE, 7),)), 0.0)
    now, pings = 0.0, []
    while node.view()["b"].state == "alive":
        now += TICK_S
        assert now < 2
        pings += [m.number for _, m in node.tick(now) if m.kind is Kind.PING]
        node.receive("b", Message(Kind.ACK, 1 << 40, "b"), now)  # an old answer, sent again
        for number in pings:
            node.receive("b", Message(Kind.ACK, number, "a"), now)  # of another subject
    assert node.view()["b"].state == "suspect"


rumours = st.builds(Rumour, st.sampled_from(["a", "b", "c", "d", "x"]), st.sampled_from(State),
                    st.integers(0, MAX_INCARNATION), st.integers(0, 1 << 62), st.none() | st.builds(Load))
messages = st.builds(Message, st.sampled_from(Kind), st.integers(0, 50), st.sampled_from(["a", "b", "c", "x"]),
                     st.lists(rumours, max_size=5).map(tuple))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["b", "c", "d", "x"]), messages, st.floats(0, 1)), max_size=40))
def test_nothing_received_breaks_the_invariants(received):
    node = Membership("a", incarnation=5, chance=random.Random(1))
    node.set_members(["a", "b", "c", "d"])
    now, best = 0.0, {m: (0, State.ALIVE) for m in "bcd"}
    for sender, message, step in received:
        now += step
        out = node.receive(sender, message, now) + node.tick(now)
        assert all(to in "bcd" and len(m.rumours) <= MAX_RUMOURS for to, m in out)
        view = node.view()
        assert set(view) == set("abcd") and view["a"].state == "alive" and node.incarnation <= MAX_INCARNATION
        for member in "bcd":
            present = (view[member].incarnation, State[view[member].state.upper()])
            assert present >= best[member] or best[member] == (0, State.ALIVE)
            best[member] = present
        assert len(node._relays) <= 256


def test_rumours_end_and_the_network_falls_quiet():
    """Besides probes and answers nothing is sent, and old rumours are not repeated for ever."""
    world = World(6)
    world.settle()
    world.run(5)
    before = world.sent
    world.run(30)
    assert world.sent - before <= 6 * 2 * (30 / 0.3) * 1.05
    _, message = world.nodes["m0"].receive("m1", Message(Kind.PING, 1, "m0"), world.now)[0]
    assert [r.member for r in message.rumours] == ["m0"]
