"""Which chunks the published files of a home consist of, as far as memory allows: what deduplication may tell its user.

Theory. Chunk ids are plain BLAKE3, and Raft carries O(1) bytes a file, so nothing replicated leads from a chunk to who
refers to it. A node therefore makes a set of a home's chunks when somebody uploads to the home, out of the manifests,
the latest first, and adds what was published since each time an upload begins. An entry is PREFIX bytes of the id and
the number of a file version; that the file still has that version is asked of the state at each hit. So the set need
not follow what is removed or replaced, and what it says is true at that moment; what it does not know only costs room.

Entries lie sorted in a few runs, 16 bytes each, where a dict would take over 100; a file takes 16 more. Bounds:
HOME_CHUNKS of one home, and MOST_CHUNKS of all together; the home that was used least recently is forgotten first.
Manifests are read PAGE at a time. Files of less than LEAST_OFFERED (core/references.py) are left out: none of their
chunks is ever asked for.
"""

from __future__ import annotations

import logging
import sqlite3
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import trio

from raftmft.core.errors import RaftmftError
from raftmft.core.manifest import distinct_ids
from raftmft.core.references import Published, References
from raftmft.core.schema import open_reader

HOME_CHUNKS = 1 << 19
"""A set that is made anew has half of it, so that it seldom must be."""
MOST_CHUNKS = 1 << 20
"""At 16 bytes each."""
PREFIX, NUMBER = 12, 4
ENTRY = PREFIX + NUMBER
"""Somebody who wants to be told of another home's chunk would have to find 96 bits of its id by chance."""
SLICE, RUN = 1 << 13, 1 << 16
"""Entries sorted at once (a few milliseconds in which no other thread runs), and the longest run."""
PAGE = 1 << 10
"""Manifests in memory at once; with up to 2 KiB of ids each."""
LOAD_LIMIT_S = 2.0
"""How long an upload waits for its home's set; its first chunks are then stored, whether they are there or not."""
READERS = 2

log = logging.getLogger(__name__)
ReadIndex = Callable[[bytes], Awaitable[bytes | bytearray]]


class Home:
    """The set of one home."""

    def __init__(self) -> None:
        self.files, self.versions = array("Q"), array("Q")
        self.runs: list[bytes] = []
        self.through = 0

    def __len__(self) -> int:
        return sum(map(len, self.runs)) // ENTRY

    def clear(self) -> None:
        """Nothing is known."""
        self.files, self.versions, self.runs = array("Q"), array("Q"), []

    def number(self, file: int, version: int) -> bytes:
        """A file's version is known from now on, by this number."""
        self.files.append(file)
        self.versions.append(version)
        return (len(self.files) - 1).to_bytes(NUMBER, "big")

    def add(self, entries: list[bytes]) -> None:
        """At most SLICE more entries. For a thread: it takes milliseconds."""
        run = b"".join(sorted(entries))
        while self.runs and len(self.runs[-1]) <= 2 * len(run) and len(self.runs[-1]) + len(run) <= RUN * ENTRY:
            run = b"".join(sorted(_cut(self.runs.pop(), ENTRY, ENTRY) + _cut(run, ENTRY, ENTRY)))
        if run:
            self.runs.append(run)

    def files_with(self, chunk_id: bytes) -> Iterator[tuple[int, int]]:
        """(file, version) of the versions that had the chunk when they were looked at."""
        key = chunk_id[:PREFIX]
        for run in self.runs:
            keys = _Keys(run)
            at = bisect_left(keys, key)
            while at < len(keys) and keys[at] == key:
                number = int.from_bytes(run[at * ENTRY + PREFIX : (at + 1) * ENTRY], "big")
                yield self.files[number], self.versions[number]
                at += 1


class _Keys(Sequence[bytes]):
    """The prefixes in a run."""

    def __init__(self, run: bytes) -> None:
        self._run = run

    def __len__(self) -> int:
        return len(self._run) // ENTRY

    def __getitem__(self, at: Any) -> Any:
        return self._run[at * ENTRY : at * ENTRY + PREFIX]


class Homes:
    """The sets of the homes that were lately uploaded to; `run` must be running. `references()` answers for now;
    `state_path` is the file that a thread reads; `read_index` gives the content of an index chunk.
    """

    def __init__(self, references: Callable[[], References], state_path: str, read_index: ReadIndex, *,
                 home_chunks: int = HOME_CHUNKS, most_chunks: int = MOST_CHUNKS) -> None:
        self._references, self._state_path, self._read_index = references, state_path, read_index
        self._home_chunks, self._most_chunks = home_chunks, most_chunks
        self._homes: OrderedDict[int, Home] = OrderedDict()
        self._loading: dict[int, trio.Event] = {}
        self._limit = trio.CapacityLimiter(READERS)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carries what is being read until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @property
    def chunks(self) -> int:
        """How many entries there are."""
        return sum(map(len, self._homes.values()))

    def refers(self, uid: int, chunk_id: bytes) -> bool:
        """Whether a published file of the home consists of this chunk, among others, now. False may be wrong."""
        home = self._homes.get(uid)
        if home is None:
            return False
        self._homes.move_to_end(uid)
        references = self._references()
        return any(references.is_current(uid, *found) for found in home.files_with(chunk_id))

    async def refresh(self, uid: int) -> None:
        """What is published in the home now is in its set, as far as the bounds allow; not all of it if that takes
        more than LOAD_LIMIT_S. Cancelled, or after that, it goes on.
        """
        if self._nursery is None:
            return
        if uid not in self._loading:
            home = self._homes.get(uid)
            if home is not None and self._references().newest(uid) <= home.through:
                return
            self._loading[uid] = trio.Event()
            self._nursery.start_soon(self._load, uid)
        with trio.move_on_after(LOAD_LIMIT_S):
            await self._loading[uid].wait()

    async def _load(self, uid: int) -> None:
        try:
            await self._add_published(uid, self._homes.setdefault(uid, Home()))
        except (sqlite3.Error, RaftmftError, OSError) as error:
            log.warning("what a home consists of cannot be read, more than need be is stored: %s", error)
        finally:
            self._loading.pop(uid).set()
        while len(self._homes) > 1 and self.chunks > self._most_chunks:
            self._homes.popitem(last=False)

    async def _add_published(self, uid: int, home: Home) -> None:
        newest, after = self._references().newest(uid), home.through
        if len(home) and len(home) + self._references().chunks_since(uid, after) > self._home_chunks:
            # Most of what stands in it is of versions long gone, or of old files.
            home.clear()
            after = 0
        chunks, before, entries = 0, newest + 1, list[bytes]()
        while chunks < self._home_chunks // 2:
            published = await trio.to_thread.run_sync(self._read, uid, after, before, limiter=self._limit)
            if not published:
                break
            for found in published:
                await self._add_ids(home, found, entries)
                chunks, before = chunks + found.manifest.chunk_count, found.version
                if chunks >= self._home_chunks // 2:
                    break
        await trio.to_thread.run_sync(home.add, entries, limiter=self._limit)
        home.through = newest

    async def _add_ids(self, home: Home, found: Published, entries: list[bytes]) -> None:
        """A version's chunks are in `entries`, or already in the home's set, as far as its bound allows."""
        number = home.number(found.file, found.version)
        index_ids = dict.fromkeys(found.manifest.index_ids())
        for ids in index_ids if found.manifest.depth else [found.manifest.ids]:
            if found.manifest.depth:
                try:
                    ids = bytes(await self._read_index(ids))
                except (RaftmftError, OSError):
                    continue  # what it names is stored again
            for some in distinct_ids(ids, SLICE):
                entries += [chunk_id[:PREFIX] + number for chunk_id in some]
                if len(entries) >= SLICE:
                    await trio.to_thread.run_sync(home.add, entries[:], limiter=self._limit)
                    entries.clear()
                    if len(home) > self._home_chunks:
                        break

    def _read(self, uid: int, after: int, before: int) -> list[Published]:
        reader = open_reader(self._state_path)
        try:
            return References(reader).published(uid, after, before, PAGE)
        finally:
            reader.close()


def _cut(data: bytes, step: int, length: int) -> list[bytes]:
    return [data[at : at + length] for at in range(0, len(data), step)]
