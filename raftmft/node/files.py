"""What workers ask about names: each request becomes a command, or a barrier and a local read.

Nothing here is decided: `core` decides, in `apply`. This file checks the shape of what a worker sent (a worker is not
trusted with more than its own sessions), and adds the locations of chunks that lie here. Opens to read: reads.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from raftmft.core import commands as c
from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import Manifest, split_ids
from raftmft.core.outcome import Code, Rejection
from raftmft.node.chunks import Chunks
from raftmft.node.digests import Digests
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.reads import Reads
from raftmft.node.state import ReplicatedState
from raftmft.node.takeovers import Takeovers
from raftmft.node.workers import Worker

MOST_NAMES_A_PAGE = 1000
PUBLISH_LIMIT_S = 4.5
MOST_PLACEMENTS = 8
"""How often members may change while one upload is published or checkpointed before it is told to fail."""
_ATTRS = ("size", "mode", "uid", "gid", "atime", "mtime")


class Files:
    """Serves the fs.* and read.end requests of all workers."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, chunks: Chunks, reads: Reads) -> None:
        self._state, self._epoch, self._chunks, self._reads = state, epoch, chunks, reads
        self._takeovers = Takeovers(chunks.worker_of)
        self._digests = Digests()
        state.subscribe(self._takeovers.applied)
        self.operations: dict[str, Callable[[Worker, dict[str, Any]], Awaitable[Any]]] = {
            "fs.stat": self._stat, "fs.list": self._list, "fs.open": self._open, "fs.begin": self._begin,
            "fs.checkpoint": self._checkpoint, "fs.publish": self._publish, "fs.end": self._end,
            "fs.mkdir": self._mkdir, "fs.rmdir": self._rmdir, "fs.remove": self._remove, "fs.rename": self._rename,
            "fs.setstat": self._setstat, "fs.symlink": self._symlink, "fs.link": self._link, "fs.copy": self._copy,
            "fs.base": self._base, "fs.statvfs": self._statvfs, "read.end": self._read_end,
            "digest.told": self._digest_told,
        }

    async def run(self) -> None:
        """Records reads, and tells workers of uploads that were taken over, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reads.run)
            nursery.start_soon(self._takeovers.run)

    async def finish(self) -> None:
        """Commits what is to be recorded of reads, at the end of a session and at a clean stop."""
        await self._reads.finish()

    async def _stat(self, worker: Worker, args: dict[str, Any]) -> Any:
        user, path, follow = _user(worker, args), _path(args["path"]), bool(args.get("follow", True))
        await self._epoch.barrier()
        machine = self._state.machine
        own = machine.uploads.seen_at(user, int(args["session"]), path, follow=follow) if args.get("own") else 0
        return {**_answer(machine.namespace.look(user, path, follow=follow)), "upload": own}

    async def _list(self, worker: Worker, args: dict[str, Any]) -> Any:
        user, after, path = _user(worker, args), args.get("after"), _path(args["path"])
        if after is None:
            await self._epoch.barrier()  # later pages go on from what the first one was promised
        limit = min(int(args["limit"]), MOST_NAMES_A_PAGE)
        machine = self._state.machine
        entries = _answer(machine.namespace.list(user, path, after, limit + 1))
        own = machine.uploads.seen_in(user, int(args["session"]), path) if args.get("own") else []
        dots = _answer(machine.namespace.dots(user, path)) if after is None else []
        return {"entries": entries[:limit], "more": len(entries) > limit, "uploads": own, "dots": dots}

    async def _open(self, worker: Worker, args: dict[str, Any]) -> Any:
        value = await self._reads.open(_session(worker, args), _path(args["path"]))
        return {**value, "locations": self._chunks.locate(split_ids(value["ids"])),
                "digests": self._digests.known(value["file"], value["version"])}

    async def _begin(self, worker: Worker, args: dict[str, Any]) -> Any:
        value = await self._epoch.value(c.BeginUpload(
            _session(worker, args), _path(args["path"]), create=bool(args["create"]),
            truncate=bool(args["truncate"]), exclusive=bool(args["exclusive"]), append=bool(args["append"]),
            mode=_optional_int(args.get("mode"))))
        is_old = bool(value["ids"]) and (value["partial"] or int(value["version"]) < int(value["placement"]))
        self._chunks.begin(int(value["upload"]), worker, 0 if is_old else int(value["placement"]))
        return {**value, "locations": self._chunks.locate(split_ids(value["ids"]))}

    async def _checkpoint(self, worker: Worker, args: dict[str, Any]) -> Any:
        upload, manifest, session = int(args["upload"]), _manifest(args), _session(worker, args)
        return await self._under_one_placement(
            upload, manifest, lambda placement: c.Checkpoint(session, upload, manifest, placement))

    async def _publish(self, worker: Worker, args: dict[str, Any]) -> Any:
        upload = int(args["upload"])
        self._chunks.check_all_held(upload)
        manifest, session, digest = _manifest(args), _session(worker, args), str(args["digest"])
        attrs, base = _attrs(args["attrs"]), int(args.get("base") or 0)
        value = await self._under_one_placement(
            upload, manifest, lambda placement: c.Publish(session, upload, manifest, placement, digest, attrs, base))
        self._chunks.end(upload)
        return value

    async def _under_one_placement(self, upload: int, manifest: Manifest, command: Callable[[int], c.Command]) -> Any:
        """Proposes `command(placement)` once all of `manifest` is held under that placement epoch; again when members
        changed meanwhile, since a command refused for that reason has changed nothing.
        """
        for attempt in range(MOST_PLACEMENTS):
            placement = await self._chunks.covered(upload, manifest)
            try:
                return await self._epoch.value(command(placement), timeout_s=PUBLISH_LIMIT_S)
            except Rejected as refusal:
                if refusal.code != Code.STALE_PLACEMENT or attempt == MOST_PLACEMENTS - 1:
                    raise
            await self._epoch.barrier()  # until the change is applied here, too
        raise AssertionError("the last attempt returns or raises")

    async def _end(self, worker: Worker, args: dict[str, Any]) -> Any:
        upload = int(args["upload"])
        self._chunks.end(upload)
        return await self._epoch.value(c.EndUpload(_session(worker, args), upload, bool(args["keep"])))

    async def _mkdir(self, worker: Worker, args: dict[str, Any]) -> Any:
        return await self._epoch.value(
            c.Mkdir(_session(worker, args), _path(args["path"]), _optional_int(args.get("mode"))))

    async def _rmdir(self, worker: Worker, args: dict[str, Any]) -> Any:
        return await self._epoch.value(c.Rmdir(_session(worker, args), _path(args["path"])))

    async def _remove(self, worker: Worker, args: dict[str, Any]) -> Any:
        return await self._epoch.value(c.Remove(_session(worker, args), _path(args["path"])))

    async def _rename(self, worker: Worker, args: dict[str, Any]) -> Any:
        return await self._epoch.value(c.Rename(
            _session(worker, args), _path(args["source"]), _path(args["target"]), bool(args["replace"])))

    async def _setstat(self, worker: Worker, args: dict[str, Any]) -> Any:
        if args.get("file"):
            await self._reads.settle(_session(worker, args))  # the state must know what the session has open
        return await self._epoch.value(c.SetStat(
            _session(worker, args), _path(args["path"]), _attrs(args["attrs"]), int(args.get("file") or 0),
            bool(args.get("follow", True))))

    async def _symlink(self, worker: Worker, args: dict[str, Any]) -> Any:
        return await self._epoch.value(c.Symlink(_session(worker, args), _path(args["path"]), bytes(args["target"])))

    async def _link(self, worker: Worker, args: dict[str, Any]) -> Any:
        return await self._epoch.value(c.Link(_session(worker, args), _path(args["source"]), _path(args["target"])))

    async def _copy(self, worker: Worker, args: dict[str, Any]) -> Any:
        upload = int(args["upload"])
        await self._reads.settle(_session(worker, args))
        try:
            value = await self._epoch.value(c.CopyData(
                _session(worker, args), upload, int(args["open"]), _manifest(args), int(args["bytes"])))
        except BaseException:
            self._chunks.inherits(upload)
            raise
        # What was published under the present placement need not be asked for again, chunk by chunk.
        placement = self._state.machine.settings.placement
        self._chunks.inherits(upload, placement if int(value["version"]) >= placement else 0)
        return {}

    async def _base(self, worker: Worker, args: dict[str, Any]) -> Any:
        """The present version of the file that an upload appends to, in the shape of fs.begin's answer."""
        session, machine = _session(worker, args), self._state.machine
        await self._epoch.barrier()
        upload = machine.uploads.get(int(args["upload"]))
        if upload is None or upload.session != session:
            raise Rejected(Code.STALE_UPLOAD, "the upload has ended or was taken over by another session")
        self._chunks.inherits(upload.id)
        content = machine.namespace.content(upload.file)
        if content is None:
            raise Rejected(Code.NOT_FOUND, "the file was removed while it was being written")
        version, manifest, digest = content
        return {"version": version, "size": manifest.size, "depth": manifest.depth, "ids": manifest.ids,
                "digest": digest, "placement": machine.settings.placement,
                "locations": self._chunks.locate(manifest.id_list())}

    async def _statvfs(self, worker: Worker, args: dict[str, Any]) -> Any:
        """Room in bytes: the user's quota, or the disk of this member for a user without one."""
        user, path, machine = _user(worker, args), _path(args["path"]), self._state.machine
        await self._epoch.barrier()
        if _answer(machine.namespace.look(user, path))["entry"] is None:
            raise Rejected(Code.NOT_FOUND, "no such file or directory")
        row = machine.users.get(user)
        if row is None:
            raise Rejected(Code.NO_USER, "the user was removed")
        total, free = self._chunks.disk_bytes()
        if row.quota_bytes:
            total, free = row.quota_bytes, max(0, row.quota_bytes - row.used_bytes)
        return {"total": total, "free": free, "files": row.files, "read_only": row.read_only}

    async def _read_end(self, worker: Worker, args: dict[str, Any]) -> None:
        self._reads.ended(_session(worker, args), int(args["open"]), int(args["bytes"]), bool(args["ok"]))

    async def _digest_told(self, worker: Worker, args: dict[str, Any]) -> None:
        row = self._state.machine.users.get(_user(worker, args))
        file, version = int(args["file"]), int(args["version"])
        # Of other users' files, and of what is out of date already, nothing is believed.
        if row is not None and self._state.machine.references.is_current(row.uid, file, version):
            self._digests.told(file, version, str(args["algorithm"]), str(args["digest"]))


def _session(worker: Worker, args: dict[str, Any]) -> int:
    session = int(args["session"])
    if session not in worker.sessions:
        raise Rejected(Code.NO_SESSION, "the session has ended")
    return session


def _user(worker: Worker, args: dict[str, Any]) -> str:
    return worker.sessions[_session(worker, args)]


def _path(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not all(isinstance(name, bytes) for name in value):
        raise ValueError("a path must be a list of byte strings")
    return tuple(value)


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _attrs(value: dict[str, Any]) -> c.Attrs:
    return c.Attrs(**{key: _optional_int(value.get(key)) for key in _ATTRS})


def _manifest(args: dict[str, Any]) -> Manifest:
    manifest = Manifest(int(args["size"]), int(args["depth"]), bytes(args["ids"]))
    problem = manifest.problem()
    if problem:
        raise RaftmftError(f"the worker sent a malformed manifest: {problem}")
    return manifest


def _answer(value: Any) -> Any:
    if isinstance(value, Rejection):
        raise Rejected(value.code, value.text)
    return value
