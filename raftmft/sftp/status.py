"""The one table from trouble to SFTP status codes, with texts as OpenSSH's server gives them.

Codes that the v3 draft has no number for are FAILURE with a line that says more. A text holds "no quorum" exactly when
the operation certainly did not happen for want of one, and "outcome unknown" when it may have (surface.md).
"""

from __future__ import annotations

from raftmft.core.errors import NoQuorum, OutcomeUnknown, RaftmftError
from raftmft.core.outcome import Code
from raftmft.sftp.link import Refused
from raftmft.sftp.names import BadPath
from raftmft.store.errors import ChunkCorrupt, StoreFull

OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = 0, 1, 2, 3, 4, 5
OP_UNSUPPORTED = 8

TEXTS = {OK: "Success", EOF: "End of file", NO_SUCH_FILE: "No such file", PERMISSION_DENIED: "Permission denied",
         FAILURE: "Failure", BAD_MESSAGE: "Bad message", OP_UNSUPPORTED: "Operation unsupported"}

# What OpenSSH answers for the errno that each stands for; FAILURE keeps the rejection's own line.
BY_CODE: dict[Code, int] = {
    Code.NOT_FOUND: NO_SUCH_FILE,
    Code.NOT_A_DIRECTORY: NO_SUCH_FILE,
    Code.LOOP: NO_SUCH_FILE,
    Code.PERMISSION: PERMISSION_DENIED,
    Code.READ_ONLY: PERMISSION_DENIED,
    Code.DISABLED: PERMISSION_DENIED,
    Code.EXISTS: FAILURE,
    Code.IS_A_DIRECTORY: FAILURE,
    Code.NOT_EMPTY: FAILURE,
    Code.NAME_TOO_LONG: FAILURE,
    Code.BAD_NAME: FAILURE,
    Code.QUOTA: FAILURE,
    Code.LIMIT: FAILURE,
    Code.NO_USER: FAILURE,
    Code.STALE_CREDENTIAL: FAILURE,
    Code.NO_SESSION: FAILURE,
    Code.STALE_EPOCH: FAILURE,
    Code.STALE_COMMAND: FAILURE,
    Code.STALE_UPLOAD: FAILURE,
    Code.STALE_PLACEMENT: FAILURE,
    Code.CONFLICT: FAILURE,
    Code.INVALID: FAILURE,
    Code.INTERNAL: FAILURE,
}
_PLAIN = {NO_SUCH_FILE, PERMISSION_DENIED}


class Answer(Exception):
    """Answers a request with this status instead of what it asked for."""

    def __init__(self, code: int, text: str | None = None) -> None:
        super().__init__(TEXTS[code] if text is None else text)
        self.code = code


def status_of(trouble: Exception) -> tuple[int, str]:
    """The status code and text for an expected kind of trouble; FAILURE and one line for every other RaftmftError."""
    if isinstance(trouble, Answer):
        return trouble.code, str(trouble)
    if isinstance(trouble, Refused):
        code = BY_CODE.get(trouble.code, FAILURE) if isinstance(trouble.code, Code) else FAILURE
        return code, TEXTS[code] if code in _PLAIN else str(trouble)
    if isinstance(trouble, NoQuorum):
        return FAILURE, _with("no quorum", str(trouble))
    if isinstance(trouble, OutcomeUnknown):
        return FAILURE, _with("outcome unknown", str(trouble))
    if isinstance(trouble, BadPath):
        return FAILURE, str(trouble)
    if isinstance(trouble, StoreFull):
        return FAILURE, "No space left on this server"
    if isinstance(trouble, ChunkCorrupt):
        return FAILURE, "a part of this file is damaged here; try again"
    if isinstance(trouble, RaftmftError):
        return FAILURE, str(trouble) or TEXTS[FAILURE]
    raise trouble


def _with(word: str, text: str) -> str:
    return text if word in text else f"{word}: {text}" if text else word
