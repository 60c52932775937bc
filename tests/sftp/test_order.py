"""What is on disk, and on how many members, when a checkpoint or publish is asked for (contract, promise 1).

The upload runs in this process against a link and a store that keep account: a chunk counts as durable once a sync that
began after its append has returned, and as held once its chunk.put was answered. Both take their time, at random.
"""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import CHUNK_SIZE, Manifest
from raftmft.sftp.buffers import Budget
from raftmft.sftp.chunks import ChunkWriter
from raftmft.sftp.content import ChunkReader
from raftmft.sftp.upload import Upload
from raftmft.store.errors import StoreBroken, StoreFull
from raftmft.store.segments import Location, SegmentReader, SegmentWriter

MIB = CHUNK_SIZE


class Account:
    """The link and the segments of a ChunkWriter, with the rule checked at every checkpoint and publish."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng, self.folder = rng, folder
        self.segments = SegmentWriter(folder, "w", 64 << 20)
        self.lock = threading.Lock()
        self.appended: set[bytes] = set()
        self.durable: set[bytes] = set()
        self.held: set[bytes] = set()
        self.places: dict[bytes, Location] = {}
        self.committed: list[tuple[str, Manifest]] = []
        self.full_after: int | None = None
        self.breaks = False

    # the segments
    def append(self, chunk_id: bytes, data: Any) -> Location:
        if self.full_after is not None and len(self.appended) >= self.full_after:
            raise StoreFull("the disk is full")
        place = self.segments.append(chunk_id, data)
        with self.lock:
            self.appended.add(chunk_id)
        return place

    def sync(self) -> None:
        with self.lock:
            covered = set(self.appended)
        if self.breaks:
            raise StoreBroken("fdatasync failed")
        self.segments.sync()
        with self.lock:
            self.durable |= covered

    # the link
    async def request(self, op: str, args: dict[str, Any]) -> Any:
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)
        if op == "chunk.put":
            self.places[args["id"]] = Location(args["segment"], args["offset"], args["length"])
            await asyncio.sleep(self.rng.random() * 0.003)
            self.held.add(args["id"])
        elif op == "chunk.offer":
            with self.lock:
                return {"held": args["id"] in self.durable & self.held}
        elif op == "chunk.locate":
            return {"locations": [self.places[i] for i in args["ids"]]}
        elif op in ("fs.publish", "fs.checkpoint"):
            manifest = Manifest(args["size"], args["depth"], args["ids"])
            assert manifest.problem() is None, manifest.problem()
            ids = set(self.all_ids(manifest))
            with self.lock:
                assert ids <= self.durable, f"{op} before the chunks are durable"
            assert ids <= self.held, f"{op} before the chunks are held by enough members"
            self.committed.append((op, manifest))
        return {}

    def notify(self, op: str, args: dict[str, Any]) -> None:
        pass

    def all_ids(self, manifest: Manifest) -> list[bytes]:
        return manifest.index_ids() + self.data_ids(manifest)

    def data_ids(self, manifest: Manifest) -> list[bytes]:
        joined = b"".join(self.read(i) for i in manifest.index_ids())
        return [joined[i : i + 32] for i in range(0, len(joined), 32)] + manifest.data_ids()

    def read(self, chunk_id: bytes) -> bytes:
        reader = SegmentReader(self.folder)
        data = reader.read(self.places[chunk_id], chunk_id)
        reader.close()
        return data

    def content(self, manifest: Manifest) -> bytes:
        return b"".join(self.read(i) for i in self.data_ids(manifest))


def make(account: Account, folder: Path, broken: list[str], *, window: int = 4) -> Upload:
    link: Any = account
    writer = ChunkWriter(link, str(folder), "other", 64 << 20, broken.append)
    writer._segments = account  # type: ignore[assignment]
    begun = {"upload": 1, "file": 0, "version": 0, "size": 0, "depth": 0, "ids": b"", "placement": 1, "mode": 0o100644}
    return Upload(link, writer, ChunkReader(link, str(folder)), Budget(3), 1, begun, window=window,
                  is_append=False, is_truncated=True)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_committed_before_it_is_durable_and_held(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> None:
        account, broken = Account(tmp_path, rng), []
        upload, model, written = make(account, tmp_path, broken, window=rng.choice([1, 2, 8])), bytearray(), bytearray()
        for _ in range(120):
            kind = rng.random()
            if kind < 0.85:
                at = rng.choice([len(model)] * 3 + [rng.randrange(len(model) + 1), len(model) + rng.randrange(90_000)])
                data = rng.randbytes(rng.choice([1000, 100_000, 261_120]))
                await upload.write(at, memoryview(data))
                for grown, filler in ((model, b"\0"), (written, b"\0")):
                    grown += filler * max(0, at - len(grown))
                model[at : at + len(data)] = data
                written[at : at + len(data)] = b"\1" * len(data)
            elif kind < 0.95:
                await upload.checkpoints.now()
                prefix = written.find(0) if 0 in written else len(written)
                manifest = account.committed[-1][1] if account.committed else Manifest(0)
                assert 0 <= prefix - manifest.size < MIB, "a slot with a gap is left out, but not more"
                assert account.content(manifest) == model[: manifest.size], "not what was acknowledged"
            else:
                size = rng.randrange(len(model) + 1)
                await upload.truncate(size)
                del model[size:], written[size:]
        await upload.publish()
        assert not broken
        op, manifest = account.committed[-1]
        assert op == "fs.publish" and account.content(manifest) == model

    asyncio.run(main())


def test_index_chunks_count_too(tmp_path: Path) -> None:
    async def main() -> None:
        account = Account(tmp_path, random.Random(1))
        upload = make(account, tmp_path, [], window=8)
        piece = bytes(261_120)
        while upload.size < 70 * MIB:
            await upload.write(upload.size, memoryview(piece))
        await upload.checkpoints.now()
        await upload.publish()
        manifest = account.committed[-1][1]
        assert manifest.depth == 1 and account.content(manifest) == bytes(upload.size)
        assert max(m.size for op, m in account.committed if op == "fs.checkpoint") > 64 * MIB

    asyncio.run(main())


def test_a_full_disk_fails_the_writes_and_the_close(tmp_path: Path) -> None:
    async def main() -> None:
        account = Account(tmp_path, random.Random(1))
        account.full_after = 3
        upload = make(account, tmp_path, [])
        with pytest.raises(StoreFull):
            while upload.size < 10 * MIB:
                await upload.write(upload.size, memoryview(random.Random(upload.size).randbytes(261_120)))
        with pytest.raises(StoreFull):
            await upload.publish()
        assert all(op != "fs.publish" for op, _ in account.committed)

    asyncio.run(main())


def test_after_a_failed_sync_nothing_is_acknowledged_and_the_process_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        account, broken = Account(tmp_path, random.Random(1)), []
        account.breaks = True
        upload = make(account, tmp_path, broken)
        await upload.write(0, memoryview(b"data"))
        with pytest.raises(RaftmftError):
            await upload.checkpoints.now()
        assert broken and not account.committed
        with pytest.raises(RaftmftError):
            await upload.publish()
        assert not account.committed

    asyncio.run(main())


def test_syncs_that_wait_are_one(tmp_path: Path) -> None:
    async def main() -> None:
        link: Any = None
        writer = ChunkWriter(link, str(tmp_path), "w", 64 << 20, lambda text: None)
        count, gate = 0, threading.Event()

        class Segments:
            def sync(self) -> None:
                nonlocal count
                count += 1
                gate.wait(5)

        writer._segments = Segments()  # type: ignore[assignment]
        first = asyncio.create_task(writer.sync())
        while not count:
            await asyncio.sleep(0)
        more = [asyncio.create_task(writer.sync()) for _ in range(20)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *more)
        assert count == 2, "one that ran, and one for all that came meanwhile"

    asyncio.run(main())
