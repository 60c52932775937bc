"""Ids of operations: what a client asked for, from here to the Raft index in the node's log.

Each request of a client that waits for the node has an id, unique in this node's logs for all that matters: a tag drawn
for the channel, and a counter. It is the present one while the request is served, also in tasks that it began.
"""

from __future__ import annotations

import secrets
from contextvars import ContextVar

_PRESENT: ContextVar[str] = ContextVar("raftmft_operation", default="")


def present() -> str:
    """The id of the operation that is being served; "" outside of any."""
    return _PRESENT.get()


class OperationIds:
    """The ids of one channel's operations, such as "7f3a91.12"."""

    def __init__(self) -> None:
        self._tag, self._count = secrets.token_hex(3), 0

    def begin(self) -> None:
        """A new id is the present one of this task from now on."""
        self._count += 1
        _PRESENT.set(f"{self._tag}.{self._count}")

    def end(self) -> None:
        """What this task does from now on is for no operation of the client."""
        _PRESENT.set("")
