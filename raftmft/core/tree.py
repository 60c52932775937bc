"""Changes of names: mkdir, rmdir, remove, rename, setstat.

Partials have no name of their own in a directory: they count as a name for their user's Remove and Rename only, and
a published name that comes to stand at one's place removes it.
"""

from __future__ import annotations

from typing import Any

from raftmft.core.attributes import check_attrs, columns_of
from raftmft.core.audit import AuditWriter
from raftmft.core.commands import Mkdir, Path, Remove, Rename, Rmdir, SetStat
from raftmft.core.names import path_text, text_of
from raftmft.core.namespace import DIRECTORY, DIRECTORY_MODE, FILE, PERMISSION_BITS, Namespace, not_found
from raftmft.core.outcome import Code
from raftmft.core.partials import Partials
from raftmft.core.state import Refuse, State
from raftmft.core.uploads import Uploads
from raftmft.core.who import Who, charge, writer


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
        _, parent, name = self._namespace.place(who.home, command.path)
        if self._namespace.lookup(parent, name) is not None:
            raise Refuse(Code.EXISTS, f"{text_of(name)} exists")
        mode = DIRECTORY_MODE if command.mode is None else command.mode & PERMISSION_BITS
        inode = self._namespace.add_inode(DIRECTORY, mode, who.uid)
        self._put_name(who, parent, name, inode, DIRECTORY)
        self._record("mkdir", who, command.path)
        return {}

    def rmdir(self, command: Rmdir) -> dict[str, Any]:
        """Removes a directory without published names; partials in it go with it."""
        who = writer(self._state, command.session)
        if not command.path:
            raise Refuse(Code.PERMISSION, "the home cannot be removed")
        _, parent, name = self._namespace.place(who.home, command.path)
        found = self._namespace.lookup(parent, name)
        if found is None:
            raise not_found(command.path)
        if found[1] != DIRECTORY:
            raise Refuse(Code.NOT_A_DIRECTORY, f"{text_of(name)} is not a directory")
        self._remove_directory(who, parent, name, found[0])
        self._namespace.changed(parent)
        self._record("rmdir", who, command.path)
        return {}

    def remove(self, command: Remove) -> dict[str, Any]:
        """Removes a file's name, the user's partial of it, and what this session is writing there."""
        who = writer(self._state, command.session)
        if not command.path:
            raise Refuse(Code.IS_A_DIRECTORY, "the home is a directory")
        _, parent, name = self._namespace.place(who.home, command.path)
        found = self._namespace.lookup(parent, name)
        if found is not None and found[1] != FILE:
            raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(name)} is a directory")
        gone = set(self._uploads.of_session_at(who.session, parent, name, found[0] if found else 0))
        partial = self._partials.drop(who.uid, parent, name) if who.partial_bytes else None
        if partial is not None and partial.upload:
            gone.add(partial.upload)
        if found is None and partial is None and not gone:
            raise not_found(command.path)
        uploads = sorted(gone)
        for upload in uploads:
            self._uploads.revoke(upload)
        size = partial.size if partial is not None else None
        if found is not None:
            size = self._unlink(who, parent, name, found[0])
            self._namespace.changed(parent)
        self._record("remove", who, command.path, size=size)
        return {"uploads": uploads}

    def rename(self, command: Rename) -> dict[str, Any]:
        """Moves a name. Without `replace` nothing may stand at the target (SFTP v3); with it, rename(2)'s rules."""
        who = writer(self._state, command.session)
        if not command.source or not command.target:
            raise Refuse(Code.PERMISSION, "the home can be neither renamed nor replaced")
        namespace = self._namespace
        _, parent, name = namespace.place(who.home, command.source)
        target_chain, new_parent, new_name = namespace.place(who.home, command.target)
        found = namespace.lookup(parent, name)
        in_the_way = namespace.lookup(new_parent, new_name)
        is_same = (parent, name) == (new_parent, new_name)
        if found is None:
            self._rename_partial(command, who, (parent, name), (new_parent, new_name), in_the_way is not None)
        elif not is_same:
            inode, kind = found
            if inode in target_chain:
                raise Refuse(Code.INVALID, "a directory cannot be moved into itself")
            if in_the_way is not None:
                self._clear_target(command, who, kind, in_the_way, (new_parent, new_name))
            namespace.drop_name(parent, name)
            self._put_name(who, new_parent, new_name, inode, kind)
            if new_parent != parent:
                namespace.changed(parent)
            self._state.db.execute("UPDATE inodes SET ctime=? WHERE id=?", (self._state.now_s, inode))
        self._record("rename", who, command.source, target=path_text(command.target))
        return {}

    def setstat(self, command: SetStat) -> dict[str, Any]:
        """Sets attributes of a name, or of a file this session holds open."""
        who = writer(self._state, command.session)
        state = self._state
        inode = self._open_file(who, command.file) if command.file else self._named(who, command.path)
        kind, size, uid, gid = state.db.execute(
            "SELECT kind, size, uid, gid FROM inodes WHERE id=?", (inode,)).fetchone()
        check_attrs(command.attrs, uid=uid, gid=gid)
        if command.attrs.size is not None and (kind != FILE or command.attrs.size != size):
            raise Refuse(Code.INVALID, "a size is changed by opening the file to write")
        columns = {**columns_of(command.attrs), "ctime": state.now_s}
        state.db.execute(f"UPDATE inodes SET {', '.join(f'{column}=?' for column in columns)} WHERE id=?",
                         (*columns.values(), inode))
        self._record("setstat", who, command.path)
        return {}

    # --- leaves --------------------------------------------------------------------------------------------------
    def _rename_partial(self, command: Rename, who: Who, source: tuple[int, bytes], target: tuple[int, bytes],
                        is_target_published: bool) -> None:
        partial = self._partials.get(who.uid, *source) if who.partial_bytes else None
        uploads = set(self._uploads.of_session_at(who.session, *source, 0))
        if partial is None and not uploads:
            raise not_found(command.source)
        if source == target:
            return
        if is_target_published:
            raise Refuse(Code.EXISTS, "an unfinished upload cannot take the place of a file; finish or remove it first")
        if partial is not None:
            self._partials.move(who.uid, *source, *target)
            if partial.upload:
                uploads.add(partial.upload)
        self._uploads.rebind(sorted(uploads), *target)

    def _clear_target(self, command: Rename, who: Who, kind: int, target: tuple[int, int],
                      place: tuple[int, bytes]) -> None:
        inode, target_kind = target
        if not command.replace:
            raise Refuse(Code.EXISTS, f"{text_of(place[1])} exists")
        if kind == FILE:
            if target_kind != FILE:
                raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(place[1])} is a directory")
            self._unlink(who, *place, inode)
            return
        if target_kind != DIRECTORY:
            raise Refuse(Code.NOT_A_DIRECTORY, f"{text_of(place[1])} is not a directory")
        self._remove_directory(who, *place, inode)

    def _remove_directory(self, who: Who, parent: int, name: bytes, inode: int) -> None:
        db = self._state.db
        if db.execute("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (inode,)).fetchone() is not None:
            raise Refuse(Code.NOT_EMPTY, f"{text_of(name)} is not empty")
        if who.partial_bytes:
            self._partials.drop_all_in(who.uid, inode)
        self._namespace.drop_name(parent, name)
        db.execute("DELETE FROM inodes WHERE id = ?", (inode,))

    def _unlink(self, who: Who, parent: int, name: bytes, inode: int) -> int:
        """Takes a file's only name away; the inode stays while it is open. Gives its size."""
        db = self._state.db
        (size,) = db.execute("SELECT size FROM inodes WHERE id = ?", (inode,)).fetchone()
        self._namespace.drop_name(parent, name)
        # version 0: what no name leads to needs no catching up with.
        db.execute("UPDATE inodes SET nlink = 0, version = 0, ctime = ? WHERE id = ?", (self._state.now_s, inode))
        charge(self._state, who.uid, files=-1, file_bytes=-size)
        self._namespace.forget_if_unused(inode)
        return int(size)

    def _put_name(self, who: Who, parent: int, name: bytes, inode: int, kind: int) -> None:
        if who.partial_bytes:
            self._partials.drop(who.uid, parent, name)
        self._namespace.add_name(parent, name, inode, kind)
        self._namespace.changed(parent)

    def _named(self, who: Who, path: Path) -> int:
        if not path:
            return who.home
        _, parent, name = self._namespace.place(who.home, path)
        found = self._namespace.lookup(parent, name)
        if found is None:
            raise not_found(path)
        return found[0]

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
