"""The admin API's audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio

from raftmft.core.audit import KINDS, MAX_QUERY_RECORDS, AuditLog
from raftmft.core.machine import open_reader
from raftmft.node.api import V1, Call, Operation
from raftmft.node.api_fields import Field
from raftmft.node.epoch import Epoch
from raftmft.node.state import ReplicatedState

SEARCHING = 2
_LAST_MS = 253_402_300_799_000  # the end of the year 9999, where datetime ends
_TEXT = (str, None)
RECORD = {"index": int, "time": str, "kind": str, "user": _TEXT, "path": _TEXT, "target": _TEXT, "member": _TEXT,
          "address": _TEXT, "session": (int, None), "size": (int, None), "digest": _TEXT, "outcome": str, "hash": str}
_FILTERS = (
    Field("user", "text", "only this user's records"),
    Field("kind", "text", "only this kind", choices=KINDS),
    Field("path", "text", "only this path or target, as the user sees it"),
    Field("after", "whole", "only records after this index"),
    Field("since", "time", "not before this time"),
    Field("until", "time", "before this time"),
    Field("limit", "whole", "at most so many records (and the rest of the last one's index)", low=1,
          high=MAX_QUERY_RECORDS),
)


class AuditApi:
    """Who transferred what. A rare record in a long log takes its time: in a thread, on a connection of its own."""

    def __init__(self, state: ReplicatedState, epoch: Epoch) -> None:
        self._state, self._epoch = state, epoch
        self._searching = trio.CapacityLimiter(SEARCHING)

    def operations(self) -> list[Operation]:
        """The routes."""
        return [Operation("GET", f"{V1}/audit", "Query the audit log, oldest first", self._query,
                          {"records": [RECORD]}, query=_FILTERS)]

    async def _query(self, call: Call) -> Any:
        query = call.query
        await self._epoch.barrier()
        search = partial(
            search_audit, self._state.machine.path, user=query.get("user"), kind=query.get("kind"),
            path=query.get("path"), after_index=query.get("after", 0), since_ms=query.get("since"),
            until_ms=query.get("until"), limit=query.get("limit", 1000))
        records = await trio.to_thread.run_sync(search, limiter=self._searching)
        names = {m.id: m.name for m in self._state.machine.members.list()}
        return {"records": [
            {**record, "time": iso(record["time"]), "member": names.get(record["member"], record["member"])}
            for record in records]}


def search_audit(state: str, /, **query: Any) -> list[dict[str, Any]]:
    """Audit records of the state file `state`, as of now. Blocks: call it in a thread."""
    reader = open_reader(state)
    try:
        return AuditLog(reader).query(**query)
    finally:
        reader.close()


def iso(time_ms: int) -> str:
    """A time of the state as people and JSON see it."""
    moment = datetime.fromtimestamp(min(time_ms, _LAST_MS) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
