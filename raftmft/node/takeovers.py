"""Uploads that another session took over: their worker is told as soon as that is applied here.

The state machine rejects whatever such an upload commits, told or not. Telling stops the old writer at its next WRITE,
and not only at its next checkpoint, and shows its session what everybody else sees of the name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from raftmft.core.commands import BeginUpload
from raftmft.core.errors import RaftmftError
from raftmft.core.machine import Entry
from raftmft.core.outcome import Outcome
from raftmft.node.workers import Worker
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

TELL_LIMIT_S = 5.0


class Takeovers:
    """`applied` is a subscriber of the replicated state; `run` tells the workers. `worker_of` gives who writes an
    upload on this node, or None.
    """

    def __init__(self, worker_of: Callable[[int], Worker | None]) -> None:
        self._worker_of = worker_of
        self._revoked: list[int] = []  # bounded by the uploads that are open on this node
        self._wake = trio.Event()

    def applied(self, entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        """Notes which uploads of this node were revoked."""
        for entry, outcome in zip(entries, outcomes, strict=True):
            if type(entry.envelope.command) is BeginUpload and outcome.ok and "revoked" in outcome.value:
                upload = int(outcome.value["revoked"])
                if self._worker_of(upload) is not None:
                    self._revoked.append(upload)
                    self._wake.set()

    async def run(self) -> None:
        """Until cancelled. A worker that cannot be told finds out by its next checkpoint."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            revoked, self._revoked = self._revoked, []
            for upload in revoked:
                worker = self._worker_of(upload)
                if worker is None:
                    continue
                try:
                    with trio.move_on_after(TELL_LIMIT_S):
                        await worker.link.request("upload.revoked", {"upload": upload})
                except (OSError, RaftmftError, trio.BrokenResourceError, trio.ClosedResourceError) as trouble:
                    log.debug("upload %d was taken over, and its worker cannot be told: %s", upload, trouble,
                              extra=fields(upload=upload, worker=worker.number))
