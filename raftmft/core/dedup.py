"""Exactly once: the outcomes of commands that a member may still ask about (contract, "Identity, time, epochs").

Each member numbers its commands within its boot epoch and says below which number it has heard all outcomes. Outcomes
are kept from that mark on; a number met again gives the stored outcome, byte for byte. The mark also follows the
highest number at a distance of MAX_KEPT, so that a member that never acknowledges costs a bounded room: what falls
below the mark is rejected as stale, never applied a second time.

During a batch the new outcomes lie in memory and are written by `save`; what is left in the table depends on the
marks only, and so not on how entries were cut into batches.
"""

from __future__ import annotations

import sqlite3

from raftmft.core.commands import CommandId
from raftmft.core.names import clipped
from raftmft.core.outcome import Code, Rejection

MAX_KEPT = 8192


class _Member:
    """One member's numbers. `top` is the highest number stored; `fresh` holds this batch's outcomes."""

    __slots__ = ("epoch", "fresh", "mark", "pruned", "top")

    def __init__(self, epoch: int, mark: int, top: int) -> None:
        self.epoch, self.mark, self.pruned, self.top = epoch, mark, mark, top
        self.fresh: dict[int, bytes] = {}


class Dedup:
    """The stored outcomes of all members."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._members: dict[str, _Member] = {}
        self._touched: set[str] = set()

    def look_up(self, identity: CommandId, acked_below: int) -> bytes | Rejection | None:
        """None: the command is new, apply it and `store` its outcome. Bytes: the outcome it had. Rejection: it is of
        another epoch, or below the mark.
        """
        name = identity.member
        member = self._members.get(name) or self._load(name)
        if member is None:
            return Rejection(Code.STALE_EPOCH, f"{clipped(name, 64)} is no member of this cluster")
        if identity.epoch != member.epoch or member.epoch == 0:
            return Rejection(Code.STALE_EPOCH, f"the command is of epoch {identity.epoch}, the member's is "
                                               f"{member.epoch}")
        seq = identity.seq
        # A command's own number is not acknowledged yet, whatever it says.
        mark = acked_below if acked_below <= seq else seq
        if mark > member.mark:
            member.mark = mark
            self._touched.add(name)
        if seq < member.mark:
            return Rejection(Code.STALE_COMMAND, f"the outcome of command {seq} is not kept any more")
        if seq > member.top:
            return None
        stored = member.fresh.get(seq)
        if stored is not None:
            return stored
        row = self._db.execute("SELECT outcome FROM outcomes WHERE member = ? AND seq = ?", (name, seq)).fetchone()
        return None if row is None else bytes(row[0])

    def store(self, identity: CommandId, outcome: bytes) -> None:
        """Keeps the outcome of a command that `look_up` found new; nothing if the command itself ended its epoch."""
        member = self._members.get(identity.member) or self._load(identity.member)
        if member is None or member.epoch != identity.epoch:
            return
        seq = identity.seq
        member.fresh[seq] = outcome
        if seq > member.top:
            member.top = seq
            if seq - MAX_KEPT >= member.mark:
                member.mark = seq - MAX_KEPT + 1
        self._touched.add(identity.member)

    def peek(self, identity: CommandId) -> bytes | None:
        """The outcome stored for a command, if any; changes nothing."""
        member = self._members.get(identity.member) or self._load(identity.member)
        if member is None or member.epoch != identity.epoch:
            return None
        row = self._db.execute("SELECT outcome FROM outcomes WHERE member = ? AND seq = ?",
                               (identity.member, identity.seq)).fetchone()
        return None if row is None else bytes(row[0])

    def forget(self, name: str) -> None:
        """The member has a new epoch: what is kept for the old one goes. To be called by the entry that raised it."""
        self._members.pop(name, None)
        self._touched.discard(name)
        self._db.execute("DELETE FROM outcomes WHERE member = ?", (name,))
        self._db.execute("UPDATE members SET acked_below = 0 WHERE id = ?", (name,))

    def forget_all(self) -> None:
        """Every member of before is gone or has a new epoch, and the entry that did it removed all kept outcomes."""
        self._members.clear()
        self._touched.clear()

    def save(self) -> None:
        """Writes what the batch changed. Called once, in the batch's transaction."""
        for name in self._touched:
            member = self._members[name]
            mark = member.mark
            if mark > member.pruned:
                self._db.execute("DELETE FROM outcomes WHERE member = ? AND seq < ?", (name, mark))
                self._db.execute("UPDATE members SET acked_below = ? WHERE id = ?", (mark, name))
                member.pruned = mark
            rows = [(name, seq, outcome) for seq, outcome in member.fresh.items() if seq >= mark]
            self._db.executemany("INSERT INTO outcomes VALUES (?,?,?)", rows)
            member.fresh = {}
        self._touched.clear()

    def _load(self, name: str) -> _Member | None:
        row = self._db.execute("SELECT epoch, acked_below FROM members WHERE id = ?", (name,)).fetchone()
        if row is None:
            return None
        epoch, mark = row
        (top,) = self._db.execute("SELECT max(seq) FROM outcomes WHERE member = ?", (name,)).fetchone()
        member = self._members[name] = _Member(epoch, mark, mark - 1 if top is None else top)
        return member
