"""A node for the session worker's tests: a namespace of dicts behind the real link, a real worker process, real TCP.

The worker is started from the test's main thread, as a node does (its death signal follows that thread); link and door
are served by a loop in a thread of their own. `log` lists the requests; `trouble` has an operation fail, `gates` hold
one back until its event is set.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import msgpack

from raftmft.core.manifest import EMPTY, Manifest
from raftmft.store.segments import Location, SegmentReader
from raftmft.wire import frames
from raftmft.wire import link as wire

T = TypeVar("T")
Key = tuple[bytes, ...]


def wait_for(what: str, condition: Callable[[], T], timeout_s: float = 15.0) -> T:
    """The condition's first true value; AssertionError with `what` after the time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)
    return value


class Refuse(Exception):
    """The state machine says no."""

    def __init__(self, code: str, text: str = "refused") -> None:
        super().__init__(text)
        self.code = code


class File:
    """A published file or a directory."""

    def __init__(self, number: int, manifest: Manifest | None, mode: int) -> None:
        self.id, self.manifest, self.mode, self.times, self.version = number, manifest, mode, (1000, 1000), number
        self.digest = ""
        self.target: bytes | None = None

    def entry(self) -> dict[str, Any]:
        is_file = self.manifest is not None
        if self.target is not None:
            return {"id": self.id, "kind": "link", "uid": 1000, "gid": 1000, "nlink": 1, "size": len(self.target),
                    "atime": 1000, "mtime": 1000, "mode": 0o120777, "target": self.target}
        return {"id": self.id, "kind": "file" if is_file else "dir", "uid": 1000, "gid": 1000, "nlink": 1,
                "size": self.manifest.size if self.manifest is not None else 0, "atime": self.times[0],
                "mtime": self.times[1], "mode": self.mode | (0o100000 if is_file else 0o040000)}


class FakeNode:
    """Starts a worker in `folder`; `close` ends it. Users: anna and bert, each with a password and a key."""

    def __init__(self, folder: Path, *, window_chunks: int = 8, login_timeout_s: int = 30) -> None:
        self.folder, self.window_chunks, self.login_timeout_s = folder, window_chunks, login_timeout_s
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.op_ids: list[tuple[str, str]] = []
        self.trouble: dict[str, tuple[str, Any]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.files: dict[str, dict[Key, File]] = {
            user: {(): File(number, None, 0o755)} for number, user in enumerate(("anna", "bert"), 1)}
        self.partials: dict[tuple[str, Key], Manifest] = {}
        self.uploads: dict[int, dict[str, Any]] = {}
        self.sessions: dict[int, str] = {}
        self.ended: list[tuple[int, str]] = []
        self.places: dict[bytes, Location] = {}
        self.known: set[bytes] = set()
        self.digests: dict[tuple[int, int], dict[str, str]] = {}
        self.count = 100
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.key_file = folder / "key"
        self.key.write_private_key(str(self.key_file))
        self.key_file.chmod(0o600)
        self.store = folder / "chunks"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.link, link_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.door, door_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.known_hosts = folder / "known_hosts"
        public = self.host_key.export_public_key().decode().strip()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}\n")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raftmft.sftp.worker", "--link-fd", str(link_there.fileno()), "--door-fd",
             str(door_there.fileno())], pass_fds=(link_there.fileno(), door_there.fileno()), stdin=subprocess.DEVNULL)
        link_there.close()
        door_there.close()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(10)
        wait_for("hello", lambda: any(op == "hello" for op, _ in self.log))

    def close(self) -> None:
        """Ends the worker by its link, as a node's end does."""
        def stop() -> None:
            for task in self._tasks:
                task.cancel()
            self._loop.call_soon(self._loop.stop)

        self._loop.call_soon_threadsafe(stop)
        self._thread.join(10)
        for each in (self.link, self.door, self.listener):
            each.close()
        self.process.wait(10)

    # --- for tests -------------------------------------------------------------------------------
    def ops(self, op: str) -> list[dict[str, Any]]:
        """The arguments of all requests of this operation."""
        return [args for name, args in self.log if name == op]

    def content(self, path: str, user: str = "anna") -> bytes:
        """A published file's bytes, read from the segments, every hash verified."""
        manifest = self.files[user][key_of(path)].manifest
        assert manifest is not None
        return self.bytes_of(manifest)

    def bytes_of(self, manifest: Manifest) -> bytes:
        """A manifest's bytes."""
        assert manifest.problem() is None, manifest.problem()
        reader = SegmentReader(self.store)
        joined = b"".join(reader.read(self.places[i], i) for i in manifest.index_ids())
        ids = [joined[i : i + 32] for i in range(0, len(joined), 32)] + manifest.data_ids()
        data = b"".join(reader.read(self.places[i], i) for i in ids)
        reader.close()
        assert len(data) == manifest.size
        return data

    def has(self, path: str, user: str = "anna") -> bool:
        """Whether the name is published."""
        return key_of(path) in self.files[user]

    def gate(self, op: str) -> asyncio.Event:
        """Holds an operation back from now on, until `open_gate`."""
        self.gates[op] = asyncio.Event()
        return self.gates[op]

    def open_gate(self, op: str) -> None:
        """Lets it through."""
        self._loop.call_soon_threadsafe(self.gates.pop(op).set)

    def ask(self, op: str, args: dict[str, Any], timeout_s: float = 15) -> Any:
        """Asks the worker."""
        return asyncio.run_coroutine_threadsafe(self._ask(op, args), self._loop).result(timeout_s)

    def sftp(self, batch: str, *options: str, check: bool = True, timeout_s: float = 60, user: str = "anna",
             ) -> subprocess.CompletedProcess[bytes]:
        """OpenSSH's client runs a batch."""
        done = subprocess.run(self.sftp_command(*options, user=user), input=batch.encode(), capture_output=True,
                              timeout=timeout_s)
        assert not check or done.returncode == 0, done.stderr.decode(errors="replace")
        return done

    def sftp_command(self, *options: str, user: str = "anna") -> list[str]:
        """Its command line; the batch is read from standard input."""
        program = shutil.which("sftp")
        assert program, "OpenSSH's sftp is needed"
        return [program, "-q", "-b", "-", "-P", str(self.port), "-F", "/dev/null", "-i", str(self.key_file), *options,
                "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes",
                "-o", f"UserKnownHostsFile={self.known_hosts}", f"{user}@127.0.0.1"]

    async def connect(self, **options: Any) -> Any:
        """An asyncssh client's connection."""
        return await asyncssh.connect("127.0.0.1", self.port, known_hosts=str(self.known_hosts), **{
            "username": "anna", "client_keys": [self.key], "config": [], "agent_path": None, **options})

    # --- the link --------------------------------------------------------------------------------
    async def _begin(self) -> None:
        for each in (self.link, self.listener):
            each.setblocking(False)
        for work in (self._serve_link(), self._accept()):
            self._spawn(work)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            connection, address = await self._loop.sock_accept(self.listener)
            socket.send_fds(self.door, [msgpack.packb({
                "address": f"{address[0]}:{address[1]}", "connection": address[1], "limit_s": self.login_timeout_s})],
                            [connection.fileno()])
            connection.close()

    async def _serve_link(self) -> None:
        reader = frames.FrameReader()
        while data := await self._loop.sock_recv(self.link, 1 << 18):
            for value in reader.feed(data):
                message = wire.parse(value)
                if isinstance(message, wire.Notification):
                    self.notes.append((message.op, message.args))
                elif isinstance(message, wire.Reply):
                    self._answers.pop(message.id).set_result((message.status, message.value))
                else:
                    # What is only for the node's log stands apart: no operation depends on it.
                    if "op" in message.args:
                        self.op_ids.append((message.op, message.args.pop("op")))
                    if message.op in ("fs.publish", "fs.end", "fs.checkpoint"):
                        del message.args["path"]
                    self.log.append((message.op, message.args))
                    self._spawn(self._answer(message))

    async def _answer(self, message: wire.Request) -> None:
        gate = self.gates.get(message.op)
        if gate is not None:
            await gate.wait()
        if message.op in self.trouble:
            status, value = self.trouble[message.op]
        else:
            try:
                status, value = wire.OK, getattr(self, "_" + message.op.replace(".", "_"))(**message.args)
            except Refuse as refusal:
                status, value = wire.REJECTED, {"code": refusal.code, "text": str(refusal)}
        await self._loop.sock_sendall(self.link, wire.reply(message.id, status, value))

    async def _ask(self, op: str, args: dict[str, Any]) -> Any:
        self.count += 1
        number = self.count
        answer = self._answers[number] = self._loop.create_future()
        await self._loop.sock_sendall(self.link, wire.request(number, op, args))
        return await answer

    def _next(self) -> int:
        self.count += 1
        return self.count

    # --- operations ------------------------------------------------------------------------------
    def _hello(self, pid: int) -> Any:
        assert pid == self.process.pid
        return {"member": "m1", "name": "n1", "host_key": self.host_key.export_private_key(),
                "store_dir": str(self.store), "writer": "w0", "segment_bytes": 64 << 20,
                "window_chunks": self.window_chunks,
                "banner_version": "raftmft_test"}

    def _auth_password(self, user: str, password: str, address: str, connection: int) -> Any:
        if password != f"{user}-secret" or user not in self.files:
            raise Refuse("permission", "wrong user or password")
        return self._auth_login(user, address, "password", 1, connection)

    def _auth_keys(self, user: str) -> Any:
        known = user in self.files
        return {"keys": [self.key.export_public_key().decode()] if known else [], "credential": 1 if known else 0}

    def _auth_login(self, user: str, address: str, method: str, credential: int, connection: int) -> Any:
        assert address.startswith("127.0.0.1:") and credential == 1
        number = self._next()
        self.sessions[number] = user
        return {"session": number, "read_only": False, "uid": 1000}

    def _session_end(self, session: int, reason: str) -> Any:
        self.ended.append((session, reason))
        del self.sessions[session]
        return {}

    def _tree(self, session: int) -> dict[Key, File]:
        return self.files[self.sessions[session]]

    def _fs_stat(self, session: int, path: list[bytes], follow: bool, own: bool) -> Any:
        tree, key = self._tree(session), self._led(session, path) if follow else tuple(path)
        if key and key[:-1] not in tree:
            raise Refuse("not_found")
        partial = self.partials.get((self.sessions[session], key))
        file = tree.get(key) or (File(0, partial, 0o644) if partial is not None else None)
        mine = [n for n, about in self.uploads.items() if own and about["session"] == session and about["key"] == key]
        return {"path": list(key), "entry": file and file.entry(), "upload": max(mine, default=0)}

    def _led(self, session: int, path: list[bytes]) -> Key:
        """Where a path leads: only a link at its end is followed here, and only one."""
        file = self._tree(session).get(tuple(path))
        return tuple(path) if file is None or file.target is None else key_of(file.target.decode())

    def _found(self, session: int, path: list[bytes]) -> File:
        found = self._tree(session).get(tuple(path))
        if found is None:
            raise Refuse("not_found")
        return found

    def _fs_list(self, session: int, path: list[bytes], after: bytes | None, limit: int,
                 own: bool = False) -> Any:
        if self._found(session, path).manifest is not None:
            raise Refuse("not_a_directory")
        names = sorted(key[-1] for key in self._tree(session)
                       if len(key) == len(path) + 1 and list(key[:-1]) == path and key[-1] > (after or b""))
        return {"entries": [{**self._found(session, [*path, name]).entry(), "name": name} for name in names[:limit]],
                "more": len(names) > limit,
                "dots": [] if after is not None else [
                    {**self._found(session, at).entry(), "name": dot}
                    for dot, at in ((b".", path), (b"..", path[:-1]))],
                "uploads": [[about["key"][-1], n] for n, about in sorted(self.uploads.items())
                            if own and about["session"] == session and list(about["key"][:-1]) == path]}

    def _content(self, manifest: Manifest) -> dict[str, Any]:
        return {"size": manifest.size, "depth": manifest.depth, "ids": manifest.ids, "digest": "",
                "locations": [self.places.get(i) for i in manifest.id_list()]}

    def _fs_open(self, session: int, path: list[bytes]) -> Any:
        file = self._found(session, list(self._led(session, path)))
        if file.manifest is None:
            raise Refuse("is_a_directory")
        return {"open": self._next(), "file": file.id, "version": file.version, "attrs": file.entry(),
                **self._content(file.manifest), "digest": file.digest,
                "digests": self.digests.get((file.id, file.version), {})}

    def _fs_begin(self, session: int, path: list[bytes], create: bool, truncate: bool, exclusive: bool, append: bool,
                  mode: int | None) -> Any:
        user, key = self.sessions[session], self._led(session, path)
        if key[:-1] not in self._tree(session):
            raise Refuse("not_found")
        file = self._tree(session).get(key)
        if file is not None and file.manifest is None:
            raise Refuse("is_a_directory")
        if file is not None and create and exclusive:
            raise Refuse("exists", "it exists")
        partial = self.partials.get((user, key)) if file is None and not truncate else None
        if file is None and partial is None and not create:
            raise Refuse("not_found")
        if truncate:
            self.partials.pop((user, key), None)
        if partial is not None:
            self.uploads = {n: u for n, u in self.uploads.items() if u["key"] != key}
        number = self._next()
        manifest = EMPTY if truncate else (partial or (file.manifest if file else None) or EMPTY)
        self.uploads[number] = {"session": session, "user": user, "key": key, "file": file, "mode": mode,
                                "base": file and file.version, "truncate": truncate, "append": append}
        return {"upload": number, "file": file.id if file else 0, "version": file.version if file else 0,
                "partial": partial is not None, "placement": 7,
                "mode": 0o100000 | (file.mode if file else 0o644 if mode is None else mode), **self._content(manifest)}

    def _upload(self, upload: int) -> dict[str, Any]:
        if upload not in self.uploads:
            raise Refuse("stale_upload", "the upload has ended")
        return self.uploads[upload]

    def _fs_checkpoint(self, session: int, upload: int, size: int, depth: int, ids: bytes, placement: int) -> Any:
        manifest = Manifest(size, depth, ids)
        assert placement == 7 and manifest.problem() is None, manifest.problem()
        about = self._upload(upload)
        if about["file"] is None:
            self.partials[about["user"], about["key"]] = manifest
        return {}

    def _fs_publish(self, session: int, upload: int, size: int, depth: int, ids: bytes, placement: int, digest: str,
                    attrs: dict[str, Any], base: int) -> Any:
        manifest = Manifest(size, depth, ids)
        assert placement == 7 and manifest.problem() is None, manifest.problem()
        about = self._upload(upload)
        tree = self.files[about["user"]]
        file = about["file"] or tree.get(about["key"])
        assert not base or base == about["base"] or about["append"]
        if about["file"] and not about["truncate"] and file.version != (base or about["base"]):
            raise Refuse("conflict", "the file was changed by another session meanwhile")
        if file is None:
            file = tree[about["key"]] = File(upload, None, 0o644 if about["mode"] is None else about["mode"])
        file.manifest, file.version, file.digest = manifest, self._next(), digest
        file.mode = attrs.get("mode", file.mode)
        file.times = (attrs.get("atime", 2000), attrs.get("mtime", 2000))
        self.partials.pop((about["user"], about["key"]), None)
        del self.uploads[upload]
        return {"file": file.id, "version": file.version, "mtime": file.times[1]}

    def _fs_end(self, session: int, upload: int, keep: bool) -> Any:
        self._upload(upload)
        del self.uploads[upload]
        return {}

    def _fs_mkdir(self, session: int, path: list[bytes], mode: int | None) -> Any:
        if tuple(path) in self._tree(session):
            raise Refuse("exists", "it exists")
        self._found(session, path[:-1])
        self._tree(session)[tuple(path)] = File(self._next(), None, 0o755 if mode is None else mode)
        return {}

    def _fs_rmdir(self, session: int, path: list[bytes]) -> Any:
        self._found(session, path)
        if any(key[: len(path)] == tuple(path) and len(key) > len(path) for key in self._tree(session)):
            raise Refuse("not_empty", "it is not empty")
        del self._tree(session)[tuple(path)]
        return {}

    def _fs_remove(self, session: int, path: list[bytes]) -> Any:
        key, user = tuple(path), self.sessions[session]
        gone = [number for number, about in self.uploads.items() if about["key"] == key]
        if key not in self._tree(session) and not gone and (user, key) not in self.partials:
            raise Refuse("not_found")
        self._tree(session).pop(key, None)
        self.partials.pop((user, key), None)
        for number in gone:
            del self.uploads[number]
        return {"uploads": gone}

    def _fs_rename(self, session: int, source: list[bytes], target: list[bytes], replace: bool) -> Any:
        tree, user = self._tree(session), self.sessions[session]
        moving = [about for about in self.uploads.values() if about["key"] == tuple(source) and about["user"] == user]
        if tuple(source) not in tree and not moving and (user, tuple(source)) not in self.partials:
            raise Refuse("not_found")
        if tuple(target) in tree and not replace:
            raise Refuse("exists", "it exists")
        for about in self.uploads.values():
            if about["user"] == user and about["key"][: len(source)] == tuple(source):
                about["key"] = tuple(target) + about["key"][len(source):]
        if (user, tuple(source)) in self.partials:
            self.partials[user, tuple(target)] = self.partials.pop((user, tuple(source)))
        for key in [key for key in tree if key[: len(source)] == tuple(source)]:
            tree[tuple(target) + key[len(source):]] = tree.pop(key)
        return {}

    def _fs_base(self, session: int, upload: int) -> Any:
        file = self._upload(upload)["file"]
        return {"version": file.version, "placement": 7, **self._content(file.manifest)}

    def _fs_copy(self, session: int, upload: int, open: int, size: int, depth: int, ids: bytes, bytes: int) -> Any:
        self._upload(upload)
        assert Manifest(size, depth, ids).problem() is None
        return {}

    def _fs_symlink(self, session: int, path: list[bytes], target: bytes) -> Any:
        if tuple(path) in self._tree(session):
            raise Refuse("exists", "it exists")
        file = self._tree(session)[tuple(path)] = File(self._next(), None, 0o777)
        file.target = target
        return {}

    def _fs_link(self, session: int, source: list[bytes], target: list[bytes]) -> Any:
        if tuple(target) in self._tree(session):
            raise Refuse("exists", "it exists")
        self._tree(session)[tuple(target)] = self._found(session, source)
        return {}

    def _fs_statvfs(self, session: int, path: list[bytes]) -> Any:
        self._found(session, path)
        return {"total": 100_000, "free": 3000, "files": 5, "read_only": True}

    def _fs_setstat(self, session: int, path: list[bytes], file: int, attrs: dict[str, Any],
                    follow: bool = True) -> Any:
        found = next((f for f in self._tree(session).values() if f.id == file), None) if file else None
        found = found or self._found(session, path)
        found.mode = attrs.get("mode", found.mode)
        if "mtime" in attrs:
            found.times = (attrs["atime"], attrs["mtime"])
        return {}

    def _chunk_put(self, upload: int, id: bytes, segment: str, offset: int, length: int, index: bool) -> Any:
        self.places[id] = Location(segment, offset, length)
        return {}

    def _chunk_offer(self, upload: int, id: bytes) -> Any:
        return {"held": id in self.known}

    def _chunk_locate(self, ids: list[bytes]) -> Any:
        return {"locations": [self.places.get(i) for i in ids]}

    def _chunk_fetch(self, id: bytes) -> Any:
        if id not in self.places:
            return {"location": None}
        return {"location": list(self.places[id])}


def key_of(path: str) -> Key:
    """The names of a path below the home."""
    return tuple(part.encode() for part in path.split("/") if part)


def rss_kib(pid: int) -> int:
    """A process's resident set."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("the process has ended")


def random_file(path: Path, size: int) -> bytes:
    """Makes a file of random bytes; gives them."""
    data = os.urandom(size)
    path.write_bytes(data)
    return data
