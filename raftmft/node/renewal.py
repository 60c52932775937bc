"""This member's own certificate: told to the cluster, renewed at two thirds of its life, the old one retired.

Every member can sign for itself, since the authority's key is sealed with the cluster key; that a signature alone lets
nobody in (only what is listed is believed) makes that safe. A renewal is committed before the new pair is used, and the
old certificate is retired after: at every moment this member has one that is listed.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence

import trio

from raftmft.cluster.certificates import CertificateFiles, Issued, expires_at, issue_member
from raftmft.cluster.renewing import is_due, prepare, take, utc
from raftmft.core.commands import CertAdd, CertRetire
from raftmft.core.errors import NotApplied, OutcomeUnknown, RaftmftError
from raftmft.node.epoch import Epoch
from raftmft.node.state import ReplicatedState

log = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
RETRY_S = 5.0
EXPIRED_LINE = ("the certificate of this member has expired (%s): links to other members are refused. Is this host's "
                "clock right? Otherwise remove the member and let it join again")


class Renewal:
    """`authority_key()` gives the CA's private key (PEM), or raises RaftmftError; `contexts` are the TLS contexts in
    use, which take the new pair for their next handshakes.
    """

    def __init__(self, me: str, files: CertificateFiles, state: ReplicatedState, epoch: Epoch,
                 authority_key: Callable[[], bytes], contexts: Sequence[ssl.SSLContext],
                 clock_ms: Callable[[], int]) -> None:
        self._me, self._files, self._state, self._epoch = me, files, state, epoch
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

    async def renew(self) -> str:
        """Another key and certificate are in use; gives the fingerprint. RaftmftError or OSError: the old ones are.

        Cancelled before the commit, nothing is changed; after it, the next look retires whichever is not in use.
        """
        async with self._one_at_a_time:
            authority = Issued(self._files.authority.read_bytes(), self._authority_key())
            issued = issue_member(authority, self._me, now=utc(self._clock_ms()))
            await trio.to_thread.run_sync(prepare, self._files, issued)
            await self._add(issued.certificate, issued.fingerprint)
            await trio.to_thread.run_sync(take, self._files)
            for context in self._contexts:
                context.load_cert_chain(self._files.certificate, self._files.key)
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
