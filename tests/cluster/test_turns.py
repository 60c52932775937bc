"""Whose turn it is to dial: the greater id's, and everybody's who is left without a majority for a while."""

from __future__ import annotations

import pytest

from raftmft.cluster.turns import ALONE_BACKOFF_MAX_S, ALONE_S, BACKOFF_MAX_S, Turns

ALL = "abcde"


def wanted(turns: Turns, now: float, linked: str = "", known: str = ALL, is_moved: bool = False) -> str:
    return "".join(sorted(turns.wanted(now, known, linked, is_moved=is_moved)))


def test_the_greater_id_dials() -> None:
    assert [wanted(Turns(me), 0) for me in "ace"] == ["", "ab", "abcd"]
    assert wanted(Turns("c"), 0, known="abde") == "ab", "whether it is among the known or not"


def test_who_lacks_a_majority_for_a_while_dials_all() -> None:
    turns = Turns("a")
    assert wanted(turns, 10.0) == "" and wanted(turns, 9.9 + ALONE_S) == ""
    assert wanted(turns, 10.0 + ALONE_S) == "bcde"
    assert wanted(turns, 11.0 + ALONE_S, linked="b") == "cde", "two that were shut out are no majority of five"
    assert wanted(turns, 12.0 + ALONE_S, linked="bc") == ""
    assert wanted(turns, 13.0 + ALONE_S) == "", "the time is counted anew"
    assert wanted(turns, 13.0 + 2 * ALONE_S) == "bcde"


@pytest.mark.parametrize(("known", "linked", "is_alone"), [
    ("a", "", False), ("ab", "", True), ("ab", "b", False), ("abc", "b", False), ("abcd", "b", True),
    ("abcd", "bc", False), ("abc", "xyz", True)])
def test_a_majority_of_those_that_are_known(known: str, linked: str, is_alone: bool) -> None:
    turns = Turns("a")
    wanted(turns, 0, linked, known)
    assert bool(wanted(turns, ALONE_S, linked, known)) == is_alone


def test_who_moved_dials_all_that_it_is_not_linked_to_at_once() -> None:
    assert wanted(Turns("c"), 0, linked="e", is_moved=True) == "abd"


def test_out_of_turn_it_is_done_patiently() -> None:
    turns = Turns("c")
    assert turns.backoff_max_s("b", is_moved=False) == turns.backoff_max_s("d", is_moved=True) == BACKOFF_MAX_S
    assert turns.backoff_max_s("d", is_moved=False) == ALONE_BACKOFF_MAX_S


def test_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    turns = Turns("a")
    for now in range(20):
        wanted(turns, float(now))
    assert len(caplog.records) == 1 and "no links to a majority" in caplog.text
