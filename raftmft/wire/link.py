"""The link between the node process and one session worker: message shapes and words (frames.py carries them).

Request [0, id, op, args], reply [1, id, status, value], notification [2, op, args]. Both sides may ask. `args` is a
map with string keys; paths in it are lists of name bytes below the session's home. The operations are listed in
`WORKER_OPERATIONS` (asked by a worker of its node) and `NODE_OPERATIONS` (asked by a node of its worker). In
`args`, "op" is the id of the client's operation that the request is for, for the node's log only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from raftmft.wire import frames
from raftmft.wire.frames import FrameError

REQUEST, REPLY, NOTIFICATION = 0, 1, 2

OK = "ok"
REJECTED = "rejected"  # the value is {"code": core.outcome.Code, "text": one line}
NO_QUORUM = "no_quorum"  # certainly did not happen; the value is one line
UNKNOWN = "unknown"  # may have happened; the value is one line
FAILED = "failed"  # the value is one line
STATUSES = frozenset({OK, REJECTED, NO_QUORUM, UNKNOWN, FAILED})

WORKER_OPERATIONS = frozenset({
    "hello", "load", "auth.password", "auth.keys", "auth.login", "auth.refused", "conn.end", "session.end",
    "fs.stat", "fs.list",
    "fs.open", "fs.begin", "fs.checkpoint", "fs.publish", "fs.end", "fs.mkdir", "fs.rmdir", "fs.remove", "fs.rename",
    "fs.setstat", "fs.symlink", "fs.link", "fs.copy", "fs.base", "fs.statvfs",
    "read.end", "chunk.put", "chunk.locate", "chunk.fetch", "chunk.bad",
})
NODE_OPERATIONS = frozenset({"session.kill", "conn.kill", "drain", "upload.revoked"})


class Request(NamedTuple):
    """The sender waits for a reply of this id."""

    id: int
    op: str
    args: dict[str, Any]


class Reply(NamedTuple):
    """The answer to the request of this id."""

    id: int
    status: str
    value: Any


class Notification(NamedTuple):
    """Nobody waits for an answer; it is handled in order, before anything that was sent later."""

    op: str
    args: dict[str, Any]


def request(number: int, op: str, args: dict[str, Any]) -> bytes:
    """The frame of a request."""
    return frames.encode([REQUEST, number, op, args])


def reply(number: int, status: str, value: Any) -> bytes:
    """The frame of a reply."""
    return frames.encode([REPLY, number, status, value])


def notification(op: str, args: dict[str, Any]) -> bytes:
    """The frame of a notification."""
    return frames.encode([NOTIFICATION, op, args])


def parse(message: Any) -> Request | Reply | Notification:
    """The message that a frame carried; FrameError if it has no known shape (the link must be dropped then)."""
    match message:
        case [0, int(number), str(op), dict(args)]:
            return Request(number, op, args)
        case [1, int(number), str(status), value] if status in STATUSES:
            return Reply(number, status, value)
        case [2, str(op), dict(args)]:
            return Notification(op, args)
    raise FrameError("a message of no known shape")
