"""A member vouches for its next certificate with the key of its last one, so that who was away knows it again.

Who may link stands in the replicated list, by certificate. A member that is away while the others renew comes back with
a list that knows none of their certificates, and only they could bring it up to date. So each certificate that a member
makes is signed with the key of the one before, and carries the last few such *endorsements*: its *chain*, shown to who
does not list it. Each is a predecessor's certificate and its signature on its successor's fingerprint.

`objection` follows a chain backwards, and the first certificate that is known decides: if it lets the member link, so
does its successor. That gives nobody more than he had:

- A chain ends at a listed certificate that has not expired, whose key made the endorsement. Whoever can make one could
  have shown that certificate itself, to the same member, until the same day.
- Who knows of a revocation, retirement or removal lets nobody in by what is revoked, retired or gone: the newest known
  certificate decides, not the oldest. Who does not know of it yet believes the stolen host as it would have if that had
  not renewed; it hears of it by the log, as of any revocation.
- The authority's signature counts for nothing here: every member can make one, a stolen one too.
- An identity never changes on the way: the signature says of which member of which cluster it is, and the one that is
  believed is that of the listed certificate.

The chain stands in the certificate's own file, behind it, as PEM blocks of their own, which others pass over: so there
is no moment at which the two do not fit.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from datetime import datetime

import msgpack
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from raftmft.cluster.certificates import Issued, der_of_pem, fingerprint, fingerprint_of_pem, sign
from raftmft.wire.frames import FrameError, unpack
from raftmft.wire.peer import CERTIFICATE_LIMIT, MOST_ENDORSEMENTS, SIGNATURE_LIMIT, Chain

LONG_AWAY = ("one that it followed has expired, so this member was away for too long: remove it and let this host join "
             "again, into a new data directory")
WAS_REMOVED = "its member was removed from this cluster"
"""The objection of which the peer is told in a way that it acts upon (hello.py)."""
_CONTEXT = b"raftmft certificate succession v1\0"
_LABEL = "RAFTMFT ENDORSEMENT"
_BLOCK = re.compile(f"-----BEGIN {_LABEL}-----\n(.*?)-----END {_LABEL}-----".encode(), re.DOTALL)
_LINE_CHARS = 64

Standing = Callable[[str], bool | None]
"""What is known of a certificate, by its fingerprint: True, it lets the member link; False, it does not (it is revoked,
retired or another member's); None, it was never heard of.
"""


def succeed(old: Issued, certificate: bytes, cluster_id: str, member: str, now: datetime) -> bytes:
    """`certificate` (PEM) with its chain behind it: `old` vouches for it, and what vouched for `old` follows, as far as
    that has not expired; MOST_ENDORSEMENTS at most.
    """
    old_der = der_of_pem(old.certificate)
    signature = sign(old.key, _statement(cluster_id, member, fingerprint(old_der), fingerprint_of_pem(certificate)))
    chain = [*chain_of(old.certificate), (old_der, signature)]
    while chain and x509.load_der_x509_certificate(chain[0][0]).not_valid_after_utc < now:
        del chain[0]
    return certificate + b"".join(_block(*link) for link in chain[-MOST_ENDORSEMENTS:])


def chain_of(certificate: bytes) -> Chain:
    """The chain behind a certificate in PEM, the oldest first. Damaged or too many: none; it is a help, not a must."""
    links: list[tuple[bytes, bytes]] = []
    for text in _BLOCK.findall(certificate):
        try:
            der, signature = unpack(base64.b64decode(b"".join(text.split()), validate=True))
            x509.load_der_x509_certificate(der)
        except (FrameError, binascii.Error, ValueError, TypeError):
            return ()
        if type(signature) is not bytes or len(der) > CERTIFICATE_LIMIT or len(signature) > SIGNATURE_LIMIT:
            return ()
        links.append((der, signature))
    return tuple(links) if len(links) <= MOST_ENDORSEMENTS else ()


def objection(cluster_id: str, member: str, certificate: bytes, chain: Chain, standing: Standing, now: datetime) -> str:
    """"" if `certificate` (DER) is to be believed as that of `member`, else one line that says why not."""
    if len(chain) > MOST_ENDORSEMENTS:
        return f"it comes with more than {MOST_ENDORSEMENTS} endorsements"
    successor, seen = fingerprint(certificate), set[str]()
    known = standing(successor)
    for der, signature in reversed(chain):
        if known is not None:
            break
        seen.add(successor)
        predecessor = fingerprint(der)
        if predecessor in seen:
            return "its endorsements lead in a circle"
        until = _signed_until(der, _statement(cluster_id, member, predecessor, successor), signature)
        if until is None:
            return "an endorsement of it is forged, or is of another member or cluster"
        if until < now:
            return LONG_AWAY
        successor, known = predecessor, standing(predecessor)
    if known is None:
        return "none that is listed here vouches for it"
    return "" if known else "it, or one that it followed, is retired, revoked, or of another member"


def _signed_until(der: bytes, statement: bytes, signature: bytes) -> datetime | None:
    """When the certificate ends whose key signed the statement; None if that is not so."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return None
        key.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
        return certificate.not_valid_after_utc
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return None


def _statement(cluster_id: str, member: str, old: str, new: str) -> bytes:
    return _CONTEXT + bytes(msgpack.packb([cluster_id, member, old, new]))


def _block(der: bytes, signature: bytes) -> bytes:
    text = base64.b64encode(msgpack.packb([der, signature])).decode()
    lines = [text[at:at + _LINE_CHARS] for at in range(0, len(text), _LINE_CHARS)]
    return "\n".join([f"-----BEGIN {_LABEL}-----", *lines, f"-----END {_LABEL}-----", ""]).encode()
