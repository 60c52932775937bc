"""What this node tells Prometheus, gathered when it asks: no number is kept twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

GAUGES = {
    "sessions": "Live sessions on this node",
    "workers": "Session workers that run",
    "raft_term": "The present Raft term",
    "raft_commit_index": "The last committed Raft index that this node knows",
    "raft_applied_index": "The last Raft index in this node's state",
    "raft_log_bytes": "What the Raft log takes on this node's disk",
    "raft_snapshot_index": "The Raft index of this node's latest snapshot, 0 if there is none",
    "raft_is_leader": "1 if this node leads",
    "has_quorum": "1 if this node is in contact with a majority",
    "members": "Members of the cluster",
    "members_alive": "Members that this node holds for alive",
    "missing_chunks": "Chunks that this node should hold and found nobody to give",
    "disk_free_bytes": "Free space below the data directory",
    "files": "Published files in the whole cluster",
    "file_bytes": "Bytes of published files in the whole cluster",
    "audit_records": "Records in the audit log",
}
COUNTERS = {
    "received_bytes": "Bytes that SFTP clients sent to this node's present workers",
    "sent_bytes": "Bytes that SFTP clients got from this node's present workers",
    "refused_logins": "Logins refused on this node since it started",
    "repaired_chunks": "Chunks fetched for repair since the node started",
}


class Metrics:
    """`values` gives the numbers now, by the names above."""

    def __init__(self, values: Callable[[], Mapping[str, float]]) -> None:
        self._values = values
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Prometheus' collector."""
        values = self._values()
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"raftmft_{name}", text, value=values[name])
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"raftmft_{name}", text, value=values[name])

    def open_routes(self) -> list[Route]:
        """Routes for anybody who can connect."""
        return [Route("/metrics", self._metrics)]

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})
