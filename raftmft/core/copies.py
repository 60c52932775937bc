"""copy-data: what a session copies from one file to another is audited, and its source kept until the copy is whole."""

from __future__ import annotations

from typing import Any

from raftmft.core.audit import AuditWriter
from raftmft.core.commands import CopyData
from raftmft.core.names import text_of
from raftmft.core.namespace import Namespace
from raftmft.core.outcome import Code
from raftmft.core.partials import Partials
from raftmft.core.state import Refuse, State
from raftmft.core.uploads import Upload, Uploads
from raftmft.core.who import writer


class Copies:
    """Applies CopyData."""

    def __init__(self, state: State, namespace: Namespace, partials: Partials, uploads: Uploads,
                 audit: AuditWriter) -> None:
        self._state, self._namespace, self._partials = state, namespace, partials
        self._uploads, self._audit = uploads, audit

    def copy(self, command: CopyData) -> dict[str, Any]:
        """The open file pins its version until now, the upload's list of sources from now on: {"version": of it}."""
        who = writer(self._state, command.session)
        upload = self._uploads.live(command.upload, who.session)
        row = self._state.db.execute("SELECT inode, version, path, digest FROM opens WHERE id = ? AND session = ?",
                                     (command.open, who.session)).fetchone()
        if row is None:
            raise Refuse(Code.NOT_FOUND, "the session does not have this file open")
        problem = command.content.problem()
        if problem is not None or not 0 <= command.size <= command.content.size:
            raise Refuse(Code.INVALID, problem or "more bytes copied than there are")
        # A client may not look at how CLOSE ends (OpenSSH's cp does not): what cannot be published is refused here.
        who.check_room(command.size - self._replaced(upload))
        inode, version, path, digest = row
        self._uploads.add_source(upload.id, inode, version, command.content)
        self._audit.record(
            "copy", user=who.user, path=path,
            target=self._namespace.path_prefix(who.home, upload.parent) + text_of(upload.name), member=who.member,
            address=who.address, session=who.session, size=command.size, digest=digest)
        return {"version": version}

    def _replaced(self, upload: Upload) -> int:
        """Bytes that count in the quota now and will not once the upload is published."""
        if upload.file:
            content = self._namespace.content(upload.file)
            return content[1].size if content is not None else 0
        partial = self._partials.get(upload.uid, upload.parent, upload.name)
        return partial.size if partial is not None else 0
