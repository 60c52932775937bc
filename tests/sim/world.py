"""Virtual time, one source of randomness, and a trace: what makes a seed replay exactly."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, deque
from collections.abc import Callable
from random import Random

TRACE_LINES = 2000


class World:
    """Events by time. Everything random is drawn from `rng`, in the order of the events, so nothing else may decide."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng, self.now = seed, Random(seed), 1000.0
        self.started = self.now
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.fingerprint = 0
        self.coverage: Counter[str] = Counter()
        self.verbose = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay: float, step: Callable[[], None]) -> None:
        """Calls `step` in `delay` seconds."""
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, step))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Lets time pass; ends early, and gives True, once `until` holds."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            if until():
                return True
            self.now, _, step = heapq.heappop(self._events)
            step()
        self.now = end
        return until()

    def note(self, text: str) -> None:
        """Something worth a line in the trace of a failure."""
        line = f"{self.now - self.started:9.4f} {text}"
        self.trace.append(line)
        self.fingerprint = zlib.crc32(line.encode(), self.fingerprint)

    def saw(self, body: bytes) -> None:
        """A message was delivered: it counts in the fingerprint, too dear for the trace."""
        self.fingerprint = zlib.crc32(body, self.fingerprint)
