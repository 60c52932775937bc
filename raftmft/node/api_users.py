"""The admin API's users and their keys."""

from __future__ import annotations

from typing import Any

import trio

from raftmft.core import commands as c
from raftmft.core.outcome import Code
from raftmft.core.users import MAX_QUOTA_BYTES, MAX_SESSIONS, UserRow
from raftmft.node.api import OPERATOR, V1, Call, Operation
from raftmft.node.api_fields import BadRequest, Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.logins import MOST_PASSWORD_BYTES, hash_password
from raftmft.node.state import ReplicatedState

HASHING = 2
KEY = {"fingerprint": str, "key": str}
USER = {"name": str, "uid": int, "enabled": bool, "read_only": bool, "quota_bytes": int, "max_sessions": int,
        "has_password": bool, "files": int, "used_bytes": int, "sessions": int, "keys": [KEY]}
_NAME = Field("name", "text", "the user's name")
_LIMITS = (
    Field("password", "text", "the password; \"\" for none", most=MOST_PASSWORD_BYTES),
    Field("quota_bytes", "whole", "most bytes in the home; 0 for no limit", high=MAX_QUOTA_BYTES),
    Field("max_sessions", "whole", "most sessions at once in the whole cluster; 0 for no limit", high=MAX_SESSIONS),
    Field("read_only", "flag", "whether the user may change nothing"),
)


class UsersApi:
    """What the cluster's operators do with users."""

    def __init__(self, state: ReplicatedState, epoch: Epoch) -> None:
        self._state, self._epoch = state, epoch
        self._hashing = trio.CapacityLimiter(HASHING)

    def operations(self) -> list[Operation]:
        """The routes."""
        users, one = f"{V1}/users", f"{V1}/users/{{name}}"
        keys = Field("keys", "texts", "OpenSSH public key lines")
        line = Field("key", "text", "an OpenSSH public key line", required=True, most=1 << 14)
        print_ = Field("fingerprint", "text", "of the key, like SHA256:...", required=True)
        enabled = Field("enabled", "flag", "whether the user may log in")
        name = Field("name", "text", "the new user's name", required=True)
        return [
            Operation("GET", users, "List the users", self._list, {"users": [USER]}),
            Operation("POST", users, "Add a user", self._add, {"uid": int}, OPERATOR, body=(name, keys, *_LIMITS)),
            Operation("GET", one, "Show a user", self._show, USER, where=(_NAME,)),
            Operation("PATCH", one, "Change what is given", self._set, {}, OPERATOR, (_NAME,),
                      body=(enabled, *_LIMITS)),
            Operation("DELETE", one, "Remove a user, its home and all files in it", self._remove,
                      {"sessions": [int]}, OPERATOR, (_NAME,)),
            Operation("GET", f"{one}/keys", "List a user's public keys", self._list_keys, {"keys": [KEY]},
                      where=(_NAME,)),
            Operation("POST", f"{one}/keys", "Add a public key", self._add_key, {"fingerprint": str}, OPERATOR,
                      (_NAME,), body=(line,)),
            Operation("DELETE", f"{one}/keys", "Remove a public key", self._remove_key, {}, OPERATOR, (_NAME,),
                      query=(print_,)),
        ]

    async def _list(self, _: Call) -> Any:
        await self._epoch.barrier()
        return {"users": [self._user(row) for row in self._state.machine.users.list()]}

    async def _show(self, call: Call) -> Any:
        await self._epoch.barrier()
        row = self._state.machine.users.get(call.path["name"])
        if row is None:
            raise Rejected(Code.NO_USER, f"there is no user '{call.path['name'][:64]}'; see raftmft user list")
        return self._user(row)

    async def _add(self, call: Call) -> Any:
        body = call.body
        return await self._epoch.value(c.UserAdd(
            body["name"], await self._hash(body.get("password")), tuple(body.get("keys", ())),
            body.get("quota_bytes", 0), body.get("max_sessions", 0), body.get("read_only", False), call.actor))

    async def _set(self, call: Call) -> Any:
        body = call.body
        if not body:
            raise BadRequest(
                "nothing to set; give at least one of password, quota_bytes, max_sessions, read_only, enabled")
        return await self._epoch.value(c.UserSet(
            call.path["name"], await self._hash(body.get("password")), body.get("quota_bytes"),
            body.get("max_sessions"), body.get("read_only"), body.get("enabled"), call.actor))

    async def _remove(self, call: Call) -> Any:
        return await self._epoch.value(c.UserRemove(call.path["name"], call.actor))

    async def _list_keys(self, call: Call) -> Any:
        return {"keys": (await self._show(call))["keys"]}

    async def _add_key(self, call: Call) -> Any:
        return await self._epoch.value(c.UserKeyAdd(call.path["name"], call.body["key"], call.actor))

    async def _remove_key(self, call: Call) -> Any:
        return await self._epoch.value(c.UserKeyRemove(call.path["name"], call.query["fingerprint"], call.actor))

    def _user(self, row: UserRow) -> dict[str, Any]:
        machine = self._state.machine
        return {
            "name": row.name, "uid": row.uid, "enabled": row.enabled, "read_only": row.read_only,
            "quota_bytes": row.quota_bytes, "max_sessions": row.max_sessions, "has_password": bool(row.password_hash),
            "files": row.files, "used_bytes": row.used_bytes, "sessions": machine.sessions.count_of(row.uid),
            "keys": [{"fingerprint": key.fingerprint, "key": key.line} for key in machine.users.keys(row.name)],
        }

    async def _hash(self, password: str | None) -> str | None:
        if not password:
            return password
        if len(password.encode()) > MOST_PASSWORD_BYTES:
            raise BadRequest(f"a password has at most {MOST_PASSWORD_BYTES} bytes")
        return await trio.to_thread.run_sync(hash_password, password, limiter=self._hashing)
