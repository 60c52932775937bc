"""Names lead to inodes, inodes to content: lookup, and what the node reads for stat and list.

Every user has a home, a directory inode that no name leads to; paths start there and cannot leave it. An inode's
`version` is the Raft index at which its content was published (0 for directories). A file that was removed while
opened or being overwritten stays as an inode with nlink 0 until the last of those ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftmft.core.commands import Path
from raftmft.core.manifest import Manifest
from raftmft.core.names import check_path, text_of
from raftmft.core.outcome import Code, Rejection
from raftmft.core.state import Refuse, State

DIRECTORY, FILE = 0, 1
S_IFDIR, S_IFREG = 0o040000, 0o100000
DIRECTORY_MODE, FILE_MODE = 0o755, 0o644
PERMISSION_BITS = 0o7777
MAX_LIST_ENTRIES = 10_000
# Renames can nest directories deeper than any path can name; the text of such a path is cut at its beginning.
MAX_TEXT_LEVELS = 2100
_ENTRY = "i.id, i.kind, i.mode, i.uid, i.gid, i.atime, i.mtime, i.size, i.nlink, i.version"

Entry = dict[str, Any]
Entries = list[Entry]
Chain = list[int]
Published = list[tuple[int, int, Manifest]]


def type_bits(kind: int) -> int:
    """The file type bits of st_mode."""
    return S_IFREG if kind == FILE else S_IFDIR


def entry_of(row: tuple[Any, ...]) -> Entry:
    """The map that stat and list give, from the columns of _ENTRY. Mode has its type bits; times are seconds."""
    inode, kind, mode, uid, gid, atime, mtime, size, nlink, version = row[:10]
    return {"id": inode, "kind": "file" if kind == FILE else "dir", "size": size, "mode": mode | type_bits(kind),
            "uid": uid, "gid": gid, "atime": atime, "mtime": mtime, "nlink": nlink, "version": version}


class Namespace:
    """Lookup for the handlers, and the read side."""

    def __init__(self, state: State) -> None:
        self._state = state

    # --- read side -----------------------------------------------------------------------------------------------
    def stat(self, user: str, path: Path) -> Entry | Rejection:
        """The published entry at `path` of the user's home; if none is, the user's partial ("partial": True, id 0)
        with its checkpointed size.
        """
        return self._answer(lambda: self._stat(user, path))

    def list(self, user: str, path: Path, after: bytes | None = None, limit: int = 1000) -> Entries | Rejection:
        """Published entries of a directory, each with "name", by name bytes, after the name `after`."""
        return self._answer(lambda: self._list(user, path, after, limit))

    def manifests_since(self, index: int, limit: int) -> Published:
        """(publish index, file id, manifest) of present files published after Raft index `index`, oldest first.

        Each index occurs once, so the last one continues the walk. For a member that was away.
        """
        rows = self._state.db.execute(
            "SELECT version, id, size, depth, ids FROM inodes WHERE version > ? AND version > 0 "
            "ORDER BY version LIMIT ?", (index, limit))
        return [(version, inode, Manifest(size, depth, ids)) for version, inode, size, depth, ids in rows]

    def all_chunk_totals(self) -> tuple[int, int]:
        """(files, bytes) published in the whole cluster."""
        files, size = self._state.db.execute(
            "SELECT coalesce(sum(files), 0), coalesce(sum(file_bytes), 0) FROM users").fetchone()
        return files, size

    def _answer(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Refuse as refusal:
            return refusal.rejection

    def _stat(self, user: str, path: Path) -> Entry:
        uid, home = self._home(user)
        if not path:
            return self._entry(home)
        _, parent, name = self.place(home, path)
        found = self.lookup(parent, name)
        if found is not None:
            return self._entry(found[0])
        partial = self._state.db.execute(
            "SELECT size, mode, touched_ms, version FROM partials WHERE uid=? AND parent=? AND name=?",
            (uid, parent, name)).fetchone()
        if partial is None:
            raise not_found(path)
        size, mode, touched_ms, version = partial
        return {**entry_of((0, FILE, mode, uid, uid, touched_ms // 1000, touched_ms // 1000, size, 1, version)),
                "partial": True}

    def _list(self, user: str, path: Path, after: bytes | None, limit: int) -> Entries:
        _, home = self._home(user)
        directory = self.directory(home, path)
        rows = self._state.db.execute(
            f"SELECT {_ENTRY}, d.name FROM dentries d JOIN inodes i ON i.id = d.inode "
            "WHERE d.parent = ? AND d.name > ? ORDER BY d.name LIMIT ?",
            (directory, after if after is not None else b"", max(0, min(limit, MAX_LIST_ENTRIES))))
        return [{**entry_of(row), "name": row[10]} for row in rows]

    def _entry(self, inode: int) -> Entry:
        return entry_of(self._state.db.execute(f"SELECT {_ENTRY} FROM inodes i WHERE i.id = ?", (inode,)).fetchone())

    def _home(self, user: str) -> tuple[int, int]:
        row = self._state.db.execute("SELECT uid, home FROM users WHERE name = ?", (user,)).fetchone()
        if row is None:
            raise Refuse(Code.NO_USER, "there is no such user")
        return row

    # --- lookup, for handlers ------------------------------------------------------------------------------------
    def lookup(self, parent: int, name: bytes) -> tuple[int, int] | None:
        """(inode, kind) of a published name, or None."""
        return self._state.db.execute(
            "SELECT inode, kind FROM dentries WHERE parent = ? AND name = ?", (parent, name)).fetchone()

    def place(self, home: int, path: Path) -> tuple[Chain, int, bytes]:
        """Where `path` (not the home itself) would stand: its ancestors' inodes from the home on, the last of them,
        and its name. Raises Refuse (BAD_NAME, NAME_TOO_LONG, NOT_FOUND, NOT_A_DIRECTORY).
        """
        check_path(path)
        chain = [home]
        for name in path[:-1]:
            chain.append(self._step(chain[-1], name, path))
        return chain, chain[-1], path[-1]

    def directory(self, home: int, path: Path) -> int:
        """The inode of the directory at `path`; raises Refuse as `place` does."""
        if not path:
            return home
        _, parent, name = self.place(home, path)
        return self._step(parent, name, path)

    def path_prefix(self, home: int, directory: int) -> str:
        """The text of a directory's path with a slash at its end, as the audit log has it: "/" for the home."""
        names: list[str] = []
        while directory != home:
            row = self._state.db.execute(
                "SELECT parent, name FROM dentries WHERE inode = ?", (directory,)).fetchone()
            if row is None or len(names) == MAX_TEXT_LEVELS:
                names.append("...")
                break
            directory = row[0]
            names.append(text_of(row[1]))
        return "/" + "".join([name + "/" for name in reversed(names)])

    def where(self, inode: int) -> tuple[int, bytes] | None:
        """(parent, name) of a published inode."""
        return self._state.db.execute("SELECT parent, name FROM dentries WHERE inode = ?", (inode,)).fetchone()

    def _step(self, parent: int, name: bytes, path: Path) -> int:
        found = self.lookup(parent, name)
        if found is None:
            raise not_found(path)
        if found[1] != DIRECTORY:
            raise Refuse(Code.NOT_A_DIRECTORY, f"{text_of(name)} is not a directory")
        return found[0]

    # --- changes of single inodes, for handlers -------------------------------------------------------------------
    def add_inode(self, kind: int, mode: int, uid: int) -> int:
        """A new empty inode whose id is the entry's Raft index. No name leads to it yet."""
        state = self._state
        now = state.now_s
        state.db.execute("INSERT INTO inodes VALUES (?,?,?,?,?,?,?,?,0,0,x'','',0,1)",
                         (state.index, kind, mode & PERMISSION_BITS, uid, uid, now, now, now))
        return state.index

    def add_name(self, parent: int, name: bytes, inode: int, kind: int) -> None:
        """Has a free name lead to an inode."""
        self._state.db.execute("INSERT INTO dentries VALUES (?,?,?,?)", (parent, name, inode, kind))

    def drop_name(self, parent: int, name: bytes) -> None:
        """Removes a name; what it led to stays."""
        self._state.db.execute("DELETE FROM dentries WHERE parent=? AND name=?", (parent, name))

    def changed(self, directory: int) -> None:
        """A directory's names changed now."""
        now = self._state.now_s
        self._state.db.execute("UPDATE inodes SET mtime=?, ctime=? WHERE id=?", (now, now, directory))

    def forget_if_unused(self, inode: int) -> None:
        """Removes an inode without a name once no open and no upload refers to it."""
        self._state.db.execute(
            "DELETE FROM inodes WHERE id = ?1 AND nlink = 0 AND NOT EXISTS (SELECT 1 FROM opens WHERE inode = ?1) "
            "AND NOT EXISTS (SELECT 1 FROM uploads WHERE file = ?1 AND file > 0)", (inode,))


def not_found(path: Path) -> Refuse:
    """The refusal of a path that leads nowhere."""
    return Refuse(Code.NOT_FOUND, f"no such file or directory: {text_of(path[-1])}" if path else "no such directory")
