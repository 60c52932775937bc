"""The admin API's view of the node and the cluster: health, status, version, members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from raftmft import __version__
from raftmft.core import features
from raftmft.core.members import MemberRow
from raftmft.node.api import V1, Call, Operation

MEMBER = {"name": str, "id": str, "mode": str, "weight": int, "host": str, "sftp_port": int, "peer_port": int,
          "gossip_port": int, "version": str, "feature_level": int}
STATUS = {
    "cluster": str, "verdict": str, "reasons": [str], "leader": (str, None), "term": int, "commit_index": int,
    "can_lose": {"members": int, "disks": int}, "under_replicated": int, "feature_level": int,
    "members": [{"name": str, "mode": str, "role": str, "state": str, "applied_index": int, "sessions": int,
                 "load": float, "disk_free_bytes": int, "version": str, "feature_level": int}]}


class NodeApi:
    """`status` gives the status document; `ready` None when this node serves, else why not."""

    def __init__(self, status: Callable[[], dict[str, Any]], ready: Callable[[], str | None],
                 members: Callable[[], Sequence[MemberRow]]) -> None:
        self._status, self._ready, self._members = status, ready, members

    def open_routes(self) -> list[Route]:
        """Routes for anybody who can connect."""
        return [Route("/healthz", self._healthz), Route("/readyz", self._readyz)]

    def operations(self) -> list[Operation]:
        """The routes."""
        return [
            Operation("GET", f"{V1}/status", "The cluster, and what it can lose now", self._get_status, STATUS),
            Operation("GET", f"{V1}/version", "The version of this node", self._get_version,
                      {"version": str, "feature_level": int}),
            Operation("GET", f"{V1}/members", "List the members", self._get_members, {"members": [MEMBER]}),
        ]

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, _: Request) -> Response:
        reason = self._ready()
        return PlainTextResponse(f"{reason or 'ready'}\n", 503 if reason else 200)

    async def _get_status(self, _: Call) -> Any:
        return self._status()

    async def _get_version(self, _: Call) -> Any:
        return {"version": __version__, "feature_level": features.CURRENT.newest}

    async def _get_members(self, _: Call) -> Any:
        return {"members": [
            {"name": m.name, "id": m.id, "mode": m.mode, "weight": m.weight, "host": m.host, "sftp_port": m.sftp_port,
             "peer_port": m.peer_port, "gossip_port": m.gossip_port, "version": m.version, "feature_level": m.supports}
            for m in sorted(self._members(), key=lambda m: m.name)]}
