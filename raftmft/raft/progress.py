"""What a leader knows of one follower's log, and what it may send next (after etcd's tracker/progress.go).

A follower is *streamed* to (entries leave before the earlier ones are acknowledged, within a window) until something
was lost or refused; then it is *probed*: one message at a time, until it acknowledges one.
"""

from __future__ import annotations

from collections import deque

WINDOW_BYTES = 2 << 20
WINDOW_MESSAGES = 256


class Progress:
    """One follower. `match` is the last index known to be on its disk, `next` the first one to send."""

    __slots__ = ("match", "next", "probing", "paused", "commit_told", "_flight", "_flight_bytes")

    def __init__(self, next_index: int) -> None:
        self.match = 0
        self.next = next_index
        self.probing = False
        self.paused = False
        self.commit_told = 0
        self._flight: deque[tuple[int, int]] = deque()
        self._flight_bytes = 0

    def may_send(self) -> bool:
        """Whether entries may leave now."""
        if self.probing:
            return not self.paused
        return self._flight_bytes < WINDOW_BYTES and len(self._flight) < WINDOW_MESSAGES

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Entries up to `last_index` left."""
        if self.probing:
            self.paused = True
            return
        self.next = last_index + 1
        self._flight.append((last_index, size_bytes))
        self._flight_bytes += size_bytes

    def acknowledged(self, index: int) -> None:
        """The follower has all up to `index` on disk. Late and repeated acknowledgements change nothing."""
        if index > self.match:
            self.match = index
        elif self.probing and index < self.next - 1:
            return
        self.next = max(self.next, self.match + 1)
        while self._flight and self._flight[0][0] <= self.match:
            self._flight_bytes -= self._flight.popleft()[1]
        self.probing = self.paused = False

    def refused(self, prev_index: int, hint: int) -> bool:
        """The follower lacks `prev_index`. True if that is news: then sending goes on from about `hint`."""
        if prev_index <= self.match or (self.probing and prev_index != self.next - 1):
            return False
        self._probe_from(min(hint, prev_index))
        return True

    def lost(self) -> None:
        """What was under way may never arrive (link gone, or its queue full): on from what was acknowledged."""
        self._probe_from(self.match + 1 if self.match else self.next)
        self.paused = True

    def heartbeat(self) -> None:
        """A heartbeat is due: a probe that was not answered may go again."""
        self.paused = False

    def _probe_from(self, index: int) -> None:
        self.next = max(index, self.match + 1)
        self.probing, self.paused = True, False
        self._flight.clear()
        self._flight_bytes = 0
