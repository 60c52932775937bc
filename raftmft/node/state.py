"""The state machine as the node sees it: `apply` goes to the machine, and what was applied is told to those who asked.

Also: opening it. The SQLite file is written without fsync (design 4), so after any stop that was not clean it is
thrown away and made again from the journal.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from raftmft.cluster.certificates import write_file
from raftmft.core.errors import ConfigError, CorruptFile, ProgramTooOld
from raftmft.core.machine import Entry, Machine, discard
from raftmft.core.manifest import Manifest
from raftmft.core.outcome import Outcome
from raftmft.core.schema import check_format
from raftmft.node.datadir import STARTED, DataDir
from raftmft.raft.journal import Journal
from raftmft.raft.segment import ANEW
from raftmft.raft.snapshots import Snapshot, SnapshotFolder
from raftmft.wire.commands import decode_outcome, encode_outcome
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)
Subscriber = Callable[[Sequence[Entry], Sequence[Outcome]], None]


class ReplicatedState:
    """A Machine with subscribers, who are called after the batch's commit and must neither block nor raise."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._subscribers: list[Subscriber] = []
        self._on_installed: list[Callable[[], None]] = []

    @property
    def applied(self) -> int:
        """The Raft index of the last applied entry."""
        return self.machine.applied

    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Applies committed entries in one transaction."""
        outcomes = self.machine.apply_batch(entries)
        for subscriber in self._subscribers:
            subscriber(entries, outcomes)
        return outcomes

    def copy_to(self, path: str) -> int:
        """See Machine.copy_to."""
        return self.machine.copy_to(path)

    def check(self, path: str) -> None:
        """See Machine.check."""
        self.machine.check(path)

    def load(self, path: str) -> None:
        """See Machine.load; then tells those who asked."""
        self.machine.load(path)
        for installed in self._on_installed:
            installed()

    def on_installed(self, installed: Callable[[], None]) -> None:
        """Has `installed` called when a snapshot took the state's place: what was applied meanwhile is never told."""
        self._on_installed.append(installed)

    def manifests_since(self, index: int, limit: int) -> list[tuple[int, int, Manifest]]:
        """What was published or checkpointed after `index`, oldest first: partials are to be continued anywhere."""
        machine = self.machine
        published = machine.namespace.manifests_since(index, limit)
        partials = [(at, 0, manifest) for at, manifest in machine.partials.manifests_since(index, limit)]
        return sorted(published + partials)[:limit]

    def subscribe(self, subscriber: Subscriber) -> None:
        """Has `subscriber` called with every batch that is applied from now on."""
        self._subscribers.append(subscriber)


def open_journal(data_dir: DataDir) -> Journal:
    """This member's journal. ConfigError if there was one and it is lost: its promises (votes, acknowledgements) are
    forgotten. CorruptFile if it is damaged.
    """
    began = data_dir.started_mark.exists() or data_dir.state.exists()
    if began and not Journal.exists(str(data_dir.journal)):
        raise ConfigError(f"{data_dir.journal} is lost, and this member must not vote with forgotten state; {ANEW}")
    return Journal(str(data_dir.journal))


def open_state(data_dir: DataDir, journal: Journal, snapshots: SnapshotFolder) -> ReplicatedState:
    """The state as of the last clean stop, or else that of the newest sound snapshot, which the journal will bring up
    to date; an empty one if there is none. CorruptFile, ConfigError: the state, its mark or a snapshot is of another
    version; ProgramTooOld: it is at a feature level that this program does not know. All are left as they were.
    """
    path = str(data_dir.state)
    if data_dir.clean_mark.exists() and data_dir.state.exists():
        check_format(path)  # before the mark is used up: without it the file would be discarded at the next start
    if not data_dir.take_clean_mark() or not data_dir.state.exists():
        if data_dir.state.exists():
            log.info("the last stop was not clean; the state is made again from the journal")
        elif snapshots.held:
            log.warning("%s is missing; the state is made again from the journal", path)
        discard(path)
        restore_newest(path, journal, snapshots)
    state = ReplicatedState(Machine(path, encode_outcome=encode_outcome, decode_outcome=decode_outcome))
    if not data_dir.started_mark.exists():
        write_file(data_dir.started_mark, STARTED)  # the journal is there; from now on it must not be missing
    return state


def restore_newest(path: str, journal: Journal, snapshots: SnapshotFolder) -> None:
    """The state at `path` begins with the newest sound snapshot from which the journal goes on; without one there is no
    file. Damaged ones before which a sound one was found are removed, so that they are offered to nobody; where none
    is sound all are left as they were.
    """
    damaged: list[Snapshot] = []
    for snapshot in reversed(snapshots.held):
        if snapshot.index < journal.base_index:
            break
        try:
            snapshots.restore(snapshot, path + ".new")
            check_format(path + ".new")
            os.rename(path + ".new", path)
        except ProgramTooOld:
            os.unlink(path + ".new")
            raise
        except CorruptFile as damage:
            log.error("a snapshot cannot be used, the one before it must do: %s", damage)
            damaged.append(snapshot)
        else:
            log.info("the state begins with the snapshot of entry %d", snapshot.index,
                     extra=fields(index=snapshot.index))
            for other in damaged:
                snapshots.drop(other)
            return


def close_state(state: ReplicatedState, data_dir: DataDir) -> None:
    """Closes the state cleanly, so that the next start need not replay."""
    state.machine.close()
    data_dir.leave_clean_mark()
