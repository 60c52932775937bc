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
    Field("newest", "flag", "the last records that fit, not the first"),
)


class AuditApi:
    """Who transferred what. A rare record in a long log takes its time: in a thread, on a connection of its own."""

    def __init__(self, state: ReplicatedState, epoch: Epoch) -> None:
        self._state, self._epoch = state, epoch
        self._searching = trio.CapacityLimiter(SEARCHING)

    def operations(self) -> list[Operation]:
        """The routes."""
        after = Field("after", "whole", "only records after this index")
        limit = Field("limit", "whole", "at most so many records", low=1, high=MAX_QUERY_RECORDS)
        return [
            Operation("GET", f"{V1}/audit", "Query the audit log, oldest first", self._query,
                      {"records": [RECORD]}, query=_FILTERS),
            Operation("GET", f"{V1}/audit/chain", "Records as they are hashed: time in ms, member by id",
                      self._chain, {"through": int, "records": [{**RECORD, "time": int}]}, query=(after, limit)),
            Operation("GET", f"{V1}/audit/verify", "Check this node's whole chain of hashes", self._verify,
                      {"ok": bool, "bad_index": (int, None), "count": int, "head": str}),
        ]

    async def _query(self, call: Call) -> Any:
        query = call.query
        await self._epoch.barrier()
        search = partial(
            search_audit, self._state.machine.path, user=query.get("user"), kind=query.get("kind"),
            path=query.get("path"), after_index=query.get("after", 0), since_ms=query.get("since"),
            until_ms=query.get("until"), limit=query.get("limit", 1000), newest=query.get("newest", False))
        records = await trio.to_thread.run_sync(search, limiter=self._searching)
        names = {m.id: m.name for m in self._state.machine.members.list()}
        return {"records": [
            {**record, "time": iso(record["time"]), "member": names.get(record["member"], record["member"])}
            for record in records]}


    async def _chain(self, call: Call) -> Any:
        await self._epoch.barrier()
        through = self._state.applied
        search = partial(search_audit, self._state.machine.path, after_index=call.query.get("after", 0),
                         limit=call.query.get("limit", 1000))
        records = await trio.to_thread.run_sync(search, limiter=self._searching)
        return {"through": through, "records": records}

    async def _verify(self, _: Call) -> Any:
        await self._epoch.barrier()
        return await trio.to_thread.run_sync(verify_audit, self._state.machine.path, limiter=self._searching)


def verify_audit(state: str) -> dict[str, Any]:
    """Whether the chain of the state file holds. About 5 us a record: call it in a thread."""
    reader = open_reader(state)
    try:
        reader.execute("BEGIN")  # one snapshot, however long it takes
        audit = AuditLog(reader)
        bad = audit.verify()
        return {"ok": bad is None, "bad_index": bad, "count": audit.count, "head": audit.head}
    finally:
        reader.close()


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
