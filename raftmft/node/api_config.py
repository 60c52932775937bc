"""The admin API's cluster-wide options."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raftmft.core import commands as c
from raftmft.core.options import MAX_VALUE_CHARS, OPTIONS
from raftmft.core.outcome import Code
from raftmft.node.api import V1, Call, Operation
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.node.link import Rejected
from raftmft.node.state import ReplicatedState

OPTION = {"key": str, "value": str, "default": str, "is_set": bool, "kind": str, "allowed": str, "help": str}


class ConfigApi:
    """What `raftmft config` does."""

    def __init__(self, state: ReplicatedState, epoch: Epoch) -> None:
        self._state, self._epoch = state, epoch

    def operations(self) -> list[Operation]:
        """The routes."""
        key = (Field("key", "text", "the option's key, like login.limit_s"),)
        value = Field("value", "text", "the new value as text; \"\" for the default", required=True,
                      most=MAX_VALUE_CHARS)
        return [
            Operation("GET", f"{V1}/config", "List the options", self._list, {"options": [OPTION]}),
            Operation("GET", f"{V1}/config/{{key}}", "Show an option", self._get, OPTION, where=key),
            Operation("PUT", f"{V1}/config/{{key}}", "Set an option in the whole cluster", self._set, {"value": str},
                      where=key, body=(value,)),
        ]

    async def _list(self, _: Call) -> Any:
        await self._epoch.barrier()
        return {"options": [asdict(row) for row in self._state.machine.options.list()]}

    async def _get(self, call: Call) -> Any:
        await self._epoch.barrier()
        row = self._state.machine.options.row(call.path["key"])
        if row is None:
            raise Rejected(Code.NOT_FOUND,
                           f"there is no option '{call.path['key'][:64]}'; known are {', '.join(OPTIONS)}")
        return asdict(row)

    async def _set(self, call: Call) -> Any:
        return await self._epoch.value(c.ConfigSet(call.path["key"], call.body["value"], call.actor))
