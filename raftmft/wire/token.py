"""The text of a join token: what a new host must know of a cluster before it can trust anybody there.

    "rmft1." + base64url( body + checksum (4) )
    body = msgpack [cluster id, CA fingerprint, secret, expiry ms, [address, ...], proof key]

The checksum tells a slip of the hand from a forgery; that the token is genuine, only the cluster can tell by the hash
of its secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

import msgpack

from raftmft.core.addresses import address_of
from raftmft.core.errors import ConfigError
from raftmft.wire.frames import FrameError, unpack

PREFIX = "rmft1."
SECRET_BYTES = FINGERPRINT_BYTES = 32
PROOF_KEY_BYTES = 32
CHECKSUM_BYTES = 4
MOST_ADDRESSES = 8
MOST_CHARS = 4096
_BROKEN = ("the join token is cut off or changed; copy the whole line that raftmft token create printed, from rmft1. "
           "to its end")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """The cluster, the fingerprint (hex) of its CA's certificate, the secret, when it expires, members' addresses, and
    the key by which a member proves that it is one now (wire/joining.py): one that was removed has a certificate still.
    """

    cluster_id: str
    ca_fingerprint: str
    secret: bytes = field(repr=False)
    expires_ms: int
    addresses: tuple[str, ...]
    proof_key: bytes = field(default=bytes(PROOF_KEY_BYTES), repr=False)

    @property
    def hash(self) -> str:
        """What the cluster keeps of the token."""
        return hash_of(self.secret)


def hash_of(secret: bytes) -> str:
    """The name of a token in the replicated state: SHA-256 of its secret, in hex."""
    return hashlib.sha256(secret).hexdigest()


def encode_token(token: JoinToken) -> str:
    """The token's text."""
    body = msgpack.packb([token.cluster_id, bytes.fromhex(token.ca_fingerprint), token.secret, token.expires_ms,
                          list(token.addresses[:MOST_ADDRESSES]), token.proof_key], use_bin_type=True)
    return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")


def decode_token(text: str) -> JoinToken:
    """The token in a text. ConfigError of one line, which quotes nothing of it, if there is none."""
    text = text.strip()
    if not text.startswith(PREFIX):
        if text.startswith("rmft"):
            raise ConfigError("the join token is of another version or cut off; make one with raftmft token create of "
                              "the version that runs here")
        raise ConfigError("this is no join token: it begins with rmft1.; raftmft token create prints it")
    try:
        if len(text) > MOST_CHARS:
            raise ValueError
        coded = text[len(PREFIX):].encode("ascii")
        data = base64.b64decode(coded + b"=" * (-len(coded) % 4), b"-_", validate=True)
        body = data[:-CHECKSUM_BYTES]
        if _checksum(body) != data[-CHECKSUM_BYTES:]:
            raise ValueError
        cluster_id, fingerprint, secret, expires_ms, addresses, proof_key = unpack(body)
        if not (type(cluster_id) is str and type(fingerprint) is bytes and len(fingerprint) == FINGERPRINT_BYTES
                and type(secret) is bytes and len(secret) == SECRET_BYTES and type(expires_ms) is int
                and type(proof_key) is bytes and len(proof_key) == PROOF_KEY_BYTES
                and type(addresses) is list and 1 <= len(addresses) <= MOST_ADDRESSES
                and all(type(address) is str for address in addresses)):
            raise ValueError
        for address in addresses:
            address_of(address)
    except (ValueError, TypeError, binascii.Error, FrameError, ConfigError):
        raise ConfigError(_BROKEN) from None
    return JoinToken(cluster_id, fingerprint.hex(), secret, expires_ms, tuple(addresses), proof_key)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"raftmft join token" + body).digest()[:CHECKSUM_BYTES]
