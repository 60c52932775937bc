"""What members say to each other on a peer link, inside mutual TLS. Sans-IO: values to bytes and back, strictly.

Every connection opens with a Hello from the dialler and a Welcome in answer, each one frame of wire/frames.py of at
most HELLO_LIMIT bytes. A dialler that does not list the other's certificate says its first Hello for the channel
*lineage*: the Welcome to that carries the chain of endorsements (cluster/succession.py), and if that convinces, a Hello
for what it came for follows, once. Then the channel decides:

- *control*: frames of wire/frames.py, each `[kind, body]`: kind a short text, body bytes that the kind's owner decodes.
  The kinds PING, ASK and ANSWER are the link's own (heartbeats; a request and its reply).
- *bulk*: `u32 header length, u32 body length, header, body`. The header is msgpack, the body the chunk's bare bytes:
  it stays outside msgpack so that it is neither copied nor searched. The dialler asks (Put, Get), the other side
  answers (Ack, Found) in any order, matched by `seq`. A Put that is to be passed on is answered by one Ack, and in
  any order with it by one Passed for each further member.

All decoders raise FrameError on anything that does not fit; the connection must then be dropped. What a later version
may say does fit: further fields of a greeting, kinds of control messages, requests, bulk messages, statuses of answers.
It is passed over or refused, and the connection goes on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgpack

from raftmft.core.manifest import CHUNK_SIZE, ID_SIZE
from raftmft.wire import frames
from raftmft.wire.frames import MAX_FRAME, FrameError

VERSION = OLDEST = 1
"""The newest and the oldest protocol spoken here: two members speak the newest that both know."""
HELLO_LIMIT = 16 << 10
MOST_ENDORSEMENTS, CERTIFICATE_LIMIT, SIGNATURE_LIMIT = 8, 1 << 10, 128
"""Eight renewals within the life of a certificate may be missed; usual is one. A certificate of ours has 500 bytes."""
CONTROL_LIMIT = MAX_FRAME
BULK_BODY_LIMIT = CHUNK_SIZE
BULK_HEADER_LIMIT = 64 << 10
BULK_CODE_LIMIT = 127
MOST_PASSED_ON = 6
"""Members behind the first one that a Put may name: what is to have more copies is put to the others apart."""
NAME_LIMIT = 128
KIND_LIMIT = 16
TEXT_LIMIT = 400
SEQ_LIMIT = 1 << 63

CONTROL, BULK, LINEAGE = "control", "bulk", "lineage"
PING, ASK, ANSWER = "ping", "ask", "answer"
OK, FAILED, BUSY = "ok", "failed", "busy"

BULK_PREFIX = struct.Struct(">II")


Chain = tuple[tuple[bytes, bytes], ...]
"""What vouches for a certificate, the oldest first: each one before it (DER), and its key's signature on the next."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler's first words: its protocol version, the cluster it means, the channel it wants, who it is, and what
    vouches for its certificate.
    """

    version: int
    cluster_id: str
    channel: str
    member: str
    chain: Chain = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to a Hello. `refusal` is "" when the link may begin, else one line that says why not; `is_removed`
    says that it is because the dialler's member was removed from the cluster. On LINEAGE it has the answerer's chain.
    """

    version: int
    member: str
    refusal: str = ""
    chain: Chain = ()
    is_removed: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Bulk: "keep this chunk", and pass it on to the first of `then`, and so on; the body is its content."""

    seq: int
    chunk_id: bytes
    then: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    """Bulk: the answer to a Put. `refusal` is "" when the chunk is durable here, else one line that says why not."""

    seq: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """Bulk: what became of a Put at one of the members that it was to be passed on to. `refusal` as in Ack; it is also
    what hindered its being passed on.
    """

    seq: int
    member: str
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Get:
    """Bulk: "give me this chunk"."""

    seq: int
    chunk_id: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """Bulk: the answer to a Get; the body is the content, empty when it is not held (or its copy here is corrupt)."""

    seq: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """Bulk: a request of a later version. Its body, if it has one, is to be passed over, and the request refused."""

    seq: int


Bulk = Put | Ack | Get | Found | Passed
_PASS_ON = 5
_BULK_CODES: dict[type, int] = {Put: 1, Ack: 2, Get: 3, Found: 4, Passed: 6}


def encode_hello(hello: Hello) -> bytes:
    """The frame of a Hello."""
    return frames.encode({"raftmft": hello.version, "cluster": hello.cluster_id, "channel": hello.channel,
                          "member": hello.member, "chain": hello.chain})


def decode_hello(value: Any) -> Hello:
    """A Hello of any version."""
    fields = _fields(value, "raftmft", "cluster", "channel", "member", "chain")
    hello = Hello(_number(fields["raftmft"]), _text(fields["cluster"], NAME_LIMIT),
                  _text(fields["channel"], NAME_LIMIT), _text(fields["member"], NAME_LIMIT), _chain(fields["chain"]))
    if hello.channel not in (CONTROL, BULK, LINEAGE):
        raise FrameError("a hello for an unknown channel")
    return hello


def encode_welcome(welcome: Welcome) -> bytes:
    """The frame of a Welcome; the refusal is cut to TEXT_LIMIT."""
    return frames.encode({"raftmft": welcome.version, "member": welcome.member, "refusal": _cut(welcome.refusal),
                          "chain": welcome.chain, "removed": welcome.is_removed})


def decode_welcome(value: Any) -> Welcome:
    """A Welcome."""
    fields = _fields(value, "raftmft", "member", "refusal", "chain", "removed")
    if type(fields["removed"]) is not bool:
        raise FrameError("a welcome that does not say whether the dialler was removed")
    return Welcome(_number(fields["raftmft"]), _text(fields["member"], NAME_LIMIT),
                   _text(fields["refusal"], TEXT_LIMIT * 4, empty=True), _chain(fields["chain"]), fields["removed"])


def encode_control(kind: str, body: bytes | bytearray | memoryview) -> bytes:
    """The frame of one control message. ValueError if it would be over CONTROL_LIMIT: the peer would drop the link."""
    if len(body) > CONTROL_LIMIT - 64:
        raise ValueError(f"a control message of {len(body)} bytes is over the limit of {CONTROL_LIMIT - 64}")
    return frames.encode([kind, body])


def decode_control(value: Any) -> tuple[str, bytes]:
    """(kind, body) of one control message."""
    if type(value) is not list or len(value) != 2 or type(value[1]) is not bytes:
        raise FrameError("a control message must be [kind, body]")
    return _text(value[0], KIND_LIMIT), value[1]


def encode_ask(seq: int, op: str, args: dict[str, Any]) -> bytes:
    """The body of an ASK. TypeError if `args` holds what msgpack does not take."""
    return msgpack.packb([seq, op, args], use_bin_type=True)


def decode_ask(body: bytes) -> tuple[int, str, dict[str, Any]]:
    """(seq, op, args) of an ASK's body."""
    value = frames.unpack(body)
    if type(value) is not list or len(value) != 3 or type(value[2]) is not dict:
        raise FrameError("a request must be [seq, op, args]")
    if not all(type(key) is str for key in value[2]):
        raise FrameError("a request's arguments must be named")
    return _number(value[0]), _text(value[1], NAME_LIMIT), value[2]


def encode_answer(seq: int, status: str, value: Any) -> bytes:
    """The body of an ANSWER: status OK with the value, FAILED or BUSY with one line of text."""
    return msgpack.packb([seq, status, value], use_bin_type=True)


def decode_answer(body: bytes) -> tuple[int, str, Any]:
    """(seq, status, value) of an ANSWER's body."""
    value = frames.unpack(body)
    if type(value) is not list or len(value) != 3 or type(value[1]) is not str:
        raise FrameError("an answer must be [seq, status, value]")
    if value[1] not in (OK, FAILED, BUSY):
        return _number(value[0]), FAILED, "an answer that this version does not know"
    if value[1] != OK:
        _text(value[2], TEXT_LIMIT * 4, empty=True)
    return _number(value[0]), value[1], value[2]


def encode_bulk(message: Bulk, body_length: int = 0) -> bytes:
    """Prefix and header of one bulk message; the caller sends the body of `body_length` bytes right after."""
    detail: bytes | str | list[Any] = b""
    code = _BULK_CODES[type(message)]
    if isinstance(message, Put) and message.then:
        code, detail = _PASS_ON, [message.chunk_id, *message.then]
    elif isinstance(message, Put | Get):
        detail = message.chunk_id
    elif isinstance(message, Ack):
        detail = _cut(message.refusal)
    elif isinstance(message, Passed):
        detail = [message.member, _cut(message.refusal)]
    header = msgpack.packb([code, message.seq, detail], use_bin_type=True)
    return BULK_PREFIX.pack(len(header), body_length) + header


def bulk_lengths(prefix: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(header length, body length) from the 8 bytes before a header; both within their limits, or FrameError."""
    header_length, body_length = BULK_PREFIX.unpack(prefix)
    if not 0 < header_length <= BULK_HEADER_LIMIT:
        raise FrameError(f"a bulk header of {header_length} bytes is outside 1..{BULK_HEADER_LIMIT}")
    if body_length > BULK_BODY_LIMIT:
        raise FrameError(f"a bulk body of {body_length} bytes is over the limit of {BULK_BODY_LIMIT}")
    return header_length, body_length


def decode_bulk(header: bytes | bytearray | memoryview, body_length: int) -> Bulk | Unknown:
    """One bulk message from its header; `body_length` must suit it (a Put has a body, an Ack or Get none)."""
    value = frames.unpack(memoryview(header))
    if type(value) is not list or len(value) != 3 or type(value[0]) is not int:
        raise FrameError("a bulk header must be [code, seq, detail]")
    code, seq, detail = value[0], _number(value[1]), value[2]
    if code == 1 and body_length:
        return Put(seq, _chunk_id(detail))
    if code == 2 and not body_length:
        return Ack(seq, _text(detail, TEXT_LIMIT * 4, empty=True))
    if code == 3 and not body_length:
        return Get(seq, _chunk_id(detail))
    if code == 4 and detail == b"":
        return Found(seq)
    if code == _PASS_ON and body_length and type(detail) is list and 2 <= len(detail) <= 1 + MOST_PASSED_ON:
        then = tuple(_text(member, NAME_LIMIT) for member in detail[1:])
        if len(set(then)) == len(then):
            return Put(seq, _chunk_id(detail[0]), then)
    if code == 6 and not body_length and type(detail) is list and len(detail) == 2:
        return Passed(seq, _text(detail[0], NAME_LIMIT), _text(detail[1], TEXT_LIMIT * 4, empty=True))
    if code not in (*_BULK_CODES.values(), _PASS_ON) and 0 < code <= BULK_CODE_LIMIT:
        return Unknown(seq)
    raise FrameError("a bulk header of no kind, or with a body that does not suit it")


def _fields(value: Any, *names: str) -> dict[str, Any]:
    if type(value) is not dict or not value.keys() >= set(names):
        raise FrameError("a greeting with missing fields")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < SEQ_LIMIT:
        raise FrameError("a number that is none, or out of range")
    return value


def _text(value: Any, limit: int, *, empty: bool = False) -> str:
    if type(value) is not str or len(value) > limit or not (value or empty):
        raise FrameError("a text that is none, empty or too long")
    return value


def _chain(value: Any) -> Chain:
    if type(value) is not list or len(value) > MOST_ENDORSEMENTS:
        raise FrameError("a chain that is none, or too long")
    for link in value:
        if type(link) is not list or len(link) != 2 or not all(type(part) is bytes for part in link) or (
                len(link[0]) > CERTIFICATE_LIMIT or len(link[1]) > SIGNATURE_LIMIT):
            raise FrameError("a chain with a malformed endorsement")
    return tuple((certificate, signature) for certificate, signature in value)


def _chunk_id(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != ID_SIZE:
        raise FrameError("a chunk id that is none")
    return value


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
