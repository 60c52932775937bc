"""A stopped member's part in Raft: what its log says, and making it the only voter. For recover and restore.

One batch of the journal holds the new configuration, the command that makes the cluster anew, and the term in which
both stand: a crash leaves all of it or nothing. At its next start the member finds itself the only voter, is elected,
and so commits what its log holds, what it had not heard to be committed included: that may have been acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raftmft.core.errors import CorruptFile
from raftmft.core.machine import Machine
from raftmft.raft import configuration, stamped
from raftmft.raft.configuration import Configuration
from raftmft.raft.journal import Journal
from raftmft.raft.messages import LogEntry

REPLAYED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a log goes. Of two survivors the one with the greater (last_term, last_index) knows more."""

    term: int
    last_index: int
    last_term: int
    commit_index: int
    configuration: Configuration


def standing(journal: Journal, founders: Sequence[str]) -> Standing:
    """What the journal says; `founders` as in Replica."""
    found = journal.configurations[-1] if journal.configurations else None
    present = configuration.decode(found[1]) if found else Configuration(tuple(sorted(founders)))
    last = journal.last_index
    return Standing(journal.getCurrentTerm(), last, journal.term_at(last) or 0, journal.getRaftCommitIndex(), present)


def replay(journal: Journal, machine: Machine) -> None:
    """Brings the machine to the log's end, be it known as committed or not: so only for a copy of the state.

    CorruptFile if the machine holds less than the log begins with, or more than it.
    """
    if not journal.base_index <= machine.applied <= journal.last_index:
        raise CorruptFile(f"{journal.path} holds the entries {journal.base_index + 1} to {journal.last_index} and the "
                          f"state entry {machine.applied}: they do not fit; recover another survivor, or restore a "
                          "backup")
    first = max(machine.applied, journal.base_index, 0) + 1
    while first <= journal.last_index:
        log = journal.slice(first, min(journal.last_index, first + REPLAYED_AT_ONCE - 1))
        machine.apply_batch(stamped.decoded(log))
        first = log[-1][1] + 1


def go_alone(journal: Journal, member: str, command: bytes) -> int:
    """`member` is the only voter of this log, which ends with `command`, durably; its index. JournalFailed: nothing is
    changed, as far as the disk tells.
    """
    term, last = journal.getCurrentTerm() + 1, journal.last_index
    alone = Configuration((member,)).encode()
    return _append(journal, member, term, [(alone, last + 1, term), (command, last + 2, term)])


def begin_behind(journal: Journal, index: int, term: int, member: str, command: bytes) -> int:
    """A new journal begins behind entry (index, term), which a snapshot holds, with `member` as the only voter, and
    `command`, durably; the command's index.
    """
    journal.reset_to(index, term, Configuration((member,)).encode())
    return _append(journal, member, term + 1, [(command, index + 1, term + 1)])


def _append(journal: Journal, member: str, term: int, entries: list[LogEntry]) -> int:
    journal.setCurrentTerm(term, member)
    journal.extend(entries)
    batch = journal.take()
    assert batch is not None
    journal.put(batch)
    journal.settle(batch)
    return entries[-1][1]
