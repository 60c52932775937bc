"""The admin API's bans of addresses."""

from __future__ import annotations

from typing import Any

from raftmft.core.bans import MAX_REASON_CHARS, BanRow, danger_of, parse_network
from raftmft.core.commands import BanAdd, BanRemove
from raftmft.node.api import OPERATOR, V1, Call, Operation
from raftmft.node.api_audit import iso
from raftmft.node.api_fields import BadRequest, Field
from raftmft.node.epoch import Epoch
from raftmft.node.state import ReplicatedState

BAN = {"network": str, "until": (str, None), "reason": str, "by": str, "since": str}
MOST_TTL_S = 10 * 366 * 24 * 3600


class BansApi:
    """What `raftmft ban` does."""

    def __init__(self, state: ReplicatedState, epoch: Epoch) -> None:
        self._state, self._epoch = state, epoch

    def operations(self) -> list[Operation]:
        """The routes."""
        network = Field("network", "text", "an address, or a network like 192.0.2.0/24", required=True, most=64)
        return [
            Operation("GET", f"{V1}/bans", "List the banned addresses", self._list, {"bans": [BAN]}),
            Operation("POST", f"{V1}/bans", "Ban an address or network; its sessions end", self._add,
                      {"network": str, "sessions": [int]}, OPERATOR, body=(
                          network, Field("ttl_s", "whole", "seconds until it ends; without: never", low=1,
                                         high=MOST_TTL_S),
                          Field("reason", "text", "why, for those who read the list", most=MAX_REASON_CHARS),
                          Field("force", "flag", "also if it covers loopback or every address"))),
            Operation("DELETE", f"{V1}/bans", "Lift a ban", self._remove, {"network": str}, OPERATOR, query=(network,)),
        ]

    async def _list(self, _: Call) -> Any:
        await self._epoch.barrier(timed=True)
        return {"bans": [_shown(ban) for ban in self._state.machine.bans.list()]}

    async def _add(self, call: Call) -> Any:
        body = call.body
        try:
            network = parse_network(body["network"])
        except ValueError as error:
            raise BadRequest(str(error)) from None
        danger = danger_of(network)
        if danger is not None and not body.get("force"):
            raise BadRequest(f"{danger}: that could lock you out; use --force if you mean it")
        until_ms = 0
        if "ttl_s" in body:
            # The barrier brings the leader's time, by which the ban will end.
            await self._epoch.barrier(timed=True)
            until_ms = self._state.machine.now_ms + body["ttl_s"] * 1000
        return await self._epoch.value(BanAdd(str(network), until_ms, body.get("reason", ""), call.actor))

    async def _remove(self, call: Call) -> Any:
        try:
            network = parse_network(call.query["network"])
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return await self._epoch.value(BanRemove(str(network), call.actor))


def _shown(ban: BanRow) -> dict[str, Any]:
    return {"network": ban.network, "until": iso(ban.until_ms) if ban.until_ms else None, "reason": ban.reason,
            "by": ban.actor, "since": iso(ban.since_ms)}
