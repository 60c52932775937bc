"""One line in the log for each operation on names once its outcome is known: from SFTP operation to Raft index.

The worker made the operation's id (sftp/opids.py) and sends it with its request; the entry's index comes from where the
command is proposed (`committed`), in the same task. Nothing here decides anything, and nothing is formatted when the
level is off. READ and WRITE are no operations on names: they never come here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any

import trio

from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.core.names import clipped, path_text
from raftmft.node.link import Rejected
from raftmft.wire.loglines import MOST_USER_CHARS

log = logging.getLogger("raftmft.operations")

LEVELS = {
    "fs.open": logging.INFO, "fs.begin": logging.INFO, "fs.publish": logging.INFO, "fs.end": logging.INFO,
    "fs.mkdir": logging.INFO, "fs.rmdir": logging.INFO, "fs.remove": logging.INFO, "fs.rename": logging.INFO,
    "fs.setstat": logging.INFO, "fs.symlink": logging.INFO, "fs.link": logging.INFO, "fs.copy": logging.INFO,
    "auth.password": logging.INFO, "auth.login": logging.INFO, "session.end": logging.INFO,
    "fs.checkpoint": logging.DEBUG,
}
"""Which requests of a worker are told of, and at which level. Checkpoints come by the megabyte."""
NAMES = {"fs.open": "open", "fs.begin": "open to write", "fs.end": "end upload", "auth.password": "login",
         "auth.login": "login", "session.end": "logout"}
MOST_ID_CHARS = 32


class _Note:
    """What is learned while an operation is in work."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        self.index = 0


_NOTE: ContextVar[_Note | None] = ContextVar("raftmft_operation_note", default=None)


def committed(index: int) -> None:
    """The operation in work in this task has its outcome at this Raft index (the last one counts)."""
    note = _NOTE.get()
    if note is not None:
        note.index = index


def is_told(operation: str) -> bool:
    """Whether this operation gets a line at the level that is on."""
    level = LEVELS.get(operation)
    return level is not None and log.isEnabledFor(level)


async def told(operation: str, args: dict[str, Any], who: tuple[str, str], work: Awaitable[Any]) -> Any:
    """What `work` gives or raises, and one line of it. `who`: the session's user and address, as far as known.

    Cancelled: the line says that the outcome is unknown.
    """
    note, begun = _Note(), trio.current_time()
    token = _NOTE.set(note)
    value, outcome = None, "outcome unknown"
    try:
        value = await work
        outcome = "ok"
        return value
    except Rejected as refusal:
        outcome = refusal.code
        raise
    except NoQuorum:
        outcome = "no quorum"
        raise
    except OutcomeUnknown:
        raise
    except RaftmftError:
        outcome = "failed"
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        outcome = "internal"
        raise
    finally:
        _NOTE.reset(token)
        name = NAMES.get(operation) or operation.removeprefix("fs.")
        log.log(LEVELS[operation], "%s", name, extra={"fields": _fields(
            args, who, value, note.index, outcome, (trio.current_time() - begun) * 1000)})


def _fields(args: dict[str, Any], who: tuple[str, str], value: Any, index: int, outcome: str,
            took_ms: float) -> dict[str, Any]:
    found = value if isinstance(value, dict) else {}
    fields: dict[str, Any] = {
        "op": str(args.get("op") or "")[:MOST_ID_CHARS], "session": args.get("session") or found.get("session"),
        "user": clipped(str(who[0] or args.get("user") or ""), MOST_USER_CHARS),
        "address": who[1] or args.get("address"),
        "path": "" if args.get("file") else _text(args["path"] if "path" in args else args.get("source")),
        "target": _text(args.get("target")),
        "upload": args.get("upload") or found.get("upload"), "reason": args.get("reason"),
        "index": index, "outcome": outcome, "ms": round(took_ms, 1)}
    return {key: field for key, field in fields.items() if field or key == "ms"}


def _text(path: Any) -> str:
    """A path below the home, or the target of a link; what has no such shape was refused and is not shown."""
    if isinstance(path, bytes):
        return path_text((path,))[1:]
    if isinstance(path, list) and all(isinstance(name, bytes) for name in path):
        return path_text(tuple(path))
    return ""
