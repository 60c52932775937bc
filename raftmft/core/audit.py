"""The audit log: every acknowledged change, login and open, once, in the order of the Raft log, chained by hashes.

The hash of a record is SHA-256 over the previous record's hash (32 zero bytes before the first) and the record as a
JSON array of FIELDS in order, without spaces, non-ASCII escaped. So anyone can check an export line by line with no
more than a JSON library. Paths are text as names.text_of gives it. Times are milliseconds since the epoch.
Records are written in `apply` only, so that all members hold the same chain.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from typing import Any

from raftmft.core.names import clipped
from raftmft.core.state import State

FIELDS = ("index", "time", "kind", "user", "path", "target", "member", "address", "session", "size", "digest",
          "outcome")
KINDS = ("login", "login_refused", "logout", "open", "read_end", "publish", "partial", "rename", "remove", "mkdir",
         "rmdir", "setstat", "symlink", "link", "copy", "session_expired", "session_killed", "admin")
GENESIS = bytes(32)
MAX_QUERY_RECORDS = 10_000
_COLUMNS = "idx, time, kind, user, path, target, member, address, session, size, digest, outcome"
_canonical = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False).encode


class AuditLog:
    """The log's read side, over any connection to the state; long reads belong in a thread, over `open_reader`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @property
    def head(self) -> str:
        """The hash (hex) of the last record; 64 zeros when there is none."""
        (head,) = self._db.execute("SELECT audit_head FROM clock").fetchone()
        return bytes(head).hex()

    @property
    def count(self) -> int:
        """How many records there are."""
        (count,) = self._db.execute("SELECT audit_count FROM clock").fetchone()
        return int(count)

    def query(self, *, user: str | None = None, kind: str | None = None, path: str | None = None,
              after_index: int = 0, since_ms: int | None = None, until_ms: int | None = None,
              limit: int = 1000, newest: bool = False) -> list[dict[str, Any]]:
        """Records that fit every filter given, oldest first: FIELDS and "hash" (hex).

        `path` fits a record's path or target, with or without the leading slash; since <= time < until. At most
        `limit` records, and then the rest of the last one's index, so that `after_index` = the last index continues
        without loss. With `newest` they are the last `limit` that fit, still oldest first.
        """
        where = ["idx > ?"]
        values: list[Any] = [after_index]
        filters: list[tuple[str, Any]] = [("user = ?", user), ("kind = ?", kind), ("time >= ?", since_ms),
                                          ("time < ?", until_ms)]
        for clause, value in filters:
            if value is not None:
                where.append(clause)
                values.append(value)
        if path is not None:
            where.append("(path = ? OR target = ?)")
            values += ["/" + path.strip("/")] * 2
        select = f"SELECT {_COLUMNS}, hash, n FROM audit WHERE {' AND '.join(where)}"
        values_and_limit = (*values, max(0, min(limit, MAX_QUERY_RECORDS)))
        if newest:
            rows = self._db.execute(f"{select} ORDER BY idx DESC, n DESC LIMIT ?", values_and_limit).fetchall()[::-1]
        else:
            rows = self._db.execute(f"{select} ORDER BY idx, n LIMIT ?", values_and_limit).fetchall()
        if rows and not newest:
            last, n = rows[-1][0], rows[-1][-1]
            rows += self._db.execute(f"{select} AND idx = ? AND n > ? ORDER BY idx, n", (*values, last, n)).fetchall()
        return [{**dict(zip(FIELDS, row, strict=False)), "hash": row[-2].hex()} for row in rows]

    def verify(self, after_index: int = 0) -> int | None:
        """None if the chain holds from the first record after `after_index` to the head, else the index of the first
        record that does not fit (one past the last record if records are missing at the end).

        The record at `after_index` itself is believed. About 5 us a record.
        """
        row = self._db.execute(
            "SELECT hash FROM audit WHERE idx <= ? ORDER BY idx DESC, n DESC LIMIT 1", (after_index,)).fetchone()
        previous = GENESIS if row is None else row[0]
        last, expected = after_index, 0
        for row in self._db.execute(
                f"SELECT {_COLUMNS}, hash, n FROM audit WHERE idx > ? ORDER BY idx, n", (after_index,)):
            record, stored, n = row[:-2], row[-2], row[-1]
            expected = 0 if record[0] != last else expected
            previous = chain(previous, record)
            if stored != previous or n != expected:
                return int(record[0])
            last, expected = record[0], expected + 1
        (head,) = self._db.execute("SELECT audit_head FROM clock").fetchone()
        return None if head == previous else int(last) + 1


class AuditWriter:
    """Appends records to the chain while an entry is applied."""

    def __init__(self, state: State) -> None:
        self._state = state

    def record(self, kind: str, *, user: str | None = None, path: str | None = None, target: str | None = None,
               member: str | None = None, address: str | None = None, session: int | None = None,
               size: int | None = None, digest: str | None = None, outcome: str = "ok") -> None:
        """One record of the entry being applied. It stands only if the entry does."""
        state = self._state
        rows = state.audit_rows
        n = rows[-1][1] + 1 if rows and rows[-1][0] == state.index else 0
        fields = (state.index, state.now_ms, kind, user, path, target, member, address, session, size, digest or None,
                  outcome)
        digest_now = state.audit_head = chain(state.audit_head, fields)
        state.audit_count += 1
        rows.append((state.index, n, *fields[1:], digest_now))

    def admin(self, what: str, *, actor: str = "", member: str | None = None) -> None:
        """An administrator's change (or the cluster's own, without an actor)."""
        self.record("admin", user=clipped(actor) or None, target=what, member=member)


def chain(previous: bytes, record: tuple[Any, ...]) -> bytes:
    """The hash of `record` (FIELDS in order) after a record whose hash is `previous`."""
    return hashlib.sha256(previous + _canonical(list(record)).encode()).digest()
