"""How many must hold a chunk: the write quorum; less only where, with witnesses, a minority would stop all writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raftmft.core.members import MemberRow
from raftmft.core.placement import least_holders
from raftmft.node.view import ClusterView


def view(modes: str, away: str = "", quorum: bool = True) -> Any:
    """Members a, b, c... with modes by letter (s stores, w witness, l learner); those in `away` are gone."""
    rows = [MemberRow(chr(97 + i), chr(97 + i), "h", 1, 1, 1, "f", "witness" if mode == "w" else "active",
                      joined=int(mode != "l")) for i, mode in enumerate(modes)]
    voters = tuple(row.id for row in rows if row.joined)
    machine = SimpleNamespace(is_bootstrapped=True, options={"replicas": 3})
    status = SimpleNamespace(has_quorum=quorum, leader="a", configuration=SimpleNamespace(voters=voters))
    seen = {row.id: SimpleNamespace(state="dead" if row.id in away else "alive", load=None) for row in rows}
    made = ClusterView(SimpleNamespace(me="a", replicas=3), SimpleNamespace(machine=machine),  # type: ignore[arg-type]
                       SimpleNamespace(status=lambda: status), SimpleNamespace(rows=lambda: tuple(rows)))  # type: ignore[arg-type]
    made.listen_to(SimpleNamespace(view=lambda: seen), lambda: None, lambda member: False)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(("modes", "away", "quorum", "expected"), [
    ("sss", "", True, 2), ("sss", "b", True, 2), ("sss", "bc", True, 2), ("sssss", "de", True, 2), ("ss", "b", True, 2),
    ("ssw", "", True, 2), ("ssw", "c", True, 2), ("ssw", "b", True, 1), ("ssw", "b", False, 2),
    ("sssww", "bc", True, 1), ("sssww", "b", True, 2), ("ssl", "b", True, 2), ("s", "", True, 1), ("sww", "", True, 1),
])
def test_only_where_witnesses_vote_may_fewer_than_a_quorum_keep_a_chunk(
        modes: str, away: str, quorum: bool, expected: int) -> None:
    assert view(modes, away, quorum).write_quorum() == expected


def test_who_stores_nothing_any_more_is_asked_last_for_a_chunk() -> None:
    made = view("sswsw")
    assert made.places(b"x" * 32) == (*made.ranking(b"x" * 32), "c", "e") and len(made.ranking(b"x" * 32)) == 3


def test_a_link_that_talks_is_believed_when_gossip_is_not() -> None:
    made = view("ssw", "b")
    made._hears = lambda member: member == "b"
    assert made.write_quorum() == 2


@pytest.mark.parametrize(("storing", "voters", "least"),
                         [(3, 3, 2), (5, 5, 3), (2, 3, 1), (1, 3, 1), (2, 2, 2), (4, 5, 2)])
def test_what_is_left_when_any_minority_is_gone(storing: int, voters: int, least: int) -> None:
    assert least_holders(storing, voters) == least
