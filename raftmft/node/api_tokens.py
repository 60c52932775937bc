"""The admin API's own tokens: made, listed, revoked, by admins alone."""

from __future__ import annotations

from typing import Any

from raftmft.core import commands as c
from raftmft.core.admin_tokens import ADMIN_ROLES
from raftmft.node.api import ADMIN, V1, Call, Operation
from raftmft.node.api_audit import iso
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import value_of
from raftmft.node.state import ReplicatedState
from raftmft.node.tokens import make_secret, render

TOKEN = {"name": str, "role": str, "since": str, "by": str}


class TokensApi:
    """What `raftmft admin-token` does."""

    def __init__(self, state: ReplicatedState, epoch: Epoch) -> None:
        self._state, self._epoch = state, epoch

    def operations(self) -> list[Operation]:
        """The routes."""
        tokens, name = f"{V1}/admin-tokens", Field("name", "text", "the token's name", required=True)
        role = Field("role", "text", "what its bearer may do", required=True, choices=ADMIN_ROLES)
        return [
            Operation("GET", tokens, "List the admin tokens", self._list, {"tokens": [TOKEN]}, ADMIN),
            Operation("POST", tokens, "Make an admin token; it is shown this once", self._create, {"token": str},
                      ADMIN, body=(name, role)),
            Operation("DELETE", f"{tokens}/{{name}}", "Revoke an admin token", self._revoke, {}, ADMIN, (name,)),
        ]

    async def _list(self, _: Call) -> Any:
        await self._epoch.barrier()
        return {"tokens": [{"name": row.name, "role": row.role, "since": iso(row.added_ms), "by": row.added_by}
                           for row in self._state.machine.admin_tokens.list()]}

    async def _create(self, call: Call) -> Any:
        secret, token_hash = make_secret()
        outcome = await self._epoch.execute(
            c.AdminTokenAdd(call.body["name"], call.body["role"], token_hash, call.actor))
        value_of(outcome)
        return {"token": render(outcome.index, secret)}

    async def _revoke(self, call: Call) -> Any:
        return await self._epoch.value(c.AdminTokenRemove(call.path["name"], call.actor))
