"""The preface of a relayed SFTP connection: who the client is, said by a member in a way that strangers cannot forge.

It stands in front of the SSH stream on the peer port, in plain TCP (SSH encrypts by itself):

    magic (8) | version u8 | body length u16 | body (msgpack, at most BODY_LIMIT) | BLAKE3 MAC over all before it (32)

The key is derived from the cluster key. The magic's first byte is neither a TLS record's nor any text's. The length is
known after HEAD_SIZE bytes, so a reader takes exactly the preface and no byte of what follows. Freshness and replay are
judged by cluster/relay.py: this module has no clock and no memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hmac import compare_digest

import msgpack
from blake3 import blake3

from raftmft.wire import frames
from raftmft.wire.frames import FrameError

MAGIC = b"\x89RMFTRLY"
VERSION = 1
NONCE_SIZE = 16
MAC_SIZE = 32
BODY_LIMIT = 512
NAME_LIMIT = 128
LIMIT_MOST_MS = 3_600_000
"""The longest time to log in that a preface can grant; no cluster's `login.limit_s` is longer."""
_HEAD = struct.Struct(">8sBH")
HEAD_SIZE = _HEAD.size
KEY_CONTEXT = "raftmft 2026-01 relay preface v1"


@dataclass(frozen=True, slots=True)
class Preface:
    """The client's address and port, the relaying and the meant member's ids, ms since the epoch, 16 random bytes, and
    the ms that are left to the client to log in (at most LIMIT_MOST_MS).
    """

    address: str
    port: int
    source: str
    target: str
    stamp_ms: int
    nonce: bytes
    limit_ms: int


def preface_key(cluster_key: bytes) -> bytes:
    """The MAC key of prefaces, derived from the cluster key (32 bytes)."""
    return blake3(cluster_key, derive_key_context=KEY_CONTEXT).digest()


def encode_preface(key: bytes, preface: Preface) -> bytes:
    """The preface's bytes, signed with `key` (of preface_key)."""
    body = msgpack.packb([preface.address, preface.port, preface.source, preface.target, preface.stamp_ms,
                          preface.nonce, preface.limit_ms], use_bin_type=True)
    if len(body) > BODY_LIMIT:
        raise ValueError(f"a relay preface of {len(body)} bytes is over {BODY_LIMIT}")
    signed = _HEAD.pack(MAGIC, VERSION, len(body)) + body
    return signed + _mac(key, signed)


def rest_length(head: bytes | bytearray) -> int:
    """How many bytes follow the first HEAD_SIZE ones. FrameError if they open no preface of this version."""
    magic, version, length = _HEAD.unpack(head)
    if magic != MAGIC:
        raise FrameError("no relay preface")
    if version != VERSION:
        raise FrameError(f"a relay preface of version {version}; this member speaks {VERSION}")
    if not 0 < length <= BODY_LIMIT:
        raise FrameError("a relay preface of an impossible length")
    return int(length) + MAC_SIZE


def decode_preface(key: bytes, data: bytes | bytearray) -> Preface:
    """The preface in `data` (all of it, head included). FrameError when it is malformed or not signed with `key`."""
    if len(data) < HEAD_SIZE or len(data) != HEAD_SIZE + rest_length(data[:HEAD_SIZE]):
        raise FrameError("a relay preface of a wrong length")
    signed, mac = bytes(data[:-MAC_SIZE]), bytes(data[-MAC_SIZE:])
    if not compare_digest(_mac(key, signed), mac):
        raise FrameError("a forged relay preface")
    value = frames.unpack(signed[HEAD_SIZE:])
    if type(value) is not list or len(value) != 7:
        raise FrameError("a malformed relay preface")
    address, port, source, target, stamp_ms, nonce, limit_ms = value
    if not (
        all(type(name) is str and 0 < len(name) <= NAME_LIMIT for name in (address, source, target))
        and type(port) is int
        and 0 <= port <= 65535
        and type(stamp_ms) is int
        and 0 <= stamp_ms < 1 << 63
        and type(nonce) is bytes
        and len(nonce) == NONCE_SIZE
        and type(limit_ms) is int
        and 0 <= limit_ms <= LIMIT_MOST_MS
    ):
        raise FrameError("a malformed relay preface")
    return Preface(address, port, source, target, stamp_ms, nonce, limit_ms)


def _mac(key: bytes, signed: bytes) -> bytes:
    return blake3(signed, key=key).digest()

