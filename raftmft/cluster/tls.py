"""TLS over a non-blocking TCP socket, driven by hand: `ssl.SSLObject` between two MemoryBIOs with large buffers.

About twice as fast as trio.SSLStream, because ciphertext moves in pieces of up to a megabyte and is decrypted straight
into the caller's buffer. One task may send while another receives: the TLS object is only ever touched between awaits,
and ciphertext leaves in the order in which it was made. What TLS itself wants to send while receiving (the answer to a
key update) waits in the outgoing BIO for the next send, so that a receiver never waits for a peer to read.

Errors: trio.BrokenResourceError when the connection is of no more use (closed by the peer halfway, bad TLS, cancelled
send); trio.ClosedResourceError when it was closed here; trio.BusyResourceError for a second sender or receiver.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

import trio

from raftmft.cluster.certificates import fingerprint

PIECE_BYTES = 1 << 20
"""How much plaintext is encrypted before it is handed to the socket."""
HANDSHAKE_BUFFER_BYTES = 16 << 10
"""The receive buffer until `tune`: strangers shall cost little memory."""

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


class TlsStream:
    """One TLS connection. It owns `sock` from here on; nothing is sent before `handshake`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._ciphertext = memoryview(bytearray(HANDSHAKE_BUFFER_BYTES))
        self._unsent = memoryview(b"")
        self._sending = self._receiving = self._broken = self._closed = False
        self.moved_bytes = 0

    async def handshake(self, timeout_s: float) -> None:
        """Both sides have proved their certificates. trio.TooSlowError after `timeout_s`; BrokenResourceError with the
        reason if the peer's certificate or protocol is refused. Anything but success leaves a stream to be closed.

        A TLS 1.3 client is done before the server has judged its certificate: it learns of a refusal when it receives.
        """
        with trio.fail_after(timeout_s):
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    await self._drain()
                    if not await self._receive_ciphertext():
                        raise trio.BrokenResourceError("the peer closed during the TLS handshake") from None
                except ssl.SSLError as error:
                    # The alert tells the peer why; if it cannot leave at once, it need not.
                    self._flush_now()
                    raise trio.BrokenResourceError(f"TLS handshake refused: {_reason(error)}") from None
                else:
                    await self._drain()
                    return

    def tune(self, buffer_bytes: int, *, user_timeout_s: float) -> None:
        """Sets the size of the receive buffer, and after how long bytes that the peer does not take (dead, cut off, or
        not reading) break the connection. Not while another task receives.
        """
        self._ciphertext = memoryview(bytearray(buffer_bytes))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_s * 1000))

    def peer_fingerprint(self) -> str:
        """The fingerprint of the peer's certificate, as Raft lists it. Only after the handshake."""
        return fingerprint(self.peer_certificate())

    def peer_certificate(self) -> bytes:
        """The peer's certificate, DER. Only after the handshake."""
        der = self._tls.getpeercert(binary_form=True)
        if not der:
            raise trio.BrokenResourceError("the peer showed no certificate")
        return der

    @property
    def idle(self) -> bool:
        """True when no send is under way and nothing waits to leave, so that `send_now` may be used."""
        return not (self._sending or self._broken or self._unsent or self._outgoing.pending)

    async def send_all(self, *buffers: Buffer) -> None:
        """Everything in `buffers` was handed to the kernel, in order. The buffers must not change meanwhile.

        Cancelled halfway, the stream is broken: its TLS records would continue in the middle. Close it then.
        """
        self._check_usable()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sending = True
        whole = False
        try:
            if self._unsent:
                await self._drain()
            for buffer in buffers:
                view = memoryview(buffer)
                offset, length = 0, len(view)
                while offset < length:
                    offset += self._encrypt(view[offset : offset + PIECE_BYTES])
                    if self._outgoing.pending >= PIECE_BYTES:
                        await self._drain()
            await self._drain()
            whole = True
        finally:
            self._sending = False
            if not whole:
                self._broken = True

    def send_now(self, data: Buffer) -> None:
        """Sends without waiting, as far as the kernel takes it; what is left leaves with the next `send_all` (`idle` is
        False until then). Only when `idle`.
        """
        self._check_usable()
        if not self.idle:
            raise trio.BusyResourceError("this stream is not idle")
        offset = 0
        while offset < len(data):
            offset += self._encrypt(memoryview(data)[offset:])
        self._flush_now()

    async def receive_into(self, view: memoryview) -> int:
        """Fills as much of `view` as has arrived, at least one byte; 0 when the peer closed.

        Does not give way to other tasks when bytes are at hand (at most one buffer's worth). Cancellation loses
        nothing.
        """
        self._check_usable()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            while True:
                filled = self._decrypt(view)
                if filled is not None:
                    return filled
                if not await self._receive_ciphertext():
                    return 0
        finally:
            self._receiving = False

    async def receive_exactly_into(self, view: memoryview) -> bool:
        """`view` is full: True. The peer closed before the first byte: False; in the middle: BrokenResourceError.

        Cancelled in the middle, the bytes so far are in `view` and gone from the stream: close it then.
        """
        offset, length = 0, len(view)
        while offset < length:
            count = await self.receive_into(view[offset:] if offset else view)
            if not count:
                if offset:
                    raise trio.BrokenResourceError("the peer closed in the middle of a message")
                return False
            offset += count
        return True

    def close(self) -> None:
        """The connection is gone at once, without a goodbye (frames tell where messages end). Tasks that wait on it get
        ClosedResourceError. Closing twice is fine.
        """
        if not self._closed:
            self._closed = True
            if self._sock.fileno() >= 0:
                trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    # --- within -------------------------------------------------------------------------------------------------------
    def _check_usable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._broken:
            raise trio.BrokenResourceError("this stream broke before")

    def _encrypt(self, piece: memoryview) -> int:
        count = self._call(lambda: self._tls.write(piece))
        self.moved_bytes += count
        return count

    def _decrypt(self, view: memoryview) -> int | None:
        """How many bytes were put into `view`; 0 at the peer's end, None when more ciphertext is needed first."""
        tls_read, offset, length = self._tls.read, 0, len(view)
        try:
            while offset < length:
                count = tls_read(length - offset, view[offset:])
                if not count:
                    break
                offset += count  # type: ignore[operator]
        except ssl.SSLWantReadError:
            self.moved_bytes += offset
            return offset or None
        except ssl.SSLError as error:
            self._broken = True
            raise trio.BrokenResourceError(f"bad TLS from the peer: {_reason(error)}") from None
        self.moved_bytes += offset
        return offset

    def _call(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except ssl.SSLError as error:
            self._broken = True
            raise trio.BrokenResourceError(f"TLS failed: {_reason(error)}") from None

    async def _receive_ciphertext(self) -> int:
        waited = False
        while True:
            try:
                count = self._sock.recv_into(self._ciphertext)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                waited = True
                self._check_usable()
            except OSError as error:
                raise self._failed(error) from None
        self._incoming.write(self._ciphertext[:count])
        if not waited:
            await trio.lowlevel.checkpoint()
            self._check_usable()
        return count

    async def _drain(self) -> None:
        waited = False
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent):]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
                waited = True
                self._check_usable()
            except OSError as error:
                raise self._failed(error) from None
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._check_usable()

    def _flush_now(self) -> None:
        if not self._unsent:
            self._unsent = memoryview(self._outgoing.read())
        try:
            if self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent):]
        except BlockingIOError:
            return
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> Exception:
        if self._closed:
            return trio.ClosedResourceError("this stream was closed")
        self._broken = True
        return trio.BrokenResourceError(f"the connection failed: {error.strerror or error}")


def _reason(error: ssl.SSLError) -> str:
    """One short line: OpenSSL's own texts carry source file names."""
    return getattr(error, "verify_message", None) or (error.reason or str(error)).lower().replace("_", " ")
