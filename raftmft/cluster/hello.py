"""How two members greet each other: TCP, mutual TLS, then Hello and Welcome. Both halves stand here side by side.

Who the peer is, is decided by its certificate's fingerprint in the *directory* (fingerprint -> member id, from Raft),
never by what it says: a Hello must only not contradict it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from raftmft.cluster.tls import TlsStream
from raftmft.core.errors import RaftmftError
from raftmft.wire import frames, peer
from raftmft.wire.frames import FrameError

HANDSHAKE_TIMEOUT_S = 5.0
DIAL_TIMEOUT_S = 2.0
CONTROL_BUFFER_BYTES, CONTROL_USER_TIMEOUT_S = 256 << 10, 3.0
# A bulk peer may stop reading for as long as its disk stalls; that it is dead, the control link notices.
BULK_BUFFER_BYTES, BULK_USER_TIMEOUT_S = 1 << 20, 20.0

Directory = Callable[[], Mapping[str, str]]
"""The present members: certificate fingerprint -> member id."""


class PeerRefused(RaftmftError):
    """A peer may not link with us, or we with it. One line says which member and why."""


class PeerUnreachable(RaftmftError):
    """No link to the member could be made: nothing was asked of it, a retry is safe."""

    retry_is_safe = True


@dataclass(frozen=True, slots=True)
class Self:
    """Who we are on every peer link: our member id, our cluster's id, our two TLS contexts."""

    member: str
    cluster_id: str
    server: ssl.SSLContext
    client: ssl.SSLContext


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
            if known != member:
                raise PeerRefused(f"{address[0]}:{address[1]} is not {member}: its certificate is "
                                  f"{'that of ' + known if known else 'not listed'}; check the member's address")
            await stream.send_all(peer.encode_hello(peer.Hello(peer.VERSION, me.cluster_id, channel, me.member)))
            welcome = peer.decode_welcome(await _read_greeting(stream))
            if welcome.refusal:
                raise PeerRefused(f"{member} refused the link: {welcome.refusal}")
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
    member = directory().get(stream.peer_fingerprint())
    if member is None:
        await _refuse(me, stream, "your certificate is not listed in this cluster, as far as this member knows: if it "
                                  "was revoked, or the member removed, let this host join again, into a new data "
                                  "directory")
        raise PeerRefused(f"an unlisted certificate ({stream.peer_fingerprint()[:16]}...) knocked")
    hello = peer.decode_hello(await _read_greeting(stream))
    problem = None
    if hello.version != peer.VERSION:
        problem = f"peer protocol {hello.version} is not spoken here, only {peer.VERSION}: run the same version"
    elif hello.cluster_id != me.cluster_id:
        problem = f"this is cluster {me.cluster_id}, not {hello.cluster_id}"
    elif hello.member != member:
        problem = f"your certificate is that of {member}, not of {hello.member}"
    if problem:
        await _refuse(me, stream, problem)
        raise PeerRefused(f"{member}: {problem}")
    await stream.send_all(peer.encode_welcome(peer.Welcome(peer.VERSION, me.member)))
    _suit(stream, hello.channel)
    return member, hello.channel


async def _refuse(me: Self, stream: TlsStream, text: str) -> None:
    await stream.send_all(peer.encode_welcome(peer.Welcome(peer.VERSION, me.member, text)))


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
