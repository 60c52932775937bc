"""The admin server as the raftmft command reaches it: TLS beyond loopback, the cluster's authority pinned."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from api_world import bearer
from hypercorn.config import Config

from raftmft.cli.client import Client
from raftmft.cluster.certificates import CertificateFiles, issue_member, make_authority, write_member_files
from raftmft.core.errors import ConfigError, NodeUnreachable, OutcomeUnknown, RaftmftError
from raftmft.node import admin
from raftmft.node.api import VIEWER, Call, Operation, build


async def hello(call: Call) -> Any:
    return {"actor": call.actor}


APP = build([Operation("GET", "/api/x", "Hello", hello)])


def listen() -> tuple[socket.socket, int]:
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, int(sock.getsockname()[1])


@asynccontextmanager
async def serving(config: Config) -> AsyncIterator[int]:
    sock, port = listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admin.run, APP, sock, bearer(VIEWER), config)
        yield port
        nursery.cancel_scope.cancel()


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return member_files(tmp_path / "keys", "c")


def member_files(folder: Path, cluster: str) -> CertificateFiles:
    folder.mkdir()
    made = CertificateFiles(folder / "ca.crt", folder / "node.crt", folder / "node.key")
    authority = make_authority(cluster)
    write_member_files(made, authority.certificate, issue_member(authority, "m"))
    return made


@pytest.fixture
def token(tmp_path: Path) -> str:
    (tmp_path / "token").write_text("secret\n")
    return str(tmp_path / "token")


async def ask(make: Callable[[], Client]) -> Any:
    return await trio.to_thread.run_sync(lambda: make().get("/api/x"))


async def test_tls_with_the_clusters_authority_and_no_other(
        files: CertificateFiles, token: str, tmp_path: Path) -> None:
    async with serving(admin.TlsConfig(files)) as port:
        url = f"https://127.0.0.1:{port}"
        assert await ask(lambda: Client(None, url, token, str(files.authority))) == {"actor": "someone"}
        with pytest.raises(RaftmftError, match="token"):
            await ask(lambda: Client(None, url, None, str(files.authority)))
        other = member_files(tmp_path / "other", "c")
        with pytest.raises(NodeUnreachable, match="certificate"):
            await ask(lambda: Client(None, url, token, str(other.authority)))
        with pytest.raises(NodeUnreachable):
            await ask(lambda: Client(None, f"http://127.0.0.1:{port}", token))


async def test_a_renewed_certificate_is_taken_into_use(
        files: CertificateFiles, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "LOOK_EVERY_S", 0.01)
    config = admin.TlsConfig(files)
    async with serving(config) as port, trio.open_nursery() as nursery:
        nursery.start_soon(config.follow_renewals)
        client = partial(Client, None, f"https://127.0.0.1:{port}", token)
        await ask(lambda: client(str(files.authority)))
        authority = make_authority("again")
        write_member_files(files, authority.certificate, issue_member(authority, "m"))
        with trio.fail_after(10):
            while True:
                try:
                    assert await ask(lambda: client(str(files.authority))) == {"actor": "someone"}
                    break
                except NodeUnreachable:
                    continue
        nursery.cancel_scope.cancel()


async def test_loopback_speaks_plain_http(token: str) -> None:
    async with serving(Config()) as port:
        assert await ask(lambda: Client(None, f"http://127.0.0.1:{port}", token)) == {"actor": "someone"}
        assert await ask(lambda: Client(None, f"http://localhost:{port}", token)) == {"actor": "someone"}


@pytest.mark.parametrize(("host", "tls"), [("127.0.0.1", False), ("127.0.0.9", False), ("::1", False),
                                           ("0.0.0.0", True), ("::", True), ("10.0.0.1", True), ("fe80::1%eth0", True)])
def test_only_what_stays_on_the_host_goes_in_the_clear(host: str, tls: bool) -> None:
    assert admin.needs_tls(host) is tls


@pytest.mark.parametrize(("url", "says"), [
    ("http://10.0.0.1:7480", "in the clear"), ("http://example.org", "in the clear"),
    ("https://127.0.0.1:1", "admin-ca"),
    ("ftp://127.0.0.1", "must be a URL"), ("127.0.0.1:7480", "must be a URL"), ("http://", "must be a URL"),
    ("http://127.0.0.1:x", "must be a URL"), ("http://127.0.0.1:99999", "must be a URL"), ("", "must be a URL"),
    ("http://[::1", "must be a URL"), ("http://127.0.0.1:0", "must be a URL")])
def test_urls_that_would_betray_the_token_or_lead_nowhere(url: str, says: str) -> None:
    with pytest.raises(click.UsageError, match=says):
        Client(None, url)


def test_a_wrong_authority_file_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.crt").write_text("nonsense")
    for file, says in ((tmp_path / "no.crt", "no certificate"), (tmp_path / "missing", "cannot be read"),
                       (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=says):
            Client(None, "https://127.0.0.1:1", None, str(file)).get("/api/x")


def test_a_wrong_token_file_gets_one_line(tmp_path: Path) -> None:
    for content in (b"", b"\n", b"two\nlines", b"\xff\xfe", b"sp ace", b"\0"):
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(ConfigError, match="holds no token"):
            Client(None, "http://127.0.0.1:1", str(tmp_path / "token"))
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            Client(None, "http://127.0.0.1:1", str(path))


@pytest.mark.parametrize(("answer", "get", "post"), [
    (b"", NodeUnreachable, OutcomeUnknown), (b"nonsense\r\n\r\n", NodeUnreachable, OutcomeUnknown),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}", NodeUnreachable, OutcomeUnknown),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", RaftmftError, RaftmftError),
    (b"HTTP/1.1 500 X\r\ncontent-length: 4\r\n\r\na\n\nb", RaftmftError, RaftmftError)])
async def test_what_no_node_would_answer(answer: bytes, get: type[Exception], post: type[Exception]) -> None:
    sock, port = listen()
    sock.settimeout(3)
    client = Client(None, f"http://127.0.0.1:{port}")

    def serve() -> None:
        for _ in range(2):
            connection, _ = sock.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    def both() -> None:
        for method, expected in (("GET", get), ("POST", post)):
            with pytest.raises(expected) as raised:
                client.call(method, "/api/v1/x")
            assert type(raised.value) is expected and "\n" not in str(raised.value)
            assert ("outcome unknown" in str(raised.value)) is (expected is OutcomeUnknown)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, serve)
        await trio.to_thread.run_sync(both)
    sock.close()
    with pytest.raises(NodeUnreachable):
        client.call("POST", "/api/v1/x")


async def test_other_protocols_are_not_spoken(token: str) -> None:
    async with serving(Config()) as port:
        for request, status in (
                (b"GET /api/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                 b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n", b"400"),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
                (b"GET /api/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\nconnection: upgrade, "
                 b"http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAA\r\n\r\n", b"200")):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(request)
            answer = b""
            with trio.fail_after(5):
                while got := await stream.receive_some(65536):
                    answer += got
            assert answer.startswith(b"HTTP/1.1 " + status), answer
            await stream.aclose()


UPGRADE = b"GET /api/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: "
GARBAGE = (
    b"", b"\0" * 5000, b"\xff" * 70_000, b"GET", b"GET /api/x HTTP/9.9\r\n\r\n", b"GET  /hello\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x02\x03" * 9,
    UPGRADE + b"!!\r\n\r\n", UPGRADE + b"AAAA\r\n\r\n",
    b"GET /api/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n"
    b"sec-websocket-version: 13\r\n\r\n\x81\xff\xff\xff\xff\xff\xff\xff",
    b"POST /api/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\nx",
    b"POST /api/x HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"GET /api/x HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    b"POST /api/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
    b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n", b"GET //\\\xfe%zz%00 HTTP/1.1\r\nhost: \xfe\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /api/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \xff\xfe\r\nauthorization: Bearer x\r\n\r\n",
)


@pytest.mark.parametrize("end", ["fin", "reset"])
async def test_garbage_at_the_port_is_survived(token: str, end: str) -> None:
    async with serving(Config()) as port:
        for payload in GARBAGE:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            try:
                await stream.send_all(payload)
                if end == "fin":
                    await stream.send_eof()
                    with trio.fail_after(5):
                        while await stream.receive_some(65536):
                            pass
                else:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except trio.BrokenResourceError:
                pass
            await stream.aclose()
            assert await ask(lambda: Client(None, f"http://127.0.0.1:{port}", token)) == {"actor": "someone"}, payload


async def test_garbage_at_the_tls_port_is_survived(files: CertificateFiles, token: str) -> None:
    async with serving(admin.TlsConfig(files)) as port:
        for payload in (*GARBAGE[:6], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 600):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            try:
                await stream.send_all(payload)
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass
            except trio.BrokenResourceError:
                pass
            await stream.aclose()
        client = partial(Client, None, f"https://127.0.0.1:{port}", token, str(files.authority))
        assert await ask(client) == {"actor": "someone"}


async def test_connections_beyond_the_bound_are_closed(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MOST_CONNECTIONS", 1)
    async with serving(Config()) as port:
        first = await trio.open_tcp_stream("127.0.0.1", port)
        with trio.fail_after(5):
            second = await trio.open_tcp_stream("127.0.0.1", port)
            assert await second.receive_some(1) == b""
            await second.aclose()
            await first.send_eof()
            assert await first.receive_some(1) == b""
            await first.aclose()
        assert await ask(lambda: Client(None, f"http://127.0.0.1:{port}", token)) == {"actor": "someone"}
