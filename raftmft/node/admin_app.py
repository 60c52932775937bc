"""The admin API put together: one line for each theme. A theme's file is node/api_<theme>.py."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from raftmft.cluster.certificates import fingerprint_of_pem
from raftmft.node.api import build
from raftmft.node.api_audit import AuditApi
from raftmft.node.api_backups import BackupsApi
from raftmft.node.api_bans import BansApi
from raftmft.node.api_certs import CertsApi
from raftmft.node.api_config import ConfigApi
from raftmft.node.api_files import FilesApi, Placing
from raftmft.node.api_joining import JoiningApi
from raftmft.node.api_members import MembersApi
from raftmft.node.api_node import NodeApi
from raftmft.node.api_sessions import SessionsApi
from raftmft.node.api_tokens import TokensApi
from raftmft.node.api_users import UsersApi
from raftmft.node.metrics import Metrics
from raftmft.node.openapi import with_document
from raftmft.node.status import describe

if TYPE_CHECKING:
    from raftmft.node.app import Node


def admin_app(node: Node) -> Starlette:
    """The ASGI application of a node, behind whatever guard its listeners have."""
    state, epoch = node.state, node.epoch
    about = NodeApi(lambda: describe(node.view.facts()), node.not_ready, node.view.members)
    operations = [
        *about.operations(),
        *MembersApi(state, epoch, node.stewards).operations(),
        *CertsApi(state, epoch, node.renewal, node.stewards).operations(),
        *UsersApi(state, epoch).operations(),
        *SessionsApi(state, epoch).operations(),
        *BansApi(state, epoch).operations(),
        *ConfigApi(state, epoch).operations(),
        *FilesApi(state, epoch, lambda: _placing(node), node.holders.who_holds, node.fetcher.read).operations(),
        *AuditApi(state, epoch).operations(),
        *TokensApi(state, epoch).operations(),
        *BackupsApi(state, epoch, node.snapshotter, node.snapshots).operations(),
        *JoiningApi(epoch, node.seed.cluster_id, fingerprint_of_pem(node.data_dir.certificates.authority.read_bytes()),
                    node.view.members, node.keys.present).operations(),
    ]
    return build(with_document(operations), [*about.open_routes(), *Metrics(lambda: measure(node)).open_routes()])


def _placing(node: Node) -> Placing:
    return Placing(node.view.members(), node.view.storing(), node.view.replicas())


def measure(node: Node) -> dict[str, float]:
    """The numbers of metrics.py, now."""
    raft, machine, workers = node.driver.status(), node.state.machine, list(node.workers.live.values())
    files, size = machine.namespace.all_chunk_totals()
    states = node.view.states()
    return {
        "sessions": sum(len(worker.sessions) for worker in workers), "workers": len(workers),
        "raft_term": raft.term, "raft_commit_index": raft.commit_index, "raft_applied_index": node.state.applied,
        "raft_log_bytes": node.replica.journal.size_bytes, "raft_snapshot_index": node.driver.compaction.latest_index,
        "raft_is_leader": raft.role == "leader", "has_quorum": node.view.has_quorum(),
        "members": len(node.view.members()), "members_alive": list(states.values()).count("alive"),
        "missing_chunks": node.repairer.missing,
        "disk_free_bytes": shutil.disk_usage(node.data_dir.path).free,
        "files": files, "file_bytes": size, "audit_records": machine.audit.count,
        "received_bytes": sum(worker.bytes_in for worker in workers),
        "sent_bytes": sum(worker.bytes_out for worker in workers),
        "refused_logins": node.logins.refused_count, "repaired_chunks": node.repairer.repaired,
    }
