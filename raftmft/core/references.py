"""Which published files of a home refer to which content. Reads only, for deduplication within a home (node/homes.py).

A *home* is what belongs to one user: every file in it has the user's uid.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from raftmft.core.manifest import CHUNK_SIZE, Manifest

LEAST_OFFERED = 64 << 10
"""Smaller chunks are never looked for: small files are to cost a put and a commit, and the bytes saved are few."""


class Published(NamedTuple):
    """A version of a file that was published at Raft index `version`."""

    file: int
    version: int
    manifest: Manifest


class References:
    """May be used in another thread with a connection of its own (schema.open_reader)."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def newest(self, uid: int) -> int:
        """The version of the home's file that was published last; 0 if there is none."""
        row = self._db.execute("SELECT max(version) FROM inodes WHERE uid = ? AND version > 0", (uid,)).fetchone()
        return int(row[0] or 0)

    def chunks_since(self, uid: int, after: int) -> int:
        """How many chunks, at most, the home's files have that were published after Raft index `after`."""
        (chunks,) = self._db.execute(
            f"SELECT coalesce(sum((size + {CHUNK_SIZE - 1}) / {CHUNK_SIZE}), 0) FROM inodes "
            "WHERE uid = ? AND version > ? AND version > 0 AND size >= ?", (uid, after, LEAST_OFFERED)).fetchone()
        return int(chunks)

    def published(self, uid: int, after: int, before: int, limit: int) -> list[Published]:
        """The home's files that were published after Raft index `after` and before `before`, the latest first, `limit`
        of them at most and none smaller than LEAST_OFFERED.
        """
        rows = self._db.execute(
            "SELECT id, version, size, depth, ids FROM inodes WHERE uid = ? AND version > ? AND version > 0 "
            "AND version < ? AND size >= ? ORDER BY version DESC LIMIT ?", (uid, after, before, LEAST_OFFERED, limit))
        return [Published(file, version, Manifest(size, depth, ids)) for file, version, size, depth, ids in rows]

    def is_current(self, uid: int, file: int, version: int) -> bool:
        """Whether a file of the home, with a name, still has this version."""
        return self._db.execute("SELECT 1 FROM inodes WHERE id = ? AND version = ? AND uid = ? AND nlink > 0",
                                (file, version, uid)).fetchone() is not None
