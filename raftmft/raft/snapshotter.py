"""Makes snapshots of this member's state when they are due, and fetches and installs those that a leader offers.

What takes long happens in threads: copying the state (pinned by a read transaction, batches go on), syncing and
re-reading it, freeing what is superseded; compressing in a process of its own (deflate.py). The loop decides when, and
swaps the state in one step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

import trio

from raftmft.core.errors import CorruptFile, ProgramTooOld, RaftmftError
from raftmft.raft.driver import RaftDriver
from raftmft.raft.messages import SnapshotOffer
from raftmft.raft.snapshots import Snapshot, SnapshotFolder, SnapshotWriter, digest, read_header
from raftmft.wire.frames import FrameError
from raftmft.wire.loglines import fields

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_EVERY_S = 0.25
AGAIN_S = 30.0
"""After a snapshot that could not be made (a full disk, a damaged state)."""
FETCH_AGAIN_S = 1.0
BLOCKS_AHEAD = 4
"""Blocks that are fetched at once: what a transfer holds in memory."""


class CopyableMachine(Protocol):
    """The state machine, as core/machine.py has it."""

    def copy_to(self, path: str) -> int:
        """A copy as of one moment, in a thread; the index it is of."""

    def check(self, path: str) -> None:
        """Raises ProgramTooOld, and nothing is changed, if this program does not know the feature level of a copy."""

    def load(self, path: str) -> None:
        """Takes such a copy in place of the present state; the file is moved."""


Fetch = Callable[[str, bytes], Awaitable[bytes | bytearray | None]]
"""(member, root or block id) -> what that member says it is, unverified; None if it has it no more."""


class _NotToBeHad(RaftmftError):
    """The member that offered a snapshot does not give it."""


class Snapshotter:
    """`scratch` names files beside the state for what is in the making. `run` must be running, and the driver too.

    What cannot be made is logged and tried again; an error of the installed state itself stops the node, by the driver.
    """

    def __init__(self, driver: RaftDriver, folder: SnapshotFolder, machine: CopyableMachine, scratch: str,
                 fetch: Fetch) -> None:
        self._driver, self._folder, self._machine = driver, folder, machine
        self._scratch, self._fetch = scratch, fetch
        self._threads = trio.CapacityLimiter(1)
        self._making = trio.Lock()

    async def run(self) -> None:
        """Until cancelled; a thread under way is waited for, which ends soon and leaves nothing half done.
        ProgramTooOld if the state that a leader offers is at a feature level that this program does not know.
        """
        for name in ("copy", "incoming", "old"):
            self._clear(name)
        while True:
            compaction = self._driver.compaction
            if compaction.offered is not None:
                await self._install(*compaction.offered)
            elif compaction.is_due() and not await self.make():
                await trio.sleep(AGAIN_S)
            await trio.sleep(LOOK_EVERY_S)

    # --- making ----------------------------------------------------------------------------------------------------
    async def make(self) -> Snapshot | None:
        """Makes a snapshot of the present state, whether it is due or not; None (and a line in the log) if it fails."""
        async with self._making:
            return await self._make(f"{self._scratch}.copy")

    async def _make(self, path: str) -> Snapshot | None:
        try:
            index = await self._in_thread(partial(self._machine.copy_to, path))
            point = self._driver.compaction.point(index)
            if point is None:
                return None  # a snapshot of another member was installed meanwhile
            snapshot = await self._in_thread(partial(self._folder.make, path, index, *point,
                                                     trio.from_thread.check_cancelled))
        except (OSError, RaftmftError) as error:
            logger.error("no snapshot can be made, and the log grows: %s", error)
            return None
        finally:
            with trio.CancelScope(shield=True):
                await self._in_thread(partial(self._clear, "copy"))
        await self._adopt(snapshot)
        self._driver.alter(lambda replica: replica.compaction.made(snapshot))
        return snapshot

    async def _adopt(self, snapshot: Snapshot) -> None:
        for old in self._folder.adopt(snapshot):
            await self._in_thread(partial(self._folder.discard, old))

    # --- installing ------------------------------------------------------------------------------------------------
    async def _install(self, member: str, offer: SnapshotOffer) -> None:
        async with self._making:  # a backup may be in the making: one at a time
            await self._install_now(member, offer)

    async def _install_now(self, member: str, offer: SnapshotOffer) -> None:
        path = f"{self._scratch}.incoming"
        logger.info("the leader %s has no log any more for this member: fetching its snapshot of entry %d", member,
                    offer.index, extra=fields(member=member, index=offer.index))
        try:
            snapshot = await self._fetched(member, offer)
            await self._in_thread(partial(self._folder.restore, snapshot, path))
            try:
                await self._in_thread(partial(self._machine.check, path))
            except ProgramTooOld:
                self._folder.discard(snapshot)
                self._clear("incoming")
                raise
        except ProgramTooOld:
            raise  # to try again does not help: the node stops
        except (OSError, RaftmftError, FrameError) as error:
            logger.warning("the snapshot of entry %d cannot be had from %s now: %s", offer.index, member, error,
                           extra=fields(member=member, index=offer.index))
            await trio.sleep(FETCH_AGAIN_S)
            return
        if self._driver.alter(lambda replica: replica.install(snapshot, partial(self._load, path))):
            await self._adopt(snapshot)
            await self._in_thread(partial(self._clear, "old"))
            logger.info("the state of entry %d is installed", snapshot.index, extra=fields(index=snapshot.index))
        else:
            await self._in_thread(partial(self._folder.discard, snapshot))
            await self._in_thread(partial(self._clear, "incoming"))

    def _load(self, path: str) -> None:
        with suppress(OSError):  # one name more for what `load` removes: the loop need not free a large file
            os.link(self._scratch, f"{self._scratch}.old")
        self._machine.load(path)

    async def _fetched(self, member: str, offer: SnapshotOffer) -> Snapshot:
        """The offered snapshot, on this disk for good."""
        header = await self._get(member, offer.root)
        wanted = read_header(header)
        if (wanted.index, wanted.term) != (offer.index, offer.index_term):
            raise _NotToBeHad("it is another than was offered")
        with SnapshotWriter(self._folder, wanted.index) as writer:
            for start in range(0, len(wanted.blocks), BLOCKS_AHEAD):
                ids = [block for _, block in wanted.blocks[start : start + BLOCKS_AHEAD]]
                blocks = await self._get_all(member, ids)
                await self._in_thread(partial(_add_all, writer, blocks, ids))
            made = await self._in_thread(partial(writer.finish, wanted.term, wanted.configuration, wanted.raw_bytes))
        if made.root != offer.root:
            raise CorruptFile("the fetched blocks do not make the offered snapshot")
        return made

    async def _get_all(self, member: str, ids: list[bytes]) -> list[bytes | bytearray]:
        got: dict[int, bytes | bytearray] = {}
        trouble: list[RaftmftError] = []

        async def one(at: int, wanted: bytes) -> None:
            try:
                got[at] = await self._get(member, wanted)
            except RaftmftError as error:
                trouble.append(error)

        async with trio.open_nursery() as nursery:
            for at, wanted in enumerate(ids):
                nursery.start_soon(one, at, wanted)
        if trouble:
            raise trouble[0]
        return [got[at] for at in range(len(ids))]

    async def _get(self, member: str, wanted: bytes) -> bytes | bytearray:
        data = await self._fetch(member, wanted)
        if data is None:
            raise _NotToBeHad("it has it no more")
        if digest(data) != wanted:
            raise _NotToBeHad("what it gave fails its hash")
        return data

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._threads)

    def _clear(self, name: str) -> None:
        try:
            os.unlink(f"{self._scratch}.{name}")
        except FileNotFoundError:
            return


def _add_all(writer: SnapshotWriter, blocks: list[bytes | bytearray], ids: list[bytes]) -> None:
    for block, block_id in zip(blocks, ids, strict=True):
        writer.add(block, block_id)
