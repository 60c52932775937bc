"""Log lines: one event a line, whatever strangers call their files and users."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from raftmft.core.names import clipped, one_line

log = logging.getLogger(__name__)

MOST_EVENT_CHARS = 8192
MOST_USER_CHARS = 80
CHUNK_CHARS = 16
"""So much of a chunk's id tells it from all others that a log will ever name."""


def fields(*, op: str = "", session: int | None = None, user: str = "", address: str = "", member: str = "",
           upload: int | None = None, index: int | None = None, epoch: int | None = None, worker: int | None = None,
           chunk: bytes = b"", file: object = None, request: str = "", actor: str = "", reason: str = "",
           count: int | None = None) -> dict[str, dict[str, Any]]:
    """logging's `extra` with these values; what is not known is left out. One thing has one name in every line.

    `op` is the SFTP operation's id; `session`, `user` and `address` (HOST:PORT; or of a host that knocks) tell of a
    client, `member` is a member's id, `index` a Raft index, `epoch` a member's, `worker` a worker's number, `chunk` a
    chunk's id, `file` one of this host's; `request` is what a worker, a peer or an administrator (`actor`) asked for.
    Operation lines (node/oplog.py) have some more.
    """
    given = {"op": op, "session": session, "user": clipped(user, MOST_USER_CHARS), "address": address,
             "member": member, "upload": upload, "index": index, "epoch": epoch, "worker": worker,
             "chunk": chunk.hex()[:CHUNK_CHARS], "file": file, "request": request, "actor": actor, "reason": reason,
             "count": count}
    return {"fields": {name: value for name, value in given.items() if value is not None and value != ""}}


def log_what_nobody_catches() -> None:
    """From now on warnings, and exceptions that end the process or a thread or are lost in a finalizer, are log lines
    too, and not many raw ones on standard error.
    """
    logging.captureWarnings(True)

    def ends(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.critical("nobody caught a %s: this is a bug, please report it", kind.__name__,
                         exc_info=(kind, error, trace))

    def lost(found: sys.UnraisableHookArgs) -> None:
        error = found.exc_value or found.exc_type()
        log.error("%s", found.err_msg or "an exception was lost", exc_info=(type(error), error, found.exc_traceback))

    sys.excepthook, sys.unraisablehook = ends, lost
    threading.excepthook = lambda found: ends(found.exc_type, found.exc_value or found.exc_type(), found.exc_traceback)


class LineFormatter(logging.Formatter):
    """Text, or one JSON object, of exactly one line without raw control characters; `process` says who logs.

    A record's `fields` (logging's `extra={"fields": {...}}`) become the object's members, or key=value after the event.
    """

    def __init__(self, process: str, *, as_json: bool = False) -> None:
        super().__init__()
        self._process, self._as_json = process, as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        level, event = record.levelname.lower(), _safe(record.getMessage())
        more = {key: _field(value) for key, value in getattr(record, "fields", {}).items()}
        exception = _safe(self.formatException(record.exc_info)) if record.exc_info else ""
        if self._as_json:
            fields = {"time": time, "level": level, "process": self._process, "logger": record.name, "event": event}
            return json.dumps({**fields, **({"exception": exception} if exception else {}), **{
                key: value for key, value in more.items() if key not in fields}})
        text = "".join([f" {key}={_quoted(value)}" for key, value in more.items()])
        return f"{time} {level} {self._process} {record.name}: {event}{text}{' | ' if exception else ''}{exception}"


def _field(value: Any) -> int | float | str:
    return value if isinstance(value, int | float) else _safe(str(value))


def _quoted(value: float | str) -> str:
    """As it is if it could not be taken for more than one value, else as JSON has a string."""
    is_plain = not isinstance(value, str) or (value and not any(c in value for c in ' "='))
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


def _safe(text: str) -> str:
    text = one_line(text.encode("utf-8", "backslashreplace").decode())
    return text if len(text) <= MOST_EVENT_CHARS else text[: MOST_EVENT_CHARS - 1] + "\u2026"
