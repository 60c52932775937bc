"""Who should hold a chunk: weighted rendezvous hashing. Every member computes the same answer from the same members.

Each member draws, per chunk, a number u in (0, 1) from a keyed hash and scores ln(u) / weight; the highest score owns
the chunk, and the order of scores is the order of stand-ins. A member's score depends on nothing but itself and the
chunk, so a member that comes takes only what it now owns, and one that goes leaves behind only what it owned. The
chance to be first is weight / sum of weights. (Thaler and Ravishankar 1998; weights: Schindelhauer and Schomaker 2005.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import inf, log

Members = Sequence[tuple[str, int]]
"""(member id, weight) of the members that store, in any order. A weight of 0 or less: only when nobody else is left."""

_SCALE = 2.0**-53
_CACHED_MEMBERS = 1024


def owners(chunk_id: bytes, members: Members, replicas: int) -> tuple[str, ...]:
    """The min(replicas, members) member ids that should hold the chunk, best first."""
    return ranking(chunk_id, members)[:max(0, replicas)]


def ranking(chunk_id: bytes, members: Members) -> tuple[str, ...]:
    """All member ids in the chunk's rendezvous order: the owners of any number of replicas, then their stand-ins."""
    scored = []
    for member, weight in members:
        draw = _hasher(member).copy()
        draw.update(chunk_id)
        number = int.from_bytes(draw.digest(), "big")
        # 53 of the 64 bits fill a float's mantissa exactly; the half keeps u off 0. The id breaks a tie of equal draws.
        score = log(((number >> 11) + 0.5) * _SCALE) / weight if weight > 0 else -inf
        scored.append((score, number, member))
    scored.sort(reverse=True)
    return tuple([member for _, _, member in scored])


def write_quorum(replicas: int) -> int:
    """How many of the effective replicas must have fsynced a chunk before it counts: more than half."""
    return replicas // 2 + 1


def least_holders(storing: int, voters: int) -> int:
    """How many of `storing` members are still there whichever minority of `voters` is gone, and at least one. Where all
    voters store that is a write quorum or more; where there are witnesses it may be less.
    """
    return max(1, storing - (voters - 1) // 2)


@lru_cache(maxsize=_CACHED_MEMBERS)
def _hasher(member: str) -> hashlib.blake2b:
    """The member's keyed hash, to be copied: its key schedule is the costly part."""
    name = member.encode("utf-8", "surrogateescape")
    key = hashlib.blake2b(name, digest_size=32, person=b"raftmft place v1").digest()
    return hashlib.blake2b(digest_size=8, key=key)
