"""Which published files of a home refer to which content. Reads only, for deduplication within a home (node/homes.py).

A *home* is what belongs to one user: every file in it has the user's uid.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from raftmft.core.manifest import Manifest


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

    def published(self, uid: int, after: int, most_chunks: int) -> list[Published]:
        """The home's files that were published after Raft index `after`, the latest first, until they have together
        `most_chunks` chunks or more.
        """
        found, chunks = [], 0
        for file, version, size, depth, ids in self._db.execute(
                "SELECT id, version, size, depth, ids FROM inodes WHERE uid = ? AND version > ? AND version > 0 "
                "ORDER BY version DESC", (uid, after)):
            manifest = Manifest(size, depth, ids)
            found.append(Published(file, version, manifest))
            chunks += manifest.chunk_count
            if chunks >= most_chunks:
                break
        return found

    def is_current(self, uid: int, file: int, version: int) -> bool:
        """Whether a file of the home, with a name, still has this version."""
        return self._db.execute("SELECT 1 FROM inodes WHERE id = ? AND version = ? AND uid = ? AND nlink > 0",
                                (file, version, uid)).fetchone() is not None
