"""Who bears which token of the admin API: the data directory's own, or a replicated one.

A replicated token reads raftmft-INDEX-SECRET. INDEX is the Raft index of the entry that made it, so that a node which
has not applied that yet waits for it instead of refusing, and strangers cannot make it ask the cluster. Before a known
token is believed the node makes sure that it was not revoked elsewhere; without a quorum it must believe what it
knows, and then nothing can be changed anyway.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable

import trio

from raftmft.core.errors import RaftmftError
from raftmft.node.api import ADMIN, Caller
from raftmft.node.state import ReplicatedState

SECRET_BYTES = 32
WAIT_LIMIT_S = 1.0
LOOK_EVERY_S = 0.01
MOST_AHEAD = 100_000
"""A token from further ahead of what is applied here is nobody's, or this node is of no use yet."""
_SHAPE = re.compile(rb"raftmft-(\d{1,18})-([A-Za-z0-9_-]{43})")


def make_secret() -> tuple[str, str]:
    """A new secret, and the hash to be kept of it."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return secret, _hash(secret.encode())


def render(index: int, secret: str) -> str:
    """The token as its bearer has it."""
    return f"raftmft-{index}-{secret}"


class Tokens:
    """`authenticate` is the guard's. `barrier` waits for what was acknowledged anywhere."""

    def __init__(self, own: bytes, state: ReplicatedState, barrier: Callable[[], Awaitable[None]]) -> None:
        self._own, self._state, self._barrier = own, state, barrier

    async def authenticate(self, given: bytes) -> Caller | None:
        """Whose token it is, or None."""
        if self._own and hmac.compare_digest(given, self._own):
            return Caller("administrator by token", ADMIN)
        match = _SHAPE.fullmatch(given)
        if match is None:
            return None
        index, token_hash = int(match[1]), _hash(match[2])
        if 0 < index - self._state.applied <= MOST_AHEAD:
            with trio.move_on_after(WAIT_LIMIT_S):
                while self._state.applied < index:
                    await trio.sleep(LOOK_EVERY_S)
        if self._state.machine.admin_tokens.find(token_hash) is None:
            return None
        with trio.move_on_after(WAIT_LIMIT_S):
            try:
                await self._barrier()
            except RaftmftError:
                pass
        row = self._state.machine.admin_tokens.find(token_hash)
        return None if row is None else Caller(f"admin token {row.name}", row.role)


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
