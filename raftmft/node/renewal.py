"""This member's own certificate: told to the cluster, renewed at two thirds of its life, the old one retired.

Every member can sign for itself, since the authority's key is sealed with the cluster key; that a signature alone lets
nobody in (only what is listed is believed) makes that safe. A renewal is committed before the new pair is used, and the
old certificate is retired after: at every moment this member has one that is listed. To who is away meanwhile the old
key vouches for the new one (cluster/succession.py); that of an expired one would convince nobody.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace

import trio

from raftmft.cluster.certificates import (
    CertificateFiles,
    Issued,
    expires_at,
    fingerprint_of_pem,
    issue_member,
    load_member,
    make_key,
    public_key_of,
    sign,
)
from raftmft.cluster.joining import ask_to_join
from raftmft.cluster.renewing import is_due, prepare, take, utc
from raftmft.cluster.succession import succeed
from raftmft.core.commands import CertAdd, CertRetire
from raftmft.core.errors import NotApplied, OutcomeUnknown, RaftmftError
from raftmft.node.epoch import Epoch
from raftmft.node.state import ReplicatedState
from raftmft.wire.joining import RenewRequest, statement
from raftmft.wire.token import SECRET_BYTES, JoinToken

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
RETRY_S = 5.0
EXPIRED_LINE = ("the certificate of this member has expired (%s): links to other members are refused. Is this host's "
                "clock right? The other members are asked for another one")


class Renewal:
    """`authority_key()` gives the CA's private key (PEM), or raises RaftmftError; `contexts` are the TLS contexts in
    use, which take the new pair for their next handshakes.
    """

    def __init__(self, cluster_id: str, me: str, files: CertificateFiles, state: ReplicatedState, epoch: Epoch,
                 authority_key: Callable[[], bytes], contexts: Sequence[ssl.SSLContext],
                 clock_ms: Callable[[], int]) -> None:
        self._cluster_id, self._me, self._files, self._state, self._epoch = cluster_id, me, files, state, epoch
        self._authority_key, self._contexts, self._clock_ms = authority_key, contexts, clock_ms
        self._one_at_a_time = trio.Lock()

    async def run(self) -> None:
        """Looks every LOOK_EVERY_S until cancelled; to be started once the epoch has begun."""
        while True:
            pause_s = LOOK_EVERY_S
            try:
                await self._tell()
                if is_due(self._files.certificate.read_bytes(), utc(self._clock_ms())):
                    await self.renew()
                await self._retire_others()
            except (RaftmftError, OSError) as trouble:
                log.warning("the care of this member's certificate is put off: %s", trouble)
                pause_s = RETRY_S
            await trio.sleep(pause_s)

    def warn_if_expired(self) -> bool:
        """Whether the certificate is over by this host's clock; says so in the log."""
        until = expires_at(self._files.certificate.read_bytes())
        if utc(self._clock_ms()) < until:
            return False
        log.error(EXPIRED_LINE, until.isoformat())
        return True

    async def run_expired(self, cluster_id: str, addresses: Callable[[], Sequence[str]]) -> None:
        """If the certificate is over, has it renewed through the door for hosts that cannot link, however long that
        takes; returns when there is nothing to do. `addresses` gives the other members' HOST:PEERPORT.
        """
        while self.warn_if_expired():
            try:
                await self._renew_by_door(cluster_id, addresses())
                return
            except (RaftmftError, OSError) as trouble:
                log.error("the expired certificate is not renewed yet: %s", trouble)
            await trio.sleep(RETRY_S)

    async def _renew_by_door(self, cluster_id: str, addresses: Sequence[str]) -> None:
        old, key = load_member(self._files), make_key()
        public_key = public_key_of(key)
        authority = fingerprint_of_pem(self._files.authority.read_bytes())

        def request() -> RenewRequest:
            at = self._clock_ms()
            said = statement(cluster_id, self._me, public_key, at)
            return RenewRequest(self._me, old.certificate, public_key, at, sign(old.key, said))

        token = JoinToken(cluster_id, authority, bytes(SECRET_BYTES), 0, tuple(addresses))
        answer, _ = await ask_to_join(token, request, clock_ms=self._clock_ms)
        issued = Issued(answer.certificate, key)
        await trio.to_thread.run_sync(prepare, self._files, issued)
        await trio.to_thread.run_sync(take, self._files)
        self._load()
        log.info("this member's expired certificate is renewed: %s", issued.fingerprint[:16])

    def _load(self) -> None:
        for context in self._contexts:
            context.load_cert_chain(self._files.certificate, self._files.key)

    async def renew(self) -> str:
        """Another key and certificate are in use; gives the fingerprint. RaftmftError or OSError: the old ones are.

        Cancelled before the commit, nothing is changed; after it, the next look retires whichever is not in use.
        """
        async with self._one_at_a_time:
            authority = Issued(self._files.authority.read_bytes(), self._authority_key())
            now = utc(self._clock_ms())
            issued = issue_member(authority, self._me, now=now)
            issued = replace(issued, certificate=succeed(
                load_member(self._files), issued.certificate, self._cluster_id, self._me, now))
            await trio.to_thread.run_sync(prepare, self._files, issued)
            await self._add(issued.certificate, issued.fingerprint)
            await trio.to_thread.run_sync(take, self._files)
            self._load()
            log.info("this member's certificate is renewed: %s until %s", issued.fingerprint[:16],
                     expires_at(issued.certificate).isoformat())
            await self._retire_others()
            return issued.fingerprint

    async def _tell(self) -> None:
        """The end of the certificate in use stands in the list."""
        certificate = self._files.certificate.read_bytes()
        used = Issued(certificate, b"").fingerprint
        row = self._state.machine.certificates.get(used)
        if row is None or row.not_after_ms == 0:
            await self._add(certificate, used)

    async def _add(self, certificate: bytes, fingerprint: str) -> None:
        command = CertAdd(self._me, fingerprint, int(expires_at(certificate).timestamp() * 1000))
        try:
            await self._epoch.value(command)
        except OutcomeUnknown:
            await self._epoch.value(command)  # twice is once
        except NotApplied:
            await trio.sleep(RETRY_S / 10)
            await self._epoch.value(command)

    async def _retire_others(self) -> None:
        used = Issued(self._files.certificate.read_bytes(), b"").fingerprint
        listed = self._state.machine.certificates.listed()
        if listed.get(used) != self._me:
            return
        for fingerprint, member in listed.items():
            if member == self._me and fingerprint != used:
                await self._epoch.value(CertRetire(self._me, fingerprint))
