"""For whom a command speaks: its live session and user, and what that user may still do and store."""

from __future__ import annotations

from typing import NamedTuple

from raftmft.core.outcome import Code
from raftmft.core.state import Refuse, State


class Who(NamedTuple):
    """A live session and its user, as they were when the command began."""

    session: int
    member: str
    address: str
    uid: int
    user: str
    home: int
    read_only: int
    enabled: int
    quota_bytes: int
    file_bytes: int
    partial_bytes: int

    def check_room(self, more_bytes: int) -> None:
        """Raises Refuse(QUOTA) if `more_bytes` (net of what they replace) would put the user over its quota."""
        used = self.file_bytes + self.partial_bytes
        if self.quota_bytes and more_bytes > 0 and used + more_bytes > self.quota_bytes:
            raise Refuse(Code.QUOTA, f"the quota of {self.quota_bytes} bytes is used up ({used} bytes, "
                                     f"unfinished uploads included); remove something first")


_WHO = """SELECT s.id, s.member, s.address, u.uid, u.name, u.home, u.read_only, u.enabled, u.quota_bytes,
    u.file_bytes, u.partial_bytes FROM sessions s JOIN users u ON u.uid = s.uid WHERE s.id = ?"""


def session_of(state: State, session: int) -> Who:
    """The live session; raises Refuse(NO_SESSION). For what a session may do even of a disabled user: end things."""
    row = state.db.execute(_WHO, (session,)).fetchone()
    if row is None:
        raise Refuse(Code.NO_SESSION, "the session has ended; connect again")
    return Who._make(row)


def reader(state: State, session: int) -> Who:
    """The live session of an enabled user; raises Refuse (NO_SESSION, DISABLED)."""
    who = session_of(state, session)
    if not who.enabled:
        raise Refuse(Code.DISABLED, "the user is disabled")
    return who


def writer(state: State, session: int) -> Who:
    """The live session of a user that may change things; raises Refuse (NO_SESSION, DISABLED, READ_ONLY)."""
    who = reader(state, session)
    if who.read_only:
        raise Refuse(Code.READ_ONLY, "the user may only read")
    return who


def charge(state: State, uid: int, *, files: int = 0, file_bytes: int = 0, partial_bytes: int = 0) -> None:
    """Adds to what the user has stored; negative to give back. Does nothing for a user that is gone."""
    if files or file_bytes or partial_bytes:
        state.db.execute("UPDATE users SET files = files + ?, file_bytes = file_bytes + ?, "
                         "partial_bytes = partial_bytes + ? WHERE uid = ?", (files, file_bytes, partial_bytes, uid))
