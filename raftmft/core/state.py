"""What all rooms of the state machine share while an entry is applied: the open database and the replicated clock.

The clock (Raft index and time of the entry, head of the audit chain, counters) lives in memory during a batch and is
written once, by `save`, in the batch's transaction. Nothing here reads a real clock: time comes with the entries.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from typing import Any

from raftmft.core.outcome import Code, Rejection

_COUNTS = struct.Struct(">QQQQ")

Mark = tuple[int, int, int, bytes, int]


class Refuse(Exception):
    """Raised by a handler: the entry becomes a Rejection, and whatever the handler wrote is rolled back."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.rejection = Rejection(code, text)


class State:
    """The database, and the clock of the entry being applied. `index` and `now_ms` are that entry's."""

    __slots__ = ("applied", "audit_count", "audit_head", "audit_rows", "chain", "db", "index", "next_sweep_ms",
                 "next_uid", "now_ms")

    def __init__(self, db: sqlite3.Connection) -> None:
        self.reopen(db)

    def reopen(self, db: sqlite3.Connection) -> None:
        """Goes on with another database. Whoever keeps this State keeps it; whoever kept the old `db` has nothing."""
        self.db = db
        (self.applied, self.now_ms, self.next_sweep_ms, self.next_uid, self.audit_count, self.audit_head,
         self.chain) = db.execute("SELECT applied, time_ms, next_sweep_ms, next_uid, audit_count, audit_head, chain "
                                  "FROM clock").fetchone()
        self.index = self.applied
        self.audit_rows: list[tuple[Any, ...]] = []
        """Audit records of this batch, inserted by `save`."""

    @property
    def now_s(self) -> int:
        """The entry's time in whole seconds, as SFTP has it."""
        return self.now_ms // 1000

    def mark(self) -> Mark:
        """What `rewind` needs to undo the effects of one entry on the part that lives in memory."""
        return self.next_sweep_ms, self.next_uid, self.audit_count, self.audit_head, len(self.audit_rows)

    def rewind(self, mark: Mark) -> None:
        """Undoes everything since `mark` in memory; the caller rolls its savepoint back."""
        self.next_sweep_ms, self.next_uid, self.audit_count, self.audit_head, rows = mark
        del self.audit_rows[rows:]

    def extend_chain(self, encoded: bytes) -> None:
        """Binds the entry's encoded outcome, and what its clock says after it, into the rolling digest."""
        counts = _COUNTS.pack(self.index, self.now_ms, self.next_uid, self.audit_count)
        self.chain = hashlib.sha256(b"".join((self.chain, counts, self.audit_head, encoded))).digest()

    def save(self) -> None:
        """Writes the clock and the batch's audit records. Called once, last in the batch's transaction."""
        if self.audit_rows:
            self.db.executemany("INSERT INTO audit VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", self.audit_rows)
            self.audit_rows.clear()
        self.db.execute(
            "UPDATE clock SET applied=?, time_ms=?, next_sweep_ms=?, next_uid=?, audit_count=?, audit_head=?, chain=?",
            (self.index, self.now_ms, self.next_sweep_ms, self.next_uid, self.audit_count, self.audit_head, self.chain))
