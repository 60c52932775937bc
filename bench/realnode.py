"""A real node process that also takes orders, several at once: one JSON line each on standard input, one line of answer
on its output.

For benches that ask what a whole node does, with its workers, repair and links; run as `realnode.py DATA_DIR`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parent.parent))
from raftmft.core import commands as c
from raftmft.core.manifest import CHUNK_SIZE, IDS_PER_INDEX, INLINE_IDS, Manifest
from raftmft.node import process
from raftmft.node.app import WINDOW_CHUNKS, Node
from raftmft.node.link import value_of
from raftmft.raft import compaction, journal
from raftmft.raft.journal import Batch
from raftmft.store.writer import Location, SegmentWriter

CHUNK = b"every file of the bench has this one chunk\n" * 95
FEEL_EVERY_S = 0.002
MOST_KEPT = 20_000
"""Of what is measured: a long run must not take memory for it."""


class OrderedNode(Node):
    """A node whose `run` also serves orders."""

    async def run(self) -> None:
        """As Node.run."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_orders)
            nursery.start_soon(self._feel)
            await super().run()
            nursery.cancel_scope.cancel()

    async def _serve_orders(self) -> None:
        async def obey(order: dict[str, Any]) -> None:
            do = order.pop("do")
            print(json.dumps([do, await getattr(self, f"do_{do}")(**order)]), flush=True)

        lines, buffer = trio.lowlevel.FdStream(os.dup(0)), b""
        async with trio.open_nursery() as nursery:
            while data := await lines.receive_some(65536):
                *whole, buffer = (buffer + data).split(b"\n")
                for line in whole:
                    nursery.start_soon(obey, json.loads(line))

    async def do_look(self) -> dict[str, Any]:
        """Where Raft is, what the log and this process take, and whether clients are served."""
        status = self.driver.status()
        memory = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {"role": status.role, "term": status.term, "applied": status.applied_index,
                "commit": status.commit_index, "ready": self.epoch.begun.is_set() and bool(self.workers.live),
                "base": self.replica.journal.base_index,
                "written_mb": self.replica.journal.bytes_written / 1e6, "log_mb": self.replica.journal.size_bytes / 1e6,
                "rss_mb": int(memory["VmRSS"].split()[0]) / 1e3, "peak_mb": int(memory["VmHWM"].split()[0]) / 1e3,
                "wal_mb": _size(f"{self.data_dir.state}-wal") / 1e6, "state_mb": _size(str(self.data_dir.state)) / 1e6,
                "missing": self.repairer.missing}

    async def _feel(self) -> None:
        """Keeps how late the loop comes to what is due, and how long the journal's syncs take."""
        self.late = deque[tuple[float, float]](maxlen=MOST_KEPT)
        self.syncs = deque[tuple[float, float]](maxlen=MOST_KEPT)
        persist = self.replica.persist

        def timed(batch: Batch) -> None:
            begun = time.monotonic()
            persist(batch)
            self.syncs.append((time.monotonic(), time.monotonic() - begun))

        self.replica.persist = timed  # type: ignore[method-assign]
        self.numb = trio.CancelScope()
        with self.numb:
            while True:
                due = time.monotonic() + FEEL_EVERY_S
                await trio.sleep(FEEL_EVERY_S)
                self.late.append((time.monotonic(), time.monotonic() - due))

    async def do_numb(self) -> dict[str, Any]:
        """Feels nothing any more: that costs CPU."""
        self.numb.cancel()
        return {}

    async def do_felt(self, begun: float, ended: float) -> dict[str, Any]:
        """Of the span: how late the loop was, and how long syncs took."""
        told = {}
        for name, felt in (("late", self.late), ("sync", self.syncs)):
            ordered = sorted(span for at, span in felt if begun <= at <= ended) or [0.0]
            told[f"{name}_p99_ms"] = round(1e3 * ordered[int(len(ordered) * 0.99)], 1)
            told[f"{name}_max_ms"] = round(1e3 * ordered[-1], 1)
        return told

    async def do_forget_peak(self) -> dict[str, Any]:
        """Counts the peak of memory anew."""
        Path("/proc/self/clear_refs").write_text("5")
        return {}

    async def do_digest(self) -> str:
        """The state's digest."""
        return await trio.to_thread.run_sync(self.state.machine.digest)

    async def do_bound(self, keep_bytes: int, segment_bytes: int) -> dict[str, Any]:
        """Has less log kept than by default, so that a follower needs a snapshot soon."""
        compaction.KEEP_BYTES, journal.SEGMENT_BYTES = keep_bytes, segment_bytes
        return {}

    async def do_snapshot(self) -> dict[str, Any]:
        """Makes a snapshot."""
        begun = time.monotonic()
        made = await self.snapshotter.make()
        assert made is not None
        return {"seconds": time.monotonic() - begun, "begun": begun, "mb": made.size_bytes / 1e6, "index": made.index}

    async def do_publish(self, proposers: int, pause_s: float, chunks: int = 1) -> list[tuple[float, float]]:
        """Each proposer publishes, pauses, and so on, until `hush`: (when it ended, how long the Publish took) of each.

        A publish that fails counts with the time that it took.
        """
        me, epoch = self.me, self.epoch.number
        credential = self.state.machine.users.get("demo").credential
        login = c.Login(me, epoch, "demo", "127.0.0.1:1", "bench", credential)
        session = value_of(await self.epoch.execute(login))["session"]
        took = deque[tuple[float, float]](maxlen=MOST_KEPT)
        self.hushed = trio.Event()
        chunk_id = await self._chunk()

        async def one(number: int) -> None:
            count = 0
            await trio.sleep(pause_s * number / proposers)
            while not self.hushed.is_set():
                count += 1
                path = (f"{me[:6]}-{number}-{count % 500}".encode(),)
                begun = time.monotonic()
                try:
                    upload = value_of(await self.epoch.execute(c.BeginUpload(session, path, truncate=True)))
                    begun = time.monotonic()
                    manifest = Manifest((chunks - 1) * CHUNK_SIZE + len(CHUNK), 0, chunk_id * chunks)
                    value_of(await self.epoch.execute(
                        c.Publish(session, upload["upload"], manifest, upload["placement"], "00" * 32)))
                finally:
                    took.append((time.monotonic(), time.monotonic() - begun))
                await trio.sleep(pause_s)

        async with trio.open_nursery() as nursery:
            for number in range(proposers):
                nursery.start_soon(one, number)
        value_of(await self.epoch.execute(c.Logout(session)))
        return list(took)

    async def do_ingest(self, mib: int, chained: bool) -> float:
        """One file of fresh chunks goes in as a worker would bring it, without SSH, and is published: the seconds."""
        self.replicator.chains = chained
        execute, name = self.epoch.execute, f"worker{time.time_ns():x}"
        login = c.Login(self.me, self.epoch.number, "demo", "127.0.0.1:1", "bench",
                        self.state.machine.users.get("demo").credential)
        session = value_of(await execute(login))["session"]
        worker: Any = SimpleNamespace(name=name, sessions={session: "demo"})
        writer = SegmentWriter(self.data_dir.chunks, name, self.settings.segment_bytes)
        data, ids, window = bytearray(os.urandom(CHUNK_SIZE)), [b""] * mib, trio.Semaphore(WINDOW_CHUNKS)
        begun = time.monotonic()
        args: dict[str, Any] = {"session": session, "path": [b"ingest"], "create": True, "truncate": True,
                                "exclusive": False, "append": False}
        upload = (await self.files.operations["fs.begin"](worker, args))["upload"]

        def append(number: int) -> Location:
            data[:8] = time.time_ns().to_bytes(8, "big")
            ids[number] = blake3(data).digest()
            return writer.append(ids[number], data)

        async def put(number: int, place: Location) -> None:
            await self.chunks.put(worker, {"upload": upload, "id": ids[number], "segment": place.segment,
                                           "offset": place.offset, "length": place.length})
            window.release()

        async with trio.open_nursery() as nursery:
            for number in range(mib):
                await window.acquire()
                nursery.start_soon(put, number, await trio.to_thread.run_sync(append, number))
                if number % 16 == 15:
                    await trio.to_thread.run_sync(writer.sync)
            await trio.to_thread.run_sync(writer.sync)
        manifest = pack(ids)
        if manifest.depth:
            for start in range(0, mib, IDS_PER_INDEX):
                index = b"".join(ids[start : start + IDS_PER_INDEX])
                place = await trio.to_thread.run_sync(writer.append, blake3(index).digest(), index)
                await self.chunks.put(worker, {"upload": upload, "id": blake3(index).digest(), "segment": place.segment,
                                               "offset": place.offset, "length": place.length, "index": True})
            await trio.to_thread.run_sync(writer.sync)
        await self.files.operations["fs.publish"](worker, {
            "session": session, "upload": upload, "size": manifest.size, "depth": manifest.depth, "ids": manifest.ids,
            "digest": "", "attrs": {}})
        took = time.monotonic() - begun
        value_of(await execute(c.Remove(session, (b"ingest",))))
        value_of(await execute(c.Logout(session)))
        writer.close()
        return took

    async def do_forget_pages(self) -> dict[str, Any]:
        """The kernel keeps no page of this node's chunks: else each file takes memory never used before, and where a
        machine is a guest that costs more than all else (its host has to find it).
        """
        def forget() -> None:
            for segment in Path(self.data_dir.chunks).glob("*.seg"):
                with open(segment, "rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        await trio.to_thread.run_sync(forget)
        return {}

    async def do_replicated(self) -> dict[str, Any]:
        """What became of the copies so far."""
        return {**self.replicator.counts, **self.passing.counts, "repaired": self.repairer.repaired}

    async def do_hush(self) -> dict[str, Any]:
        """Ends `publish`."""
        self.hushed.set()
        return {}

    async def _chunk(self) -> bytes:
        ((_, _, manifest),) = self.state.machine.namespace.manifests_since(0, 1)
        return bytes(manifest.ids)


class Handle:
    """The parent's side of one node process."""

    def __init__(self, path: Path) -> None:
        with open(path.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, bufsize=1)
        self.path = path
        self._answers: dict[str, Any] = {}

    def order(self, do: str, **rest: Any) -> None:
        """An order whose answer is read later; one of a kind at a time."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, **rest}) + "\n")
        self.process.stdin.flush()

    def answer(self, do: str) -> Any:
        """The answer to the order of this kind."""
        assert self.process.stdout
        while do not in self._answers:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"the node of {self.path} ended with {self.process.wait()}: "
                                 f"{self.path.with_suffix('.log').read_text()[-2000:]}")
            done, answer = json.loads(line)
            self._answers[done] = answer
        return self._answers.pop(do)

    def ask(self, do: str, **rest: Any) -> Any:
        """One order and its answer."""
        self.order(do, **rest)
        return self.answer(do)

    def end(self, *, kill: bool = False) -> None:
        """Ends it, cleanly or not."""
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(60)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def prefer(nice: int) -> None:
    """Has this process and those that it starts go before others, or after, as far as a Linux that shares itself among
    sessions first (sched(7), autogroup) is concerned. Negative: needs root.
    """
    with suppress(PermissionError):  # started by hand, it leads its group and stays in its session
        os.setsid()
    os.nice(nice)
    Path("/proc/self/autogroup").write_text(str(nice))


def pack(ids: list[bytes]) -> Manifest:
    """The manifest of a file of whole chunks."""
    if len(ids) <= INLINE_IDS:
        return Manifest(len(ids) * CHUNK_SIZE, 0, b"".join(ids))
    groups = [b"".join(ids[start : start + IDS_PER_INDEX]) for start in range(0, len(ids), IDS_PER_INDEX)]
    return Manifest(len(ids) * CHUNK_SIZE, 1, b"".join(blake3(group).digest() for group in groups))


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


if __name__ == "__main__":
    process.Node = OrderedNode  # type: ignore[misc]
    raise SystemExit(process.run_node(sys.argv[1], 0))
