"""The cluster as one member sees it, and what it can lose now (surface.md: status). Pure: facts in, a dict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raftmft.core.features import FIRST
from raftmft.core.members import MemberRow


@dataclass(frozen=True, slots=True)
class Facts:
    """What status is made of. `loads`: the gossiped load of a member as a dict, {} if none came yet. `states`:
    alive, suspect or dead. `recorded_sessions`: live sessions a member has in the replicated state. `level`: the
    feature level in force.
    """

    cluster: str
    members: Sequence[MemberRow]
    states: Mapping[str, str]
    loads: Mapping[str, Mapping[str, Any]]
    recorded_sessions: Mapping[str, int]
    leader: str | None
    term: int
    commit_index: int
    has_quorum: bool
    replicas: int
    chunk_count: int
    voters: Sequence[str] = ()
    level: int = FIRST


def describe(facts: Facts) -> dict[str, Any]:
    """The status document."""
    storing = [m for m in facts.members if m.stores]
    dead = [m for m in facts.members if facts.states.get(m.id) == "dead"]
    dead_storing = [m for m in dead if m.stores]
    replicas = max(1, min(facts.replicas, len(storing)))
    quorum = replicas // 2 + 1
    missing = sum(int(facts.loads.get(m.id, {}).get("missing_chunks", 0)) for m in storing if m not in dead)
    # What lay on a dead member has a copy less; it may come back with all it had, so this is the worst case.
    under_replicated = max(missing, facts.chunk_count if dead_storing else 0)
    reasons = [f"member {m.name} is dead" for m in dead]
    reasons += [f"member {m.name} is suspect" for m in facts.members if facts.states.get(m.id) == "suspect"]
    if missing:
        all_here = len(reasons) == 0
        reasons.append(f"{missing} chunks are still to be copied"
                       + (", and no member gave them yet: raftmft file show tells which files" if all_here else ""))
    verdict = "degraded" if reasons else "ok"
    if not facts.has_quorum or facts.leader is None:
        verdict = "no-quorum"
        reasons.insert(0, "no majority of members answers")
    voting = [m for m in facts.members if m.id in facts.voters]
    majority = len(voting) // 2 + 1
    disks = replicas - 1 if not under_replicated else max(0, quorum - 1 - len(dead_storing))
    names = {m.id: m.name for m in facts.members}
    return {
        "cluster": facts.cluster, "verdict": verdict, "reasons": reasons,
        "leader": names.get(facts.leader or "", None), "term": facts.term, "commit_index": facts.commit_index,
        "can_lose": {"members": max(0, len([m for m in voting if m not in dead]) - majority) if facts.has_quorum else 0,
                     "disks": disks},
        "under_replicated": under_replicated, "feature_level": facts.level,
        "members": [_member(facts, m) for m in sorted(facts.members, key=lambda m: m.name)],
    }


def _member(facts: Facts, member: MemberRow) -> dict[str, Any]:
    load = facts.loads.get(member.id, {})
    if member.id == facts.leader:
        role = "leader"
    elif member.id not in facts.voters:
        role = "learner"
    else:
        role = "witness" if member.mode == "witness" else "follower"
    sessions = load.get("sessions")
    return {
        "name": member.name, "mode": member.mode, "role": role, "state": facts.states.get(member.id, "dead"),
        "applied_index": load.get("applied_index", 0),
        "sessions": facts.recorded_sessions.get(member.id, 0) if sessions is None else sessions,
        "load": round(float(load.get("cpu", 0.0)), 3), "disk_free_bytes": load.get("disk_free", 0),
        "version": load.get("version") or member.version, "feature_level": member.supports,
    }
