"""Batched records: none lost while the log cannot be reached, bounded, in order."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from raftmft.core.errors import NoQuorum
from raftmft.node.batches import Batcher


async def test_items_go_out_in_order_and_in_batches(autojump_clock: MockClock) -> None:
    sent: list[list[int]] = []

    async def flush(batch: list[int]) -> None:
        sent.append(batch)

    batcher = Batcher(flush, delay_s=0.25, most_at_once=10, most_waiting=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        for number in range(25):
            batcher.add(number)
        begun = trio.current_time()
        while sum(map(len, sent)) < 25:
            await trio.sleep(0.01)
        assert trio.current_time() - begun <= 0.3
        nursery.cancel_scope.cancel()
    assert [len(batch) for batch in sent] == [10, 10, 5]
    assert [number for batch in sent for number in batch] == list(range(25))


async def test_what_cannot_be_sent_stays_and_the_oldest_go_beyond_the_bound() -> None:
    sent: list[int] = []
    reachable = False

    async def flush(batch: list[int]) -> None:
        if not reachable:
            raise NoQuorum("no quorum")
        sent.extend(batch)

    batcher = Batcher(flush, delay_s=0, most_at_once=3, most_waiting=5)
    for number in range(8):
        batcher.add(number)
    await batcher.finish()
    assert not sent and batcher.dropped == 3
    reachable = True
    await batcher.finish()
    assert sent == [3, 4, 5, 6, 7]


async def test_what_is_added_while_sending_is_sent_too(autojump_clock: MockClock) -> None:
    sent: list[int] = []

    async def flush(batch: list[int]) -> None:
        await trio.sleep(1)
        sent.extend(batch)

    batcher = Batcher(flush, delay_s=0.1, most_at_once=100, most_waiting=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        batcher.add(1)
        await trio.sleep(0.5)
        batcher.add(2)
        with trio.fail_after(5):
            while sent != [1, 2]:
                await trio.sleep(0.1)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
