"""Log lines about what strangers do, of which there may be any number: at most one each PERIOD_S and kind."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

PERIOD_S = 10.0


class SparseLog:
    """Logs one kind of event, sparsely; what was left out is counted in the next line. One line costs no memory more
    than the last.
    """

    def __init__(self, log: logging.Logger, level: int = logging.WARNING) -> None:
        self._log, self._level = log, level
        self._logged_at, self._unlogged = float("-inf"), 0

    def say(self, text: str, *values: object, extra: Mapping[str, object] | None = None) -> None:
        """Logs `text % values` with logging's `extra`, or counts it. Nothing is formatted unless it is logged."""
        now = trio.current_time()
        if now - self._logged_at < PERIOD_S:
            self._unlogged += 1
            return
        more, self._unlogged = self._unlogged, 0
        self._logged_at = now
        if more:
            self._log.log(self._level, text + " (%d more like this since the last such line)", *values, more,
                          extra=extra)
        else:
            self._log.log(self._level, text, *values, extra=extra)
