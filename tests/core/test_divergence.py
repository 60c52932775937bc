"""Who is the odd one, and where it is looked for: the chain of outcomes, points, claims."""

from __future__ import annotations

from pathlib import Path

import pytest
from machine_world import World, open_machine

from raftmft.core import commands as c
from raftmft.core import divergence, machine
from raftmft.core.divergence import KEPT_POINTS, MOST_MEMBERS, POINT_EVERY, Claim, Difference, Jury, Pace
from raftmft.core.machine import Entry, Machine, open_reader
from raftmft.core.schema import digest

A, B = b"a" * 32, b"b" * 32


def jury(me: str, **claims: bytes) -> Jury:
    made = Jury(me)
    for member, chain in claims.items():
        made.add(member, Claim(POINT_EVERY, chain))
    return made


# --- who is odd ------------------------------------------------------------------------------------------------------
def test_equal_claims_are_no_news() -> None:
    assert jury("a", a=A, b=A, c=A).judge("abc") == []


def test_the_one_that_differs_from_two_of_three_is_odd_and_the_two_say_who() -> None:
    claims = {"a": A, "b": A, "c": B}
    assert jury("c", **claims).judge("abc") == [Difference(POINT_EVERY, "outcomes", ("a", "b"), ("c",), True)]
    for me in "ab":
        made = jury(me, **claims)
        assert made.judge("abc") == [Difference(POINT_EVERY, "outcomes", ("c",), ("a", "b"), False)]
        assert made.judge("abc") == [], "it is told once"


@pytest.mark.parametrize("me", list("abcd"))
def test_of_two_against_two_nobody_is_odd_and_all_say_so(me: str) -> None:
    (difference,) = jury(me, a=A, b=A, c=B, d=B).judge("abcd")
    assert not difference.is_odd and len(difference.differing) == len(difference.agreeing) == 2


def test_one_against_one_is_settled_by_the_third() -> None:
    made = jury("a", a=A, b=B)
    (difference,) = made.judge("abc")
    assert not difference.is_odd
    made.add("c", Claim(POINT_EVERY, B))
    (difference,) = made.judge("abc")
    assert difference.is_odd


def test_a_majority_is_one_of_all_voters_not_of_those_heard() -> None:
    (difference,) = jury("a", a=A, b=B, c=B).judge("abcde")
    assert not difference.is_odd
    (difference,) = jury("a", a=A, b=B, c=B, d=B).judge("abcde")
    assert difference.is_odd


def test_who_does_not_vote_neither_counts_nor_is_excused() -> None:
    (difference,) = jury("a", a=A, b=A, x=B, y=B, z=B).judge("abc") or [None]
    assert difference is None, "the claims of those who do not vote are dropped"
    (difference,) = jury("x", x=B, a=A, b=A).judge("abc")
    assert difference.is_odd, "a learner that differs from a majority is the odd one"


def test_three_values_of_three_make_nobody_odd() -> None:
    (difference,) = jury("a", a=A, b=B, c=b"c" * 32).judge("abc")
    assert not difference.is_odd


def test_only_the_same_point_is_compared() -> None:
    made = jury("a", a=A)
    for member in "bc":
        made.add(member, Claim(2 * POINT_EVERY, B))
    assert made.judge("abc") == []


def test_rows_are_compared_where_both_have_them() -> None:
    made = Jury("a")
    made.add("a", Claim(POINT_EVERY, A, A))
    made.add("b", Claim(POINT_EVERY, A))
    made.add("c", Claim(POINT_EVERY, A, B))
    (difference,) = made.judge("abc")
    assert difference.what == "rows" and not difference.is_odd
    made.add("b", Claim(POINT_EVERY, A, B))
    (difference,) = made.judge("abc")
    assert difference.is_odd


def test_a_member_that_was_made_anew_takes_its_claim_back() -> None:
    made = jury("a", a=A, b=A, c=B)
    assert made.judge("abc")
    made.add("c", Claim(POINT_EVERY, A))
    assert made.judge("abc") == []


def test_what_is_kept_is_bounded() -> None:
    made = Jury("a")
    for at in range(1, 50):
        made.add("a", Claim(at * POINT_EVERY, A))
        made.add("b", Claim(at * POINT_EVERY, B))
        assert len(made.judge("abc")) == 1
    assert len(made.own()) == KEPT_POINTS and len(made._told) <= KEPT_POINTS
    for number in range(2 * MOST_MEMBERS):
        made.add(f"m{number}", Claim(1, A))
    assert len(made._claims) == MOST_MEMBERS


# --- how often every row is looked at --------------------------------------------------------------------------------
def test_digests_of_every_row_take_a_fiftieth_of_the_time_and_meet_at_common_points() -> None:
    made: dict[float, set[int]] = {}
    for took_s in (0.01, 1.0, 3.0):
        pace, now, busy = Pace(), 0.0, 0.0
        made[took_s] = set()
        for at in range(1, 2000):
            now += 2.0
            if pace.is_due(at * POINT_EVERY, at * POINT_EVERY + 99, now):
                pace.ended(now, took_s)
                made[took_s].add(at)
                busy += took_s
        assert busy <= now / divergence.DUTY + took_s and len(made[took_s]) >= 10
    assert made[0.01] == set(range(1, 2000)), "a small state is looked at at every point"
    assert len(made[1.0] & made[3.0]) >= len(made[3.0]) // 2, "what the slow one makes, the quicker one has too"


def test_who_catches_up_makes_none_before_the_last_point_that_is_committed() -> None:
    pace, committed = Pace(), 5 * POINT_EVERY + 7
    assert [at for at in range(1, 7) if pace.is_due(at * POINT_EVERY, committed, 1.0)] == [5, 6]


# --- the chain -------------------------------------------------------------------------------------------------------
@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "POINT_EVERY", 10)


def entries(count: int) -> list[Entry]:
    return [Entry(index, index * 7, c.Envelope(c.UserAdd(f"user{index % 17}"))) for index in range(2, count, 3)]


def seen_by(made: Machine, batches: list[list[Entry]]) -> list[tuple[int, bytes, int, str]]:
    """(point, chain, applied, digest) at each point, as a reader finds them."""
    seen: list[tuple[int, bytes, int, str]] = []

    def at(point: int, chain: bytes) -> None:
        reader = open_reader(made.path)
        (applied,) = reader.execute("SELECT applied FROM clock").fetchone()
        seen.append((point, chain, applied, digest(reader)))
        reader.close()

    made.on_point = at
    for batch in batches:
        assert [outcome.index for outcome in made.apply_batch(batch)] == [entry.index for entry in batch]
    return seen


@pytest.mark.usefixtures("points")
def test_a_point_is_the_same_however_entries_are_batched(tmp_path: Path) -> None:
    log = entries(100)
    one = seen_by(open_machine(tmp_path / "one"), [log])
    each = seen_by(open_machine(tmp_path / "each"), [[entry] for entry in log])
    some = seen_by(open_machine(tmp_path / "some"), [log[:5], log[5:6], [], log[6:30], log[30:]])
    assert one == each == some
    assert [point for point, *_ in one] == list(range(10, 100, 10))
    assert all(applied < point for point, _, applied, _ in one), "what a reader sees is the state before the point"
    assert len({chain for _, chain, *_ in one}) == len(one)


@pytest.mark.usefixtures("points")
def test_a_restart_in_between_goes_on_with_the_chain(tmp_path: Path) -> None:
    log = entries(100)
    whole = seen_by(open_machine(tmp_path / "whole"), [log])
    first = open_machine(tmp_path / "cut")
    seen = seen_by(first, [log[:15]])
    first.close()
    assert seen + seen_by(open_machine(tmp_path / "cut"), [log[15:]]) == whole


def test_the_chain_shows_another_outcome_and_another_time(world: World) -> None:
    def chain_after(world: World, command: c.Command) -> bytes:
        world.apply(command)
        return world.machine._state.chain

    before = world.machine._state.chain
    after = chain_after(world, c.UserAdd("ann"))
    assert after != before
    assert chain_after(world, c.UserAdd("ann")) != after, "a rejection counts, too"
