"""Who votes and who only learns, as an entry of the log (Ongaro's thesis, chapter 4: changes of one member at a time).

The latest configuration in a member's log counts for it as soon as it is there, committed or not; if that entry is cut
off, the one before counts again. So two configurations in force at once differ by one voter, and any majority of one
meets any majority of the other. A leader appends a further one only when the last is committed and an entry of its own
term is too (the thesis' known error, mended on raft-dev in 2015).

A *learner* is sent the log and counts in no majority. Who shall be a member is not decided here: the state machine's
list says it, and the leader walks towards it with `next_step`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgpack

from raftmft.wire.frames import FrameError, unpack

KIND = b"\x02"
"""The first byte of a configuration's command in the log."""
FORMAT = 1
MAX_MEMBERS = 128
MAX_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class Configuration:
    """Member ids, sorted."""

    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The command that carries it."""
        return KIND + bytes(msgpack.packb([FORMAT, self.voters, self.learners]))

    def with_voter(self, member: str) -> Configuration:
        """The same, and `member` votes."""
        return Configuration(tuple(sorted({*self.voters, member})), tuple(m for m in self.learners if m != member))

    def with_learner(self, member: str) -> Configuration:
        """The same, and `member` learns."""
        return Configuration(self.voters, tuple(sorted({*self.learners, member})))

    def without(self, member: str) -> Configuration:
        """The same without `member`."""
        return Configuration(tuple(m for m in self.voters if m != member),
                             tuple(m for m in self.learners if m != member))


def decode(command: bytes) -> Configuration:
    """The configuration in a command of this KIND. FrameError on anything that `encode` would not have made."""
    value = unpack(command[1:])
    if type(value) is not list or len(value) != 3 or value[0] != FORMAT:
        raise FrameError("a configuration of an unknown format")
    for ids in value[1:]:
        if type(ids) is not list or len(ids) > MAX_MEMBERS or ids != sorted(set(ids)) or not all(
                type(member) is str and 0 < len(member) <= MAX_ID_CHARS for member in ids):
            raise FrameError("a configuration with malformed member ids")
    voters, learners = tuple(value[1]), tuple(value[2])
    if not voters or set(voters) & set(learners):
        raise FrameError("a configuration without voters, or with a member that is both")
    return Configuration(voters, learners)


def next_step(present: Configuration, leader: str, listed: Collection[str], ready: Collection[str]) -> (
        Configuration | None):
    """One change towards: those `listed` are members, and vote once they are `ready`. None when there is none to make.

    Who is not listed goes first, since it may be what stands in the way of a majority. The leader itself never goes:
    it must hand over before.
    """
    for member in present.learners + present.voters:
        if member not in listed and member != leader:
            return present.without(member)
    for member in present.learners:
        if member in ready:
            return present.with_voter(member)
    for member in sorted(listed):
        if member not in present.voters and member not in present.learners:
            return present.with_learner(member)
    return None
