"""The admin server as the raftmft command reaches it: TLS beyond loopback, the cluster's authority pinned."""

from __future__ import annotations

import socket
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
from raftmft.core.errors import ConfigError, NodeUnreachable, RaftmftError
from raftmft.node import admin
from raftmft.node.api import VIEWER, Call, Operation, build


async def hello(call: Call) -> Any:
    return {"actor": call.actor}


APP = build([Operation("GET", "/hello", "Hello", hello)])


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
    return await trio.to_thread.run_sync(lambda: make().get("/hello"))


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
            Client(None, "https://127.0.0.1:1", None, str(file)).get("/hello")
    with pytest.raises(ConfigError, match="token file"):
        Client(None, "http://127.0.0.1:1", str(tmp_path / "missing"))


async def test_websockets_are_not_spoken() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await admin.Guard(APP, None)({"type": "websocket", "path": "/hello", "headers": []}, trio.sleep_forever, send)
    assert sent == [{"type": "websocket.close"}]
