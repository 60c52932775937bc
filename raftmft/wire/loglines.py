"""Log lines: one event a line, whatever strangers call their files and users."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from raftmft.core.names import one_line

MOST_EVENT_CHARS = 8192


class LineFormatter(logging.Formatter):
    """Text, or one JSON object, of exactly one line without raw control characters; `process` says who logs."""

    def __init__(self, process: str, *, as_json: bool = False) -> None:
        super().__init__()
        self._process, self._as_json = process, as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        level, event = record.levelname.lower(), _safe(record.getMessage())
        exception = _safe(self.formatException(record.exc_info)) if record.exc_info else ""
        if self._as_json:
            fields = {"time": time, "level": level, "process": self._process, "logger": record.name, "event": event}
            return json.dumps({**fields, "exception": exception} if exception else fields)
        return f"{time} {level} {self._process} {record.name}: {event}{' | ' if exception else ''}{exception}"


def _safe(text: str) -> str:
    text = one_line(text.encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= MOST_EVENT_CHARS else text[: MOST_EVENT_CHARS - 1] + "\u2026"
