"""Who may come in. Passwords are checked here (argon2id, in threads, at most two at once); keys by the worker.

The proof is checked against the local state after a barrier, so that a user just added can log in anywhere; the Login
command carries the credential number it was checked against and is rejected if that changed meanwhile. An unknown
user costs the same time as a wrong password.
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

from raftmft.core.commands import Login, LoginRefused
from raftmft.core.errors import OutcomeUnknown
from raftmft.core.outcome import Code
from raftmft.node.batches import Batcher
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.state import ReplicatedState
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)
DUMMY_HASH = HASHER.hash("no user has this password")
MOST_VERIFYING = 2
MOST_WAITING = 64
MOST_REFUSALS_A_SECOND = 100
MOST_PASSWORD_BYTES = 1024
CREDENTIAL_ATTEMPTS = 3
OTHERS = ("(others)", "(others)", "too many to list")


class Logins:
    """Verifies passwords, commits logins, and records refusals folded to one record a second per address and user."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, member: str) -> None:
        self._state, self._epoch, self._member = state, epoch, member
        self._threads = trio.CapacityLimiter(MOST_VERIFYING)
        self._waiting = 0
        self._refused: dict[tuple[str, str, str], int] = {}
        self.refused_count = 0
        """How many logins were refused here since the start."""
        self._refusals: Batcher[None] = Batcher(self._commit_refusals, delay_s=1.0, most_at_once=1, most_waiting=1)

    async def run(self) -> None:
        """Commits refusals once a second until cancelled."""
        await self._refusals.run()

    async def finish(self) -> None:
        """Commits the refusals that wait, at a clean stop."""
        await self._refusals.finish()

    async def password(self, user: str, password: str, address: str) -> dict[str, Any]:
        """Checks a password and commits the login; Rejected otherwise, and the refusal is recorded."""
        if self._waiting >= MOST_WAITING:
            self.refused(user, address, "too many logins at once")
            raise Rejected(Code.LIMIT, "too many logins at once; try again")
        for _ in range(CREDENTIAL_ATTEMPTS):
            await self._epoch.barrier()
            row = self._state.machine.users.get(user)
            known = row is not None and row.enabled
            stored = (row.password_hash if row is not None and known else None) or DUMMY_HASH
            self._waiting += 1
            try:
                right = await trio.to_thread.run_sync(verify, stored, password, limiter=self._threads)
            finally:
                self._waiting -= 1
            if row is None or not known or not row.password_hash or not right:
                reason = "unknown user" if row is None else "disabled" if not row.enabled else "wrong password"
                self.refused(user, address, reason)
                raise Rejected(Code.PERMISSION, "wrong user or password")
            try:
                return await self.login(user, address, "password", row.credential)
            except Rejected as refusal:
                if refusal.code != Code.STALE_CREDENTIAL:
                    raise
        raise Rejected(Code.STALE_CREDENTIAL, "the user is being changed; try again")

    async def keys(self, user: str) -> dict[str, Any]:
        """The user's public keys and the credential number they belong to."""
        await self._epoch.barrier()
        row = self._state.machine.users.get(user)
        if row is None or not row.enabled:
            return {"keys": [], "credential": 0}
        return {"keys": [key.line for key in self._state.machine.users.keys(user)], "credential": row.credential}

    async def login(self, user: str, address: str, method: str, credential: int) -> dict[str, Any]:
        """Commits a login whose proof was checked against `credential`."""
        try:
            return await self._epoch.value(
                Login(self._member, self._epoch.number, user, address, method, credential))
        except Rejected as refusal:
            if refusal.code != Code.STALE_CREDENTIAL:
                self.refused(user, address, "address banned" if refusal.code == Code.PERMISSION else refusal.code)
            raise

    def refused(self, user: str, address: str, reason: str) -> None:
        """Counts a refusal; it is committed within about a second."""
        self.refused_count += 1
        host = address.rsplit(":", 1)[0]
        key = (host, user[:64], reason[:64])
        if key not in self._refused and len(self._refused) >= MOST_REFUSALS_A_SECOND:
            key = OTHERS
        self._refused[key] = self._refused.get(key, 0) + 1
        self._refusals.add(None)

    async def _commit_refusals(self, _: list[None]) -> None:
        taken, self._refused = self._refused, {}
        if not taken:
            return
        try:
            await self._epoch.execute(
                LoginRefused(self._member, tuple((*key, count) for key, count in taken.items())))
        except OutcomeUnknown:
            # Under a new id it could be recorded twice: one record too few is the lesser lie about strangers.
            log.warning("%d refused logins may not be in the audit log: the outcome is unknown", sum(taken.values()),
                        extra=fields(count=sum(taken.values())))
        except BaseException:
            for key, count in taken.items():
                self._refused[key] = self._refused.get(key, 0) + count
            raise


def hash_password(password: str) -> str:
    """The argon2id hash to store (19 MiB, t=2, p=1). Takes tens of milliseconds: call it in a thread."""
    return HASHER.hash(password)


def verify(stored: str, password: str) -> bool:
    """Whether the password fits; False for anything malformed."""
    if len(password.encode("utf-8", "surrogatepass")) > MOST_PASSWORD_BYTES:
        return False
    try:
        return HASHER.verify(stored, password)
    except (Argon2Error, InvalidHashError, UnicodeEncodeError):
        return False
