"""Log lines on standard error: one event a line, with the time in UTC, the level and the module."""

from __future__ import annotations

import logging

from raftmft.wire.loglines import LineFormatter


def set_up(level: str, log_format: str = "text") -> None:
    """Sets the process's logging up. Libraries that would log per request or packet are held to warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("node", as_json=log_format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("asyncssh", "hypercorn", "hypercorn.error", "hypercorn.access", "pysyncobj"):
        logging.getLogger(name).setLevel(logging.WARNING)
