"""How fast is a peer link, and at what cost, beside plain TCP with two passes of AES-GCM and beside trio.SSLStream?

Two processes on 127.0.0.1, chunks of 1 MiB, each answered by a few bytes, WINDOW unanswered at most; nothing is hashed
or stored. Subjects: *plain* (TCP by trio), *floor* (the same, and one AES-256-GCM pass over each chunk on each side, in
records of 16 KiB by the OpenSSL that `ssl` uses: what no TLS can do without), *newer* (the same by the OpenSSL within
`cryptography`, which may be a newer one), *sslstream* (trio.SSLStream over the same TCP), *tlsstream* (cluster/tls.py
alone), *link* (BulkPool and BulkServer: what members use). Rounds are interleaved, medians given; CPU is that of both
processes.
"""

from __future__ import annotations

import _ssl
import argparse
import ctypes
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.realnode import prefer
from raftmft.cluster import certificates
from raftmft.cluster.bulk import BulkPool
from raftmft.cluster.bulk_server import BulkServer
from raftmft.cluster.certificates import CertificateFiles
from raftmft.cluster.hello import _suit
from raftmft.cluster.tls import TlsStream
from raftmft.wire import peer

CHUNK = 1 << 20
WINDOW = 8
ANSWER = b"answered"
SUBJECTS = ("plain", "floor", "newer", "sslstream", "tlsstream", "link")
RECORD = 16 << 10
RECEIVE_BYTES = 256 << 10
"""What one receive_some of plain TCP and of SSLStream takes at most: 64 KiB to 1 MiB make little difference."""

SendAll = Callable[[bytes], Awaitable[None]]
FillExactly = Callable[[memoryview], Awaitable[None]]


class NoStore:
    """Holdings that keep nothing and say so at once."""

    async def add(self, chunk_id: bytes, data: memoryview, *, again: bool) -> None:
        """Nothing."""

    def when_durable(self, place: None, callback: Callable[[str], None]) -> None:
        """At once."""
        callback("")


class SslsCipher:
    """AES-256-GCM by the libcrypto that Python's own `ssl` is linked with, without a copy more than TLS must make."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(_ssl.__file__)  # its symbols include those of what it is linked with
        for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_gcm"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.EVP_CIPHER_CTX_new())
        self._made = ctypes.c_int()
        self._sealed = ctypes.create_string_buffer(RECORD + 32)
        key = os.urandom(32)
        assert self._lib.EVP_EncryptInit_ex(self._context, ctypes.c_void_p(self._lib.EVP_aes_256_gcm()), None, key,
                                            bytes(12)) == 1

    def passes(self, data: bytes | bytearray) -> None:
        """One pass over `data`, record by record."""
        start = ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data)) if isinstance(
            data, bytearray) else ctypes.cast(data, ctypes.c_void_p).value
        assert start is not None
        for offset in range(0, len(data), RECORD):
            self._lib.EVP_EncryptInit_ex(self._context, None, None, None, bytes(12))
            self._lib.EVP_EncryptUpdate(self._context, self._sealed, ctypes.byref(self._made),
                                        ctypes.c_void_p(start + offset), min(RECORD, len(data) - offset))
            self._lib.EVP_EncryptFinal_ex(self._context, self._sealed, ctypes.byref(self._made))


class NewerCipher:
    """AES-256-GCM by what `cryptography` brings."""

    def __init__(self) -> None:
        self._cipher = AESGCM(os.urandom(32))

    def passes(self, data: bytes | bytearray) -> None:
        """One pass over `data`."""
        self._cipher.encrypt(bytes(12), data, None)


CIPHERS: dict[str, type[SslsCipher | NewerCipher]] = {"floor": SslsCipher, "newer": NewerCipher}


async def exactly(receive_into: Callable[[memoryview], Awaitable[int]], view: memoryview) -> None:
    """Fills `view`."""
    while view:
        count = await receive_into(view)
        if not count:
            raise EOFError
        view = view[count:]


async def opened(subject: str, sock: socket.socket, files: CertificateFiles, *, is_server: bool) -> tuple[
        SendAll, FillExactly]:
    """How a subject sends and receives on a connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if subject == "tlsstream":
        stream = await secured(sock, files, is_server=is_server)
        return stream.send_all, lambda view: exactly(stream.receive_into, view)
    plain = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    if subject != "sslstream":
        # receive_into, as an honest plain reader would: no copy more than needed.
        return plain.send_all, lambda view: exactly(plain.socket.recv_into, view)
    context = (certificates.server_context if is_server else certificates.client_context)(files)
    tls: trio.SSLStream[trio.SocketStream] = trio.SSLStream(
        plain, context, server_side=is_server, https_compatible=True)
    await tls.do_handshake()

    async def take(view: memoryview) -> int:
        data = await tls.receive_some(min(len(view), RECEIVE_BYTES))
        view[: len(data)] = data
        return len(data)

    return tls.send_all, lambda view: exactly(take, view)


async def send(subject: str, address: tuple[str, int], files: CertificateFiles, chunks: int) -> tuple[float, float]:
    """(seconds, CPU seconds) until all chunks were answered."""
    if subject == "link":
        return await send_by_pool(address, files, chunks)
    data, chunk_id = os.urandom(CHUNK), os.urandom(32)
    send_all, fill = await opened(subject, socket.create_connection(address), files, is_server=False)
    cipher, answer = CIPHERS[subject]() if subject in CIPHERS else None, memoryview(bytearray(len(ANSWER)))
    begun, cpu, unanswered = time.perf_counter(), time.process_time(), 0
    for number in range(chunks):
        if cipher is not None:
            cipher.passes(data)
        await send_all(peer.encode_bulk(peer.Put(number, chunk_id), CHUNK))
        await send_all(data)
        unanswered += 1
        if unanswered >= WINDOW:
            await fill(answer)
            unanswered -= 1
    for _ in range(unanswered):
        await fill(answer)
    return time.perf_counter() - begun, time.process_time() - cpu


async def secured(sock: socket.socket, files: CertificateFiles, *, is_server: bool) -> TlsStream:
    """A bulk connection as members have them, without the greetings."""
    context = (certificates.server_context if is_server else certificates.client_context)(files)
    stream = TlsStream(sock, context, server_side=is_server)
    await stream.handshake(10)
    _suit(stream, peer.BULK)
    return stream


async def send_by_pool(address: tuple[str, int], files: CertificateFiles, chunks: int) -> tuple[float, float]:
    """The same through BulkPool, which dials as many connections as it wants."""
    data, chunk_id, left = os.urandom(CHUNK), os.urandom(32), chunks
    pool = BulkPool(lambda member: secured(socket.create_connection(address), files, is_server=False))

    async def put_some() -> None:
        nonlocal left
        while left:
            left -= 1
            await pool.put("receiver", chunk_id, data)

    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        begun, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as putters:
            for _ in range(WINDOW):
                putters.start_soon(put_some)
        took = time.perf_counter() - begun, time.process_time() - cpu
        nursery.cancel_scope.cancel()
    return took


async def receive_by_server(listening: socket.socket, files: CertificateFiles) -> float:
    """The same by BulkServer, until the first connection ends."""
    accepting, server = trio.socket.from_stdlib_socket(listening), BulkServer(NoStore())  # type: ignore[arg-type]

    async def serve() -> None:
        sock = (await accepting.accept())[0]
        nursery.start_soon(serve)
        await server.serve("sender", await secured(socket.socket(fileno=sock.detach()), files, is_server=True))
        nursery.cancel_scope.cancel()

    cpu = time.process_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
    return time.process_time() - cpu


async def receive(subject: str, listening: socket.socket, files: CertificateFiles, chunks: int) -> float:
    """CPU seconds of the receiving side."""
    if subject == "link":
        return await receive_by_server(listening, files)
    sock = (await trio.socket.from_stdlib_socket(listening).accept())[0]
    send_all, fill = await opened(subject, socket.socket(fileno=sock.detach()), files, is_server=True)
    cipher, body = CIPHERS[subject]() if subject in CIPHERS else None, bytearray(CHUNK)
    head = memoryview(bytearray(len(peer.encode_bulk(peer.Put(0, bytes(32)), CHUNK)) + 8))
    cpu = time.process_time()
    for number in range(chunks):
        size = len(peer.encode_bulk(peer.Put(number, bytes(32)), CHUNK))
        await fill(head[:size])
        await fill(memoryview(body))
        if cipher is not None:
            cipher.passes(body)
        await send_all(ANSWER)
    return time.process_time() - cpu


def forked(work: Callable[[], Any]) -> int:
    """Runs it in a process of its own; a descriptor from which its result can be read."""
    reading, writing = os.pipe()
    if not os.fork():
        status = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    return reading


def result_of(descriptor: int) -> Any:
    """What `forked` gave."""
    with open(descriptor, "rb") as pipe:
        text = pipe.read()
    os.wait()
    if not text:
        raise SystemExit("a side of the bench failed: see above")
    return json.loads(text)


def measure(subject: str, files: CertificateFiles, chunks: int) -> tuple[float, float]:
    """(GB/s, CPU seconds a GB of both sides)."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        receiver = forked(lambda: trio.run(receive, subject, listening, files, chunks))
        address = listening.getsockname()
        sender = forked(lambda: trio.run(send, subject, address, files, chunks))
        took, sent_cpu = result_of(sender)
        received_cpu = result_of(receiver)
    gigabytes = chunks * CHUNK / 1e9
    return gigabytes / took, (sent_cpu + received_cpu) / gigabytes


def main() -> None:
    """Prints a table on standard error, JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="sent by each subject in each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nice", type=int, default=0, help="go before others (negative: as root) or after them")
    options = parser.parse_args()
    if options.nice:
        prefer(options.nice)
    folder = Path(tempfile.mkdtemp(prefix="raftmft-bench-"))
    try:
        authority = certificates.make_authority("bench")
        files = CertificateFiles(folder / "ca.pem", folder / "node.pem", folder / "node.key")
        certificates.write_member_files(files, authority.certificate, certificates.issue_member(authority, "bench"))
        rows: dict[str, list[tuple[float, float]]] = {subject: [] for subject in SUBJECTS}
        for number in range(options.rounds):
            turn = number % len(SUBJECTS)
            for subject in SUBJECTS[turn:] + SUBJECTS[:turn]:
                rows[subject].append(measure(subject, files, options.mib * (1 << 20) // CHUNK))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    told: dict[str, Any] = {
        subject: {"gb_per_s": round(statistics.median(r[0] for r in done), 2),
                  "cpu_s_per_gb": round(statistics.median(r[1] for r in done), 3)} for subject, done in rows.items()}
    told["link_cpu_of_floor"] = round(told["link"]["cpu_s_per_gb"] / told["floor"]["cpu_s_per_gb"], 2)
    told["link_cpu_of_newer"] = round(told["link"]["cpu_s_per_gb"] / told["newer"]["cpu_s_per_gb"], 2)
    told["link_speed_of_sslstream"] = round(told["link"]["gb_per_s"] / told["sslstream"]["gb_per_s"], 2)
    print(f"{'':12}{'GB/s':>8}{'CPU s/GB':>10}", file=sys.stderr)
    for subject in SUBJECTS:
        print(f"{subject:12}{told[subject]['gb_per_s']:>8}{told[subject]['cpu_s_per_gb']:>10}", file=sys.stderr)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
