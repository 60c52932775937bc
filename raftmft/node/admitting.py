"""A member admits hosts: it signs their key, has Raft list them, and only then hands out what a member must know."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import trio

from raftmft.cluster.certificates import (
    CertificateFiles,
    Issued,
    expires_at,
    fingerprint_of_pem,
    is_signed_by,
    sign_member,
    unseal,
)
from raftmft.cluster.joining import check_clock
from raftmft.core.certificates import LISTED
from raftmft.core.commands import CertAdd, MemberAdmit, MemberSpec
from raftmft.core.errors import RaftmftError
from raftmft.node.epoch import Epoch
from raftmft.node.genesis import AUTHORITY_KEY
from raftmft.node.state import ReplicatedState
from raftmft.wire.joining import Admitted, decode_join, decode_renew, statement
from raftmft.wire.token import hash_of

DEAD_WAIT_S, LOOK_EVERY_S = 4.5, 0.1
"""A member that ended just now is not held for dead yet. Below joining.ANSWER_LIMIT_S."""
_SPEC = ("id", "name", "host", "peer_port", "gossip_port", "sftp_port", "fingerprint", "mode", "weight")


class Admitting:
    """Answers JOIN requests. `cluster_key` gives the key that the replicated secrets are sealed with now, `is_dead`
    whether a member is dead as far as this one can tell.
    """

    def __init__(self, state: ReplicatedState, epoch: Epoch, files: CertificateFiles, cluster_key: Callable[[], bytes],
                 clock_ms: Callable[[], int], is_dead: Callable[[str], bool]) -> None:
        self._is_dead = is_dead
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
        replaces = await self._dead_one(request.name, member) if request.replace else ""
        admitted = await self._epoch.value(MemberAdmit(
            hash_of(request.secret), hashlib.sha256(request.public_key).hexdigest(), spec,
            int(expires_at(certificate).timestamp() * 1000), request.version, request.supports, replaces))
        return self._all(admitted["member"], admitted["mode"], certificate)

    async def _dead_one(self, name: str, member: str) -> str:
        """The id of the member of this name, which must be dead, or die within DEAD_WAIT_S; "" if there is none."""
        deadline = trio.current_time() + DEAD_WAIT_S
        while True:
            row = next((m for m in self._state.machine.members.list() if m.name == name and m.id != member), None)
            if row is None:
                return ""
            if self._is_dead(row.id):
                return row.id
            if trio.current_time() >= deadline:
                raise RaftmftError(f"the member {name} is alive, or was a moment ago; --replace takes the place of a "
                                   "dead one: stop its node and try again, or give another --name")
            await trio.sleep(LOOK_EVERY_S)

    async def renew(self, table: dict[str, Any]) -> Admitted:
        """Another certificate for a member whose own has expired, so that it can link with nobody. It must be listed
        still, and the request signed with its key. Raises RaftmftError, FrameError.
        """
        request = decode_renew(table)
        check_clock(request.clock_ms, self._clock_ms(), "this cluster")
        await self._epoch.barrier()
        machine, authority = self._state.machine, self._files.authority.read_bytes()
        said = statement(machine.settings.cluster_id, request.member, request.public_key, request.clock_ms)
        if not is_signed_by(request.certificate, authority, said, request.signature):
            raise RaftmftError("the renewal is not signed by the key of a certificate of this cluster")
        listed = machine.certificates.listed().get(fingerprint_of_pem(request.certificate))
        member = machine.members.get(request.member)
        if listed != request.member or member is None:
            raise RaftmftError("the certificate was revoked or retired, or its member removed: remove the member and "
                               "let the host join again")
        issuer = Issued(authority, unseal(self._cluster_key(), AUTHORITY_KEY, machine.settings.sealed_ca_key))
        certificate = sign_member(issuer, member.id, request.public_key)
        await self._epoch.value(CertAdd(member.id, fingerprint_of_pem(certificate),
                                        int(expires_at(certificate).timestamp() * 1000)))
        return self._all(member.id, member.mode, certificate)

    def _all(self, member: str, mode: str, certificate: bytes) -> Admitted:
        settings = self._state.machine.settings
        shown = self._shown()
        members = [{name: value for name, value in asdict(row).items() if name in _SPEC}
                   | {"fingerprint": shown.get(row.id, row.fingerprint)} for row in self._state.machine.members.list()]
        # The key and what it sealed are read here together: it may have been changed since it signed above.
        return Admitted(
            member, mode, settings.cluster, settings.cluster_id, settings.replicas, certificate,
            settings.key, self._cluster_key(), settings.host_public_key, settings.sealed_host_key,
            settings.sealed_ca_key, members)

    def _shown(self) -> dict[str, str]:
        """Member id -> the certificate by which a new member will know it: its oldest that is listed and has not
        expired, since where a renewal is under way that one vouches for the next (cluster/succession.py); the newest
        if all have. The one that it once joined with is not listed any more.
        """
        now, found = self._clock_ms(), dict[str, str]()
        rows = [row for row in self._state.machine.certificates.list() if row.state == LISTED]
        for row in [*rows, *(row for row in reversed(rows) if not 0 < row.not_after_ms <= now)]:
            found[row.member] = row.fingerprint
        return found
