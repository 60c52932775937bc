"""Random operations of three sessions, done for real and on the model, every answer compared.

`Play` knows nothing of how sessions come about: `Actor`s are given to it, one a session. Operations are drawn from a
seeded generator; offsets and sizes fall on and around the edges of chunks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

from raftmft.core.manifest import CHUNK_SIZE
from raftmft.sftp import packets as p
from tests.sftp.raw_client import RawSftp, Status, s
from tests.table import things as m
from tests.table.answers import (
    MOST_READ,
    file_attrs,
    flags_text,
    is_doomed,
    look,
    name_of,
    read,
    same_attrs,
    same_names,
    short,
    write,
)
from tests.table.model import Model

NAMES = ("a", "b", "c", "d/a", "d/b", "e/a")
DIRECTORIES = ("d", "e", "d/e")
MOST_HANDLES = 12
FLAGS = (m.READ, m.READ, m.WRITE | m.CREAT | m.TRUNC, m.READ | m.WRITE | m.CREAT | m.TRUNC, m.WRITE | m.CREAT,
         m.READ | m.WRITE, m.WRITE | m.APPEND | m.CREAT, m.READ | m.WRITE | m.CREAT, m.WRITE, m.WRITE | m.APPEND,
         m.WRITE | m.CREAT | m.EXCL, m.APPEND | m.CREAT, m.READ | m.CREAT, m.READ | m.TRUNC, m.WRITE | m.TRUNC,
         m.WRITE | m.CREAT | m.EXCL | m.TRUNC, m.WRITE | m.APPEND | m.CREAT | m.TRUNC)
WEIGHTS = {"open": 16, "write": 22, "read": 10, "close": 9, "fsync": 4, "stat": 7, "fstat": 3, "look": 6, "list": 4,
           "fsetstat": 6, "setstat": 3, "burst": 4, "copy": 4, "remove": 2, "rename": 4, "mkdir": 2, "rmdir": 1,
           "link": 1, "lose": 1}


NEEDS_NO_SYNC = {"write", "burst", "copy", "read", "fstat", "fsync", "fsetstat", "lose"}


class Synced(Enum):
    """How much of what is written is checkpointed by fsync, where checkpoints also come by themselves when they like.
    Only what those change could not be told otherwise.
    """

    NEVER = 0
    """Nothing: no checkpoints may come by themselves."""
    LAZILY = 1
    """What is unsaved when anybody does anything that a partial could make a difference to."""
    ALWAYS = 2
    """Every change, at once."""


class Mismatch(AssertionError):
    """What was answered is not what the model says."""


class Actor:
    """A session: its model and its channel."""

    def __init__(self, name: str, session: m.Session, sftp: RawSftp) -> None:
        self.name, self.session, self.sftp = name, session, sftp

    async def again(self) -> None:
        """Breaks the connection, waits until its session has ended, and logs in again."""
        raise NotImplementedError


class Play:
    """One seed's run. `trace` holds a line for each operation."""

    def __init__(self, seed: int, model: Model, actors: list[Actor], *, most_bytes: int, largest_write: int,
                 synced: Synced = Synced.NEVER) -> None:
        self.random, self.model, self.actors = random.Random(seed), model, actors
        self._most, self._largest, self._synced = most_bytes, largest_write, synced
        self.trace: list[str] = []
        self.seen: Counter[str] = Counter()

    async def run(self, steps: int) -> None:
        """Raises Mismatch at the first difference."""
        for actor in self.actors:
            for name in ("d", "e"):
                if actor.name != "o":
                    await self._both(actor, f"mkdir {name}", lambda name=name, a=actor: self.model.mkdir(
                        a.session, name), actor.sftp.call(p.MKDIR, s(name), b"\0\0\0\0"))
        for _ in range(steps):
            actor = self.random.choice(self.actors)
            (name,) = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
            if self._synced != Synced.NEVER and name not in NEEDS_NO_SYNC:
                await self._save(lambda h: h.upload.is_unsaved)
            await getattr(self, f"_{name}")(actor)
            if self._synced != Synced.NEVER:
                await self._save(is_doomed)
            if self._synced == Synced.ALWAYS:
                await self._save(lambda h: h.upload.is_unsaved)
        await self._save(lambda h: h.upload.is_unsaved)
        await self.sweep()

    async def sweep(self) -> None:
        """Everything that every session can see, byte by byte."""
        for actor in self.actors:
            for path in ("", *DIRECTORIES):
                await self._list_at(actor, path)
            for path in NAMES:
                await self._stat_at(actor, path)
                await self._look_at(actor, path)

    # --- comparing -------------------------------------------------------------------------------
    async def _both(self, actor: Actor, what: str, predicted: Callable[[], Any], done: Awaitable[Any],
                    compare: Callable[[Any, Any], bool] | None = None, may_fail: int = 0) -> tuple[Any, Any] | None:
        """Does it on the model and for real. What both gave, or None if both denied it with the same status, or the
        product with the status `may_fail`.
        """
        line = f"{actor.name} {what}"
        self.trace.append(line)
        try:
            want, code = predicted(), 0
        except m.Denied as denied:
            want, code, line = denied, denied.code, f"{line} -> {denied.code} {denied}"
        self.trace[-1] = line if code else f"{line} -> {short(want)}"
        try:
            got = await done
        except Status as status:
            if status.code != code and (not may_fail or status.code != may_fail):
                raise Mismatch(f"{line}: the model says {short(want)}, the answer was {status}") from None
            self._count(what, code)
            return None
        if code:
            raise Mismatch(f"{line}: the answer was {short(got)}")
        if compare is not None and not compare(want, got):
            raise Mismatch(f"{line}: the model says {short(want)}, the answer was {short(got)}")
        self._count(what, 0)
        return want, got

    def _count(self, what: str, code: int) -> None:
        self.seen[f"{what.split()[0]} {'ok' if not code else code}"] += 1

    # --- operations ------------------------------------------------------------------------------
    async def _open(self, actor: Actor) -> None:
        if sum(h.session is actor.session for h in self.model.handles) >= MOST_HANDLES:
            return
        path, flags = self._path(actor), self.random.choice(FLAGS)
        opened = await self._both(actor, f"open {path} {flags_text(flags)}",
                                  lambda: self.model.open(actor.session, path, flags),
                                  actor.sftp.open_file(path, flags))
        if opened is not None:
            opened[0].real = opened[1]

    async def _write(self, actor: Actor) -> None:
        handle = self._handle(actor, lambda h: h.upload is not None and h.can_write)
        if handle is None:
            return
        size = len(handle.upload.data)
        offset = size if self.random.random() < 0.5 else self._size(size)
        count = self.random.choice((0, 1, 3, 100, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, self._largest))
        count = max(0, min(count, self._largest, self._most - (size if handle.upload.appends else offset)))
        data = self._bytes(count)
        await self._both(actor, f"write {name_of(handle)} at {offset} {count} bytes",
                         lambda: self.model.write(handle, offset, data), write(actor.sftp, handle, offset, data))

    async def _burst(self, actor: Actor) -> None:
        """WRITEs of all handles of a session, sent before the first answer is read."""
        asked: list[tuple[m.Handle, int, bytes, int]] = []
        for _ in range(self.random.randrange(2, 12)):
            handle = self._handle(actor, lambda h: h.upload is not None and h.can_write and h.upload.is_live and
                                  h.upload.directory.is_there)  # others fail when their next checkpoint comes
            if handle is None:
                return
            offset = self._size(len(handle.upload.data))
            count = min(self.random.choice((1, 100, CHUNK_SIZE, self._largest)), self._largest, self._most - offset)
            if handle.upload.appends:
                count = min(count, 100)
            data = self._bytes(max(0, count))
            asked.append((handle, offset, data, actor.sftp.send_write(handle.real, offset, data)))
        for handle, offset, data, number in asked:
            await self._both(actor, f"write {name_of(handle)} at {offset} {len(data)} bytes, one of {len(asked)}",
                             lambda h=handle, o=offset, d=data: self.model.write(h, o, d), actor.sftp.answer(number))

    async def _copy(self, actor: Actor) -> None:
        """Chunks are shared where whole ones fall on whole slots, so offsets do so often."""
        source = self._handle(actor, lambda h: h.upload is None or (h.can_read and not h.upload.failure))
        target = self._handle(actor, lambda h: h.upload is not None and h.can_write and h.upload.directory.is_there)
        if source is None or target is None or target.upload is None:
            return
        size, present = self.model.fstat(source).size or 0, len(target.upload.data)
        offset = self.random.choice((0, 0, self._size(size)))
        to = self.random.choice((0, present, offset, self._size(present)))
        length = self.random.choice((0, 0, 1, CHUNK_SIZE, self._size(size)))
        end = (present if target.upload.appends else to) + (length or size)
        if end > self._most:
            return
        await self._both(actor, f"copy {name_of(source)} {offset} {length} to {name_of(target)} {to}",
                         lambda: self.model.copy(source, offset, length, target, to),
                         actor.sftp.copy(source.real, target.real, offset, length, to))

    async def _read(self, actor: Actor) -> None:
        handle = self._handle(actor, lambda h: h.can_read or self.random.random() < 0.1)
        if handle is None:
            return
        size = self.model.fstat(handle).size or 0
        offset, count = self._size(size), min(self.random.choice((1, 100, CHUNK_SIZE // 3, MOST_READ)), MOST_READ)
        await self._both(actor, f"read {name_of(handle)} at {offset} {count} bytes",
                         lambda: self.model.read(handle, offset, count), read(actor.sftp, handle, offset, count),
                         lambda want, got: want == got,
                         # What a failed upload has not stored is given up when its memory is wanted.
                         may_fail=handle.upload.failure if handle.upload is not None else 0)

    async def _close(self, actor: Actor) -> None:
        handle = self._handle(actor, lambda h: True)
        if handle is not None:
            await self._both(actor, f"close {name_of(handle)}", lambda: self.model.close(handle),
                             actor.sftp.close_handle(handle.real))

    async def _fsync(self, actor: Actor) -> None:
        handle = self._handle(actor, lambda h: True)
        if handle is not None:
            await self._both(actor, f"fsync {name_of(handle)}", lambda: self.model.fsync(handle),
                             actor.sftp.fsync(handle.real))

    async def _stat(self, actor: Actor) -> None:
        await self._stat_at(actor, self._path(actor))

    async def _stat_at(self, actor: Actor, path: str) -> None:
        kind = self.random.choice((p.STAT, p.LSTAT))
        await self._both(actor, f"stat {path}", lambda: self.model.stat(actor.session, path),
                         actor.sftp.call(kind, s(path)), same_attrs)

    async def _fstat(self, actor: Actor) -> None:
        handle = self._handle(actor, lambda h: True)
        if handle is not None:
            await self._both(actor, f"fstat {name_of(handle)}", lambda: self.model.fstat(handle),
                             actor.sftp.call(p.FSTAT, s(handle.real)), same_attrs)

    async def _look(self, actor: Actor) -> None:
        await self._look_at(actor, self._path(actor))

    async def _look_at(self, actor: Actor, path: str) -> None:
        """OPEN to read, READ of everything, CLOSE."""
        def predicted() -> bytes:
            handle = self.model.open(actor.session, path, m.READ)
            self.model.handles.remove(handle)
            return self.model.read(handle, 0, 1 << 62)
        await self._both(actor, f"look {path}", predicted, look(actor.sftp, path), lambda want, got: want == got)

    async def _list(self, actor: Actor) -> None:
        await self._list_at(actor, self.random.choice(("", "", *DIRECTORIES)))

    async def _list_at(self, actor: Actor, path: str) -> None:
        await self._both(actor, f"list {path or '/'}", lambda: self.model.list(actor.session, path),
                         actor.sftp.names(path or "/"), same_names)

    async def _fsetstat(self, actor: Actor) -> None:
        handle = self._handle(actor, lambda h: True)
        if handle is None:
            return
        size, attrs = self._attrs(self.model.fstat(handle).size or 0)
        await self._both(actor, f"fsetstat {name_of(handle)} {size} {attrs}",
                         lambda: self.model.fsetstat(handle, size, attrs),
                         actor.sftp.fsetstat(handle.real, file_attrs(size, attrs)))

    async def _setstat(self, actor: Actor) -> None:
        path = self._path(actor)
        size, attrs = self._attrs(self.random.randrange(3 * CHUNK_SIZE))
        await self._both(actor, f"setstat {path} {size} {attrs}",
                         lambda: self.model.setstat(actor.session, path, size, attrs),
                         actor.sftp.setstat(path, file_attrs(size, attrs)))

    async def _remove(self, actor: Actor) -> None:
        path = self._path(actor)
        await self._both(actor, f"remove {path}", lambda: self.model.remove(actor.session, path),
                         actor.sftp.remove(path))

    async def _rename(self, actor: Actor) -> None:
        source, target = self._any_path(actor), self._any_path(actor)
        replace = self.random.random() < 0.5
        await self._both(actor, f"rename {source} to {target}{' replacing' if replace else ''}",
                         lambda: self.model.rename(actor.session, source, target, replace),
                         actor.sftp.rename(source, target, replace=replace))

    async def _mkdir(self, actor: Actor) -> None:
        path = self._directory()
        await self._both(actor, f"mkdir {path}", lambda: self.model.mkdir(actor.session, path),
                         actor.sftp.call(p.MKDIR, s(path), b"\0\0\0\0"))

    async def _rmdir(self, actor: Actor) -> None:
        path = self._directory()
        await self._both(actor, f"rmdir {path}", lambda: self.model.rmdir(actor.session, path),
                         actor.sftp.call(p.RMDIR, s(path)))

    async def _link(self, actor: Actor) -> None:
        source, target = self._path(actor), self._path(actor)
        await self._both(actor, f"link {source} {target}", lambda: self.model.link(actor.session, source, target),
                         actor.sftp.hardlink(source, target))

    async def _lose(self, actor: Actor) -> None:
        await self._both(actor, "lose", lambda: self.model.lose(actor.session), actor.again())

    async def _save(self, which: Callable[[m.Handle], bool]) -> None:
        """fsync on the handles of unfinished new files."""
        for handle in list(self.model.handles):
            if handle.is_owner and handle.upload.file is None and not handle.upload.is_removed and which(handle):
                actor = next(a for a in self.actors if a.session is handle.session)
                await self._both(actor, f"fsync {name_of(handle)}", lambda h=handle: self.model.fsync(h),
                                 actor.sftp.fsync(handle.real))
                handle.upload.is_unsaved, handle.upload.is_told = False, True

    # --- drawing ---------------------------------------------------------------------------------
    def _bytes(self, count: int) -> bytes:
        """That can be told from others by their beginning."""
        return (self.random.randbytes(1) * 3 + self.random.randbytes(max(0, count - 3)))[:count]

    def _path(self, actor: Actor) -> str:
        """A file's path, more often one where something is under way."""
        return self.random.choice(NAMES[:2] if self.random.random() < 0.5 else NAMES)

    def _any_path(self, actor: Actor) -> str:
        return self._path(actor) if self.random.random() < 0.8 else self.random.choice(DIRECTORIES)

    def _directory(self) -> str:
        """Seldom where files are wanted."""
        return self.random.choice(NAMES if self.random.random() < 0.1 else DIRECTORIES)

    def _handle(self, actor: Actor, fits: Callable[[m.Handle], bool]) -> m.Handle | None:
        fitting = [h for h in self.model.handles if h.session is actor.session and fits(h)]
        return self.random.choice(fitting) if fitting else None

    def _size(self, present: int) -> int:
        """An offset or size, on or near an edge."""
        edge = CHUNK_SIZE * self.random.randrange(self._most // CHUNK_SIZE + 1)
        size = self.random.choice((0, 1, present, present - 1, present + 1, present // 2, edge, edge - 1, edge + 1,
                                   self.random.randrange(self._most)))
        return max(0, min(size, self._most))

    def _attrs(self, present: int) -> tuple[int | None, dict[str, int]]:
        size = self._size(present) if self.random.random() < 0.6 else None
        attrs: dict[str, int] = {}
        if self.random.random() < 0.4:
            attrs["mode"] = self.random.choice((0o600, 0o640, 0o755))
        if self.random.random() < 0.4:
            attrs["mtime"] = self.random.randrange(1_000_000)
        return size, attrs
