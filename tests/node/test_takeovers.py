"""A worker is told that an upload of its was taken over, once that is applied, and only then."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from raftmft.core import commands as c
from raftmft.core.machine import Entry
from raftmft.core.outcome import Code, Outcome, Rejection
from raftmft.node.takeovers import Takeovers


class FakeWorker:
    """Keeps what it was told; `trouble` is raised instead."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.link, self.trouble, self.number = self, trouble, 0

    async def request(self, op: str, args: dict[str, Any]) -> Any:
        self.told.append((op, args))
        if self.trouble is not None:
            raise self.trouble
        return {}


def applied(takeovers: Takeovers, command: c.Command, value: dict[str, Any], no: Rejection | None = None) -> None:
    takeovers.applied([Entry(7, 0, c.Envelope(command))], [Outcome(7, value, no)])


BEGIN = c.BeginUpload(1, (b"f",))


async def test_the_worker_that_writes_here_is_told(autojump_clock: trio.testing.MockClock) -> None:
    worker, gone = FakeWorker(), FakeWorker(trio.BrokenResourceError())
    workers: dict[int, Any] = {5: worker, 6: worker, 8: gone}
    takeovers = Takeovers(workers.get)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(takeovers.run)
        applied(takeovers, BEGIN, {"upload": 7})
        applied(takeovers, BEGIN, {"revoked": 9})  # another node's
        applied(takeovers, c.Remove(1, (b"f",)), {"revoked": 5})
        applied(takeovers, BEGIN, {"revoked": 5}, Rejection(Code.QUOTA, "no"))
        await trio.sleep(1)
        assert worker.told == []
        applied(takeovers, BEGIN, {"revoked": 8})
        applied(takeovers, BEGIN, {"revoked": 6})
        applied(takeovers, BEGIN, {"revoked": 5})
        del workers[6]  # it ended before it could be told
        await trio.sleep(1)
        assert gone.told == [("upload.revoked", {"upload": 8})]
        assert worker.told == [("upload.revoked", {"upload": 5})], "and the loop outlives a worker that is gone"
        nursery.cancel_scope.cancel()
