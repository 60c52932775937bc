"""Claims about the state's digests, as members send them over control links: msgpack, strict, bounded."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack

from raftmft.core.divergence import KEPT_POINTS, Claim
from raftmft.wire.frames import FrameError, unpack

FORMAT = 1
DIGEST_BYTES = 32
MAX_BODY_BYTES = 1024
_MAX_POINT = 1 << 53


def encode_claims(claims: Sequence[Claim]) -> bytes:
    """The body of one message."""
    return bytes(msgpack.packb([FORMAT, [[claim.point, claim.chain, claim.rows] for claim in claims]]))


def decode_claims(body: bytes) -> list[Claim]:
    """The claims of an untrusted body; none of one of a later format. Raises FrameError, never anything else."""
    if len(body) > MAX_BODY_BYTES:
        raise FrameError(f"{len(body)} bytes of digests are over the limit of {MAX_BODY_BYTES}")
    value = unpack(body)
    if type(value) is list and value and type(value[0]) is int and value[0] > FORMAT:
        return []
    _need(type(value) is list and len(value) == 2 and type(value[0]) is int and value[0] == FORMAT, "of this format")
    _need(type(value[1]) is list and len(value[1]) <= KEPT_POINTS, "a short list")
    claims = []
    for item in value[1]:
        _need(type(item) is list and len(item) == 3, "a list of point, chain and rows")
        point, chain, rows = item
        _need(type(point) is int and 0 < point < _MAX_POINT, "about a point in range")
        _need(type(chain) is bytes and len(chain) == DIGEST_BYTES, "with a whole chain")
        _need(type(rows) is bytes and len(rows) in (0, DIGEST_BYTES), "with a whole digest or none")
        claims.append(Claim(point, chain, rows))
    return claims


def _need(holds: bool, text: str) -> None:
    if not holds:
        raise FrameError(f"what came as digests is not {text}")
