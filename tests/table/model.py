"""The contract's table "What each session sees of a name" as a program that is small enough to be read.

No chunks, no log, no processes: files are byte strings, a directory is a dict (things.py, names.py). What a request
must be answered is returned; a status other than OK is raised as `Denied`. Where the contract leaves a choice, the
choice that is made is said beside the rule. Paths are text relative to the home. Without symbolic links.
"""

from __future__ import annotations

import itertools

from tests.table.names import Names
from tests.table.things import (
    APPEND,
    CREAT,
    EOF,
    EXCL,
    FAILURE,
    NO_SUCH_FILE,
    PERMISSION_DENIED,
    READ,
    TRUNC,
    WRITE,
    Denied,
    Dir,
    File,
    Handle,
    Partial,
    Session,
    Stat,
    Upload,
)


class Model(Names):
    """The homes of all users and everything that is open."""

    def __init__(self, users: list[str]) -> None:
        super().__init__(users)
        self.handles: list[Handle] = []
        self._versions, self._numbers = itertools.count(1), itertools.count(1)

    # --- looking ---------------------------------------------------------------------------------
    def own_at(self, session: Session, path: str) -> Upload | None:
        """As `own`; a path that leads nowhere leads to none."""
        try:
            return self.own(session, self.find(session, path))
        except Denied:
            return None

    def stat(self, session: Session, path: str) -> Stat:
        """STAT, LSTAT: own unpublished first, then what is published, then the same user's partial."""
        spot = self.find(session, path)
        if (own := self.own(session, spot)) is not None:
            return _stat_of(own)
        if isinstance(spot.node, Dir):
            return Stat(None, 0)
        if spot.node is not None:
            return Stat(len(spot.node.data), spot.node.mode, spot.node.mtime)
        partial = self.partials.get((spot.directory, spot.name))
        if partial is None:
            raise Denied(NO_SUCH_FILE, "neither published nor a partial")
        return Stat(len(partial.data), partial.mode)

    def fstat(self, handle: Handle) -> Stat:
        """FSTAT."""
        return _stat_of(handle.upload) if handle.upload is not None else Stat(
            len(handle.data), handle.mode, handle.mtime)

    def list(self, session: Session, path: str) -> dict[str, int | None]:
        """READDIR: published names, and own unpublished ones, with their present sizes (None: a directory)."""
        directory, found = self.directory(session, path), {}
        for name, node in directory.names.items():
            found[name] = len(node.data) if isinstance(node, File) else None
        for upload in sorted((u for u in self.uploads if u.session is session), key=lambda u: u.number):
            if upload.file is None and upload.directory is directory:
                found[upload.name] = len(upload.data)
            for name, node in directory.names.items() if upload.file is not None else ():
                if node is upload.file:
                    found[name] = len(upload.data)
        return found

    # --- opening ---------------------------------------------------------------------------------
    def open(self, session: Session, path: str, flags: int) -> Handle:
        """OPEN; without a flag that can change something it is to read."""
        own = self.own_at(session, path)
        if not flags & (WRITE | APPEND | CREAT | TRUNC):
            handle = Handle(session, own) if own is not None else self._open_published(session, path)
        else:
            if own is not None and not flags & TRUNC:
                self._try_checkpoint(own)  # continuing an own one loses nothing of its prefix
            upload = self._begin(session, path, flags)
            self.uploads.append(upload)
            handle = Handle(session, upload, can_read=bool(flags & READ), can_write=bool(flags & (WRITE | APPEND)),
                            is_owner=True)
        self.handles.append(handle)
        return handle

    def _open_published(self, session: Session, path: str) -> Handle:
        file = self.find(session, path).node
        if file is None:
            raise Denied(NO_SUCH_FILE, "not published")
        if isinstance(file, Dir):
            raise Denied(FAILURE, "a directory")
        return Handle(session, file=file, data=file.data, mode=file.mode, mtime=file.mtime)

    def _begin(self, session: Session, path: str, flags: int) -> Upload:
        spot = self.find(session, path)
        key = (spot.directory, spot.name)
        file, data, mode, base = None, b"", 0o644, 0
        if isinstance(spot.node, Dir):
            raise Denied(FAILURE, "a directory")
        if spot.node is not None:
            if flags & CREAT and flags & EXCL:
                raise Denied(FAILURE, "exists")
            file, base, mode = spot.node, spot.node.version, spot.node.mode
            data = b"" if flags & TRUNC else file.data
        else:
            partial = self.partials.get(key)
            if partial is None and not flags & CREAT and self.own(session, spot) is None:
                raise Denied(NO_SUCH_FILE, "nothing to continue")
            if partial is not None and not flags & TRUNC and not (flags & CREAT and flags & EXCL):
                if partial.owner is not None:
                    self._taken_over(partial.owner)
                data, mode = partial.data, partial.mode
            elif partial is not None:
                del self.partials[key]
        upload = Upload(next(self._numbers), session, self.homes[session.user], spot.directory, spot.name, file, base,
                        flags, mode, bytearray(data), bytearray(b"\1" * len(data)), saved=len(data))
        if key in self.partials and file is None:
            self.partials[key].owner, self.partials[key].begun = upload, upload.number
        upload.is_changed = file is None or bool(flags & TRUNC)
        if upload.appends and not flags & TRUNC:
            upload.appended_from = len(data)
        return upload

    def _taken_over(self, upload: Upload) -> None:
        self._gone(upload)
        upload.failure = upload.failure or FAILURE

    # --- writing and reading ---------------------------------------------------------------------
    def write(self, handle: Handle, offset: int, data: bytes) -> None:
        """WRITE."""
        upload = handle.upload
        if upload is None or not handle.can_write:
            raise Denied(FAILURE, "not open to write")
        _check(upload)
        if not data:
            return
        if upload.appends:
            offset = len(upload.data)
        for buffer, new in ((upload.data, data), (upload.mask, b"\1" * len(data))):
            buffer.extend(bytes(max(0, offset - len(buffer))))
            buffer[offset : offset + len(data)] = new
        upload.is_changed = upload.is_unsaved = True

    def copy(self, source: Handle, offset: int, length: int, target: Handle, to: int) -> None:
        """copy-data; a length of 0 is until the end, and EOF says that the source ended before `length`."""
        upload = target.upload
        if upload is None or not target.can_write or not source.can_read or source.upload is upload:
            raise Denied(FAILURE, "not open for that")
        _check(upload)
        if source.upload is None and not upload.is_live:
            upload.failure = FAILURE
            raise Denied(FAILURE, "revoked")
        data = bytes(source.data if source.upload is None else source.upload.data)
        piece = data[offset : offset + length] if length else data[offset:]
        if piece == data and not to and not upload.data and source.upload is None:
            upload.is_changed = True  # taken over whole, though it may be nothing
        self.write(target, to, piece)
        if length and offset + length > len(data):
            raise Denied(EOF, "the source ended")

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """READ; empty at the end. A writing handle reads its own bytes."""
        if not handle.can_read:
            raise Denied(FAILURE, "not open to read")
        data = handle.data if handle.upload is None else handle.upload.data
        return bytes(data[offset : offset + length])

    def fsetstat(self, handle: Handle, size: int | None, attrs: dict[str, int]) -> None:
        """FSETSTAT. A handle on a published version changes the file's attributes, wherever its names are by now."""
        if handle.upload is not None:
            if not handle.can_write:
                raise Denied(PERMISSION_DENIED, "not open to write")
            self._set_own(handle.upload, size, attrs)
        elif size is not None:
            raise Denied(PERMISSION_DENIED, "not open to write")
        else:
            assert handle.file is not None
            _set(handle.file, attrs)

    def setstat(self, session: Session, path: str, size: int | None, attrs: dict[str, int]) -> None:
        """SETSTAT. A size cuts a published file at once; a partial stays one (and one of no bytes is none)."""
        if (own := self.own_at(session, path)) is not None:
            self._set_own(own, size, attrs)
            return
        if size is not None:
            self._cut(session, path, size)
        if attrs or size is None:
            node = self.find(session, path).node
            if node is None:
                raise Denied(NO_SUCH_FILE, "not published")
            if isinstance(node, File):
                _set(node, attrs)

    def _cut(self, session: Session, path: str, size: int) -> None:
        upload = self._begin(session, path, WRITE)
        _resize(upload, size)
        if upload.file is None:
            self._interrupted(upload)
        elif size != len(upload.file.data):
            self._publish(upload)

    def _set_own(self, upload: Upload, size: int | None, attrs: dict[str, int]) -> None:
        if size is not None and size != len(upload.data):
            _check(upload)
            _resize(upload, size)
            upload.is_changed, upload.appended_from = True, None
        if attrs and not upload.is_changed and upload.file is not None:
            _set(upload.file, attrs)  # an existing file without changes: at once
        upload.attrs.update(attrs)

    def fsync(self, handle: Handle) -> None:
        """fsync@openssh.com: a checkpoint, never a publish."""
        if handle.upload is not None:
            _check(handle.upload)
            self._checkpoint(handle.upload)

    def _try_checkpoint(self, upload: Upload) -> None:
        try:
            _check(upload)
            self._checkpoint(upload)
        except Denied:
            pass

    def _checkpoint(self, upload: Upload) -> None:
        if upload.file is not None or upload.is_removed or upload.is_closed:
            return
        size = upload.prefix
        if size == upload.saved == 0:
            upload.is_unsaved = False
            return  # there was never anything to keep
        try:
            if not upload.is_live:
                raise Denied(FAILURE, "revoked")
            self._keep(upload, size)
        except Denied as denied:
            upload.failure = denied.code
            raise
        upload.saved, upload.is_unsaved = size, False

    def _keep(self, upload: Upload, size: int) -> None:
        key = (upload.directory, upload.name)
        if not upload.directory.is_there:
            raise Denied(NO_SUCH_FILE, "the directory is gone")
        if upload.name in upload.directory.names:
            return  # published meanwhile: an interrupted overwrite leaves no partial
        partial = self.partials.get(key)
        if partial is not None and partial.begun > upload.number:
            return  # a later upload's stands there
        if size:
            self.partials[key] = Partial(upload, upload.number, bytes(upload.data[:size]), upload.mode)
        else:
            self.partials.pop(key, None)

    # --- ending ----------------------------------------------------------------------------------
    def close(self, handle: Handle) -> None:
        """CLOSE: the only thing that publishes, and whole; where it fails a partial stays."""
        self.handles.remove(handle)
        upload = handle.upload
        if upload is None or not handle.is_owner:
            return
        upload.is_closed = True
        try:
            if upload.is_changed or upload.failure:
                _check(upload)
                self._publish(upload)
        finally:
            self._ended(upload)

    def _publish(self, upload: Upload) -> None:
        if upload.is_removed:
            raise Denied(NO_SUCH_FILE, "removed")
        if not upload.is_live:
            raise Denied(FAILURE, "revoked")
        file, data = upload.file, bytes(upload.data)
        if file is not None:
            if not file.names:
                raise Denied(NO_SUCH_FILE, "removed")
            if not upload.flags & TRUNC and file.version != upload.base:
                if upload.appended_from is None:
                    raise Denied(FAILURE, "changed by another session")
                data = file.data + data[upload.appended_from:]
        else:
            if not upload.directory.is_there:
                raise Denied(NO_SUCH_FILE, "the directory is gone")
            there = upload.directory.names.get(upload.name)
            if isinstance(there, Dir) or (there is not None and upload.flags & CREAT and upload.flags & EXCL):
                raise Denied(FAILURE, "in the way")
            file = there
            if file is None:
                file = upload.directory.names[upload.name] = File(b"", upload.mode)
                self.partials.pop((upload.directory, upload.name), None)
        file.data, file.version, file.mtime = data, next(self._versions), None
        _set(file, upload.attrs)
        self._gone(upload)

    def lose(self, session: Session) -> None:
        """The connection is lost: every upload's prefix stays, and nothing is published."""
        for handle in [h for h in self.handles if h.session is session]:
            self.handles.remove(handle)
            if handle.upload is not None and handle.is_owner:
                self._interrupted(handle.upload)

    def _interrupted(self, upload: Upload) -> None:
        self._try_checkpoint(upload)
        self._ended(upload)

    def _ended(self, upload: Upload) -> None:
        self._gone(upload)
        for partial in self.partials.values():
            if partial.owner is upload:
                partial.owner = None


def _check(upload: Upload) -> None:
    if upload.failure:
        raise Denied(upload.failure, "the upload failed before")


def _resize(upload: Upload, size: int) -> None:
    upload.is_unsaved = True
    del upload.data[size:], upload.mask[size:]
    upload.data.extend(bytes(size - len(upload.data)))


def _set(file: File, attrs: dict[str, int]) -> None:
    file.mode, file.mtime = attrs.get("mode", file.mode), attrs.get("mtime", file.mtime)


def _stat_of(upload: Upload) -> Stat:
    return Stat(len(upload.data), upload.attrs.get("mode", upload.mode), upload.attrs.get("mtime"))
