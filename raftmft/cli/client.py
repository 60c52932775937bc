"""How commands reach a running node: its Unix socket (--data-dir) or admin URL (--admin), and the options for it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import click

from raftmft.core.errors import ConfigError, NodeUnreachable, NoQuorum, OutcomeUnknown, RaftmftError

TIMEOUT_S = 30.0
F = TypeVar("F", bound=Callable[..., Any])


class NotFound(RaftmftError):
    """The thing asked for is not there."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


class Client:
    """Calls of the admin API. Raises NodeUnreachable, NoQuorum, OutcomeUnknown, RaftmftError with the node's line."""

    def __init__(self, data_dir: str | None, admin: str | None, token_file: str | None) -> None:
        if data_dir is None and admin is None:
            raise click.UsageError("which node? Give --data-dir or --admin, or set RAFTMFT_DATA_DIR or RAFTMFT_ADMIN.")
        self._socket = Path(data_dir).absolute() / "admin.sock" if data_dir else None
        self._admin, self._headers = admin, {"content-type": "application/json"}
        if self._socket is None and token_file:
            try:
                token = Path(token_file).read_text().strip()
            except OSError as error:
                raise ConfigError(f"the token file {token_file} cannot be read: {error.strerror}") from None
            self._headers["authorization"] = f"Bearer {token}"

    def get(self, path: str, /, **query: Any) -> Any:
        """GET; parameters that are None are left out."""
        given = {key: value for key, value in query.items() if value is not None}
        return self.call("GET", path + (f"?{urlencode(given)}" if given else ""))

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request; the decoded JSON answer."""
        connection = self._connect()
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, self._headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NodeUnreachable(
                f"no node answers at {self.where} ({_reason(error)}); is raftmft node running there?"
            ) from None
        finally:
            connection.close()
        if response.status == 200:
            return (
                json.loads(data)
                if response.getheader("content-type", "").startswith("application/json")
                else data.decode()
            )
        raise _error(response.status, data)

    @property
    def where(self) -> str:
        """The socket or URL, for messages."""
        return str(self._socket or self._admin)

    def _connect(self) -> http.client.HTTPConnection:
        if self._socket is not None:
            return _UnixConnection(self._socket)
        url = urlsplit(self._admin or "")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise click.UsageError(f"--admin must be a URL like http://127.0.0.1:7480, not {self._admin!r}.")
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        return kind(url.hostname, url.port, timeout=TIMEOUT_S)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _error(status: int, data: bytes) -> RaftmftError:
    try:
        table = json.loads(data)
        text, code = str(table["error"]), str(table["code"])
    except (ValueError, KeyError, TypeError):
        text, code = data.decode(errors="replace").strip()[:200] or f"HTTP status {status}", ""
    if code == "no_quorum":
        return NoQuorum(text)
    if code == "unknown":
        return OutcomeUnknown(text)
    return NotFound(text) if status == 404 else RaftmftError(text)


def node_options(command: F) -> F:
    """Adds --data-dir, --admin, --admin-token-file and -o to a command; it gets `client` and `output`."""
    import functools

    @click.option("--data-dir", envvar="RAFTMFT_DATA_DIR", type=click.Path(), help="Data directory of a running node.")
    @click.option("--admin", envvar="RAFTMFT_ADMIN", help="Admin URL of a running node.")
    @click.option(
        "--admin-token-file",
        envvar="RAFTMFT_ADMIN_TOKEN_FILE",
        type=click.Path(),
        help="File with the token for --admin.",
    )
    @click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
    @functools.wraps(command)
    def wrapped(data_dir: str | None, admin: str | None, admin_token_file: str | None, output: str, **rest: Any) -> Any:
        return command(client=Client(data_dir, admin, admin_token_file), output=output, **rest)

    return wrapped  # type: ignore[return-value]
