"""Changes of names: mkdir, rmdir, remove, rename, setstat, symlink, link.

Symbolic links are followed on the way to a name, and what is changed is the name itself; only setstat and the source
of a link are followed to their end. The audit log has paths as they are without links.

Partials have no name of their own in a directory: they count as a name for their user's Remove and Rename only, and
a published name that comes to stand at one's place removes it.
"""

from __future__ import annotations

from typing import Any

from raftmft.core.attributes import check_attrs, columns_of
from raftmft.core.audit import AuditWriter
from raftmft.core.commands import Link, Mkdir, Path, Remove, Rename, Rmdir, SetStat, Symlink
from raftmft.core.names import MAX_PATH_BYTES, path_text, text_of
from raftmft.core.namespace import (
    DIRECTORY,
    DIRECTORY_MODE,
    FILE,
    LINK,
    LINK_MODE,
    PERMISSION_BITS,
    Namespace,
    Spot,
    not_a_directory,
    not_found,
)
from raftmft.core.outcome import Code
from raftmft.core.partials import Partials
from raftmft.core.state import Refuse, State
from raftmft.core.uploads import Uploads
from raftmft.core.who import Who, writer

MAX_NAMES_PER_FILE = 65_000


class Tree:
    """Applies the commands that change names."""

    def __init__(self, state: State, namespace: Namespace, partials: Partials, uploads: Uploads,
                 audit: AuditWriter) -> None:
        self._state, self._namespace, self._partials = state, namespace, partials
        self._uploads, self._audit = uploads, audit

    def mkdir(self, command: Mkdir) -> dict[str, Any]:
        """A new empty directory."""
        who = writer(self._state, command.session)
        if not command.path:
            raise Refuse(Code.EXISTS, "the home exists")
        spot = self._free_spot(who, command.path)
        mode = DIRECTORY_MODE if command.mode is None else command.mode & PERMISSION_BITS
        inode = self._namespace.add_inode(DIRECTORY, mode, who.uid)
        self._put_name(who, spot.parent, spot.name, inode, DIRECTORY)
        self._record("mkdir", who, spot.path)
        return {}

    def symlink(self, command: Symlink) -> dict[str, Any]:
        """A new symbolic link; what it points to is looked up when it is followed."""
        who = writer(self._state, command.session)
        if not command.path:
            raise Refuse(Code.EXISTS, "the home exists")
        target = command.target
        if not target or b"\0" in target:
            raise Refuse(Code.BAD_NAME, "a link must point to something, and not hold a NUL byte")
        if len(target) > MAX_PATH_BYTES:
            raise Refuse(Code.NAME_TOO_LONG, f"a link's target has at most {MAX_PATH_BYTES} bytes, not {len(target)}")
        spot = self._free_spot(who, command.path)
        inode = self._namespace.add_inode(LINK, LINK_MODE, who.uid, target)
        self._put_name(who, spot.parent, spot.name, inode, LINK)
        self._record("symlink", who, spot.path, target=text_of(target))
        return {}

    def link(self, command: Link) -> dict[str, Any]:
        """One more name for a file. Its content is stored, and counts in the quota, once."""
        who = writer(self._state, command.session)
        source = self._namespace.find(who.home, command.source)
        if source.kind is None:
            raise not_found(command.source)
        if source.kind != FILE:
            raise Refuse(Code.PERMISSION, "only a file can have another name")
        if not command.target:
            raise Refuse(Code.EXISTS, "the home exists")
        spot = self._free_spot(who, command.target)
        db = self._state.db
        if self._namespace.count_names(source.inode) >= MAX_NAMES_PER_FILE:
            raise Refuse(Code.LIMIT, f"a file has at most {MAX_NAMES_PER_FILE} names")
        self._put_name(who, spot.parent, spot.name, source.inode, FILE)
        db.execute("UPDATE inodes SET nlink = nlink + 1, ctime = ? WHERE id = ?", (self._state.now_s, source.inode))
        self._record("link", who, source.path, target=path_text(spot.path))
        return {}

    def rmdir(self, command: Rmdir) -> dict[str, Any]:
        """Removes a directory without published names; partials in it go with it."""
        who = writer(self._state, command.session)
        if not command.path:
            raise Refuse(Code.PERMISSION, "the home cannot be removed")
        spot = self._namespace.find(who.home, command.path, follow=False)
        if spot.kind is None:
            raise not_found(command.path)
        if spot.kind != DIRECTORY:
            raise not_a_directory(spot.name)
        self._remove_directory(who, spot.parent, spot.name, spot.inode)
        self._namespace.changed(spot.parent)
        self._record("rmdir", who, spot.path)
        return {}

    def remove(self, command: Remove) -> dict[str, Any]:
        """Removes a file's or link's name, the user's partial of it, and what this session is writing there."""
        who = writer(self._state, command.session)
        if not command.path:
            raise Refuse(Code.IS_A_DIRECTORY, "the home is a directory")
        spot = self._namespace.find(who.home, command.path, follow=False)
        parent, name = spot.parent, spot.name
        if spot.kind == DIRECTORY:
            raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(name)} is a directory")
        # A file that keeps another name goes on being written.
        is_last = spot.kind == FILE and self._namespace.count_names(spot.inode) == 1
        gone = set(self._uploads.of_session_at(who.session, parent, name, spot.inode if is_last else 0))
        partial = self._partials.drop(who.uid, parent, name) if who.partial_bytes else None
        if partial is not None and partial.upload:
            gone.add(partial.upload)
        if spot.kind is None and partial is None and not gone:
            raise not_found(command.path)
        uploads = sorted(gone)
        for upload in uploads:
            self._uploads.revoke(upload)
        size = partial.size if partial is not None else None
        if spot.kind is not None:
            size = self._namespace.unlink(who.uid, parent, name, spot.inode)
            self._namespace.changed(parent)
        self._record("remove", who, spot.path, size=size)
        return {"uploads": uploads}

    def rename(self, command: Rename) -> dict[str, Any]:
        """Moves a name. Without `replace` nothing may stand at the target (SFTP v3); with it, rename(2)'s rules."""
        who = writer(self._state, command.session)
        if not command.source or not command.target:
            raise Refuse(Code.PERMISSION, "the home can be neither renamed nor replaced")
        namespace = self._namespace
        source = namespace.find(who.home, command.source, follow=False)
        target = namespace.find(who.home, command.target, follow=False)
        is_same = (source.parent, source.name) == (target.parent, target.name)
        if source.kind is None:
            self._rename_partial(command, who, source[2:4], target[2:4], target.kind is not None)
        elif not is_same and not (command.replace and source.inode == target.inode):  # two names of one file: rename(2)
            if source.inode in target.chain:
                raise Refuse(Code.INVALID, "a directory cannot be moved into itself")
            if target.kind is not None:
                self._clear_target(command, who, source.kind, target)
            namespace.drop_name(source.parent, source.name)
            self._put_name(who, target.parent, target.name, source.inode, source.kind)
            if target.parent != source.parent:
                namespace.changed(source.parent)
            self._state.db.execute("UPDATE inodes SET ctime=? WHERE id=?", (self._state.now_s, source.inode))
        self._record("rename", who, source.path, target=path_text(target.path))
        return {}

    def setstat(self, command: SetStat) -> dict[str, Any]:
        """Sets attributes of a name, or of a file this session holds open."""
        who = writer(self._state, command.session)
        state = self._state
        if command.file:
            inode, text = self._open_file(who, command.file), self._text_of_file(who, command)
        else:
            spot = self._namespace.find(who.home, command.path, follow=command.follow)
            if spot.kind is None:
                raise not_found(command.path)
            inode, text = spot.inode, path_text(spot.path)
        kind, size, uid, gid = state.db.execute(
            "SELECT kind, size, uid, gid FROM inodes WHERE id=?", (inode,)).fetchone()
        check_attrs(command.attrs, uid=uid, gid=gid)
        if command.attrs.size is not None and (kind != FILE or command.attrs.size != size):
            raise Refuse(Code.INVALID, "a size is changed by opening the file to write")
        columns = {**columns_of(command.attrs), "ctime": state.now_s}
        state.db.execute(f"UPDATE inodes SET {', '.join(f'{column}=?' for column in columns)} WHERE id=?",
                         (*columns.values(), inode))
        self._audit.record("setstat", user=who.user, path=text, member=who.member, address=who.address,
                           session=who.session)
        return {}

    # --- leaves --------------------------------------------------------------------------------------------------
    def _rename_partial(self, command: Rename, who: Who, source: tuple[int, bytes], target: tuple[int, bytes],
                        is_target_published: bool) -> None:
        # Only what this session is writing: others, of the same user too, rename published names alone.
        uploads = self._uploads.of_session_at(who.session, *source, 0)
        if not uploads:
            raise not_found(command.source)
        if source == target:
            return
        if is_target_published:
            raise Refuse(Code.EXISTS, "an unfinished upload cannot take the place of a file; finish or remove it first")
        partial = self._partials.get(who.uid, *source) if who.partial_bytes else None
        if partial is not None and partial.upload in uploads:
            self._partials.move(who.uid, *source, *target)
        self._uploads.rebind(uploads, *target)

    def _clear_target(self, command: Rename, who: Who, kind: int, target: Spot) -> None:
        if not command.replace:
            raise Refuse(Code.EXISTS, f"{text_of(target.name)} exists")
        if kind != DIRECTORY:
            if target.kind == DIRECTORY:
                raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(target.name)} is a directory")
            self._namespace.unlink(who.uid, target.parent, target.name, target.inode)
            return
        if target.kind != DIRECTORY:
            raise not_a_directory(target.name)
        self._remove_directory(who, target.parent, target.name, target.inode)

    def _remove_directory(self, who: Who, parent: int, name: bytes, inode: int) -> None:
        db = self._state.db
        if db.execute("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (inode,)).fetchone() is not None:
            raise Refuse(Code.NOT_EMPTY, f"{text_of(name)} is not empty")
        if who.partial_bytes:
            self._partials.drop_all_in(who.uid, inode)
        self._namespace.drop_name(parent, name)
        db.execute("DELETE FROM inodes WHERE id = ?", (inode,))

    def _put_name(self, who: Who, parent: int, name: bytes, inode: int, kind: int) -> None:
        if who.partial_bytes:
            self._partials.drop(who.uid, parent, name)
        self._namespace.add_name(parent, name, inode, kind)
        self._namespace.changed(parent)

    def _free_spot(self, who: Who, path: Path) -> Spot:
        spot = self._namespace.find(who.home, path, follow=False)
        if spot.kind is not None:
            raise Refuse(Code.EXISTS, f"{text_of(spot.name)} exists")
        return spot

    def _text_of_file(self, who: Who, command: SetStat) -> str:
        """Where an open file stands now; a removed one is told of by the name it was opened by, if that is known."""
        where = self._namespace.where(command.file, 0, b"")
        if where is not None:
            return self._namespace.path_prefix(who.home, where[0]) + text_of(where[1])
        row = self._state.db.execute("SELECT path FROM opens WHERE session = ? AND inode = ? "
                                     "ORDER BY at DESC, id LIMIT 1",
                                     (who.session, command.file)).fetchone()
        return path_text(command.path) if row is None else str(row[0])

    def _open_file(self, who: Who, file: int) -> int:
        """The file, if this session has it open: else ids could be tried out across homes."""
        row = self._state.db.execute(
            "SELECT 1 FROM opens WHERE session = ?1 AND inode = ?2 UNION ALL "
            "SELECT 1 FROM uploads WHERE session = ?1 AND file = ?2 LIMIT 1", (who.session, file)).fetchone()
        if row is None:
            raise Refuse(Code.NOT_FOUND, "the session does not have this file open")
        return file

    def _record(self, kind: str, who: Who, path: Path, *, target: str | None = None, size: int | None = None) -> None:
        self._audit.record(kind, user=who.user, path=path_text(path), target=target, member=who.member,
                           address=who.address, session=who.session, size=size)
