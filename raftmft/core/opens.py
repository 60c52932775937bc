"""Files open to read, each pinned to one version and audited.

By default an open is one entry (OpenRead): resolved, pinned and recorded before it is answered; its id is the Raft
index of that entry. With audit.opens relaxed the member answers from its own state, behind a read barrier, and has
opens recorded in batches within a second (RecordOpens); then an open's id is minus the member's number of it.

What may be deleted (contract, "Copies and deletion") depends on the oldest state that anybody still reads. An open that
is recorded says in `at` which state it reads. For those that are not recorded yet every member has a mark,
`reads_from`: none of its open reads that no entry tells of, now or later, is of an older state. It is set by the entry
that makes opens relaxed (a member that answers one has applied that entry), by a member's boot while they are, and is
moved on by the member with each batch. It goes (0) once it would pass the entry that made opens strict again: from
there on the member answers none that is not recorded. And with its recorded opens, when the member is held for dead.

An open outlives its session until its member reports how the read ended, since reports come in batches. If the member
dies first, or says nothing for REPORT_LIMIT_MS after the session's end, "finish unknown" is recorded.
"""

from __future__ import annotations

from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import OpenRead, Path, ReadEnd, RecordOpens
from raftmft.core.names import clipped, path_text, text_of
from raftmft.core.namespace import FILE, Namespace, entry_of, not_found
from raftmft.core.options import Options
from raftmft.core.outcome import Code, Rejection
from raftmft.core.state import Refuse, State
from raftmft.core.who import Who, reader

MAX_OPENS_PER_SESSION = 2048
MAX_READ_ENDS = 10_000
MAX_RECORDS = 10_000
MAX_UNKNOWN_ENDS = 10_000
REPORT_LIMIT_MS = 60_000
SWEEP_AT_ONCE = 256
UNKNOWN = "finish unknown"
_COLUMNS = "id, session, member, user, address, inode, path, digest"


class Opens:
    """The open reads of all sessions."""

    def __init__(self, state: State, options: Options, namespace: Namespace, audit: AuditWriter) -> None:
        self._state, self._options, self._namespace, self._audit = state, options, namespace, audit

    def count(self) -> int:
        """How many reads have begun whose end is not recorded."""
        return int(self._state.db.execute("SELECT count(*) FROM opens").fetchone()[0])

    def oldest(self, member: str) -> int | None:
        """No open read of the member, recorded or not, is of a state before this Raft index; None: it has none."""
        (at,) = self._state.db.execute("SELECT min(at) FROM opens WHERE member = ?", (member,)).fetchone()
        marks = [mark for mark in (at, self.reads_from(member)) if mark]
        return min(marks, default=None)

    def reads_from(self, member: str) -> int:
        """No open read of the member that is not recorded is of a state before this Raft index; 0: it has none."""
        row = self._state.db.execute("SELECT reads_from FROM members WHERE id = ?", (member,)).fetchone()
        return 0 if row is None else int(row[0])

    def recorded(self, member: str) -> int:
        """The number of the member's open that was recorded afterwards last; 0: none was."""
        row = self._state.db.execute("SELECT opens_recorded FROM members WHERE id = ?", (member,)).fetchone()
        return 0 if row is None else int(row[0])

    def look(self, session: int, path: Path) -> tuple[dict[str, Any], Who, str] | Rejection:
        """What an open to read would give now, but for its id; for whom, and the path in full. Nothing is recorded: for
        a member that will (RecordOpens), and only between batches.
        """
        try:
            return self._resolve(session, path)
        except Refuse as refusal:
            return refusal.rejection

    # --- apply ---------------------------------------------------------------------------------------------------
    def open(self, command: OpenRead) -> dict[str, Any]:
        """Resolves a path to the published version, pins it, and audits the open."""
        state = self._state
        value, who, path = self._resolve(command.session, command.path)
        (count,) = state.db.execute("SELECT count(*) FROM opens WHERE session = ?", (who.session,)).fetchone()
        if count >= MAX_OPENS_PER_SESSION:
            raise Refuse(Code.LIMIT, f"a session has at most {MAX_OPENS_PER_SESSION} files open to read")
        digest = value["digest"]
        state.db.execute("INSERT INTO opens VALUES (?,?,?,?,?,?,?,?,?,?,0)",
                         (who.session, state.index, who.member, who.user, who.address, value["file"], value["version"],
                          path, digest, state.index))
        self._audit.record("open", user=who.user, path=path, member=who.member, address=who.address,
                           session=who.session, size=value["size"], digest=digest)
        return {"open": state.index, **value}

    def record(self, command: RecordOpens) -> dict[str, Any]:
        """Records opens that were answered before, each once, and how far the member's other reads have got."""
        state, member = self._state, command.member
        row = state.db.execute("SELECT opens_recorded, reads_from FROM members WHERE id = ?", (member,)).fetchone()
        if row is None:
            raise Refuse(Code.NOT_FOUND, f"{clipped(member, 64)} is no member of this cluster")
        if len(command.opens) > MAX_RECORDS:
            raise Refuse(Code.INVALID, f"at most {MAX_RECORDS} opens at once")
        recorded, reads_from = row
        for number, session, user, address, inode, version, path, size, digest, at in command.opens:
            if number <= recorded:
                continue  # the batch was proposed before, and its end was not known
            if not 0 < at <= state.index:
                raise Refuse(Code.INVALID, "an open cannot have read a state that is still to come")
            recorded = number
            lives = state.db.execute("SELECT 1 FROM sessions WHERE id = ? AND member = ?", (session, member)).fetchone()
            state.db.execute("INSERT INTO opens VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                             (session, -number, member, user, address, inode, version, path, digest, at,
                              0 if lives else max(1, state.now_ms)))
            self._audit.record("open", user=user, path=path, member=member, address=address, session=session,
                               size=size, digest=digest, outcome=f"ok, as of index {at}")
        is_over = not self._options.opens_are_relaxed and command.reads_from >= self._options.opens_since
        state.db.execute("UPDATE members SET opens_recorded = ?, reads_from = ? WHERE id = ?",
                         (recorded, 0 if is_over else max(reads_from, command.reads_from), member))
        return {}

    def read_end(self, command: ReadEnd) -> dict[str, Any]:
        """Records how reads ended. What is not open any more was recorded before and is passed over."""
        if len(command.ends) > MAX_READ_ENDS:
            raise Refuse(Code.INVALID, f"at most {MAX_READ_ENDS} ends of reads at once")
        for session, number, size, is_ok in command.ends:
            row = self._state.db.execute(
                f"SELECT {_COLUMNS} FROM opens WHERE session = ? AND id = ?", (session, number)).fetchone()
            if row is not None:
                self._end(row, size=max(0, size), outcome="ok" if is_ok else "failed")
        return {}

    # --- for other handlers --------------------------------------------------------------------------------------
    def leave(self, session: int) -> None:
        """The session ended while its member lives: the reports are still to come."""
        self._state.db.execute("UPDATE opens SET left_ms = ? WHERE session = ?",
                               (max(1, self._state.now_ms), session))

    def member_begins(self, member: str) -> None:
        """The member has a new epoch, under which it may answer opens before they are recorded."""
        if self._options.opens_are_relaxed:
            self._state.db.execute("UPDATE members SET reads_from = ? WHERE id = ?", (self._state.index, member))

    def member_gone(self, member: str) -> None:
        """No report will come any more: records "finish unknown" for each; beyond MAX_UNKNOWN_ENDS one for all."""
        self._state.db.execute("UPDATE members SET reads_from = 0 WHERE id = ?", (member,))
        rows = self._state.db.execute(
            f"SELECT {_COLUMNS} FROM opens WHERE member = ? ORDER BY at, session, id DESC", (member,)).fetchall()
        for row in rows[:MAX_UNKNOWN_ENDS]:
            self._end(row, size=None, outcome=UNKNOWN)
        more = rows[MAX_UNKNOWN_ENDS:]
        if more:
            self._audit.record("read_end", member=member, outcome=f"{UNKNOWN}, {len(more)} more reads")
            for row in more:
                self._forget(row[0], row[1], row[5])

    def sweep(self) -> bool:
        """Records the opens of ended sessions that nobody reported; True if there may be more."""
        rows = self._state.db.execute(
            f"SELECT {_COLUMNS} FROM opens WHERE left_ms > 0 AND left_ms <= ? ORDER BY left_ms, session, id LIMIT ?",
            (self._state.now_ms - REPORT_LIMIT_MS, SWEEP_AT_ONCE)).fetchall()
        for row in rows:
            self._end(row, size=None, outcome=UNKNOWN)
        return len(rows) == SWEEP_AT_ONCE

    # --- leaves --------------------------------------------------------------------------------------------------
    def _resolve(self, session: int, path: Path) -> tuple[dict[str, Any], Who, str]:
        who = reader(self._state, session)
        if not path:
            raise Refuse(Code.IS_A_DIRECTORY, "the home is a directory")
        spot = self._namespace.find(who.home, path)
        if spot.kind is None:
            raise not_found(path)
        if spot.kind != FILE:
            raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(spot.name)} is a directory")
        row = self._state.db.execute(
            "SELECT id, kind, mode, uid, gid, atime, mtime, size, nlink, version, depth, ids, digest "
            "FROM inodes WHERE id = ?", (spot.inode,)).fetchone()
        depth, ids, digest = row[10:]
        attrs = entry_of(row)
        return {"file": spot.inode, "version": attrs["version"], "size": attrs["size"], "depth": depth, "ids": ids,
                "digest": digest, "attrs": attrs}, who, path_text(spot.path)

    def _end(self, row: tuple[Any, ...], *, size: int | None, outcome: str) -> None:
        number, session, member, user, address, inode, path, digest = row
        self._forget(number, session, inode)
        self._audit.record("read_end", user=user, path=path, member=member, address=address, session=session,
                           size=size, digest=digest, outcome=outcome)

    def _forget(self, number: int, session: int, inode: int) -> None:
        self._state.db.execute("DELETE FROM opens WHERE session = ? AND id = ?", (session, number))
        self._namespace.forget_if_unused(inode)
