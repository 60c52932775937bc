"""The admin API's members: drain, mode, weight, leaving, removal, leadership."""

from __future__ import annotations

from typing import Any

from raftmft.core import commands as c
from raftmft.core.members import MAX_WEIGHT, MODES, MemberRow
from raftmft.core.outcome import Code
from raftmft.node.api import OPERATOR, V1, Call, Operation
from raftmft.node.api_fields import BadRequest, Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.state import ReplicatedState
from raftmft.node.stewards import Stewards

SETTABLE = (*MODES, "undrain")


class MembersApi:
    """What `raftmft member` does. NAME is a member's name or id."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, stewards: Stewards) -> None:
        self._state, self._epoch, self._stewards = state, epoch, stewards

    def operations(self) -> list[Operation]:
        """The routes."""
        name = (Field("name", "text", "the member's name or id"),)
        one = f"{V1}/members/{{name}}"
        return [
            Operation("PATCH", one, "Change a member's mode or weight", self._set, {}, where=name, role=OPERATOR, body=(
                Field("mode", "text", "what the member does", choices=SETTABLE),
                Field("weight", "whole", "share of chunks and sessions, 100 is usual", high=MAX_WEIGHT))),
            Operation("GET", f"{one}/leaving", "Who does not hold yet what a leaving member held", self._leaving,
                      {"mode": str, "waiting_for": [str], "sessions": int}, where=name),
            Operation("POST", f"{one}/lead", "Have a member lead", self._lead, {}, where=name, role=OPERATOR),
            Operation("DELETE", one, "Remove a member at once: its certificate is listed no more", self._remove, {},
                      where=name),
        ]

    async def _set(self, call: Call) -> Any:
        if not call.body:
            raise BadRequest("nothing to set; give at least one of mode, weight")
        member = await self._member(call)
        return await self._epoch.value(c.MemberSet(
            member.id, mode=call.body.get("mode"), weight=call.body.get("weight"), actor=call.actor))

    async def _leaving(self, call: Call) -> Any:
        member = await self._member(call)
        machine = self._state.machine
        placement, sessions = machine.settings.placement, machine.sessions.count(member.id)
        waiting_for = ([f"{member.name} still stores: its mode must be leaving"] if member.stores else
                       await self._stewards.lacking(placement, placement))
        return {"mode": member.mode, "waiting_for": waiting_for, "sessions": sessions}

    async def _lead(self, call: Call) -> Any:
        member = await self._member(call)
        await self._stewards.lead(member.id)
        return {}

    async def _remove(self, call: Call) -> Any:
        member = await self._member(call)
        if len(self._state.machine.members.list()) > 1:
            await self._stewards.lead(None, other_than=member.id)
        return await self._epoch.value(c.MemberRemove(member.id, call.actor))

    async def _member(self, call: Call) -> MemberRow:
        await self._epoch.barrier()
        name = call.path["name"]
        for row in self._state.machine.members.list():
            if name in (row.name, row.id):
                return row
        raise Rejected(Code.NOT_FOUND, f"there is no member {name[:64]!r}; see raftmft member list")
