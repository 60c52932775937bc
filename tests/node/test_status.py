"""What status says the cluster can lose."""

from __future__ import annotations

import dataclasses
from typing import Any

from raftmft.core.members import MemberRow
from raftmft.node.status import Facts, describe

THREE = [MemberRow(f"id{n}", f"n{n}", "h", 1, 1, 1, "f") for n in (1, 2, 3)]
ALIVE = {m.id: "alive" for m in THREE}
FACTS = Facts(
    "c", THREE, ALIVE, {m.id: {"sessions": 2, "missing_chunks": 0} for m in THREE}, {}, "id2", 4, 99, True, 3, 50,
    ("id1", "id2", "id3"),
)


def status(**changes: Any) -> dict[str, Any]:
    return describe(dataclasses.replace(FACTS, **changes))


def test_all_well() -> None:
    document = status()
    assert document["verdict"] == "ok" and document["reasons"] == [] and document["leader"] == "n2"
    assert document["can_lose"] == {"members": 1, "disks": 2} and document["under_replicated"] == 0
    assert [m["role"] for m in document["members"]] == ["follower", "leader", "follower"]


def test_a_dead_member() -> None:
    document = status(states={**ALIVE, "id3": "dead"})
    assert document["verdict"] == "degraded" and document["reasons"] == ["member n3 is dead"]
    assert document["can_lose"] == {"members": 0, "disks": 0} and document["under_replicated"] == 50


def test_chunks_still_to_be_copied() -> None:
    document = status(loads={"id1": {"missing_chunks": 7}})
    assert document["verdict"] == "degraded" and document["under_replicated"] == 7
    assert document["can_lose"] == {"members": 1, "disks": 1}


def test_no_quorum() -> None:
    document = status(has_quorum=False, states={"id1": "alive", "id2": "dead", "id3": "dead"})
    assert document["verdict"] == "no-quorum" and document["can_lose"]["members"] == 0
    assert status(leader=None)["verdict"] == "no-quorum"
