"""Every member computes the same owners; a change of members moves what it must, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftmft.core.placement import owners, ranking, write_quorum

chunk_ids = st.binary(min_size=32, max_size=32)
member_lists = st.lists(st.tuples(st.text("abcdefnm0123456789", min_size=1, max_size=8), st.integers(1, 400)),
                        min_size=1, max_size=8, unique_by=lambda m: m[0])


def many(count):
    return [n.to_bytes(32, "little") for n in range(count)]


@given(chunk_ids, member_lists, st.integers(0, 9), st.randoms(use_true_random=False))
def test_owners_are_the_first_of_a_ranking_that_is_blind_to_order(chunk_id, members, replicas, chance):
    order = ranking(chunk_id, members)
    assert sorted(order) == sorted(m for m, _ in members)
    assert owners(chunk_id, members, replicas) == order[:replicas]
    shuffled = list(members)
    chance.shuffle(shuffled)
    assert ranking(chunk_id, shuffled) == order


@given(chunk_ids, member_lists, st.integers(1, 400))
def test_a_member_more_or_less_changes_no_order_among_the_others(chunk_id, members, weight):
    with_new = ranking(chunk_id, [*members, ("NEW", weight)])
    assert tuple(m for m in with_new if m != "NEW") == ranking(chunk_id, members)


@given(chunk_ids, member_lists, st.data())
def test_more_weight_never_loses_a_place(chunk_id, members, data):
    at = data.draw(st.integers(0, len(members) - 1))
    name, weight = members[at]
    heavier = [*members[:at], (name, weight * 2), *members[at + 1:]]
    assert ranking(chunk_id, heavier).index(name) <= ranking(chunk_id, members).index(name)


def test_shares_follow_the_weights():
    members = [("a", 100), ("b", 100), ("c", 200), ("d", 50)]
    count = 20_000
    first = Counter(ranking(i, members)[0] for i in many(count))
    for name, weight in members:
        assert first[name] / count == pytest.approx(weight / 450, abs=0.012)


def test_equal_members_share_evenly_at_every_rank():
    members = [(name, 100) for name in "abcde"]
    ranks = [Counter() for _ in members]
    for i in many(10_000):
        for counter, name in zip(ranks, ranking(i, members), strict=True):
            counter[name] += 1
    assert all(abs(n - 2000) < 200 for counter in ranks for n in counter.values())


def test_a_new_member_takes_its_share_and_no_more():
    before, after = [(name, 100) for name in "abcd"], [(name, 100) for name in "abcde"]
    moved = sum(ranking(i, before)[0] != ranking(i, after)[0] for i in many(10_000))
    assert moved == pytest.approx(2000, abs=200)


def test_weight_nought_owns_nothing_unless_nobody_else_is_left():
    assert all(ranking(i, [("a", 0), ("b", 1)]) == ("b", "a") for i in many(50))
    assert owners(bytes(32), [("a", 0)], 3) == ("a",)
    assert owners(bytes(32), [("a", -5), ("b", 1)], 1) == ("b",)


def test_no_members_no_owners():
    assert owners(bytes(32), [], 3) == ()


def test_a_majority_of_the_effective_replicas():
    assert [write_quorum(r) for r in range(1, 6)] == [1, 2, 2, 3, 3]


@settings(max_examples=1, deadline=None)
@given(st.just(None))
def test_another_process_agrees(_):
    """And this very answer stands for ever: chunks lie where it says."""
    members = [("n1", 100), ("n2", 100), ("n3", 250)]
    here = [ranking(i, members) for i in many(6)]
    code = ("from raftmft.core.placement import ranking\n"
            f"print([ranking(n.to_bytes(32, 'little'), {members!r}) for n in range(6)])")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONHASHSEED": "7"}).stdout
    assert said.strip() == repr(here)
