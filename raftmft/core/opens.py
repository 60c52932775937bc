"""Files open to read. An open's id is the Raft index of its OpenRead.

An open outlives its session until its member reports how the read ended, since reports come in batches. If the member
dies first, or says nothing for REPORT_LIMIT_MS after the session's end, "finish unknown" is recorded.
"""

from __future__ import annotations

from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import OpenRead, ReadEnd
from raftmft.core.names import path_text, text_of
from raftmft.core.namespace import FILE, Namespace, entry_of, not_found
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse, State
from raftmft.core.who import reader

MAX_OPENS_PER_SESSION = 2048
MAX_READ_ENDS = 10_000
MAX_UNKNOWN_ENDS = 10_000
REPORT_LIMIT_MS = 60_000
SWEEP_AT_ONCE = 256
UNKNOWN = "finish unknown"
_COLUMNS = "id, session, member, user, address, inode, path, digest"


class Opens:
    """The open reads of all sessions."""

    def __init__(self, state: State, namespace: Namespace, audit: AuditWriter) -> None:
        self._state, self._namespace, self._audit = state, namespace, audit

    def count(self) -> int:
        """How many reads have begun whose end is not recorded."""
        return int(self._state.db.execute("SELECT count(*) FROM opens").fetchone()[0])

    def oldest(self, member: str) -> int | None:
        """The Raft index of the member's oldest open read, or None."""
        row = self._state.db.execute("SELECT min(id) FROM opens WHERE member = ?", (member,)).fetchone()
        return None if row[0] is None else int(row[0])

    # --- apply ---------------------------------------------------------------------------------------------------
    def open(self, command: OpenRead) -> dict[str, Any]:
        """Resolves a path to the published version, pins it, and audits the open."""
        state = self._state
        who = reader(state, command.session)
        if not command.path:
            raise Refuse(Code.IS_A_DIRECTORY, "the home is a directory")
        spot = self._namespace.find(who.home, command.path)
        if spot.kind is None:
            raise not_found(command.path)
        if spot.kind != FILE:
            raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(spot.name)} is a directory")
        (count,) = state.db.execute("SELECT count(*) FROM opens WHERE session = ?", (who.session,)).fetchone()
        if count >= MAX_OPENS_PER_SESSION:
            raise Refuse(Code.LIMIT, f"a session has at most {MAX_OPENS_PER_SESSION} files open to read")
        row = state.db.execute(
            "SELECT id, kind, mode, uid, gid, atime, mtime, size, nlink, version, depth, ids, digest "
            "FROM inodes WHERE id = ?", (spot.inode,)).fetchone()
        depth, ids, digest = row[10:]
        attrs = entry_of(row)
        text = path_text(spot.path)
        state.db.execute("INSERT INTO opens VALUES (?,?,?,?,?,?,?,?,?,0)",
                         (state.index, who.session, who.member, who.user, who.address, spot.inode, attrs["version"],
                          text, digest))
        self._audit.record("open", user=who.user, path=text, member=who.member, address=who.address,
                           session=who.session, size=attrs["size"], digest=digest)
        return {"open": state.index, "file": spot.inode, "version": attrs["version"], "size": attrs["size"],
                "depth": depth, "ids": ids, "digest": digest, "attrs": attrs}

    def read_end(self, command: ReadEnd) -> dict[str, Any]:
        """Records how reads ended. What is not open any more was recorded before and is passed over."""
        if len(command.ends) > MAX_READ_ENDS:
            raise Refuse(Code.INVALID, f"at most {MAX_READ_ENDS} ends of reads at once")
        for session, number, size, is_ok in command.ends:
            row = self._state.db.execute(
                f"SELECT {_COLUMNS} FROM opens WHERE id = ? AND session = ?", (number, session)).fetchone()
            if row is not None:
                self._end(row, size=max(0, size), outcome="ok" if is_ok else "failed")
        return {}

    # --- for other handlers --------------------------------------------------------------------------------------
    def leave(self, session: int) -> None:
        """The session ended while its member lives: the reports are still to come."""
        self._state.db.execute("UPDATE opens SET left_ms = ? WHERE session = ?",
                               (max(1, self._state.now_ms), session))

    def member_gone(self, member: str) -> None:
        """No report will come any more: records "finish unknown" for each; beyond MAX_UNKNOWN_ENDS one for all."""
        rows = self._state.db.execute(
            f"SELECT {_COLUMNS} FROM opens WHERE member = ? ORDER BY id", (member,)).fetchall()
        for row in rows[:MAX_UNKNOWN_ENDS]:
            self._end(row, size=None, outcome=UNKNOWN)
        more = rows[MAX_UNKNOWN_ENDS:]
        if more:
            self._audit.record("read_end", member=member, outcome=f"{UNKNOWN}, {len(more)} more reads")
            for row in more:
                self._forget(row[0], row[5])

    def sweep(self) -> bool:
        """Records the opens of ended sessions that nobody reported; True if there may be more."""
        rows = self._state.db.execute(
            f"SELECT {_COLUMNS} FROM opens WHERE left_ms > 0 AND left_ms <= ? ORDER BY left_ms, id LIMIT ?",
            (self._state.now_ms - REPORT_LIMIT_MS, SWEEP_AT_ONCE)).fetchall()
        for row in rows:
            self._end(row, size=None, outcome=UNKNOWN)
        return len(rows) == SWEEP_AT_ONCE

    def _end(self, row: tuple[Any, ...], *, size: int | None, outcome: str) -> None:
        number, session, member, user, address, inode, path, digest = row
        self._forget(number, inode)
        self._audit.record("read_end", user=user, path=path, member=member, address=address, session=session,
                           size=size, digest=digest, outcome=outcome)

    def _forget(self, number: int, inode: int) -> None:
        self._state.db.execute("DELETE FROM opens WHERE id = ?", (number,))
        self._namespace.forget_if_unused(inode)
