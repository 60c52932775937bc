"""The replicated state machine: committed entries in, outcomes out, the same on every member.

`apply_batch` is deterministic (no clock, no randomness: the time comes with the entries) and total. A handler that
refuses gives a Rejection; one that fails for any reason of its own gives Rejection(INTERNAL) on every member, loudly.
In both cases its savepoint is rolled back. Only trouble of this host (I/O, memory, a damaged file) propagates: then
the transaction is rolled back, the machine takes no more entries, and the node must stop.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raftmft.core import commands as c
from raftmft.core import features, schema
from raftmft.core.admin_tokens import AdminTokens
from raftmft.core.admission import Admission
from raftmft.core.audit import AuditLog, AuditWriter
from raftmft.core.bans import Bans
from raftmft.core.certificates import Certificates
from raftmft.core.copies import Copies
from raftmft.core.dedup import Dedup
from raftmft.core.divergence import POINT_EVERY
from raftmft.core.errors import ProgramTooOld, RaftmftError
from raftmft.core.features import Features
from raftmft.core.inspection import Inspection
from raftmft.core.members import Members
from raftmft.core.namespace import Namespace
from raftmft.core.opens import Opens
from raftmft.core.options import Options
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.core.partials import Partials
from raftmft.core.publish import Publisher
from raftmft.core.references import References
from raftmft.core.refounding import Refounding
from raftmft.core.schema import discard, open_reader
from raftmft.core.sessions import Sessions
from raftmft.core.settings import Settings
from raftmft.core.state import Mark, Refuse, State
from raftmft.core.tree import Tree
from raftmft.core.upgrading import Upgrading
from raftmft.core.uploads import Uploads
from raftmft.core.users import Users

log = logging.getLogger(__name__)

MAX_TIME_MS = 1 << 53
"""A stamp beyond this (the year 287,000) is cut: it would not fit the database."""
_ENDS_EPOCH = (c.MemberBoot, c.ExpireMember, c.MemberRemove)
SWEEP_EVERY_MS = 60_000
"""How often, in state time, partials and unreported reads are looked through for what is due."""


@dataclass(slots=True)
class Entry:
    """One committed entry of the Raft log: its index, the leader's stamp in ms, and the command."""

    index: int
    stamp_ms: int
    envelope: c.Envelope


class Machine:
    """The state of one member. One thread uses it: reads happen between batches."""

    def __init__(self, path: str, *, encode_outcome: Callable[[Outcome], bytes],
                 decode_outcome: Callable[[bytes], Outcome], known: Features | None = None) -> None:
        """Opens the state at `path`, or makes an empty one; `known`: the feature levels that the program knows. Raises
        CorruptFile, ProgramTooOld.
        """
        self.path = path
        self._encode, self._decode = encode_outcome, decode_outcome
        self._known = known or features.CURRENT
        self._db = schema.open_state(path, self._known)
        self._failed = False
        self.on_point: Callable[[int, bytes], None] | None = None
        """Called with (point, chain); it must neither block nor raise."""
        self._state = state = State(self._db)
        self._dedup = Dedup(self._db)
        audit = AuditWriter(state)
        self.audit = AuditLog(self._db)
        self.settings = Settings(state)
        self.admin_tokens = AdminTokens(state, audit)
        self.options = Options(state, self.settings, audit)
        self.namespace = Namespace(state)
        self.inspection = Inspection(state, self.namespace)
        self.references = References(self._db)
        self.partials = Partials(state, self.namespace, audit)
        self.uploads = Uploads(state, self.settings, self.namespace, self.partials, audit)
        self.opens = Opens(state, self.options, self.namespace, audit)
        self.bans = Bans(state, audit)
        self.sessions = Sessions(state, self.uploads, self.opens, self.bans, audit)
        self.certificates = Certificates(state, self.settings, audit)
        self.members = Members(state, self.settings, self.sessions, self.certificates, audit)
        self.admission = Admission(state, self.members, self.certificates, audit)
        self.users = Users(state, self.namespace, self.sessions, audit)
        upgrading = Upgrading(state, self.settings, self.members, self._known, audit)
        publisher = Publisher(state, self.namespace, self.partials, self.uploads, audit)
        tree = Tree(state, self.namespace, self.partials, self.uploads, audit)
        copies = Copies(state, self.namespace, self.partials, self.uploads, audit)
        self._handlers: dict[type[c.Command], Callable[[Any], dict[str, Any]]] = {
            c.NoOp: _nothing,
            c.Bootstrap: self.members.bootstrap,
            c.Refound: Refounding(state, self.settings, self.members, audit).refound,
            c.MemberBoot: self.members.boot,
            c.ExpireMember: self.members.expire,
            c.MemberAdmit: self.admission.admit,
            c.MemberReady: self.members.ready,
            c.MemberSet: self.members.set,
            c.MemberRemove: self.members.remove,
            c.KeyRotate: self.certificates.rotate,
            c.FeatureRaise: upgrading.raise_level,
            c.TokenCreate: self.admission.create_token,
            c.CertAdd: self.certificates.add_command,
            c.CertRetire: self.certificates.retire,
            c.CertRevoke: self.certificates.revoke,
            c.UserAdd: self.users.add,
            c.UserSet: self.users.set,
            c.UserRemove: self.users.remove,
            c.UserKeyAdd: self.users.add_key,
            c.UserKeyRemove: self.users.remove_key,
            c.Login: self.sessions.login,
            c.LoginRefused: self.sessions.login_refused,
            c.Logout: self.sessions.logout,
            c.SessionKill: self.sessions.kill,
            c.OpenRead: self.opens.open,
            c.ReadEnd: self.opens.read_end,
            c.RecordOpens: self.opens.record,
            c.BeginUpload: self.uploads.begin,
            c.Checkpoint: self.uploads.checkpoint,
            c.Publish: publisher.publish,
            c.EndUpload: self.uploads.end,
            c.Mkdir: tree.mkdir,
            c.Rmdir: tree.rmdir,
            c.Remove: tree.remove,
            c.Rename: tree.rename,
            c.SetStat: tree.setstat,
            c.Symlink: tree.symlink,
            c.Link: tree.link,
            c.CopyData: copies.copy,
            c.ConfigSet: self.options.set,
            c.BanAdd: self.sessions.ban,
            c.BanRemove: self.bans.remove,
            c.AdminTokenAdd: self.admin_tokens.add,
            c.AdminTokenRemove: self.admin_tokens.remove,
        }

    # --- read side -----------------------------------------------------------------------------------------------
    @property
    def applied(self) -> int:
        """The Raft index of the last entry whose batch is committed to the database."""
        return self._state.applied

    @property
    def now_ms(self) -> int:
        """The state's time: the latest stamp applied. It never goes back."""
        return self._state.now_ms

    @property
    def is_bootstrapped(self) -> bool:
        """True once the cluster was made; then `settings` has its name, keys and number of copies."""
        return self.settings.is_bootstrapped

    def digest(self) -> str:
        """SHA-256 (hex) of the whole state: equal on all members at equal `applied`. See schema.digest for its cost."""
        return schema.digest(self._db, self._known)

    def copy_to(self, path: str) -> int:
        """A whole copy of the state as of one moment, in a new file at `path`; the Raft index it is of. For a thread:
        batches go on being applied meanwhile. The copy is not synced.
        """
        return schema.copy(self.path, path)

    def check(self, path: str) -> None:
        """Raises what `load` would raise because of what the file holds; nothing is changed."""
        schema.check_format(path, self._known)

    def load(self, path: str) -> None:
        """Takes the state in the file at `path`, made by `copy_to` on any member, in place of the present one. The file
        is moved. Raises CorruptFile if it is no state, OSError: then the machine must not be used any more; and as
        `check` does.
        """
        self.check(path)
        self._failed = True  # until it ends well
        self._db.close()
        schema.discard(self.path)  # with the old file's side files, which would be taken for the new one's
        os.rename(path, self.path)
        self._db = schema.open_state(self.path, self._known)
        self._reload()
        self._failed = False

    def _reload(self) -> None:
        """Another state stands in the database than before."""
        self._state.reopen(self._db)
        self._dedup = Dedup(self._db)
        self.audit = AuditLog(self._db)
        self._forget()

    def close(self) -> None:
        """Closes the file. When this returns, all that was applied is on disk, and the node may call its stop clean.

        Raises RaftmftError if a batch failed earlier, OSError if a sync fails: then the next start must `discard`.
        """
        if self._failed:
            self._db.close()
            raise RaftmftError(f"the state {self.path} failed earlier; discard it at the next start")
        schema.close_synced(self._db, self.path)

    # --- apply ---------------------------------------------------------------------------------------------------
    def apply_batch(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Applies committed entries, in index order, in one transaction; one outcome for each entry given. Before the
        first entry beyond a point (core/divergence.py) that transaction ends, `on_point` is called, and another begins.

        The caller bounds the batch (an entry costs about 50 us). An entry at or below `applied` is skipped: it gives
        its stored outcome if there is one, else Rejection(STALE_COMMAND). When this returns, the batch is committed
        to the database (not synced). If it raises, nothing of the transaction is, and the node must stop: ProgramTooOld
        if an entry raises the feature level above what the program knows.
        """
        known, first = self._state.index // POINT_EVERY, 0
        if not entries or entries[-1].index // POINT_EVERY == known:
            return self._transact(entries)
        outcomes: list[Outcome] = []
        for at, entry in enumerate(entries):
            if (passed := entry.index // POINT_EVERY) > known:
                outcomes += self._transact(entries[first:at])
                known, first = passed, at
                if self.on_point is not None:
                    self.on_point(passed * POINT_EVERY, self._state.chain)
        return outcomes + self._transact(entries[first:])

    def _transact(self, entries: Sequence[Entry]) -> list[Outcome]:
        if self._failed:
            raise RaftmftError(f"the state {self.path} failed earlier; stop the node")
        state, db = self._state, self._db
        try:
            db.execute("BEGIN")
            outcomes = [self._apply(entry) if entry.index > state.index else self._skipped(entry)
                        for entry in entries]
            self._dedup.save()
            state.save()
            db.execute("COMMIT")
        except BaseException:
            self._failed = True
            self._roll_back()
            raise
        state.applied = state.index
        return outcomes

    def _apply(self, entry: Entry) -> Outcome:
        state = self._state
        level = self._known.level_of(type(entry.envelope.command))
        if level > self.settings.level:
            # A member of an older version cannot even decode it, so that it must not leave a trace: no index, no time.
            return Outcome(entry.index, {}, Rejection(
                Code.CONFLICT, features.not_yet(level, self.settings.level)))
        state.index = entry.index
        if entry.stamp_ms > state.now_ms:
            state.now_ms = min(entry.stamp_ms, MAX_TIME_MS)
        if state.now_ms >= state.next_sweep_ms:
            self._sweep()
        envelope = entry.envelope
        command, identity = envelope.command, envelope.id
        kind = type(command)
        # What makes the cluster or an epoch stands before any id can be valid, and is harmless to repeat.
        if identity is None or kind is c.Bootstrap or kind is c.MemberBoot:
            if kind is c.NoOp:
                return Outcome(entry.index)
            outcome, encoded = self._run(entry.index, command)
        elif (known := self._dedup.look_up(identity, envelope.acked_below)) is None:
            outcome, encoded = self._run(entry.index, command)
            self._dedup.store(identity, encoded)
        elif isinstance(known, Rejection):
            outcome = Outcome(entry.index, {}, known)
            encoded = self._encode(outcome)
        else:
            outcome, encoded = self._decode(known), known
        state.extend_chain(encoded)
        return outcome

    def _run(self, index: int, command: c.Command) -> tuple[Outcome, bytes]:
        """Applies one command in a savepoint; its outcome, and that encoded."""
        kind = type(command)
        if kind is c.NoOp:
            outcome = Outcome(index)
            return outcome, self._encode(outcome)
        db = self._db
        mark = self._state.mark()
        epoch = self.members.epoch(command.member) if isinstance(command, _ENDS_EPOCH) else 0
        db.execute("SAVEPOINT entry")
        try:
            outcome = Outcome(index, self._handlers[kind](command))
            encoded = self._encode(outcome)
        except Refuse as refusal:
            outcome = Outcome(index, {}, refusal.rejection)
            self._undo(mark)
            encoded = self._encode(outcome)
        except Exception as error:
            if _is_of_this_host(error):
                raise
            log.critical("entry %d (%s) failed inside the state machine and is rejected on every member; "
                         "this is a bug, please report it", index, kind.__name__, exc_info=error,
                         extra={"fields": {"index": index}})
            outcome = Outcome(index, {}, Rejection(
                Code.INTERNAL, f"internal error in entry {index}; see the nodes' logs"))
            self._undo(mark)
            encoded = self._encode(outcome)
        else:
            db.execute("RELEASE entry")
            if isinstance(command, _ENDS_EPOCH) and epoch != self.members.epoch(command.member):
                self._dedup.forget(command.member)
            elif isinstance(command, c.MemberAdmit) and command.replaces:
                self._dedup.forget(command.replaces)
            elif kind is c.Refound:
                self._dedup.forget_all()
        return outcome, encoded

    def _sweep(self) -> None:
        """Removes what is due, a bounded number at once; goes on with the next entry if that was not all."""
        state = self._state
        mark = state.mark()
        self._db.execute("SAVEPOINT entry")
        try:
            more = [self.partials.expire(), self.opens.sweep(), self.admission.sweep(), self.bans.sweep()]
        except Exception as error:
            if _is_of_this_host(error):
                raise
            log.critical("the sweep at entry %d failed; this is a bug, please report it", state.index, exc_info=error,
                         extra={"fields": {"index": state.index}})
            self._undo(mark)
            more = []
        else:
            self._db.execute("RELEASE entry")
        if not any(more):
            state.next_sweep_ms = state.now_ms + SWEEP_EVERY_MS

    def _undo(self, mark: Mark) -> None:
        self._db.execute("ROLLBACK TO entry")
        self._db.execute("RELEASE entry")
        self._state.rewind(mark)
        self._forget()

    def _forget(self) -> None:
        """Drops what rooms hold of the database in memory."""
        self.settings.forget()
        self.options.forget()
        self.bans.forget()

    def _skipped(self, entry: Entry) -> Outcome:
        stored = self._dedup.peek(entry.envelope.id) if entry.envelope.id is not None else None
        if stored is not None:
            return self._decode(stored)
        return Outcome(entry.index, {}, Rejection(
            Code.STALE_COMMAND, f"entry {entry.index} was applied before; its outcome is not kept"))

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error:
            # The first error is the one to tell of; the file is discarded at the next start in any case.
            log.exception("the state %s cannot even be rolled back", self.path)


def _nothing(_: c.NoOp) -> dict[str, Any]:
    return {}


def _is_of_this_host(error: Exception) -> bool:
    """True for trouble that other members need not have: it must stop this node, not become part of the state.

    sqlite3 raises OperationalError for I/O, full disks and locks, plain DatabaseError for damaged files, and
    InternalError for its own; IntegrityError, DataError, ProgrammingError come of what was asked, alike everywhere.
    """
    if isinstance(error, sqlite3.DatabaseError):
        return not isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError,
                                      sqlite3.NotSupportedError))
    return isinstance(error, (OSError, MemoryError, ProgramTooOld))


__all__ = ["SWEEP_EVERY_MS", "Entry", "Machine", "discard", "open_reader"]
