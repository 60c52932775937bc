"""Compares this member's state with the others' while all serve, and stops this node if it is the odd one.

What is compared, and who is believed, stands in core/divergence.py. Here: the claims go out over the control links when
there is a new one, when a link comes up and every REPEAT_S; digests of every row are made in a thread.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Protocol

import trio

from raftmft.core.divergence import Claim, Difference, Jury, Pace
from raftmft.core.errors import RaftmftError
from raftmft.core.schema import digest, open_reader
from raftmft.node.state import ReplicatedState
from raftmft.raft.replica import RaftStatus
from raftmft.wire.digests import decode_claims, encode_claims
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

DIGESTS = "digests"
"""The kind of these messages on a control link."""
REPEAT_S = 10.0


class Raft(Protocol):
    """What is asked of the driver."""

    def status(self) -> RaftStatus:
        """Who votes."""


class Links(Protocol):
    """What is asked of the control links."""

    def on_message(self, kind: str, callback: Callable[[str, bytes], None]) -> None:
        """See PeerLinks."""

    def send(self, member: str, kind: str, body: bytes) -> bool:
        """See PeerLinks."""


class Diverged(RaftmftError):
    """This member's state is not the one that the majority holds."""


class Divergence:
    """To be run as one task, which raises Diverged."""

    def __init__(self, me: str, state: ReplicatedState, raft: Raft, links: Links) -> None:
        self._me, self._state, self._raft, self._links = me, state, raft, links
        self._jury, self._pace = Jury(me), Pace()
        self._pinned: tuple[Claim, sqlite3.Connection] | None = None
        self._news, self._work = trio.Event(), trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        state.machine.on_point = self._at_point
        links.on_message(DIGESTS, self.heard)

    # --- what comes in -----------------------------------------------------------------------------------------------
    def heard(self, member: str, body: bytes) -> None:
        """A message of DIGESTS. FrameError if it is malformed."""
        for claim in decode_claims(body):
            self._jury.add(member, claim)
        self._news.set()

    def link_up(self, member: str) -> None:
        """Tells a member that may have missed some."""
        if claims := self._jury.own():
            self._links.send(member, DIGESTS, encode_claims(claims))

    def _at_point(self, point: int, chain: bytes) -> None:
        """Between two transactions of the state machine: what a reader sees now is the state at `point`."""
        claim = Claim(point, chain)
        self._jury.add(self._me, claim)
        self._news.set()
        if self._pinned is not None or not self._pace.is_due(
                point, self._raft.status().commit_index, trio.current_time()):
            return
        try:
            reader = open_reader(self._state.machine.path)
            reader.execute("BEGIN")
            reader.execute("SELECT applied FROM clock").fetchone()
        except (sqlite3.Error, RaftmftError) as error:
            self._no_digest(point, error)
            return
        self._pinned = (claim, reader)
        self._work.set()

    # --- the work ----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled. Raises Diverged; then the state must not be closed as a clean one."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._digest_rows)
                while True:
                    with trio.move_on_after(REPEAT_S):
                        await self._news.wait()
                    self._news = trio.Event()
                    voters = self._raft.status().configuration.voters
                    for member in voters:
                        if member != self._me:
                            self.link_up(member)
                    for difference in self._jury.judge(voters):
                        self._tell(difference)
                    await trio.sleep(0.1)  # news come in bursts
        finally:
            self._state.machine.on_point = None
            if self._pinned is not None:
                self._pinned[1].close()

    def _tell(self, difference: Difference) -> None:
        what = "the outcomes of commands" if difference.what == "outcomes" else "the rows of the state"
        where = f"at entry {difference.point} {what} here differ from those of {', '.join(difference.differing)}"
        if difference.is_odd:
            raise Diverged(
                f"{where}, a majority: this member stops, so that it serves nothing wrong. Start it again: its state "
                "is made anew; should it stop again, remove it from the cluster and let it join anew")
        log.critical("%s; %s agree with this member. Who is right is not known, or will stop by itself: compare, and "
                     "make a backup, before anything else", where, ", ".join(difference.agreeing),
                     extra=fields(index=difference.point))

    @staticmethod
    def _no_digest(point: int, error: Exception) -> None:
        log.warning("no digest of the state at entry %d: %s", point, error, extra=fields(index=point))

    async def _digest_rows(self) -> None:
        while True:
            await self._work.wait()
            self._work = trio.Event()
            assert self._pinned is not None
            claim, reader = self._pinned
            began, took_s = trio.current_time(), 0.0
            try:
                # Not abandoned when cancelled: the thread uses the reader.
                rows, took_s = await trio.to_thread.run_sync(_timed_digest, reader, limiter=self._limiter)
            except sqlite3.Error as error:
                self._no_digest(claim.point, error)
                continue
            finally:
                self._pinned = None
                reader.close()
                self._pace.ended(began, took_s)
            self._jury.add(self._me, Claim(claim.point, claim.chain, bytes.fromhex(rows)))
            self._news.set()


def _timed_digest(reader: sqlite3.Connection) -> tuple[str, float]:
    """For a thread: the digest of every row, and the seconds of CPU that it took."""
    began = time.thread_time()
    return digest(reader), time.thread_time() - began
