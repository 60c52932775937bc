"""Uploads from OPEN to write until CLOSE (contract, "What each session sees of a name").

An upload is bound to a file id when it overwrites (`file` > 0: it follows the file through renames), else to a parent
directory's id and a name. It ends by Publish (publish.py), by EndUpload, or with its session. Only uploads to names
without a published file leave partials: an interrupted overwrite leaves the old file and nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import BeginUpload, Checkpoint, EndUpload, Path
from raftmft.core.manifest import Manifest
from raftmft.core.names import path_text, text_of
from raftmft.core.namespace import FILE, FILE_MODE, LINK, PERMISSION_BITS, S_IFREG, Namespace, not_found
from raftmft.core.outcome import Code
from raftmft.core.partials import Partials
from raftmft.core.settings import Settings
from raftmft.core.state import Refuse, State
from raftmft.core.who import Who, session_of, writer

MAX_UPLOADS_PER_SESSION = 1024
MAX_SOURCES_PER_UPLOAD = 256
_COLUMNS = "id, session, uid, parent, name, file, base, truncate, exclusive, append, mode"


class Upload(NamedTuple):
    """A live upload. `file` and `base` (version) are 0 for a new name; flags are 0 or 1; mode has no type bits."""

    id: int
    session: int
    uid: int
    parent: int
    name: bytes
    file: int
    base: int
    truncate: int
    exclusive: int
    append: int
    mode: int


class Uploads:
    """The live uploads of all sessions."""

    def __init__(self, state: State, settings: Settings, namespace: Namespace, partials: Partials,
                 audit: AuditWriter) -> None:
        self._state, self._settings, self._namespace = state, settings, namespace
        self._partials, self._audit = partials, audit

    def get(self, upload: int) -> Upload | None:
        """A live upload, or None once it ended or was revoked."""
        row = self._state.db.execute(f"SELECT {_COLUMNS} FROM uploads WHERE id = ?", (upload,)).fetchone()
        return None if row is None else Upload._make(row)

    def count(self) -> int:
        """How many uploads are live."""
        return int(self._state.db.execute("SELECT count(*) FROM uploads").fetchone()[0])

    def live(self, upload: int, session: int) -> Upload:
        """The session's live upload; raises Refuse(STALE_UPLOAD)."""
        row = self.get(upload)
        if row is None or row.session != session:
            raise Refuse(Code.STALE_UPLOAD, "the upload has ended or was taken over by another session")
        return row

    def check_content(self, manifest: Manifest, placement: int) -> None:
        """Raises Refuse if the manifest is malformed (INVALID) or its copies were counted under another member list
        (STALE_PLACEMENT).
        """
        if placement != self._settings.placement:
            raise Refuse(Code.STALE_PLACEMENT, "the member list changed; have the chunks acknowledged again")
        problem = manifest.problem()
        if problem is not None:
            raise Refuse(Code.INVALID, problem)

    # --- apply ---------------------------------------------------------------------------------------------------
    def begin(self, command: BeginUpload) -> dict[str, Any]:
        """OPEN to write: by published file, partial, or nothing at that name."""
        who = writer(self._state, command.session)
        path = command.path
        if not path:
            raise Refuse(Code.IS_A_DIRECTORY, "the home is a directory")
        # As open(2): CREAT makes what a dangling link points to; for CREAT with EXCL the link is in the way.
        spot = self._namespace.find(who.home, path, follow=not (command.create and command.exclusive))
        if spot.kind == LINK:
            raise Refuse(Code.EXISTS, f"{text_of(spot.name)} exists")
        if spot.kind not in (FILE, None):
            raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(spot.name)} is a directory")
        (count,) = self._state.db.execute(
            "SELECT count(*) FROM uploads WHERE session = ?", (who.session,)).fetchone()
        if count >= MAX_UPLOADS_PER_SESSION:
            raise Refuse(Code.LIMIT, f"a session has at most {MAX_UPLOADS_PER_SESSION} files open to write")
        value = (self._begin_new(command, who, spot.parent, spot.name) if spot.kind is None
                 else self._begin_overwrite(command, who, spot.parent, spot.name, spot.inode))
        self._audit.record("open", user=who.user, path=path_text(spot.path), member=who.member, address=who.address,
                           session=who.session, size=value["size"], outcome="ok, to write")
        return value

    def _begin_overwrite(self, command: BeginUpload, who: Who, parent: int, name: bytes, file: int) -> dict[str, Any]:
        if command.create and command.exclusive:
            raise Refuse(Code.EXISTS, f"{text_of(name)} exists")
        mode, size, depth, ids, digest, version = self._state.db.execute(
            "SELECT mode, size, depth, ids, digest, version FROM inodes WHERE id = ?", (file,)).fetchone()
        if command.truncate:
            size, depth, ids, digest = 0, 0, b"", ""
        return self._insert(command, who, parent, name, file=file, base=version, mode=mode,
                            content=Manifest(size, depth, ids), digest=digest)

    def _begin_new(self, command: BeginUpload, who: Who, parent: int, name: bytes) -> dict[str, Any]:
        # The user's counter saves a lookup for all who have no partial, which is nearly everyone.
        partial = self._partials.get(who.uid, parent, name) if who.partial_bytes else None
        # What a session is writing is there for it, even if none of it is a prefix yet.
        if partial is None and not command.create and not self.of_session_at(who.session, parent, name, 0):
            raise not_found(command.path)
        mode = FILE_MODE if command.mode is None else command.mode & PERMISSION_BITS
        if partial is not None and not command.truncate and not (command.create and command.exclusive):
            if partial.upload:
                self.forget(partial.upload)
            self._partials.take_over(who.uid, parent, name, self._state.index)
            value = self._insert(command, who, parent, name, mode=partial.mode, is_partial=True,
                                 content=Manifest(partial.size, partial.depth, partial.ids))
            return {**value, "revoked": partial.upload} if partial.upload else value
        if partial is not None:
            # Truncated: were the old prefix kept, a later resume would join it to another file's rest.
            self._partials.drop(who.uid, parent, name)
        return self._insert(command, who, parent, name, mode=mode, content=Manifest(0))

    def _insert(self, command: BeginUpload, who: Who, parent: int, name: bytes, *, mode: int, content: Manifest,
                file: int = 0, base: int = 0, digest: str = "", is_partial: bool = False) -> dict[str, Any]:
        upload = self._state.index
        self._state.db.execute(
            "INSERT INTO uploads VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (upload, who.session, who.uid, parent, name, file, base, int(command.truncate),
             int(command.create and command.exclusive), int(command.append), mode))
        return {"upload": upload, "file": file, "version": base, "size": content.size, "depth": content.depth,
                "ids": content.ids, "partial": is_partial, "digest": digest,
                "placement": self._settings.placement, "mode": mode | S_IFREG}

    def checkpoint(self, command: Checkpoint) -> dict[str, Any]:
        """Keeps the durable prefix as the name's partial, unless the upload overwrites, or the name has been
        published meanwhile, or a later upload's prefix stands there.
        """
        who = writer(self._state, command.session)
        upload = self.live(command.upload, who.session)
        self.check_content(command.manifest, command.placement)
        if upload.file:
            return {}
        if self.find(upload.parent, upload.name) is not None:
            return {}
        partial = self._partials.get(upload.uid, upload.parent, upload.name) if who.partial_bytes else None
        if partial is not None and partial.begun > upload.id:
            return {}
        size = command.manifest.size
        if size == 0:
            self._partials.drop(upload.uid, upload.parent, upload.name)
            return {}
        who.check_room(size - (partial.size if partial else 0))
        self._partials.put(upload.uid, upload.parent, upload.name, upload.id, command.manifest, upload.mode, partial)
        return {}

    def find(self, parent: int, name: bytes) -> tuple[int, int] | None:
        """(inode, kind) published at an upload's name, or None; raises Refuse(NOT_FOUND) if its directory is gone."""
        row = self._state.db.execute(
            "SELECT d.inode, d.kind FROM inodes i LEFT JOIN dentries d ON d.parent = i.id AND d.name = ? "
            "WHERE i.id = ?", (name, parent)).fetchone()
        if row is None:
            raise Refuse(Code.NOT_FOUND, "the directory was removed while the file was being written")
        return None if row[0] is None else row

    def end(self, command: EndUpload) -> dict[str, Any]:
        """Ends an upload unpublished."""
        who = session_of(self._state, command.session)
        self._end(self.live(command.upload, who.session), who, keep=command.keep)
        return {}

    # --- for other handlers --------------------------------------------------------------------------------------
    def end_session(self, who: Who) -> None:
        """Ends all uploads of a session that ends; their checkpoints stay as partials."""
        rows = self._state.db.execute(
            f"SELECT {_COLUMNS} FROM uploads WHERE session = ? ORDER BY id", (who.session,)).fetchall()
        for row in rows:
            self._end(Upload._make(row), who, keep=True)

    def revoke(self, upload: int) -> None:
        """Ends an upload whose content is not wanted any more; its partial is the caller's business."""
        row = self.get(upload)
        if row is not None:
            self.forget(upload)
            if row.file:
                self._namespace.forget_if_unused(row.file)

    def of_session_at(self, session: int, parent: int, name: bytes, file: int) -> list[int]:
        """The session's live uploads to a name, or to the file (if not 0) that the name leads to."""
        rows = self._state.db.execute(
            "SELECT id FROM uploads WHERE session = ? AND ((file = 0 AND parent = ? AND name = ?) OR "
            "(file > 0 AND file = ?)) ORDER BY id", (session, parent, name, file))
        return [row[0] for row in rows]

    def seen_at(self, user: str, session: int, path: Path, *, follow: bool = True) -> int:
        """The session's own live upload that a path leads to, of several the one begun last; 0 if there is none."""
        try:
            spot = self._namespace.find(self._namespace.home_of(user), path, follow=follow)
        except Refuse:
            return 0
        ids = self.of_session_at(session, spot.parent, spot.name, spot.inode if spot.kind == FILE else 0)
        return ids[-1] if ids else 0

    def seen_in(self, user: str, session: int, directory: Path) -> list[list[Any]]:
        """[name, upload] of the session's own live uploads to names of a directory, those begun last at the end."""
        try:
            spot = self._namespace.find(self._namespace.home_of(user), directory)
        except Refuse:
            return []
        rows = self._state.db.execute(
            "SELECT name, id FROM uploads WHERE session = ?1 AND file = 0 AND parent = ?2 UNION ALL "
            "SELECT d.name, u.id FROM uploads u JOIN dentries d ON d.inode = u.file AND d.parent = ?2 "
            "WHERE u.session = ?1 AND u.file > 0 ORDER BY 2, 1", (session, spot.inode))
        return [list(row) for row in rows]

    def add_source(self, upload: int, inode: int, version: int, manifest: Manifest) -> None:
        """The upload takes chunks from this version of a file. Raises Refuse(LIMIT)."""
        db = self._state.db
        db.execute("INSERT OR IGNORE INTO sources VALUES (?,?,?,?,?,?)",
                   (upload, inode, version, manifest.size, manifest.depth, manifest.ids))
        (count,) = db.execute("SELECT count(*) FROM sources WHERE upload = ?", (upload,)).fetchone()
        if count > MAX_SOURCES_PER_UPLOAD:
            raise Refuse(Code.LIMIT, f"a file is put together from at most {MAX_SOURCES_PER_UPLOAD} others; "
                                     "close it and append the rest")

    def sources(self) -> list[Manifest]:
        """Content whose chunks are in use by live uploads that copied from it, beside what is published."""
        rows = self._state.db.execute("SELECT size, depth, ids FROM sources ORDER BY upload, inode, version")
        return [Manifest(*row) for row in rows]

    def rebind(self, uploads: list[int], parent: int, name: bytes) -> None:
        """Has uploads to a new name follow its rename."""
        self._state.db.executemany("UPDATE uploads SET parent = ?, name = ? WHERE id = ? AND file = 0",
                                   [(parent, name, upload) for upload in uploads])

    def _end(self, upload: Upload, who: Who, *, keep: bool) -> None:
        self.forget(upload.id)
        if upload.file:
            self._namespace.forget_if_unused(upload.file)
            return
        if not who.partial_bytes:
            return
        size = self._partials.release(upload.id)
        if size is None:
            return
        if not keep:
            self._partials.drop(upload.uid, upload.parent, upload.name)
        self._audit.record(
            "partial", user=who.user, path=self._namespace.path_prefix(who.home, upload.parent) + text_of(upload.name),
            member=who.member, address=who.address, session=who.session, size=size,
            outcome="kept" if keep else "dropped")

    def forget(self, upload: int) -> None:
        """The upload is no longer live."""
        db = self._state.db
        db.execute("DELETE FROM uploads WHERE id = ?", (upload,))
        db.execute("DELETE FROM sources WHERE upload = ?", (upload,))
