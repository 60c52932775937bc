"""Names lead to inodes, inodes to content: lookup, and what the node reads for stat and list.

Every user has a home, a directory inode that no name leads to; paths start there and cannot leave it. An inode's
`version` is the Raft index at which its content was published (0 for directories and links). A file may have several
names (`nlink`); one that was removed while opened or being overwritten stays with nlink 0 until the last of those ends.

A symbolic link's target starts at the home if it begins with a slash, else at the directory that the link stands in;
".." stops at the home. So nothing that a target may say leads out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from raftmft.core.commands import Path
from raftmft.core.manifest import Manifest
from raftmft.core.names import check_path, text_of
from raftmft.core.outcome import Code, Rejection
from raftmft.core.state import Refuse, State
from raftmft.core.who import charge

DIRECTORY, FILE, LINK = 0, 1, 2
S_IFDIR, S_IFREG, S_IFLNK = 0o040000, 0o100000, 0o120000
DIRECTORY_MODE, FILE_MODE, LINK_MODE = 0o755, 0o644, 0o777
PERMISSION_BITS = 0o7777
MAX_LIST_ENTRIES = 10_000
# Renames can nest directories deeper than any path can name; the text of such a path is cut at its beginning.
MAX_TEXT_LEVELS = 2100
MAX_LINKS_FOLLOWED = 40
MAX_STEPS = 4096
"""Names that one path may lead through, those of links' targets included: a lookup's cost has a bound."""
_ENTRY = "i.id, i.kind, i.mode, i.uid, i.gid, i.atime, i.mtime, i.size, i.nlink, i.version, i.target"
_KINDS = {DIRECTORY: ("dir", S_IFDIR), FILE: ("file", S_IFREG), LINK: ("link", S_IFLNK)}

Entry = dict[str, Any]
Entries = list[Entry]
Look = dict[str, Any]
Chain = list[int]
Published = list[tuple[int, int, Manifest]]


class Spot(NamedTuple):
    """Where a path leads once links are followed: `name` in the directory `parent`, whose ancestors from the home on,
    itself included, are `chain`; `inode` is 0 and `kind` None if nothing is there. The home itself has no name.
    """

    path: Path
    chain: Chain
    parent: int
    name: bytes
    inode: int
    kind: int | None

    @property
    def is_home(self) -> bool:
        """Whether this is the home."""
        return not self.path


def entry_of(row: tuple[Any, ...]) -> Entry:
    """The map that stat and list give, from the columns of _ENTRY. Mode has its type bits; times are seconds. A link's
    has its "target", too.
    """
    inode, kind, mode, uid, gid, atime, mtime, size, nlink, version = row[:10]
    word, type_bits = _KINDS[kind]
    entry = {"id": inode, "kind": word, "size": size, "mode": mode | type_bits, "uid": uid, "gid": gid,
             "atime": atime, "mtime": mtime, "nlink": nlink, "version": version}
    if kind == LINK:
        entry["target"] = row[10]
    return entry


class Namespace:
    """Lookup for the handlers, and the read side."""

    def __init__(self, state: State) -> None:
        self._state = state

    # --- read side -----------------------------------------------------------------------------------------------
    def stat(self, user: str, path: Path, *, follow: bool = True) -> Entry | Rejection:
        """The published entry at `path` of the user's home; if none is, the user's partial ("partial": True, id 0)
        with its checkpointed size. Without `follow`, a link at the path's end is told of itself.
        """
        return self._answer(lambda: self._stat(user, path, follow)[1] or _raise(not_found(path)))

    def look(self, user: str, path: Path, *, follow: bool = True) -> Look | Rejection:
        """As stat, with the names that links led to: {"path": [names], "entry": the entry, or None if its directory
        is there and it is not}.
        """
        def ask() -> Look:
            spot, entry = self._stat(user, path, follow)
            return {"path": list(spot.path), "entry": entry}
        return self._answer(ask)

    def list(self, user: str, path: Path, after: bytes | None = None, limit: int = 1000) -> Entries | Rejection:
        """Published entries of a directory, each with "name", by name bytes, after the name `after`."""
        return self._answer(lambda: self._list(user, path, after, limit))

    def dots(self, user: str, path: Path) -> Entries | Rejection:
        """The entries that "." and ".." stand for in a directory: its own and, but for the home, its parent's."""
        def ask() -> Entries:
            _, home = self._home(user)
            spot = self.find(home, path)
            parent = self.find(home, spot.path[:-1])
            return [{**self._entry(inode), "name": name} for name, inode in ((b".", spot.inode), (b"..", parent.inode))]
        return self._answer(ask)

    def manifests_since(self, index: int, limit: int) -> Published:
        """(publish index, file id, manifest) of present files published after Raft index `index`, oldest first.

        Each index occurs once, so the last one continues the walk. For a member that was away.
        """
        rows = self._state.db.execute(
            "SELECT version, id, size, depth, ids FROM inodes WHERE version > ? AND version > 0 "
            "ORDER BY version LIMIT ?", (index, limit))
        return [(version, inode, Manifest(size, depth, ids)) for version, inode, size, depth, ids in rows]

    def content(self, inode: int) -> tuple[int, Manifest, str] | None:
        """(version, manifest, digest) of a file as it is published now; None once no name leads to it."""
        row = self._state.db.execute("SELECT version, size, depth, ids, digest FROM inodes WHERE id = ? AND kind = ? "
                                     "AND nlink > 0", (inode, FILE)).fetchone()
        return None if row is None else (row[0], Manifest(*row[1:4]), row[4])

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

    def _stat(self, user: str, path: Path, follow: bool) -> tuple[Spot, Entry | None]:
        uid, home = self._home(user)
        spot = self.find(home, path, follow=follow)
        if spot.inode:
            return spot, self._entry(spot.inode)
        partial = self._state.db.execute(
            "SELECT size, mode, touched_ms, version FROM partials WHERE uid=? AND parent=? AND name=?",
            (uid, spot.parent, spot.name)).fetchone()
        if partial is None:
            return spot, None
        size, mode, touched_ms, version = partial
        entry = entry_of((0, FILE, mode, uid, uid, touched_ms // 1000, touched_ms // 1000, size, 1, version))
        return spot, {**entry, "partial": True}

    def _list(self, user: str, path: Path, after: bytes | None, limit: int) -> Entries:
        _, home = self._home(user)
        spot = self.find(home, path)
        if spot.kind != DIRECTORY:
            raise not_found(path) if spot.kind is None else not_a_directory(spot.name)
        rows = self._state.db.execute(
            f"SELECT {_ENTRY}, d.name FROM dentries d JOIN inodes i ON i.id = d.inode "
            "WHERE d.parent = ? AND d.name > ? ORDER BY d.name LIMIT ?",
            (spot.inode, after if after is not None else b"", max(0, min(limit, MAX_LIST_ENTRIES))))
        return [{**entry_of(row), "name": row[11]} for row in rows]

    def _entry(self, inode: int) -> Entry:
        return entry_of(self._state.db.execute(f"SELECT {_ENTRY} FROM inodes i WHERE i.id = ?", (inode,)).fetchone())

    def home_of(self, user: str) -> int:
        """The inode of a user's home. Raises Refuse(NO_USER)."""
        return self._home(user)[1]

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

    def find(self, home: int, path: Path, *, follow: bool = True) -> Spot:
        """Where `path` leads. Links on the way are followed; one at the end only if `follow`.

        Raises Refuse (BAD_NAME, NAME_TOO_LONG, NOT_FOUND, NOT_A_DIRECTORY, LOOP); what stands last may be missing.
        """
        check_path(path)
        chain = [home]
        names: list[bytes] = []
        links = steps = 0
        todo = list(reversed(path))
        while todo:
            name = todo.pop()
            steps += 1
            if steps > MAX_STEPS:
                raise Refuse(Code.LOOP, "the path leads through too many names")
            if name == b"..":  # only targets have it
                if names:
                    names.pop()
                    chain.pop()
                continue
            inode, kind = self.lookup(chain[-1], name) or (0, None)
            if kind == LINK and (todo or follow):
                links += 1
                if links > MAX_LINKS_FOLLOWED:
                    raise Refuse(Code.LOOP, f"too many symbolic links: {text_of(name)} leads in a circle")
                target = self.target(inode)
                if target.startswith(b"/"):
                    names.clear()
                    del chain[1:]
                todo += [step for step in reversed(target.split(b"/")) if step not in (b"", b".")]
                continue
            if not todo:
                if links:
                    check_path((name,))  # a target may hold a name that could not be made
                return Spot((*names, name), chain, chain[-1], name, inode, kind)
            if kind is None:
                raise not_found(path)
            if kind != DIRECTORY:
                raise not_a_directory(name)
            names.append(name)
            chain.append(inode)
        # The home, or a target that ends by "..": always a directory.
        inode = chain.pop() if names else home
        return Spot(tuple(names), chain, chain[-1], names[-1] if names else b"", inode, DIRECTORY)

    def target(self, link: int) -> bytes:
        """Where a symbolic link points."""
        (target,) = self._state.db.execute("SELECT target FROM inodes WHERE id = ?", (link,)).fetchone()
        return bytes(target)

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

    def where(self, inode: int, parent: int, name: bytes) -> tuple[int, bytes] | None:
        """(parent, name) of a published inode: those given if they lead to it, else the first of its names."""
        return self._state.db.execute(
            "SELECT parent, name FROM dentries WHERE inode = ? ORDER BY parent = ? AND name = ? DESC, parent, name "
            "LIMIT 1", (inode, parent, name)).fetchone()

    # --- changes of single inodes, for handlers -------------------------------------------------------------------
    def add_inode(self, kind: int, mode: int, uid: int, target: bytes = b"") -> int:
        """A new inode without content whose id is the entry's Raft index. No name leads to it yet."""
        state = self._state
        now = state.now_s
        state.db.execute("INSERT INTO inodes VALUES (?,?,?,?,?,?,?,?,?,0,x'','',0,1,?)",
                         (state.index, kind, mode & PERMISSION_BITS, uid, uid, now, now, now, len(target), target))
        return state.index

    def add_name(self, parent: int, name: bytes, inode: int, kind: int) -> None:
        """Has a free name lead to an inode."""
        self._state.db.execute("INSERT INTO dentries VALUES (?,?,?,?)", (parent, name, inode, kind))

    def drop_name(self, parent: int, name: bytes) -> None:
        """Removes a name; what it led to stays."""
        self._state.db.execute("DELETE FROM dentries WHERE parent=? AND name=?", (parent, name))

    def count_names(self, inode: int) -> int:
        """How many names lead to an inode."""
        (nlink,) = self._state.db.execute("SELECT nlink FROM inodes WHERE id = ?", (inode,)).fetchone()
        return int(nlink)

    def unlink(self, uid: int, parent: int, name: bytes, inode: int) -> int:
        """Takes a name of a file or link away; without its last one a file stays only while it is open. Gives its size.
        """
        db = self._state.db
        kind, size, nlink = db.execute("SELECT kind, size, nlink FROM inodes WHERE id = ?", (inode,)).fetchone()
        self.drop_name(parent, name)
        if nlink > 1:
            db.execute("UPDATE inodes SET nlink = nlink - 1, ctime = ? WHERE id = ?", (self._state.now_s, inode))
            return int(size)
        # version 0: what no name leads to needs no catching up with.
        db.execute("UPDATE inodes SET nlink = 0, version = 0, ctime = ? WHERE id = ?", (self._state.now_s, inode))
        if kind == FILE:
            charge(self._state, uid, files=-1, file_bytes=-size)
        self.forget_if_unused(inode)
        return int(size)

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


def not_a_directory(name: bytes) -> Refuse:
    """The refusal of a name that must be a directory's and is not."""
    return Refuse(Code.NOT_A_DIRECTORY, f"{text_of(name)} is not a directory")


def _raise(refusal: Refuse) -> Any:
    raise refusal
