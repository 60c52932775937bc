"""The door for hosts that are no members yet, and the way in: both sides of wire/joining.py.

The member proves itself by TLS with a certificate of the CA whose fingerprint the host's token names; the host proves
itself by the token's secret, which it tells to nobody else. Certificates' times are judged apart from signatures, and
after the clocks were compared, so that a wrong clock is called by its name.
"""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from hmac import compare_digest
from typing import Any

import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from raftmft.cluster.certificates import CertificateFiles, der_of_pem, fingerprint_of_pem
from raftmft.cluster.hello import HANDSHAKE_TIMEOUT_S
from raftmft.cluster.tls import TlsStream
from raftmft.core.addresses import address_of
from raftmft.core.errors import ConfigError, NodeUnreachable, NoQuorum, NotApplied, OutcomeUnknown, RaftmftError
from raftmft.wire import frames, joining
from raftmft.wire.frames import FrameError
from raftmft.wire.joining import Admitted, Greeting, JoinRequest, Knock, RenewRequest
from raftmft.wire.token import JoinToken

MOST_ANSWERING = 8
"""Requests answered at once; their certificates cost CPU, and only who was undecided before gets here."""
ANSWER_LIMIT_S = 8.0
CONNECT_LIMIT_S = 3.0
ANSWER_WAIT_S = ANSWER_LIMIT_S + 2.0
NO_QUORUM_LIMIT_S, UNKNOWN_LIMIT_S = 6.0, 45.0
"""How long after its begin a join is asked for again: an election is over by then; a request of unknown outcome is
asked for longer, as only an answer tells whether this host is admitted.
"""
PAUSE_S = 0.3
CLOCK_SKEW_MS = 5 * 60 * 1000

log = logging.getLogger(__name__)

Request = tuple[str, dict[str, Any]]
Handler = Callable[[dict[str, Any]], Awaitable[Admitted]]


class JoinDoor:
    """The member's side. `handlers`: kind -> what answers it; a RaftmftError it raises is told to the host."""

    def __init__(self, cluster_id: str, files: CertificateFiles, handlers: Mapping[str, Handler],
                 cluster_key: Callable[[], bytes]) -> None:
        self._cluster_id, self._handlers, self._cluster_key = cluster_id, handlers, cluster_key
        self._certificate = files.certificate
        self._authority = files.authority.read_bytes()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.num_tickets = 0
        self._context.load_cert_chain(files.certificate, files.key)
        self._answering = 0

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context; a renewed certificate is loaded into it."""
        return self._context

    async def listen(self, sock: socket.socket) -> tuple[TlsStream, Request]:
        """A host's request; the caller limits the time, and closes the stream, or the socket if this raises."""
        await _take_magic(sock)
        stream = TlsStream(sock, self._context, server_side=True)
        await stream.handshake(HANDSHAKE_TIMEOUT_S)
        knock = joining.decode_knock(await _read_frame(stream))
        await stream.send_all(joining.encode_greeting(
            Greeting(joining.VERSION, self._cluster_id, self._authority, _now_ms(), self._proof(knock))))
        return stream, joining.decode_request(await _read_frame(stream))

    def _proof(self, knock: Knock) -> bytes:
        try:
            key = joining.proof_key(self._cluster_key(), knock.token)
        except RaftmftError:
            return b""  # the key in force is not here yet: another member is asked
        return joining.proof(key, knock.nonce, der_of_pem(self._certificate.read_bytes()))

    async def answer(self, stream: TlsStream, request: Request) -> None:
        """Answers within ANSWER_LIMIT_S, or closes without a word."""
        if self._answering >= MOST_ANSWERING:
            await stream.send_all(joining.encode_answer(joining.NO_QUORUM, "too many hosts ask at once"))
            return
        self._answering += 1
        try:
            with trio.move_on_after(ANSWER_LIMIT_S):
                await stream.send_all(joining.encode_answer(*await self._decide(request)))
        finally:
            self._answering -= 1

    async def _decide(self, request: Request) -> tuple[str, Admitted | str]:
        kind, table = request
        handler = self._handlers.get(kind)
        if handler is None:
            return joining.REFUSED, "this member does not know such a request: run the same version on both"
        try:
            return joining.OK, await handler(table)
        except OutcomeUnknown as trouble:
            return joining.UNKNOWN, str(trouble)
        except NotApplied as trouble:
            return joining.NO_QUORUM, str(trouble)
        except (RaftmftError, FrameError) as trouble:
            return joining.REFUSED, str(trouble)


async def ask_to_join(token: JoinToken, request: Callable[[], JoinRequest | RenewRequest], first: str | None = None, *,
                      clock_ms: Callable[[], int] | None = None) -> tuple[Admitted, bytes]:
    """(admission, the CA's certificate). Asks at each address in turn, and again while an election may be under way.

    NodeUnreachable: nobody answered. NoQuorum: who did has none. RaftmftError: refused. OutcomeUnknown: it may have
    been admitted. The same request (one key) may be made as often as one likes: it is admitted once.
    """
    addresses = list(dict.fromkeys(([first] if first else []) + list(token.addresses)))
    began = trio.current_time()
    unknown, lacking, trouble = "", "", ""
    while True:
        reached = False
        for address in addresses:
            try:
                status, value, authority = await _ask(token, address, request, clock_ms or _now_ms)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, _Lost) as error:
                if isinstance(error, _Lost):
                    unknown, reached = f"{address} was asked and did not answer", True
                else:
                    trouble = f"{address}: {getattr(error, 'strerror', None) or error or 'no answer in time'}"
                continue
            except FrameError as error:
                raise RaftmftError(f"{address} does not speak our protocol: {error}") from None
            reached = True
            if isinstance(value, Admitted):
                return value, authority
            if status == joining.REFUSED:
                raise RaftmftError(f"{value}")
            unknown = value if status == joining.UNKNOWN else unknown
            lacking = f"{address}: {value}"
        if not (reached or unknown or lacking):
            raise NodeUnreachable(f"no member answers ({trouble}); are they running, and is their peer port open to "
                                  "this host?")
        if trio.current_time() >= began + (UNKNOWN_LIMIT_S if unknown else NO_QUORUM_LIMIT_S):
            if unknown:
                raise OutcomeUnknown(f"outcome unknown: this host may have been admitted ({unknown}); look at raftmft "
                                     "member list, and remove it there before it joins again")
            raise NoQuorum(f"no quorum: no member that answers has one ({lacking}); see raftmft status there")
        await trio.sleep(PAUSE_S)


class _Lost(Exception):
    """The request was sent and no answer came."""


async def _ask(token: JoinToken, address: str, request: Callable[[], JoinRequest | RenewRequest],
               clock_ms: Callable[[], int]) -> tuple[str, Admitted | str, bytes]:
    with trio.fail_after(CONNECT_LIMIT_S):
        opened = await trio.open_tcp_stream(*address_of(address))
        await opened.send_all(joining.MAGIC)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # verified below, against the token
    sock = socket.socket(opened.socket.family, socket.SOCK_STREAM, fileno=opened.socket.detach())
    stream = TlsStream(sock, context, server_side=False)
    try:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S):
            await stream.handshake(HANDSHAKE_TIMEOUT_S)
            nonce = secrets.token_bytes(joining.NONCE_BYTES)
            await stream.send_all(joining.encode_knock(Knock(token.hash, nonce)))
            greeting = joining.decode_greeting(await _read_frame(stream))
        check_member(token, greeting, stream.peer_certificate(), address, clock_ms())
        asked = request()
        if isinstance(asked, JoinRequest) and not compare_digest(
                greeting.proof, joining.proof(token.proof_key, nonce, stream.peer_certificate())):
            raise ConfigError(f"{address} could not prove that it is a member now: the token is forged, or was made "
                              "before the cluster key was changed, or the host was removed; make another token with "
                              "raftmft token create")
        kind = joining.RENEW if isinstance(asked, RenewRequest) else joining.JOIN
        try:  # from here on it may have been done
            with trio.fail_after(ANSWER_WAIT_S):
                await stream.send_all(joining.encode_request(kind, asked))
                status, value = joining.decode_answer(await _read_frame(stream))
        except (trio.BrokenResourceError, trio.TooSlowError, OSError):
            raise _Lost from None
        return status, value, greeting.authority
    finally:
        stream.close()


def check_member(token: JoinToken, greeting: Greeting, leaf_der: bytes, address: str, now_ms: int) -> None:
    """The member at `address` is one of the token's cluster, and our clocks agree. ConfigError otherwise."""
    other = ConfigError(f"{address} is of another cluster than the token; ask for a token there, or give the address "
                        "of a member of the token's cluster")
    try:
        authority = x509.load_pem_x509_certificate(greeting.authority)
        leaf = x509.load_der_x509_certificate(leaf_der)
        if fingerprint_of_pem(greeting.authority) != token.ca_fingerprint or greeting.cluster_id != token.cluster_id:
            raise other
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise other from None
    check_clock(now_ms, greeting.clock_ms, address)
    now = datetime.fromtimestamp(now_ms / 1000, timezone.utc)
    for certificate in (authority, leaf):
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise ConfigError(f"the certificate of {address} is not valid now; renew it there, or ask another member")


def check_clock(now_ms: int, theirs_ms: int, address: str) -> None:
    """ConfigError if two clocks are further apart than CLOCK_SKEW_MS."""
    if abs(now_ms - theirs_ms) > CLOCK_SKEW_MS:
        raise ConfigError(f"this host's clock differs from that of {address} by {abs(now_ms - theirs_ms) // 1000} s; "
                          "set it (NTP) and try again")


async def _take_magic(sock: socket.socket) -> None:
    taken = b""
    while len(taken) < len(joining.MAGIC):
        await trio.lowlevel.wait_readable(sock)
        piece = sock.recv(len(joining.MAGIC) - len(taken))
        taken += piece
        if not piece or not joining.MAGIC.startswith(taken):
            raise FrameError("asked to join in another protocol")


async def _read_frame(stream: TlsStream) -> Any:
    head = bytearray(4)
    if not await stream.receive_exactly_into(memoryview(head)):
        raise trio.BrokenResourceError("the other side closed")
    length = int.from_bytes(head, "big")
    if not 0 < length <= joining.LIMIT:
        raise FrameError(f"a message of {length} bytes is outside 1..{joining.LIMIT}")
    body = bytearray(length)
    if not await stream.receive_exactly_into(memoryview(body)):
        raise trio.BrokenResourceError("the other side closed")
    return frames.unpack(bytes(body))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


__all__ = ["JoinDoor", "ask_to_join", "check_clock", "check_member"]
