"""How two members greet each other: TCP, mutual TLS, then Hello and Welcome. Both halves stand here side by side.

Who the peer is, is decided by its certificate's fingerprint in the *directory* (fingerprint -> member id, from Raft),
never by what it says: a Hello must only not contradict it. A certificate that is not there may be one that a listed one
vouches for (succession.py): the peer renewed it while this member was away. That opens control links; once one stands,
the rest is learned over it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from raftmft.cluster.certificates import CertificateFiles, client_context, server_context
from raftmft.cluster.succession import WAS_REMOVED, chain_of
from raftmft.cluster.tls import TlsStream
from raftmft.core.errors import RaftmftError
from raftmft.wire import frames, peer
from raftmft.wire.frames import FrameError
from raftmft.wire.peer import Chain

HANDSHAKE_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 2.0
CONTROL_BUFFER_BYTES, CONTROL_USER_TIMEOUT_S = 256 << 10, 3.0
# A bulk peer may stop reading for as long as its disk stalls; that it is dead, the control link notices.
BULK_BUFFER_BYTES, BULK_USER_TIMEOUT_S = 1 << 20, 20.0

Directory = Callable[[], Mapping[str, str]]
"""The present members: certificate fingerprint -> member id."""

Judge = Callable[[str, bytes, Chain], str]
"""Asked of (member, a certificate that the directory lacks, its chain): "" if the directory lists it as that member's
from now on, else why not.
"""


def nobody_else(member: str, certificate: bytes, chain: Chain) -> str:
    """The Judge that believes the directory alone."""
    return "none that is listed here vouches for it"


class PeerRefused(RaftmftError):
    """A peer may not link with us, or we with it. One line says which member and why."""


class PeerRemovedUs(PeerRefused):
    """A listed member, proven by its certificate, says that this member was removed. Ids are never given again: so it
    stays true.
    """


class PeerUnreachable(RaftmftError):
    """No link to the member could be made: nothing was asked of it, a retry is safe."""

    retry_is_safe = True


@dataclass(frozen=True, slots=True)
class Self:
    """Who we are on every peer link: our member id, our cluster's id, our two TLS contexts, what vouches for our
    certificate; and who judges what vouches for others'.
    """

    member: str
    cluster_id: str
    server: ssl.SSLContext
    client: ssl.SSLContext
    chain: Callable[[], Chain] = field(default=tuple)
    judge: Judge = nobody_else

    @classmethod
    def load(cls, member: str, cluster_id: str, files: CertificateFiles, judge: Judge) -> Self:
        """From a member's files. The chain is read when it is needed: it changes as the certificate does."""
        return cls(member, cluster_id, server_context(files), client_context(files),
                   lambda: chain_of(files.certificate.read_bytes()), judge)


async def dial(me: Self, member: str, address: tuple[str, int], channel: str, directory: Directory,
               *, timeout_s: float = DIAL_TIMEOUT_S) -> TlsStream:
    """A stream on which `member` itself has welcomed us, or PeerUnreachable, or PeerRefused; within `timeout_s`.

    Cancelled, no connection is left open.
    """
    stream: TlsStream | None = None
    try:
        with trio.fail_after(timeout_s):
            connection = await trio.open_tcp_stream(*address)
            stream = TlsStream(_take_socket(connection), me.client, server_side=False)
            await stream.handshake(timeout_s)
            known = directory().get(stream.peer_fingerprint())
            who = f"{address[0]}:{address[1]} is not {member}: its certificate is"
            if known is None and channel == peer.CONTROL:
                welcome = await _say_hello(me, stream, peer.LINEAGE, member)
                if objection := me.judge(member, stream.peer_certificate(), welcome.chain):
                    raise PeerRefused(f"{who} not listed: {objection}")
            elif known != member:
                raise PeerRefused(f"{who} {f'that of {known}' if known else 'not listed'}; check the member's address")
            await _say_hello(me, stream, channel, member)
            _suit(stream, channel)
        opened, stream = stream, None
        return opened
    except trio.TooSlowError:
        raise PeerUnreachable(f"{member} at {address[0]}:{address[1]} did not answer in {timeout_s:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise PeerUnreachable(f"{member} at {address[0]}:{address[1]} is not reachable: {error}") from None
    except FrameError as error:
        raise PeerRefused(f"{member} at {address[0]}:{address[1]} does not speak our protocol: {error}") from None
    finally:
        if stream is not None:
            stream.close()


async def answer(me: Self, stream: TlsStream, directory: Directory) -> tuple[str, str]:
    """(member, channel) of the peer that dialled us and was welcomed; the caller limits the time.

    PeerRefused (the peer was told why) or trio.BrokenResourceError or FrameError otherwise: close the stream.
    """
    await stream.handshake(HANDSHAKE_TIMEOUT_S)
    member, hello = await _identify(me, stream, directory)
    if hello.channel == peer.LINEAGE:  # it does not list us; if our chain does not convince it, it closes
        await stream.send_all(peer.encode_welcome(peer.Welcome(peer.VERSION, me.member, chain=me.chain())))
        member, hello = await _identify(me, stream, directory)
        if hello.channel == peer.LINEAGE:
            raise FrameError("asked twice who we are")
    await stream.send_all(peer.encode_welcome(peer.Welcome(min(peer.VERSION, hello.version), me.member)))
    _suit(stream, hello.channel)
    return member, hello.channel


async def _say_hello(me: Self, stream: TlsStream, channel: str, member: str) -> peer.Welcome:
    chain = () if channel == peer.BULK else me.chain()
    await stream.send_all(peer.encode_hello(peer.Hello(peer.VERSION, me.cluster_id, channel, me.member, chain)))
    welcome = peer.decode_welcome(await _read_greeting(stream))
    if welcome.refusal:
        # Before its lineage is judged, it may be anybody.
        believed = PeerRemovedUs if welcome.is_removed and channel != peer.LINEAGE else PeerRefused
        raise believed(f"{member} refused the link: {welcome.refusal}")
    if welcome.version < peer.OLDEST:
        raise PeerRefused(f"{member} speaks peer protocol {welcome.version} and this member {peer.OLDEST} and later "
                          "only: let it run a newer version")
    return welcome


async def _identify(me: Self, stream: TlsStream, directory: Directory) -> tuple[str, peer.Hello]:
    """Who dialled us, and the Hello that it said."""
    hello = peer.decode_hello(await _read_greeting(stream))
    member = directory().get(stream.peer_fingerprint())
    if member is None:
        objection = nobody_else(hello.member, b"", ()) if hello.channel == peer.BULK else (
            me.judge(hello.member, stream.peer_certificate(), hello.chain))
        if objection:
            await _refuse(me, stream, "your certificate is not listed in this cluster, as far as this member knows: "
                                      "if it was revoked, or the member removed, let this host join anew by raftmft "
                                      "join --replace",
                          # A survivor that was recovered by mistake must not end those that it left.
                          is_removed=objection == WAS_REMOVED and hello.cluster_id == me.cluster_id)
            raise PeerRefused(f"an unlisted certificate ({stream.peer_fingerprint()[:16]}...) knocked: {objection}")
        member = hello.member
    problem = None
    if hello.version < peer.OLDEST:
        problem = (f"you speak peer protocol {hello.version} and this member {peer.OLDEST} and later only: run a newer "
                   "version")
    elif hello.cluster_id != me.cluster_id:
        problem = f"this is cluster {me.cluster_id}, not {hello.cluster_id}"
    elif hello.member != member:
        problem = f"your certificate is that of {member}, not of {hello.member}"
    if problem:
        await _refuse(me, stream, problem)
        raise PeerRefused(f"{member}: {problem}")
    return member, hello


async def _refuse(me: Self, stream: TlsStream, text: str, *, is_removed: bool = False) -> None:
    await stream.send_all(peer.encode_welcome(peer.Welcome(peer.VERSION, me.member, text, is_removed=is_removed)))


async def _read_greeting(stream: TlsStream) -> object:
    """One frame of at most HELLO_LIMIT bytes, and not a byte more: what follows belongs to the channel."""
    head = bytearray(4)
    if not await stream.receive_exactly_into(memoryview(head)):
        raise trio.BrokenResourceError("the peer closed before it said who it is")
    length = int.from_bytes(head, "big")
    if not 0 < length <= peer.HELLO_LIMIT:
        raise FrameError(f"a greeting of {length} bytes is outside 1..{peer.HELLO_LIMIT}")
    body = bytearray(length)
    if not await stream.receive_exactly_into(memoryview(body)):
        raise trio.BrokenResourceError("the peer closed in the middle of its greeting")
    return frames.unpack(bytes(body))


def _suit(stream: TlsStream, channel: str) -> None:
    """Buffers and time limits of the channel, once the peer is known."""
    if channel == peer.CONTROL:
        stream.tune(CONTROL_BUFFER_BYTES, user_timeout_s=CONTROL_USER_TIMEOUT_S)
    else:
        stream.tune(BULK_BUFFER_BYTES, user_timeout_s=BULK_USER_TIMEOUT_S)


def _take_socket(connection: trio.SocketStream) -> socket.socket:
    """The bare socket of a fresh connection: TlsStream drives it itself."""
    family = connection.socket.family
    return socket.socket(family, socket.SOCK_STREAM, fileno=connection.socket.detach())
