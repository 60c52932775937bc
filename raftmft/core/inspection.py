"""What an operator may know of one file, whoever it belongs to. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from raftmft.core.manifest import Manifest
from raftmft.core.names import bytes_of, path_text
from raftmft.core.namespace import Namespace
from raftmft.core.outcome import Code, Rejection
from raftmft.core.state import State


@dataclass(frozen=True, slots=True)
class FileRow:
    """A published file, or a user's partial (file 0). `path` is as the audit log writes it, seen from the home."""

    user: str
    path: str
    file: int
    version: int
    mtime: int
    mode: int
    digest: str
    manifest: Manifest
    partial: bool


class Inspection:
    """Answers for `raftmft file`."""

    def __init__(self, state: State, namespace: Namespace) -> None:
        self._state, self._namespace = state, namespace

    def file(self, where: str) -> FileRow | Rejection:
        """The file at "/USER/path/in/the/home", the path written as the audit log writes it. Links are followed."""
        user, _, text = where.removeprefix("/").partition("/")
        if not user or not text.strip("/"):
            return Rejection(Code.INVALID, "a path is /USER/path, like /acme/reports/may.csv")
        try:
            names = tuple(bytes_of(name) for name in text.split("/") if name)
        except ValueError:
            return Rejection(Code.INVALID, r"a backslash in a path is written \\, a byte that is no text \xNN")
        looked = self._namespace.look(user, names)
        if isinstance(looked, Rejection):
            return looked
        path, entry = tuple(looked["path"]), looked["entry"]
        if entry is None:
            return Rejection(Code.NOT_FOUND, f"{user} has no file {path_text(names)}")
        if entry["kind"] != "file":
            return Rejection(Code.IS_A_DIRECTORY, f"{path_text(names)} is a directory; give a file")
        if entry.get("partial"):
            size, depth, ids = self._partial(user, path)
            digest = ""
        else:
            size, depth, ids, digest = self._state.db.execute(
                "SELECT size, depth, ids, digest FROM inodes WHERE id = ?", (entry["id"],)).fetchone()
        return FileRow(user, path_text(path), entry["id"], entry["version"], entry["mtime"], entry["mode"], digest,
                       Manifest(size, depth, ids), bool(entry.get("partial")))

    def _partial(self, user: str, path: tuple[bytes, ...]) -> tuple[int, int, bytes]:
        uid, home = self._state.db.execute("SELECT uid, home FROM users WHERE name = ?", (user,)).fetchone()
        parent = self._namespace.find(home, path).parent
        row: tuple[int, int, bytes] = self._state.db.execute(
            "SELECT size, depth, ids FROM partials WHERE uid = ? AND parent = ? AND name = ?",
            (uid, parent, path[-1])).fetchone()
        return row
