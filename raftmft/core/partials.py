"""Partials: the durable prefixes of uploads to names that have no published file (contract, promise 3).

There is at most one for each user, directory and name, always with size > 0, counted in the user's quota, and never
beside a published name. While its upload lives the partial is that upload's last checkpoint; afterwards it waits for
whoever of the same user takes it over, and expires EXPIRE_AFTER_MS after it was last touched.
"""

from __future__ import annotations

from typing import NamedTuple

from raftmft.core.audit import AuditWriter
from raftmft.core.manifest import Manifest
from raftmft.core.names import text_of
from raftmft.core.namespace import Namespace
from raftmft.core.state import State
from raftmft.core.who import charge

EXPIRE_AFTER_MS = 24 * 3600 * 1000
EXPIRE_AT_ONCE = 256


class Partial(NamedTuple):
    """A partial's content. `upload` is 0 when no live upload owns it; `begun` is the last upload that did."""

    upload: int
    begun: int
    size: int
    depth: int
    ids: bytes
    mode: int


class Partials:
    """The partials of all users."""

    def __init__(self, state: State, namespace: Namespace, audit: AuditWriter) -> None:
        self._state, self._namespace, self._audit = state, namespace, audit

    def manifests_since(self, index: int, limit: int) -> list[tuple[int, Manifest]]:
        """(checkpoint's Raft index, manifest) of partials checkpointed after `index`, oldest first."""
        rows = self._state.db.execute(
            "SELECT version, size, depth, ids FROM partials WHERE version > ? ORDER BY version LIMIT ?", (index, limit))
        return [(version, Manifest(size, depth, ids)) for version, size, depth, ids in rows]

    def get(self, uid: int, parent: int, name: bytes) -> Partial | None:
        """The user's partial of a name."""
        row = self._state.db.execute(
            "SELECT upload, begun, size, depth, ids, mode FROM partials WHERE uid=? AND parent=? AND name=?",
            (uid, parent, name)).fetchone()
        return None if row is None else Partial._make(row)

    def put(self, uid: int, parent: int, name: bytes, upload: int, manifest: Manifest, mode: int,
            before: Partial | None) -> None:
        """Makes `manifest` (size > 0) the name's partial, owned by `upload`. `before` is what `get` gave."""
        state = self._state
        state.db.execute("INSERT OR REPLACE INTO partials VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                         (uid, parent, name, upload, upload, manifest.size, manifest.depth, manifest.ids, mode,
                          state.index, state.now_ms))
        charge(state, uid, partial_bytes=manifest.size - (before.size if before else 0))

    def take_over(self, uid: int, parent: int, name: bytes, upload: int) -> None:
        """Gives the partial to a new upload."""
        self._state.db.execute(
            "UPDATE partials SET upload=?, begun=?, touched_ms=? WHERE uid=? AND parent=? AND name=?",
            (upload, upload, self._state.now_ms, uid, parent, name))

    def drop(self, uid: int, parent: int, name: bytes) -> Partial | None:
        """Removes the partial and frees its quota; gives what it was."""
        before = self.get(uid, parent, name)
        if before is not None:
            self._state.db.execute("DELETE FROM partials WHERE uid=? AND parent=? AND name=?", (uid, parent, name))
            charge(self._state, uid, partial_bytes=-before.size)
        return before

    def drop_all_in(self, uid: int, directory: int) -> None:
        """Removes the partials of a directory that is about to go."""
        names = self._state.db.execute("SELECT name FROM partials WHERE parent=?", (directory,)).fetchall()
        for (name,) in names:
            self.drop(uid, directory, name)

    def move(self, uid: int, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """Renames a partial, in place of one that stands there."""
        self.drop(uid, new_parent, new_name)
        self._state.db.execute("UPDATE partials SET parent=?, name=? WHERE uid=? AND parent=? AND name=?",
                               (new_parent, new_name, uid, parent, name))

    def release(self, upload: int) -> int | None:
        """The upload ended: its partial, if it has one, waits from now on. Gives its size."""
        row = self._state.db.execute("SELECT size FROM partials WHERE upload=? AND upload>0", (upload,)).fetchone()
        if row is None:
            return None
        self._state.db.execute("UPDATE partials SET upload=0, touched_ms=? WHERE upload=? AND upload>0",
                               (self._state.now_ms, upload))
        return int(row[0])

    def expire(self) -> bool:
        """Removes partials that waited too long, at most EXPIRE_AT_ONCE; True if there may be more."""
        rows = self._state.db.execute(
            "SELECT p.uid, p.parent, p.name, p.size, u.name, u.home FROM partials p JOIN users u ON u.uid = p.uid "
            "WHERE p.upload = 0 AND p.touched_ms <= ? ORDER BY p.touched_ms, p.uid, p.parent, p.name LIMIT ?",
            (self._state.now_ms - EXPIRE_AFTER_MS, EXPIRE_AT_ONCE)).fetchall()
        for uid, parent, name, size, user, home in rows:
            self.drop(uid, parent, name)
            self._audit.record("partial", user=user, path=self._namespace.path_prefix(home, parent) + text_of(name),
                               size=size, outcome="expired")
        return len(rows) == EXPIRE_AT_ONCE
