"""A member admits hosts: it signs their key, has Raft list them, and only then hands out what a member must know."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from raftmft.cluster.certificates import CertificateFiles, Issued, expires_at, fingerprint_of_pem, sign_member, unseal
from raftmft.cluster.joining import check_clock
from raftmft.core.commands import MemberAdmit, MemberSpec
from raftmft.node.epoch import Epoch
from raftmft.node.genesis import AUTHORITY_KEY
from raftmft.node.state import ReplicatedState
from raftmft.wire.joining import Admitted, decode_join
from raftmft.wire.token import hash_of

_SPEC = ("id", "name", "host", "peer_port", "gossip_port", "sftp_port", "fingerprint", "mode", "weight")


class Admitting:
    """Answers JOIN requests. `cluster_key` gives the key that the replicated secrets are sealed with now."""

    def __init__(self, state: ReplicatedState, epoch: Epoch, files: CertificateFiles, cluster_key: Callable[[], bytes],
                 clock_ms: Callable[[], int]) -> None:
        self._state, self._epoch, self._files = state, epoch, files
        self._cluster_key, self._clock_ms = cluster_key, clock_ms

    async def join(self, table: dict[str, Any]) -> Admitted:
        """What the new member's directory is made of; its admission is committed. The member's id comes from its key,
        so that the same host asking twice gets the same. Raises RaftmftError, FrameError.
        """
        request = decode_join(table)
        check_clock(request.clock_ms, self._clock_ms(), "this cluster")
        await self._epoch.barrier()
        settings = self._state.machine.settings
        cluster_key = self._cluster_key()
        member = hashlib.sha256(request.public_key).hexdigest()[:16]
        authority = Issued(self._files.authority.read_bytes(),
                           unseal(cluster_key, AUTHORITY_KEY, settings.sealed_ca_key))
        certificate = sign_member(authority, member, request.public_key)
        spec = MemberSpec(member, request.name, request.host, request.peer_port, request.gossip_port,
                          request.sftp_port, fingerprint_of_pem(certificate))
        admitted = await self._epoch.value(MemberAdmit(
            hash_of(request.secret), hashlib.sha256(request.public_key).hexdigest(), spec,
            int(expires_at(certificate).timestamp() * 1000)))
        members = [{name: value for name, value in asdict(row).items() if name in _SPEC}
                   for row in self._state.machine.members.list()]
        # The key and what it sealed are read here together: it may have been changed since it signed above.
        return Admitted(
            admitted["member"], admitted["mode"], settings.cluster, settings.cluster_id, settings.replicas, certificate,
            settings.key, self._cluster_key(), settings.host_public_key, settings.sealed_host_key,
            settings.sealed_ca_key, members)
