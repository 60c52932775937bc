"""Records that are sent in batches: ends of reads, refused logins. Bounded in number and in delay."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from raftmft.core.errors import RaftmftError
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)
Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Collects items and gives them to `flush` at most `delay_s` later, `most_at_once` at a time.

    While `flush` fails the items stay; beyond `most_waiting` the oldest are dropped and counted (`dropped`).
    """

    def __init__(self, flush: Callable[[list[Item]], Awaitable[None]], *, delay_s: float, most_at_once: int,
                 most_waiting: int) -> None:
        self._flush, self._delay_s = flush, delay_s
        self._most_at_once, self._most_waiting = most_at_once, most_waiting
        self._items: list[Item] = []
        self._wake = trio.Event()
        self.dropped = 0

    def add(self, item: Item) -> None:
        """Takes an item."""
        self._items.append(item)
        if len(self._items) > self._most_waiting:
            del self._items[0]
            self.dropped += 1
        self._wake.set()

    async def run(self) -> None:
        """Sends batches until cancelled; what is left then is given to `finish`."""
        while True:
            await self._wake.wait()
            await trio.sleep(self._delay_s)
            self._wake = trio.Event()
            await self.finish()

    async def finish(self) -> None:
        """Sends what waits now; keeps what could not be sent."""
        while self._items:
            batch = self._items[: self._most_at_once]
            del self._items[: len(batch)]
            try:
                await self._flush(batch)
            except RaftmftError as trouble:
                self._items[:0] = batch
                self._wake.set()
                log.warning("%d records wait to be committed: %s", len(self._items), trouble,
                            extra=fields(count=len(self._items)))
                return
