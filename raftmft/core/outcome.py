"""What applying a command gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Code(StrEnum):
    """Why a command was rejected. One table (sftp/status.py) maps these to SFTP status codes."""

    NOT_FOUND = "not_found"
    EXISTS = "exists"
    NOT_A_DIRECTORY = "not_a_directory"
    IS_A_DIRECTORY = "is_a_directory"
    NOT_EMPTY = "not_empty"
    NAME_TOO_LONG = "name_too_long"
    BAD_NAME = "bad_name"
    LOOP = "loop"
    PERMISSION = "permission"
    READ_ONLY = "read_only"
    QUOTA = "quota"
    LIMIT = "limit"
    NO_USER = "no_user"
    DISABLED = "disabled"
    STALE_CREDENTIAL = "stale_credential"
    NO_SESSION = "no_session"
    STALE_EPOCH = "stale_epoch"
    STALE_COMMAND = "stale_command"
    STALE_UPLOAD = "stale_upload"
    STALE_PLACEMENT = "stale_placement"
    CONFLICT = "conflict"
    INVALID = "invalid"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Rejection:
    """The request was wrong; nothing but the bookkeeping of the command id changed. `text` is one line for people."""

    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the entry at Raft `index` gave: a `value` (plain str-keyed map of msgpack types), or a rejection."""

    index: int
    value: dict[str, Any] = field(default_factory=dict)
    rejection: Rejection | None = None

    @property
    def ok(self) -> bool:
        """True when the command was applied as asked."""
        return self.rejection is None
