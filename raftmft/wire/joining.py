"""What a host that is no member yet and a member say to each other behind MAGIC, inside server-authenticated TLS.

    host    Knock      the hash of its token's secret, a nonce
    member  Greeting   protocol, cluster id, the CA's certificate (PEM), the member's clock, a proof
    host    request    [kind, {...}]: "join", or "renew" by a member whose certificate has expired
    member  answer     [status, value]: OK with what the kind gives, or a line with REFUSED, NO_QUORUM, UNKNOWN

The proof is a MAC over the nonce and the member's certificate, with a key that the token carries and a member derives
from the cluster key in force. A host that was removed or whose certificate was revoked cannot make it: the cluster key
was changed. Nor can it pass on another member's proof, which is of another certificate.

Each is one frame of at most LIMIT bytes. Decoders raise FrameError on whatever does not fit, and quote nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from blake3 import blake3

from raftmft.wire import frames
from raftmft.wire.frames import FrameError

MAGIC = b"\x8aRMFTJ1\n"
VERSION = 1
LIMIT = 64 << 10
TEXT_LIMIT = 400
NONCE_BYTES, HASH_CHARS = 32, 64
_PROOF_CONTEXT = "raftmft 2026-11 join proof v1"
JOIN, RENEW = "join", "renew"
OK, REFUSED, NO_QUORUM, UNKNOWN = "ok", "refused", "no-quorum", "unknown"
_TYPES = {"str": str, "int": int, "bool": bool, "bytes": bytes, "list[dict[str, Any]]": list}


@dataclass(frozen=True, slots=True)
class Knock:
    """A host's first words; they tell nothing that is secret."""

    token: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Greeting:
    """Whom the host talks to; to be checked against its token."""

    version: int
    cluster_id: str
    authority: bytes
    clock_ms: int
    proof: bytes


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A host asks to be admitted: the token's secret, where it will be found, its public key (PEM), its clock, its
    program's version and the feature level that this knows, and whether it takes a dead member's place and name.
    """

    secret: bytes = field(repr=False)
    name: str
    host: str
    peer_port: int
    gossip_port: int
    sftp_port: int
    public_key: bytes
    clock_ms: int
    version: str
    supports: int
    replace: bool = False


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """A member asks for a certificate (PEM) of a new public key (PEM) in place of one that has expired. `signature` is
    of `statement` by the old one's key.
    """

    member: str
    certificate: bytes
    public_key: bytes
    clock_ms: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Admitted:
    """All that a member's data directory is made of. `members` are MemberSpecs as dicts."""

    member: str
    mode: str
    cluster: str
    cluster_id: str
    replicas: int
    certificate: bytes
    key_name: str
    cluster_key: bytes = field(repr=False)
    host_public_key: str
    sealed_host_key: bytes
    sealed_ca_key: bytes
    members: list[dict[str, Any]]


def proof_key(cluster_key: bytes, token_hash: str) -> bytes:
    """The key by which members prove themselves to the bearer of one token."""
    return blake3(token_hash.encode(), key=blake3(cluster_key, derive_key_context=_PROOF_CONTEXT).digest()).digest()


def proof(key: bytes, nonce: bytes, certificate_der: bytes) -> bytes:
    """What proves that the owner of a certificate is a member now."""
    return blake3(nonce + certificate_der, key=key).digest()


def encode_knock(knock: Knock) -> bytes:
    """One frame."""
    return frames.encode(asdict(knock))


def decode_knock(value: Any) -> Knock:
    """The knock in a frame's value."""
    knock: Knock = _fill(Knock, value)
    if len(knock.token) != HASH_CHARS or len(knock.nonce) != NONCE_BYTES:
        raise FrameError("a malformed Knock")
    return knock


def encode_greeting(greeting: Greeting) -> bytes:
    """One frame."""
    return frames.encode(asdict(greeting))


def decode_greeting(value: Any) -> Greeting:
    """The greeting in a frame's value."""
    if type(value) is dict and type(value.get("version")) is int and value["version"] != VERSION:
        raise FrameError(f"the member speaks join protocol {value['version']}, this program {VERSION}: run the same "
                         "version on both")
    return _fill(Greeting, value)


def statement(cluster_id: str, member: str, public_key: bytes, clock_ms: int) -> bytes:
    """What the old key signs. Said again by somebody else it only certifies the same new key."""
    return b"raftmft renew v1\0" + frames.encode([cluster_id, member, public_key, clock_ms])


def encode_request(kind: str, request: JoinRequest | RenewRequest) -> bytes:
    """One frame."""
    return frames.encode([kind, asdict(request)])


def decode_request(value: Any) -> tuple[str, dict[str, Any]]:
    """(kind, fields); the kind's own decoder looks at the fields."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str or type(value[1]) is not dict:
        raise FrameError("a malformed request")
    return value[0], value[1]


def decode_join(table: dict[str, Any]) -> JoinRequest:
    """The fields of a JOIN request."""
    return _fill(JoinRequest, table)


def decode_renew(table: dict[str, Any]) -> RenewRequest:
    """The fields of a RENEW request."""
    return _fill(RenewRequest, table)


def encode_answer(status: str, value: Admitted | str) -> bytes:
    """One frame."""
    return frames.encode([status, value[:TEXT_LIMIT] if isinstance(value, str) else asdict(value)])


def decode_answer(value: Any) -> tuple[str, Admitted | str]:
    """(status, value)."""
    if type(value) is not list or len(value) != 2 or value[0] not in (OK, REFUSED, NO_QUORUM, UNKNOWN):
        raise FrameError("a malformed answer")
    if value[0] == OK:
        return OK, _fill(Admitted, value[1])
    if type(value[1]) is not str or len(value[1]) > TEXT_LIMIT:
        raise FrameError("a malformed answer")
    return value[0], value[1]


def _fill(kind: type[Any], table: Any) -> Any:
    wanted = {f.name: _TYPES[str(f.type)] for f in fields(kind)}
    if type(table) is not dict or not table.keys() >= wanted.keys():
        raise FrameError(f"a malformed {kind.__name__}")
    if any(type(table[name]) is not type_ for name, type_ in wanted.items()):
        raise FrameError(f"a malformed {kind.__name__}")
    return kind(**{name: table[name] for name in wanted})  # a later version may add fields
