"""Sessions of the whole cluster. A session's id is the Raft index of its Login.

It ends by Logout, by its member's death or restart (`expire`), or with its user. Its uploads end with it and leave
their prefixes as partials; its open reads stay until their ends are reported (opens.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.bans import Bans, covers, parse_host
from raftmft.core.commands import BanAdd, Login, LoginRefused, Logout, SessionKill
from raftmft.core.names import clipped
from raftmft.core.opens import Opens
from raftmft.core.outcome import Code
from raftmft.core.state import Refuse, State
from raftmft.core.uploads import Uploads
from raftmft.core.who import Who, session_of

MAX_REFUSALS = 1000
_ROW = """SELECT s.id, s.member, s.epoch, u.name, s.address, s.method, s.started_ms
    FROM sessions s JOIN users u ON u.uid = s.uid"""
Ids = list[int]


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A live session."""

    id: int
    member: str
    epoch: int
    user: str
    address: str
    method: str
    started_ms: int


class Sessions:
    """Who is logged in, anywhere."""

    def __init__(self, state: State, uploads: Uploads, opens: Opens, bans: Bans, audit: AuditWriter) -> None:
        self._state, self._uploads, self._opens, self._bans, self._audit = state, uploads, opens, bans, audit

    def get(self, session: int) -> SessionRow | None:
        """A live session, or None."""
        row = self._state.db.execute(f"{_ROW} WHERE s.id = ?", (session,)).fetchone()
        return None if row is None else SessionRow(*row)

    def list(self, member: str | None = None) -> list[SessionRow]:
        """Live sessions, oldest first, of one member if given."""
        where, values = ("", ()) if member is None else (" WHERE s.member = ?", (member,))
        return [SessionRow(*row) for row in self._state.db.execute(f"{_ROW}{where} ORDER BY s.id", values)]

    def count(self, member: str | None = None) -> int:
        """How many sessions live, on one member if given."""
        where, values = ("", ()) if member is None else (" WHERE member = ?", (member,))
        return int(self._state.db.execute(f"SELECT count(*) FROM sessions{where}", values).fetchone()[0])

    def count_of(self, uid: int) -> int:
        """How many sessions of a user live, anywhere."""
        return int(self._state.db.execute("SELECT count(*) FROM sessions WHERE uid = ?", (uid,)).fetchone()[0])

    # --- apply ---------------------------------------------------------------------------------------------------
    def login(self, command: Login) -> dict[str, Any]:
        """Begins a session of a user who proved who it is, within the cluster-wide limit."""
        state = self._state
        member = state.db.execute("SELECT epoch FROM members WHERE id = ?", (command.member,)).fetchone()
        if member is None or member[0] != command.epoch or command.epoch == 0:
            raise Refuse(Code.STALE_EPOCH, "the node was taken for dead or restarted meanwhile; connect again")
        if self._bans.match(parse_host(command.address), state.now_ms) is not None:
            raise Refuse(Code.PERMISSION, "the address is banned")
        user = state.db.execute("SELECT uid, enabled, credential, max_sessions, read_only FROM users WHERE name = ?",
                                (command.user,)).fetchone()
        if user is None:
            raise Refuse(Code.NO_USER, "there is no such user")
        uid, enabled, credential, max_sessions, read_only = user
        if not enabled:
            raise Refuse(Code.DISABLED, "the user is disabled")
        if credential != command.credential:
            raise Refuse(Code.STALE_CREDENTIAL, "the user's password or keys changed meanwhile; log in again")
        if max_sessions:
            (count,) = state.db.execute("SELECT count(*) FROM sessions WHERE uid = ?", (uid,)).fetchone()
            if count >= max_sessions:
                raise Refuse(Code.LIMIT, f"the user has its {max_sessions} sessions already; end one first")
        address, method = clipped(command.address), clipped(command.method, 64)
        state.db.execute("INSERT INTO sessions VALUES (?,?,?,?,?,?,?)",
                         (state.index, command.member, command.epoch, uid, address, method, state.now_ms))
        self._audit.record("login", user=command.user, member=command.member, address=address, session=state.index,
                           target=method)
        return {"session": state.index, "read_only": bool(read_only), "uid": uid}

    def login_refused(self, command: LoginRefused) -> dict[str, Any]:
        """Audits refused logins, already folded by the member."""
        if len(command.refusals) > MAX_REFUSALS:
            raise Refuse(Code.INVALID, f"at most {MAX_REFUSALS} refused logins at once")
        for address, user, reason, count in command.refusals:
            outcome = clipped(reason) if count <= 1 else f"{clipped(reason)}, {count} times"
            self._audit.record("login_refused", user=clipped(user), member=command.member, address=clipped(address),
                               outcome=outcome)
        return {}

    def logout(self, command: Logout) -> dict[str, Any]:
        """Ends a session whose member lives."""
        who = session_of(self._state, command.session)
        kind = "session_killed" if command.reason == "killed" else "logout"
        self._leave(who, kind, clipped(command.reason) or "closed")
        return {}

    def ban(self, command: BanAdd) -> dict[str, Any]:
        """Bans addresses and ends the sessions that come from them. About 5 us for each live session."""
        network = self._bans.add(command)
        rows = self._state.db.execute("SELECT id, address FROM sessions ORDER BY id").fetchall()
        ended = [session for session, address in rows if covers(network, parse_host(address))]
        for session in ended:
            self._leave(session_of(self._state, session), "session_killed", "address banned")
        return {"network": str(network), "sessions": ended}

    def kill(self, command: SessionKill) -> dict[str, Any]:
        """Ends a session for an operator. The member that serves it disconnects the client when it applies this."""
        who = session_of(self._state, command.session)
        by = clipped(command.actor)
        self._leave(who, "session_killed", f"killed by {by}" if by else "killed")
        return {"user": who.user, "member": who.member}

    # --- for other handlers --------------------------------------------------------------------------------------
    def expire(self, member: str, below_epoch: int, why: str) -> None:
        """Ends the member's sessions of epochs below, and its reads as "finish unknown": the process is gone."""
        rows = self._state.db.execute(
            "SELECT id FROM sessions WHERE member = ? AND epoch < ? ORDER BY id", (member, below_epoch)).fetchall()
        for (session,) in rows:
            self._end(session_of(self._state, session), "session_expired", why)
        self._opens.member_gone(member)

    def may_read(self, member: str) -> None:
        """The member has an epoch from this entry on, and may have sessions again."""
        self._opens.member_begins(member)

    def end_all_of(self, uid: int, why: str) -> Ids:
        """Ends all sessions of a user; their ids."""
        rows = self._state.db.execute("SELECT id FROM sessions WHERE uid = ? ORDER BY id", (uid,)).fetchall()
        for (session,) in rows:
            self._leave(session_of(self._state, session), "session_killed", why)
        return [row[0] for row in rows]

    def _leave(self, who: Who, kind: str, outcome: str) -> None:
        self._opens.leave(who.session)
        self._end(who, kind, outcome)

    def _end(self, who: Who, kind: str, outcome: str) -> None:
        self._uploads.end_session(who)
        self._state.db.execute("DELETE FROM sessions WHERE id = ?", (who.session,))
        self._audit.record(kind, user=who.user, member=who.member, address=who.address, session=who.session,
                           outcome=outcome)
