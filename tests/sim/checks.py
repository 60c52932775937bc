"""What must hold once everything is healed and quiet: nothing acknowledged is missing, nothing refused was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.member import Member


def check_end(cluster: Cluster, members: list[Member]) -> None:
    """`members` are up, linked and idle."""
    cluster.check_members()
    logs = {member.name: (member.replica.journal.last_index, member.replica.engine.applied())
            for member in members if member.replica is not None}
    assert len(logs) == len(members) and len(set(logs.values())) == 1, f"members ended at different places: {logs}"
    digests = {member.name: member.state.digest() for member in members}
    assert len(set(digests.values())) == 1, f"members differ: {digests}"
    lost = {identity: outcome.index for identity, outcome in cluster.acknowledged.items()
            if cluster.effects.get(identity) != outcome.index}
    assert not lost, f"{len(lost)} of {len(cluster.acknowledged)} acknowledged commands are lost: {_few(lost)}"
    lied = {identity: cluster.effects[identity] for identity in cluster.refused if identity in cluster.effects}
    assert not lied, f"{len(lied)} commands were reported as not applied and were: {_few(lied)}"


def _few(found: Mapping[Any, int]) -> list[str]:
    return [f"{identity} at entry {index}" for identity, index in list(found.items())[:5]]
