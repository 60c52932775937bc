"""New sessions go to the least-loaded active member, and come out even."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftmft.core.membership import Load
from raftmft.core.routing import LOW_DISK_BYTES, SETTLE_S, Routed, choose


@dataclass
class Member:
    id: str
    mode: str = "active"
    weight: int = 100


IDLE = Load(disk_free=1 << 40, has_quorum=True)
THREE = [Member("a"), Member("b"), Member("c")]


def all_idle(members=THREE):
    return {m.id: replace(IDLE, mode=m.mode) for m in members}


@pytest.mark.parametrize("door", ["a", "b", "c"])
def test_thirty_connections_at_one_door_spread_evenly_before_any_report(door):
    routed = Counter()
    for _ in range(30):
        routed[choose(THREE, all_idle(), routed, door)] += 1
    assert sorted(routed.values()) == [10, 10, 10]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("gap_s", [0.003, 0.02, 0.1, 0.4])
def test_thirty_connections_spread_evenly_while_reports_come_in_late(seed, gap_s):
    """Each member reports what reached it at moments of its own, and the door learns of that up to 0.3 s later."""
    chance, routed, now = random.Random(seed), Routed(), 0.0
    arrivals: list[tuple[float, str]] = []
    seen = {m.id: [(0.0, 0)] for m in THREE}
    report_at = {m.id: chance.uniform(0, 0.5) for m in THREE}
    for _ in range(30):
        now += gap_s * chance.uniform(0.5, 1.5)
        for member in report_at:
            while (made_at := report_at[member]) <= now:
                count = sum(at <= made_at and where == member for at, where in arrivals)
                seen[member].append((made_at + chance.uniform(0, 0.3), count))
                report_at[member] += 0.5
        loads = {member: replace(IDLE, sessions=max(count for at, count in reports if at <= now))
                 for member, reports in seen.items()}
        chosen = choose(THREE, loads, routed.counts(loads, now), "a")
        routed.note(chosen, loads[chosen].sessions, now)
        arrivals.append((now + 0.03, chosen))
    assert sorted(Counter(member for _, member in arrivals).values()) in ([10, 10, 10], [9, 10, 11])


def test_many_doors_do_not_herd_onto_one_stale_minimum():
    members = [Member(name) for name in "abcdef"]
    loads = {**all_idle(members), **{m: replace(IDLE, sessions=5) for m in "abc"}}
    picked = Counter(choose(members, loads, {}, door) for door in "abcdef")
    assert picked == Counter({"d": 4, "e": 1, "f": 1}) or max(picked.values()) < 6
    assert set(picked) <= set("def")


@pytest.mark.parametrize("members, picks", [("abc", 3), ("abcde", 5)])
def test_of_equals_each_door_begins_at_home(members, picks):
    listed = [Member(name) for name in members]
    assert len({choose(listed, all_idle(listed), {}, door) for door in members}) == picks


def test_home_is_preferred_unless_another_is_clearly_less_loaded():
    loads = all_idle()
    assert choose(THREE, loads, {}, "b") == "b"
    loads["b"] = replace(IDLE, cpu=0.6)
    assert choose(THREE, loads, {}, "b") == "b"
    loads["b"] = replace(IDLE, sessions=1)
    assert choose(THREE, loads, {}, "b") == "c"


def test_a_busy_member_counts_for_more():
    loads = {"a": replace(IDLE, sessions=4, cpu=1.0), "b": replace(IDLE, sessions=5), "c": replace(IDLE, sessions=9)}
    assert choose(THREE, loads, {}, "c") == "b"
    loads["b"] = replace(IDLE, sessions=5, bytes_per_s=1 << 40)
    assert choose(THREE, loads, {}, "c") == "a"


def test_idle_noise_of_the_cpu_does_not_count():
    loads = {"a": replace(IDLE, sessions=1, cpu=0.0), "b": replace(IDLE, cpu=0.45), "c": replace(IDLE, sessions=1)}
    assert choose(THREE, loads, {}, "a") == "b"


def test_sessions_follow_the_weights():
    members = [Member("a"), Member("b", weight=300)]
    routed = Counter()
    for _ in range(40):
        routed[choose(members, all_idle(members), routed, "a")] += 1
    assert abs(routed["b"] - 30) <= 1


def test_a_standby_only_when_no_active_member_can():
    members = [Member("a"), Member("b", "standby"), Member("c", "standby")]
    loads = all_idle(members)
    loads["a"] = replace(IDLE, sessions=1000)
    assert choose(members, loads, {}, "b") == "a"
    assert choose(members, {m: loads[m] for m in "bc"}, {}, "b") == "b"
    loads["a"] = replace(IDLE, has_quorum=False)
    assert choose(members, loads, {}, "c") == "c"
    loads["a"] = replace(IDLE, mode="draining")
    assert choose(members, loads, {}, "c") == "c"


@pytest.mark.parametrize("mode", ["witness", "draining", "learner", ""])
def test_who_may_not_serve_is_never_chosen(mode):
    members = [Member("a", mode), Member("b")]
    assert choose(members, {"a": IDLE, "b": replace(IDLE, sessions=99)}, {}, "a") == "b"
    assert choose(members, {"a": IDLE}, {}, "a") is None
    assert choose([Member("a")], {"a": replace(IDLE, mode=mode)}, {}, "a") is None


def test_nobody_alive_nobody_with_a_quorum_nobody_at_all():
    assert choose(THREE, {}, {}, "a") is None
    assert choose(THREE, {m.id: replace(IDLE, has_quorum=False) for m in THREE}, {}, "a") is None
    assert choose([], all_idle(), {}, "a") is None


def test_a_full_disk_comes_last_among_its_kind():
    full = replace(IDLE, disk_free=LOW_DISK_BYTES - 1)
    assert choose(THREE, {"a": full, "b": replace(IDLE, sessions=50)}, {}, "a") == "b"
    assert choose(THREE, {"a": full, "b": full}, {}, "a") == "a"


loads_of = st.builds(Load, sessions=st.integers(0, 99), bytes_per_s=st.integers(0, 1 << 40), cpu=st.floats(-1, 9),
                     disk_free=st.integers(0, 1 << 40), mode=st.sampled_from(["active", "standby", "draining"]),
                     has_quorum=st.booleans())


@given(st.lists(st.tuples(st.sampled_from(["active", "standby", "witness", "draining"]), st.integers(-1, 300)),
                max_size=6), st.data())
def test_only_those_that_can_serve_and_always_somebody_if_one_can(kinds, data):
    members = [Member(f"m{n}", mode, weight) for n, (mode, weight) in enumerate(kinds)]
    loads = {m.id: data.draw(loads_of) for m in members if data.draw(st.booleans())}
    able = {m.id for m in members if m.id in loads and loads[m.id].has_quorum
            and {m.mode, loads[m.id].mode} <= {"active", "standby"}}
    chosen = choose(members, loads, {}, "m0")
    assert (chosen in able) if able else chosen is None


def test_what_was_routed_counts_until_reports_show_it_and_never_twice():
    routed, none = Routed(), {"b": replace(IDLE, sessions=4), "c": IDLE}
    routed.note("b", 4, 10.0)
    routed.note("b", 4, 10.5)
    assert routed.counts(none, 10.5) == {"b": 2}
    assert routed.counts({"b": replace(IDLE, sessions=5)}, 10.6) == {"b": 1}
    assert routed.counts({"b": replace(IDLE, sessions=6)}, 10.6) == {"b": 0}
    assert routed.counts({"b": replace(IDLE, sessions=60)}, 10.6) == {"b": 0}
    assert routed.counts({}, 10.6) == {}


def test_a_report_is_trusted_again_when_routing_has_settled():
    routed = Routed()
    for n in range(100):  # short sessions: the reports never show more than one
        routed.note("b", 1, n * 0.1)
    load = {"b": replace(IDLE, sessions=1)}
    assert routed.counts(load, 9.9)["b"] <= SETTLE_S / 0.1 + 2
    assert routed.counts(load, 9.9 + SETTLE_S - 0.01)["b"] == 1
    assert routed.counts(load, 9.9 + SETTLE_S + 0.01) == {}


def test_sessions_from_other_doors_raise_the_floor():
    routed = Routed()
    routed.note("b", 0, 1.0)
    routed.note("b", 10, 1.1)
    assert routed.counts({"b": replace(IDLE, sessions=8)}, 1.2) == {"b": 3}
