"""What this node does about its own standing: without a quorum for 5 s, or taken for dead by the leader, it ends its
sessions and boots anew (contract 7 and Identity).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from raftmft.node.epoch import Epoch

log = logging.getLogger(__name__)

WITHOUT_QUORUM_S = 5.0
LOOK_EVERY_S = 0.1


class QuorumWatch:
    """`has_quorum` tells whether a majority was heard of freshly; `end_sessions` ends all sessions of this node."""

    def __init__(self, epoch: Epoch, has_quorum: Callable[[], bool],
                 end_sessions: Callable[[str], Awaitable[None]]) -> None:
        self._epoch, self._has_quorum, self._end_sessions = epoch, has_quorum, end_sessions

    async def run(self) -> None:
        """Watches until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_quorum)
            nursery.start_soon(self._watch_epoch)

    async def _watch_quorum(self) -> None:
        lost_at: float | None = None
        while True:
            if self._has_quorum():
                lost_at = None
            elif lost_at is None:
                lost_at = trio.current_time()
            elif lost_at != float("inf") and trio.current_time() - lost_at >= WITHOUT_QUORUM_S:
                log.error("no quorum for %.0f s: all sessions here are ended", WITHOUT_QUORUM_S)
                await self._end_sessions("no quorum")
                lost_at = float("inf")  # once for each time that it is lost
            await trio.sleep(LOOK_EVERY_S)

    async def _watch_epoch(self) -> None:
        await self._epoch.begun.wait()
        while True:
            await self._epoch.over.wait()
            log.error("this member was away too long: its sessions are ended and it boots under a new epoch")
            await self._end_sessions("the cluster took this member for dead")
            await self._epoch.begin()
