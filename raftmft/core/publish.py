"""Publish: an upload becomes the file, whole and at once (contract, promises 1, 2 and 4)."""

from __future__ import annotations

from typing import Any

from raftmft.core.attributes import check_attrs, columns_of
from raftmft.core.audit import AuditWriter
from raftmft.core.commands import Publish
from raftmft.core.names import text_of
from raftmft.core.namespace import DIRECTORY, FILE, Namespace
from raftmft.core.outcome import Code
from raftmft.core.partials import Partials
from raftmft.core.state import Refuse, State
from raftmft.core.uploads import Upload, Uploads
from raftmft.core.who import Who, charge, writer

MAX_DIGEST_CHARS = 256


class Publisher:
    """Applies Publish. A rejected one leaves the upload live, so that its node can mend it or end it."""

    def __init__(self, state: State, namespace: Namespace, partials: Partials, uploads: Uploads,
                 audit: AuditWriter) -> None:
        self._state, self._namespace, self._partials = state, namespace, partials
        self._uploads, self._audit = uploads, audit

    def publish(self, command: Publish) -> dict[str, Any]:
        """By what the upload is bound to: a file id, or a directory and a name where there may be a file by now."""
        who = writer(self._state, command.session)
        upload = self._uploads.live(command.upload, who.session)
        self._check(command, who)
        if command.base not in (0, upload.base) and not (upload.append and upload.file):
            raise Refuse(Code.INVALID, "only what is appended may go to another version than the one that was opened")
        if upload.file:
            parent, name = self._place_of_file(upload)
            file: int | None = upload.file
        else:
            parent, name = upload.parent, upload.name
            file = self._file_in_the_way(upload)
        if file is None:
            file, mtime = self._write_new(command, who, upload)
        else:
            mtime = self._write_over(command, who, upload, file)
        self._uploads.forget(upload.id)
        self._audit.record(
            "publish", user=who.user, path=self._namespace.path_prefix(who.home, parent) + text_of(name),
            member=who.member, address=who.address, session=who.session, size=command.manifest.size,
            digest=command.digest)
        return {"file": file, "version": self._state.index, "mtime": mtime}

    def _check(self, command: Publish, who: Who) -> None:
        self._uploads.check_content(command.manifest, command.placement)
        if command.manifest.depth > 1:
            raise Refuse(Code.INVALID, "a manifest of depth 2 is for checkpoints only")
        if len(command.digest) > MAX_DIGEST_CHARS:
            raise Refuse(Code.INVALID, f"a digest has at most {MAX_DIGEST_CHARS} characters")
        check_attrs(command.attrs, uid=who.uid, gid=who.uid)
        if command.attrs.size is not None and command.attrs.size != command.manifest.size:
            raise Refuse(Code.INVALID, "the size asked for is not the content's")

    def _place_of_file(self, upload: Upload) -> tuple[int, bytes]:
        where = self._namespace.where(upload.file, upload.parent, upload.name)
        if where is None:
            raise Refuse(Code.NOT_FOUND, "the file was removed while it was being written")
        return where

    def _file_in_the_way(self, upload: Upload) -> int | None:
        found = self._uploads.find(upload.parent, upload.name)
        if found is None:
            return None
        file, kind = found
        if kind == DIRECTORY:
            raise Refuse(Code.IS_A_DIRECTORY, f"{text_of(upload.name)} became a directory meanwhile")
        if upload.exclusive:
            raise Refuse(Code.EXISTS, f"{text_of(upload.name)} was made by another session meanwhile")
        if kind == FILE:
            return file
        # A link that was made meanwhile gives way, as to a rename: the last CLOSE wins, and nothing written is lost.
        self._namespace.unlink(upload.uid, upload.parent, upload.name, file)
        return None

    def _write_new(self, command: Publish, who: Who, upload: Upload) -> tuple[int, int]:
        manifest, state = command.manifest, self._state
        partial = self._partials.get(who.uid, upload.parent, upload.name) if who.partial_bytes else None
        partial_bytes = partial.size if partial else 0
        who.check_room(manifest.size - partial_bytes)
        if partial is not None:
            self._partials.drop(who.uid, upload.parent, upload.name)
        now, file = state.now_s, state.index
        columns = columns_of(command.attrs)
        mtime = columns.get("mtime", now)
        state.db.execute(
            "INSERT INTO inodes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,1,x'')",
            (file, FILE, columns.get("mode", upload.mode), who.uid, who.uid, columns.get("atime", now), mtime, now,
             manifest.size, manifest.depth, manifest.ids, command.digest, state.index))
        self._namespace.add_name(upload.parent, upload.name, file, FILE)
        self._namespace.changed(upload.parent)
        charge(state, who.uid, files=1, file_bytes=manifest.size)
        return file, mtime

    def _write_over(self, command: Publish, who: Who, upload: Upload, file: int) -> int:
        manifest, state = command.manifest, self._state
        old_size, old_version, mode, atime = state.db.execute(
            "SELECT size, version, mode, atime FROM inodes WHERE id = ?", (file,)).fetchone()
        if upload.file and not upload.truncate and old_version != (command.base or upload.base):
            raise Refuse(Code.CONFLICT, f"{text_of(upload.name)} was changed by another session meanwhile")
        who.check_room(manifest.size - old_size)
        columns = columns_of(command.attrs)
        mtime = columns.get("mtime", state.now_s)
        state.db.execute(
            "UPDATE inodes SET mode=?, atime=?, mtime=?, ctime=?, size=?, depth=?, ids=?, digest=?, version=? "
            "WHERE id=?",
            (columns.get("mode", mode), columns.get("atime", atime), mtime, state.now_s, manifest.size,
             manifest.depth, manifest.ids, command.digest, state.index, file))
        charge(state, who.uid, file_bytes=manifest.size - old_size)
        return mtime
