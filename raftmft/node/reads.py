"""Opens to read and their ends, as workers ask for them: when they are answered, and when they are recorded.

Strict (the default): an open is one command, committed before its answer. Relaxed (audit.opens): the answer comes from
this node's own state behind a read barrier, so that it is linearizable all the same, and the open waits in memory to be
recorded with others (RecordOpens). What waits goes when the oldest has waited RECORD_DELAY_S, when there are
RECORDS_AT_ONCE, before the end of a read or a session is recorded, before a command that refers to an open, and at a
drain. While MOST_WAITING wait (the log cannot be reached, or is slow) further opens are strict: nothing is dropped.

One batch at a time is under way, and what it holds stays in the list until its outcome is known. So the list is in the
order in which opens were answered, and a batch whose outcome was never known is simply proposed again: the state
machine passes over numbers that it has recorded (core/opens.py). Only this process's end loses what waits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import trio

from raftmft.core.commands import OpenRead, Path, ReadEnd, RecordOpens
from raftmft.core.errors import RaftmftError
from raftmft.core.outcome import Rejection
from raftmft.node.batches import Batcher
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.state import ReplicatedState
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

READ_END_DELAY_S = 0.25
READ_ENDS_AT_ONCE = 500
READ_ENDS_WAITING = 50_000
RECORD_DELAY_S = 0.5
"""Half of the second within which relaxed opens are in the log: the other half is for the commit."""
RECORDS_AT_ONCE = 500
RECORD_BYTES_AT_ONCE = 256 << 10
"""Of paths and the like, well under what a command may have (wire/commands.py)."""
MOST_WAITING = 10_000
LOOK_EVERY_S = 5.0
SAY_EVERY_S = 60.0
"""A node without opens says so often how new a state it would read: what others want to delete waits for that."""
AGAIN_S = 0.25
_FIXED_BYTES = 100


@dataclass(frozen=True, slots=True)
class Open:
    """An open that was answered and is not recorded yet; see RecordOpens for the fields."""

    number: int
    session: int
    user: str
    address: str
    file: int
    version: int
    path: str
    size: int
    digest: str
    at: int

    @property
    def fields(self) -> tuple[int, int, str, str, int, int, str, int, str, int]:
        """As the command has them."""
        return (self.number, self.session, self.user, self.address, self.file, self.version, self.path, self.size,
                self.digest, self.at)

    @property
    def size_bytes(self) -> int:
        """What it takes in a command, at most about."""
        return _FIXED_BYTES + 4 * (len(self.path) + len(self.user) + len(self.address)) + len(self.digest)


class Reads:
    """The open reads of this node. `run` must be running."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, member: str) -> None:
        self._state, self._epoch, self._member = state, epoch, member
        self._waiting: list[Open] = []
        self._last_number = 0
        self._recording = trio.Lock()
        self._wake = trio.Event()
        self._ends: Batcher[tuple[int, int, int, bool]] = Batcher(
            self._commit_ends, delay_s=READ_END_DELAY_S, most_at_once=READ_ENDS_AT_ONCE,
            most_waiting=READ_ENDS_WAITING)

    async def run(self) -> None:
        """Records until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ends.run)
            nursery.start_soon(self._run_records)
            nursery.start_soon(self._say_how_far)

    async def open(self, session: int, path: Path) -> dict[str, Any]:
        """What OpenRead gives, committed or to be recorded soon, as the cluster is set. Raises Rejected, NoQuorum and
        the like. Cancelled: the open may be recorded all the same, and nobody read.
        """
        machine = self._state.machine
        if machine.options.opens_are_relaxed and len(self._waiting) < MOST_WAITING:
            await self._epoch.barrier()
            if machine.options.opens_are_relaxed:  # asked of the state that is read: see core/opens.py
                return self._answer(session, path)
        return await self._epoch.value(OpenRead(session, path))

    def ended(self, session: int, number: int, size: int, is_ok: bool) -> None:
        """A read ended; `number` is the open's id."""
        self._ends.add((session, number, size, is_ok))

    async def settle(self, session: int) -> None:
        """Every open of the session that was answered is recorded. Raises what `record` does."""
        if any(one.session == session for one in self._waiting):
            await self.record()

    async def finish(self) -> None:
        """Commits what waits, as far as that is possible now: at the end of a session, and at a clean stop."""
        try:
            await self.record()
        except RaftmftError as trouble:
            log.warning("%d opens wait to be recorded: %s", len(self._waiting), trouble,
                        extra=fields(count=len(self._waiting)))
            return  # nor would their ends be taken before them
        await self._ends.finish()

    async def record(self) -> None:
        """Every open that was answered before the call is recorded. Raises RaftmftError if that cannot be known now:
        they go on waiting. Cancelled: likewise.
        """
        last = self._waiting[-1].number if self._waiting else 0
        async with self._recording:
            while self._waiting and self._waiting[0].number <= last:
                await self._record_some()

    # --- within --------------------------------------------------------------------------------------
    def _answer(self, session: int, path: Path) -> dict[str, Any]:
        """The open as of the present state, which waits to be recorded from now on. Nothing may be awaited between."""
        found = self._state.machine.opens.look(session, path)
        if isinstance(found, Rejection):
            raise Rejected(found.code, found.text)
        value, who, where = found
        self._last_number = max(self._last_number, self._state.machine.opens.recorded(self._member)) + 1
        self._waiting.append(Open(
            self._last_number, session, who.user, who.address, value["file"], value["version"], where, value["size"],
            value["digest"], self._state.applied))
        if len(self._waiting) in (1, RECORDS_AT_ONCE):
            self._wake.set()
        return {"open": -self._last_number, **value}

    async def _record_some(self) -> None:
        """One batch from the front; none if nothing waits. To be called by one task at a time."""
        batch, size = 0, 0
        for one in self._waiting[:RECORDS_AT_ONCE]:
            size += one.size_bytes
            if batch and size > RECORD_BYTES_AT_ONCE:
                break
            batch += 1
        taken = self._waiting[:batch]
        oldest = self._waiting[batch].at if len(self._waiting) > batch else self._state.applied
        await self._epoch.value(RecordOpens(self._member, tuple(one.fields for one in taken), oldest))
        del self._waiting[:batch]  # others were only added behind

    async def _run_records(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if len(self._waiting) < RECORDS_AT_ONCE:
                with trio.move_on_after(RECORD_DELAY_S):
                    await self._wake.wait()
            try:
                await self.record()
            except RaftmftError as trouble:
                log.warning("%d opens wait to be recorded: %s", len(self._waiting), trouble,
                            extra=fields(count=len(self._waiting)))
                await trio.sleep(AGAIN_S)
            self._wake = trio.Event()
            if self._waiting:
                self._wake.set()

    async def _say_how_far(self) -> None:
        """Has the state know from which index on this member reads, or that it answers no more such opens."""
        said_at = trio.current_time()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            opens, is_relaxed = self._state.machine.opens, self._state.machine.options.opens_are_relaxed
            if not opens.reads_from(self._member):
                continue
            if is_relaxed and (self._waiting or trio.current_time() - said_at < SAY_EVERY_S):
                continue
            try:
                async with self._recording:
                    await self._record_some()
                said_at = trio.current_time()
            except RaftmftError as trouble:
                log.debug("how far reads have got is said later: %s", trouble)

    async def _commit_ends(self, ends: list[tuple[int, int, int, bool]]) -> None:
        await self.record()  # an end that comes before its open is nobody's
        await self._epoch.execute(ReadEnd(tuple(ends)))
