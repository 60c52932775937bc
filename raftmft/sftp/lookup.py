"""Where a client's path leads, and what this session is told of it: its own unpublished bytes first, else the node's
answer (contract, "What each session sees of a name").

Only the node knows where a name leads, by links and after the renames of others; while the session has an upload open
it is asked whether one of them stands there.
"""

from __future__ import annotations

from typing import Any

from raftmft.sftp import extended as x
from raftmft.sftp import opids, status
from raftmft.sftp.attrs import FileAttrs, attrs_of, longname
from raftmft.sftp.files import Directory, Session
from raftmft.sftp.link import Link, Refused
from raftmft.sftp.names import BadPath, Path, parse_path
from raftmft.sftp.status import Answer
from raftmft.sftp.upload import Upload

PAGE_NAMES = 500
MOST_NAMES_A_REPLY = 200
MOST_NAME_BYTES_A_REPLY = 64 << 10
MOST_IDS_A_REQUEST = 1024
BLOCK_BYTES = 1024
"""What statvfs counts in: small, so that a quota is told nearly exactly."""
FREE_NAMES = 1 << 30
"""Names have no limit of their own; statvfs must tell of one."""
VFS_READ_ONLY, VFS_NO_SETUID = 1, 2
Row = tuple[bytes, bytes, FileAttrs]


class Lookup:
    """Questions of one session about names."""

    def __init__(self, link: Link, session: Session) -> None:
        self._link, self._session = link, session

    async def ask(self, operation: str, **args: Any) -> Any:
        """The node's answer to a request of this session, asked for the operation that is being served."""
        return await self._link.request(operation, {"session": self._session.id, "op": opids.present(), **args})

    async def look(self, path: Path, *, follow: bool = True) -> dict[str, Any]:
        """Where a path leads ("path"), and the "entry" published there, or the user's partial, or None."""
        answer: dict[str, Any] = await self.ask("fs.stat", path=list(path), follow=follow,
                                                own=bool(self._session.uploads()))
        return answer

    async def own_at(self, path: Path) -> Upload | None:
        """The session's own upload that a path leads to. A path that leads nowhere leads to none."""
        if not self._session.uploads():
            return None
        try:
            return self._session.upload((await self.look(path))["upload"])
        except Refused:
            return None  # whatever is done next is refused for the same reason, and says so

    async def stat(self, path: Path, *, follow: bool = True) -> FileAttrs:
        """STAT, LSTAT."""
        answer = await self.look(path, follow=follow)
        own = self._session.upload(answer["upload"])
        if own is not None:
            return own.present_attrs(self._session.uid)
        if answer["entry"] is None:
            raise Answer(status.NO_SUCH_FILE)
        return attrs_of(answer["entry"])

    async def read_link(self, path: Path) -> bytes:
        """READLINK: the target as it was given."""
        entry = (await self.look(path, follow=False))["entry"]
        if entry is None:
            raise Answer(status.NO_SUCH_FILE)
        if entry["kind"] != "link":
            raise Answer(status.FAILURE, "not a symbolic link")
        return bytes(entry["target"])

    async def real_path(self, path: Path) -> Path:
        """REALPATH: without links. What is not there yet is told of as it was given."""
        if not path:
            return path
        try:
            return tuple((await self.look(path))["path"])
        except Refused:
            return path

    # --- directories -----------------------------------------------------------------------------
    async def open_directory(self, path: Path) -> Directory:
        """OPENDIR, with the first page."""
        page = await self.ask("fs.list", path=list(path), after=None, limit=PAGE_NAMES,
                              own=bool(self._session.uploads()))
        return Directory(path, page)

    async def read_directory(self, directory: Directory) -> list[Row]:
        """READDIR: the dots, published names, then own unpublished ones; Answer(EOF) after that."""
        user = self._session.user_bytes
        if directory.dots:
            dots, directory.dots = [(entry["name"], attrs_of(entry)) for entry in directory.dots], []
            return [(name, longname(name, attrs, user), attrs) for name, attrs in dots]
        if not directory.entries and directory.has_more:
            directory.add_page(await self.ask(
                "fs.list", path=list(directory.path), after=directory.last, limit=PAGE_NAMES))
        own = directory.own
        rows: list[Row] = []
        used = taken = 0
        for entry in directory.entries[:MOST_NAMES_A_REPLY]:
            name = entry["name"]
            upload = self._session.upload(own.pop(name, 0))
            attrs = attrs_of(entry) if upload is None else upload.present_attrs(self._session.uid)
            rows.append((name, longname(name, attrs, user, target=entry.get("target")), attrs))
            taken += 1
            used += len(name) + len(rows[-1][1]) + 40
            if used > MOST_NAME_BYTES_A_REPLY:
                break
        del directory.entries[:taken]
        if not rows and not directory.has_more:
            for name, number in own.items():  # at most MOST_HANDLES of them
                upload = self._session.upload(number)
                if upload is not None:
                    attrs = upload.present_attrs(self._session.uid)
                    rows.append((name, longname(name, attrs, user), attrs))
            own.clear()
        if not rows:
            raise Answer(status.EOF)
        return rows

    # --- extensions ------------------------------------------------------------------------------
    async def expand(self, raw: bytes) -> Path:
        """expand-path@openssh.com: "~" and "~user" are the home, of this user only."""
        if raw.startswith(b"~"):
            user, _, raw = raw[1:].partition(b"/")
            if user not in (b"", self._session.user_bytes):
                raise Answer(status.NO_SUCH_FILE)
        return await self.real_path(parse_path(raw))

    def home_of(self, user: bytes) -> Path:
        """home-directory: of other users nothing is told."""
        if user not in (b"", self._session.user_bytes):
            raise Answer(status.FAILURE, "no such user")
        return ()

    def names_of(self, ids: tuple[int, ...]) -> list[bytes]:
        """users-groups-by-id@openssh.com: the session's own name; "" for every other id."""
        if len(ids) > MOST_IDS_A_REQUEST:
            raise BadPath(f"at most {MOST_IDS_A_REQUEST} ids in a request")
        return [self._session.user_bytes if number == self._session.uid else b"" for number in ids]

    async def vfs(self, path: Path) -> x.VfsStat:
        """statvfs: the user's quota is the file system if there is one, else the disk of this member."""
        try:
            answer = await self.ask("fs.statvfs", path=list(path))
        except Refused as refusal:
            # An own upload to a new name stands nowhere yet.
            if await self.own_at(path) is None:
                raise refusal
            answer = await self.ask("fs.statvfs", path=[])
        blocks, free = -(-int(answer["total"]) // BLOCK_BYTES), int(answer["free"]) // BLOCK_BYTES
        files = int(answer["files"])
        flags = VFS_NO_SETUID | (VFS_READ_ONLY if answer["read_only"] else 0)
        return x.VfsStat(bsize=32 << 10, frsize=BLOCK_BYTES, blocks=max(1, blocks), bfree=free, bavail=free,
                         files=files + FREE_NAMES, ffree=FREE_NAMES, favail=FREE_NAMES, fsid=0, flag=flags,
                         namemax=255)


