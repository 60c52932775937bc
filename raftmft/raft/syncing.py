"""A thread of its own for the journal's syncs, with as little between it and the loop as there can be.

Every commit waits for a sync on a majority, so what a hand-over costs is paid in each of them. A pool thread is started
from the loop in half a dozen steps and comes back through two turns of it; here each direction is one write to an
eventfd. The thread runs one step at a time and touches nothing but what the step touches.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import trio


class SyncThread:
    """Runs blocking steps, one at a time. `close` it at the end."""

    def __init__(self) -> None:
        self._begin, self._done = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._step: Callable[[], object] | None = None
        self._error: BaseException | None = None
        self._running = False
        # A daemon: a disk that never answers must not hold up the end of the process.
        self._thread = threading.Thread(target=self._serve, name="raft sync", daemon=True)
        self._thread.start()

    async def run(self, step: Callable[[], object]) -> None:
        """Returns, in the loop, once `step` has; raises what it raised. Not to be cancelled: a step cannot be called
        back, so the caller shields it.
        """
        assert not self._running, "one step at a time"
        self._step, self._running = step, True
        os.eventfd_write(self._begin, 1)
        await trio.lowlevel.wait_readable(self._done)
        os.eventfd_read(self._done)
        self._running = False
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Ends the thread and frees what it held. Harmless twice. If `run` was broken off in the middle, all is left to
        the end of the process: the step may be stuck in the disk.
        """
        if self._begin < 0 or self._running:
            return
        self._step = None
        os.eventfd_write(self._begin, 1)
        self._thread.join()
        os.close(self._begin)
        os.close(self._done)
        self._begin = self._done = -1

    def _serve(self) -> None:
        while True:
            os.eventfd_read(self._begin)
            step = self._step
            if step is None:
                return
            try:
                step()
            except BaseException as error:
                self._error = error
            del step
            os.eventfd_write(self._done, 1)
