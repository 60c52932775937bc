"""Log lines on standard error: one event a line, with the time in UTC, the level and the module."""

from __future__ import annotations

import logging
import time


def set_up(level: str) -> None:
    """Sets the process's logging up. Libraries that would log per request or packet are held to warnings."""
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("asyncssh", "hypercorn", "hypercorn.error", "hypercorn.access", "pysyncobj"):
        logging.getLogger(name).setLevel(logging.WARNING)
