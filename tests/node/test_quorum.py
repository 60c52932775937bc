"""A node that lost the quorum for 5 s, or was taken for dead, ends its sessions; once."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from raftmft.node.quorum import QuorumWatch


class FakeEpoch:
    """As much of Epoch as the watch uses."""

    def __init__(self) -> None:
        self.over, self.begun = trio.Event(), trio.Event()
        self.begun.set()
        self.begins = 0

    async def begin(self) -> int:
        self.begins += 1
        self.over = trio.Event()
        return self.begins


async def test_five_seconds_without_quorum(autojump_clock: MockClock) -> None:
    ended: list[tuple[float, str]] = []
    quorum = True

    async def end(reason: str) -> None:
        ended.append((trio.current_time(), reason))

    watch = QuorumWatch(FakeEpoch(), lambda: quorum, end)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(20)
        quorum = False
        await trio.sleep(4)
        quorum = True
        await trio.sleep(1)
        quorum = False
        lost_at = trio.current_time()
        assert not ended, "4 s without quorum ended sessions"
        await trio.sleep(60)
        assert len(ended) == 1 and 5 <= ended[0][0] - lost_at <= 5.3
        quorum = True
        await trio.sleep(1)
        quorum = False
        await trio.sleep(6)
        assert len(ended) == 2
        nursery.cancel_scope.cancel()


async def test_an_epoch_that_is_over_begins_anew(autojump_clock: MockClock) -> None:
    epoch = FakeEpoch()
    reasons: list[str] = []

    async def end(reason: str) -> None:
        assert epoch.begins == len(reasons), "sessions end before the new epoch begins"
        reasons.append(reason)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(QuorumWatch(epoch, lambda: True, end).run)  # type: ignore[arg-type]
        await trio.sleep(1)
        epoch.over.set()
        await trio.sleep(1)
        epoch.over.set()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert epoch.begins == 2 and len(reasons) == 2
