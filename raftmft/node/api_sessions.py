"""The admin API's sessions, of all members."""

from __future__ import annotations

from typing import Any

from raftmft.core.commands import SessionKill
from raftmft.core.outcome import Code
from raftmft.node.api import OPERATOR, V1, Call, Operation
from raftmft.node.api_audit import iso
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.state import ReplicatedState

SESSION = {"id": int, "user": str, "address": str, "member": str, "since": str, "method": str}


class SessionsApi:
    """Who is logged in, and out with them."""

    def __init__(self, state: ReplicatedState, epoch: Epoch) -> None:
        self._state, self._epoch = state, epoch

    def operations(self) -> list[Operation]:
        """The routes."""
        user = Field("user", "text", "only this user's sessions")
        number = Field("id", "whole", "the session's id", low=1)
        return [
            Operation("GET", f"{V1}/sessions", "List the live sessions of all members, oldest first", self._list,
                      {"sessions": [SESSION]}, query=(user,)),
            Operation("DELETE", f"{V1}/sessions/{{id}}", "End a session and disconnect its client", self._kill,
                      {"user": str, "member": str}, OPERATOR, (number,)),
        ]

    async def _list(self, call: Call) -> Any:
        await self._epoch.barrier()
        names, user = self._names(), call.query.get("user")
        return {"sessions": [
            {"id": s.id, "user": s.user, "address": s.address, "member": names.get(s.member, s.member),
             "since": iso(s.started_ms), "method": s.method}
            for s in self._state.machine.sessions.list() if user is None or s.user == user]}

    async def _kill(self, call: Call) -> Any:
        session = call.path["id"]
        try:
            value = await self._epoch.value(SessionKill(session, call.actor))
        except Rejected as refusal:
            if refusal.code != Code.NO_SESSION:
                raise
            raise Rejected(Code.NO_SESSION, f"there is no session {session}; see raftmft sessions list") from None
        return {"user": value["user"], "member": self._names().get(value["member"], value["member"])}

    def _names(self) -> dict[str, str]:
        return {member.id: member.name for member in self._state.machine.members.list()}
