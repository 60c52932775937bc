"""Changing the cluster key after somebody who knew it was cut off: what the leader does, as a plan.

A new key is given, over links that only listed members have, to all that can be reached; each stores it durably before
it answers. Once a majority of the members has it, so that no quorum can be without it, the rotation is committed; who
was away fetches the key later. If the leader dies in the middle the next one begins anew with a key of its own, and
what was offered before is erased by the commit. A key is only ever committed for the cut-offs that it was made after:
a member that is removed while a rotation is under way may have been given the new key, and so makes another one owed.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

from raftmft.cluster.certificates import CLUSTER_KEY_SIZE
from raftmft.cluster.keyring import name_of


@dataclass(slots=True)
class Rotation:
    """One attempt to replace the key named `base`, for the cut-offs until `owed`."""

    base: str
    owed: int
    key: bytes = field(default_factory=lambda: secrets.token_bytes(CLUSTER_KEY_SIZE), repr=False)
    holders: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The new key's name."""
        return name_of(self.key)

    def suits(self, base: str, owed: int) -> bool:
        """Whether this attempt is still the right one; otherwise its key must not be used."""
        return (self.base, self.owed) == (base, owed)

    def to_ask(self, members: Collection[str], reachable: Collection[str]) -> list[str]:
        """Who can be given the key now and does not have it."""
        return sorted(set(members) & set(reachable) - self.holders)

    def may_commit(self, members: Collection[str]) -> bool:
        """Whether a majority of the members has it on disk."""
        return len(self.holders & set(members)) > len(members) // 2
