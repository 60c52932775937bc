"""What each SFTP request does: the node is asked for names, uploads and chunks do the rest.

Every method gives the reply's buffers, or raises trouble that status.py knows. READ and WRITE have a first attempt that
never waits (`at_once`); the rest is done one request after another by the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import MAX_FILE_SIZE
from raftmft.core.outcome import Code
from raftmft.sftp import closing, status
from raftmft.sftp import extended as x
from raftmft.sftp import packets as p
from raftmft.sftp.attrs import MODE_BITS, FileAttrs
from raftmft.sftp.checking import Checker
from raftmft.sftp.chunks import ChunkWriter
from raftmft.sftp.content import ChunkReader
from raftmft.sftp.copying import copy
from raftmft.sftp.files import MOST_HANDLES, Directory, Handle, Handles, ReadFile, Session, WriteHandle
from raftmft.sftp.link import Link, Refused
from raftmft.sftp.lookup import Lookup
from raftmft.sftp.names import Path, parse_path, path_bytes
from raftmft.sftp.opids import OperationIds
from raftmft.sftp.status import Answer
from raftmft.sftp.upload import Upload

Buffers = list[bytes | bytearray | memoryview]

_WRITES = p.FXF_WRITE | p.FXF_APPEND | p.FXF_CREAT | p.FXF_TRUNC


class Operations:
    """The requests of one SFTP channel."""

    def __init__(self, link: Link, writer: ChunkWriter, reader: ChunkReader, checker: Checker, session: Session,
                 window: int) -> None:
        self._link, self._writer, self._reader, self._checker = link, writer, reader, checker
        self._session, self._window = session, window
        self.about = session.about
        self._handles = Handles(session)
        self._lookup = Lookup(link, session)
        self._ask = self._lookup.ask
        self._ids = OperationIds()

    # --- without waiting -------------------------------------------------------------------------
    def at_once(self, request: p.Request) -> Buffers | None:
        """The reply, if none of it needs waiting."""
        if isinstance(request, p.Write):
            return [p.ok_reply(request.id)] if self._writable(request.handle).try_write(
                request.offset, request.data) else None
        if isinstance(request, p.Read):
            file = self._handles.get(request.handle)
            if isinstance(file, ReadFile):
                parts = file.try_read(request.offset, min(request.length, p.MAX_DATA))
                return None if parts is None else _data(request.id, parts)
        return None

    # --- beside others -----------------------------------------------------------------------------
    def aside(self, request: p.Request) -> tuple[Coroutine[Any, Any, Buffers], Callable[[], None]] | None:
        """The work for a request that may take long and that later ones need not wait for, and what is to be called
        when it has ended or is dropped. What its handle leads to is settled now.
        """
        if not isinstance(request, x.CheckFile):
            return None
        source = self._handles.get(request.where) if request.is_handle else None
        if not isinstance(source, ReadFile):
            return self._check(request, source), _nothing
        source.hold()
        return self._check(request, source), source.release

    async def _check(self, request: x.CheckFile, source: Handle | None) -> Buffers:
        self._ids.begin()
        opened = None
        if not request.is_handle:
            path = parse_path(request.where)
            own = await self._lookup.own_at(path)
            source = WriteHandle(own, readable=True, writable=False, is_owner=False) if own is not None else None
            if source is None:
                source = opened = ReadFile(self._link, self._reader, self._session.id,
                                           await self._ask("fs.open", path=list(path)))
        elif source is None:
            raise Answer(status.FAILURE, "Invalid handle")
        if isinstance(source, Directory) or (isinstance(source, WriteHandle) and not source.readable):
            raise Answer(status.FAILURE, "the handle is not open to read")
        try:
            found = await self._checker.check(self._session.id, source, request)
        finally:
            if opened is not None:
                opened.close()
        return [x.check_reply(request, *found)]

    # --- with waiting ----------------------------------------------------------------------------
    async def serve(self, request: p.Request) -> Buffers:
        """The reply. Raises trouble that status.py knows."""
        self._ids.begin()
        match request:
            case p.Write():
                await self._writable(request.handle).write(request.offset, request.data)
                return [p.ok_reply(request.id)]
            case p.Read():
                return await self._read(request)
            case p.Open():
                return [p.handle_reply(request.id, await self._open(request))]
            case p.ByHandle(type=p.CLOSE):
                await self._close(request.handle)
            case p.ByHandle(type=p.FSTAT):
                return [p.attrs_reply(request.id, self._fstat(request.handle))]
            case p.ByHandle(type=p.READDIR):
                directory = self._known(request.handle)
                if not isinstance(directory, Directory):
                    raise Answer(status.FAILURE, "the handle is a file's")
                return [p.name_reply(request.id, await self._lookup.read_directory(directory))]
            case p.ByPath():
                return await self._by_path(request)
            case p.SetAttrs(type=p.MKDIR):
                mode = None if request.attrs.mode is None else request.attrs.mode & MODE_BITS
                await self._ask("fs.mkdir", path=list(parse_path(request.target)), mode=mode)
            case p.SetAttrs(type=p.SETSTAT):
                await self._setstat(parse_path(request.target), request.attrs)
            case p.SetAttrs(type=p.LSETSTAT):
                await self._lsetstat(parse_path(request.target), request.attrs)
            case p.SetAttrs():
                await self._fsetstat(request.target, request.attrs)
            case p.Rename():
                await self._ask("fs.rename", source=list(parse_path(request.source)),
                                target=list(parse_path(request.target)), replace=request.replace)
            case p.Symlink():
                await self._ask("fs.symlink", path=list(parse_path(request.link)), target=request.target)
            case p.Malformed():
                raise Answer(status.BAD_MESSAGE)
            case _:
                return await self._extended(request)
        return [p.ok_reply(request.id)]

    def over(self) -> None:
        """The session is over: no write waits any longer."""
        for upload in self._handles.uploads():
            upload.over()

    async def end(self) -> None:
        """Everything that is still open ends without a CLOSE: uploads leave partials, reads tell how far they came."""
        self._ids.end()
        ends = [self._let_go(handle) for handle in self._handles.take_all()]
        await asyncio.gather(*ends)

    # --- files -----------------------------------------------------------------------------------
    async def _open(self, request: p.Open) -> bytes:
        path, flags = parse_path(request.path), request.flags
        self._check_room()
        own = await self._lookup.own_at(path)
        if not flags & _WRITES:
            if own is not None:
                own.reader_came()
                return self._handles.add(WriteHandle(own, readable=True, writable=False, is_owner=False))
            opened = await self._ask("fs.open", path=list(path))
            return self._handles.add(ReadFile(self._link, self._reader, self._session.id, opened))
        if own is not None and not flags & p.FXF_TRUNC:
            # The upload's latest bytes become its checkpoint, which is what the new one takes over.
            with suppress(RaftmftError):
                await own.checkpoints.now()
        mode = None if request.attrs.mode is None else request.attrs.mode & MODE_BITS
        is_truncated = bool(flags & p.FXF_TRUNC)
        begun = await self._ask(
            "fs.begin", path=list(path), create=bool(flags & p.FXF_CREAT), truncate=is_truncated,
            exclusive=bool(flags & p.FXF_CREAT and flags & p.FXF_EXCL), append=bool(flags & p.FXF_APPEND), mode=mode)
        upload = self._begun(begun, path, is_append=bool(flags & p.FXF_APPEND), is_truncated=is_truncated)
        return self._handles.add(WriteHandle(
            upload, readable=bool(flags & p.FXF_READ), writable=bool(flags & (p.FXF_WRITE | p.FXF_APPEND)),
            is_owner=True))

    def _begun(self, begun: dict[str, Any], path: Path, *, is_append: bool = False,
               is_truncated: bool = False) -> Upload:
        upload = Upload(self._link, self._writer, self._reader, self._session.budget, self._session.id, begun,
                        path=path, window=self._window, is_append=is_append, is_truncated=is_truncated)
        self._session.opened(upload)
        return upload

    async def _close(self, name: bytes) -> None:
        handle = self._handles.take(name)
        if handle is None:
            raise Answer(status.FAILURE, "Invalid handle")
        if isinstance(handle, ReadFile):
            handle.close()
        elif isinstance(handle, WriteHandle) and handle.is_owner:
            await closing.publish(self._lookup, self._session, handle.upload)
        elif isinstance(handle, WriteHandle):
            handle.upload.reader_left()

    async def _let_go(self, handle: ReadFile | WriteHandle | Directory) -> None:
        if isinstance(handle, ReadFile):
            handle.close()
        elif isinstance(handle, WriteHandle) and handle.is_owner:
            await closing.let_go(self._session, handle.upload)

    async def _read(self, request: p.Read) -> Buffers:
        handle, length = self._known(request.handle), min(request.length, p.MAX_DATA)
        if isinstance(handle, ReadFile):
            return _data(request.id, await handle.read(request.offset, length))
        if isinstance(handle, WriteHandle) and handle.readable:
            data = await handle.upload.read(request.offset, length)
            return _data(request.id, [memoryview(data)] if data else [])
        raise Answer(status.FAILURE, "the handle is not open to read")

    def _fstat(self, name: bytes) -> FileAttrs:
        handle = self._known(name)
        if isinstance(handle, ReadFile):
            return handle.attrs
        if isinstance(handle, WriteHandle):
            return self._own_attrs(handle.upload)
        raise Answer(status.FAILURE, "the handle is a directory's")

    async def _fsetstat(self, name: bytes, attrs: FileAttrs) -> None:
        handle = self._known(name)
        if isinstance(handle, WriteHandle):
            if not handle.writable:
                raise Answer(status.PERMISSION_DENIED)
            await self._set_own(handle.upload, attrs)
        elif isinstance(handle, ReadFile):
            if attrs.size is not None:
                raise Answer(status.PERMISSION_DENIED)
            await self._ask("fs.setstat", path=[], file=handle.file, attrs=attrs.settable())
        else:
            await self._setstat(handle.path, attrs)

    async def _set_own(self, upload: Upload, attrs: FileAttrs) -> None:
        """Attributes of an upload are published with it, but those of an existing file without changes at once."""
        if attrs.size is not None and attrs.size != upload.size:
            await upload.truncate(attrs.size)
        values = attrs.settable()
        if values and not upload.is_changed and not upload.is_removed:
            await self._ask("fs.setstat", path=[], file=upload.file, attrs=values)
        for what in ("uid", "gid"):
            if values.pop(what, self._session.uid) != self._session.uid:
                raise Answer(status.PERMISSION_DENIED)
        upload.attrs.update(values)

    # --- names -----------------------------------------------------------------------------------
    async def _by_path(self, request: p.ByPath) -> Buffers:
        path, lookup = parse_path(request.path), self._lookup
        match request.type:
            case p.STAT | p.LSTAT:
                return [p.attrs_reply(request.id, await lookup.stat(path, follow=request.type == p.STAT))]
            case p.REALPATH:
                return [_name(request.id, path_bytes(await lookup.real_path(path)))]
            case p.READLINK:
                return [_name(request.id, await lookup.read_link(path))]
            case p.OPENDIR:
                self._check_room()
                return [p.handle_reply(request.id, self._handles.add(await lookup.open_directory(path)))]
            case p.REMOVE:
                answer = await self._ask("fs.remove", path=list(path))
                self._session.removed(list(answer.get("uploads") or ()))
            case p.RMDIR:
                await self._ask("fs.rmdir", path=list(path))
            case _:
                raise Answer(status.OP_UNSUPPORTED)
        return [p.ok_reply(request.id)]

    async def _extended(self, request: p.Request) -> Buffers:
        """Extensions that have no plain counterpart."""
        lookup = self._lookup
        match request:
            case x.Fsync():
                handle = self._known(request.handle)
                if isinstance(handle, WriteHandle):
                    await handle.upload.checkpoints.now()
            case x.Limits():
                return [x.limits_reply(request.id, MOST_HANDLES)]
            case x.HardLink():
                await self._ask("fs.link", source=list(parse_path(request.source)),
                                target=list(parse_path(request.target)))
            case x.CopyData():
                source, target = self._known(request.source), self._writable(request.target)
                if isinstance(source, Directory) or (isinstance(source, WriteHandle) and not source.readable):
                    raise Answer(status.FAILURE, "the handle is not open to read")
                await copy(lookup, source, target, request)
            case x.StatVfs():
                path = self._path_of(request.where) if request.is_handle else parse_path(request.where)
                return [x.vfs_reply(request.id, await lookup.vfs(path))]
            case x.ExpandPath():
                return [_name(request.id, path_bytes(await lookup.expand(request.path)))]
            case x.HomeDirectory():
                return [_name(request.id, path_bytes(lookup.home_of(request.user)))]
            case x.UsersGroups():
                return [x.users_groups_reply(request.id, lookup.names_of(request.uids), lookup.names_of(request.gids))]
            case _:
                raise Answer(status.OP_UNSUPPORTED)
        return [p.ok_reply(request.id)]

    async def _setstat(self, path: Path, attrs: FileAttrs) -> None:
        own = await self._lookup.own_at(path)
        if own is not None:
            await self._set_own(own, attrs)
            return
        if attrs.size is not None:
            await self._truncate(path, attrs.size)
        values = attrs.settable()
        if values or attrs.size is None:
            await self._ask("fs.setstat", path=list(path), file=0, attrs=values)

    async def _lsetstat(self, path: Path, attrs: FileAttrs) -> None:
        if attrs.size is not None:
            raise Answer(status.BAD_MESSAGE)  # a link has no size to set
        own = self._session.upload((await self._lookup.look(path, follow=False))["upload"])
        if own is not None:
            await self._set_own(own, attrs)
        else:
            await self._ask("fs.setstat", path=list(path), file=0, attrs=attrs.settable(), follow=False)

    async def _truncate(self, path: Path, size: int) -> None:
        """A new size for a file by its path: an upload that begins and is published here."""
        if size > MAX_FILE_SIZE:
            raise Answer(status.FAILURE, f"File too large: at most {MAX_FILE_SIZE} bytes")
        begun = await self._ask("fs.begin", path=list(path), create=False, truncate=False, exclusive=False,
                                append=False, mode=None)
        upload = self._begun(begun, path)
        if not upload.file:
            # An unfinished upload is nobody's file yet: cutting it must not publish it.
            try:
                await upload.truncate(size)
            finally:
                await closing.let_go(self._session, upload)
            return
        try:
            if size != upload.size:
                await upload.truncate(size)
        except RaftmftError as trouble:
            upload.seals.poison(trouble)
        await closing.publish(self._lookup, self._session, upload)

    # --- leaves ----------------------------------------------------------------------------------
    def _path_of(self, name: bytes) -> Path:
        """A handle's path; of a file, which may have none any more, the home: what is asked holds for all of it."""
        handle = self._known(name)
        return handle.path if isinstance(handle, Directory) else ()

    def _own_attrs(self, upload: Upload) -> FileAttrs:
        return upload.present_attrs(self._session.uid)

    def _known(self, name: bytes) -> ReadFile | WriteHandle | Directory:
        handle = self._handles.get(name)
        if handle is None:
            raise Answer(status.FAILURE, "Invalid handle")
        return handle

    def _writable(self, name: bytes) -> Upload:
        handle = self._handles.get(name)
        if not isinstance(handle, WriteHandle) or not handle.writable:
            raise Answer(status.FAILURE, "the handle is not open to write")
        return handle.upload

    def _check_room(self) -> None:
        if not self._handles.has_room():
            raise Refused(Code.LIMIT, f"a session has at most {MOST_HANDLES} open handles")


def _nothing() -> None:
    pass


def _name(number: int, path: bytes) -> bytes:
    return p.name_reply(number, [(path, path, FileAttrs())])


def _data(number: int, parts: list[memoryview]) -> Buffers:
    if not parts:
        raise Answer(status.EOF)
    return p.data_reply(number, parts)
