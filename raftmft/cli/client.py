"""How commands reach a running node: its Unix socket (--data-dir) or admin URL (--admin), and the options for it."""

from __future__ import annotations

import functools
import http.client
import ipaddress
import json
import re
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

import click
from click.core import ParameterSource

from raftmft.core.errors import ConfigError, NodeUnreachable, NoQuorum, OutcomeUnknown, RaftmftError

TIMEOUT_S = 30.0
MOST_TOKEN_BYTES = 1024


class NotFound(RaftmftError):
    """The thing asked for is not there."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Calls of the admin API. Raises NodeUnreachable, NoQuorum, OutcomeUnknown, RaftmftError with the node's line."""

    def __init__(self, data_dir: str | None, admin: str | None, token_file: str | None = None,
                 ca_file: str | None = None) -> None:
        if data_dir is None and admin is None:
            raise click.UsageError("which node? Give --data-dir or --admin, or set RAFTMFT_DATA_DIR or RAFTMFT_ADMIN.")
        self._socket = Path(data_dir).absolute() / "admin.sock" if data_dir else None
        self._admin, self._headers = admin, {"content-type": "application/json"}
        self._url = None if self._socket is not None else _checked_url(admin or "", ca_file)
        self._ca_file = ca_file
        if self._socket is None and token_file:
            self._headers["authorization"] = f"Bearer {_token(token_file)}"

    def get(self, path: str, /, **query: Any) -> Any:
        """GET; parameters that are None are left out."""
        given = {key: value for key, value in query.items() if value is not None}
        return self.call("GET", path + (f"?{urlencode(given)}" if given else ""))

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S) -> Any:
        """One request; the decoded JSON answer."""
        connection, is_sent = self._connect(timeout_s), False
        try:
            connection.connect()
            is_sent = True
            connection.request(method, path, json.dumps(body) if body is not None else None, self._headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unanswered(error, may_have_happened=is_sent and method != "GET") from None
        finally:
            connection.close()
        if response.status != 200:
            raise _error(response.status, data)
        if not path.startswith("/api/"):
            return data.decode(errors="replace")
        try:
            return json.loads(data)
        except ValueError:
            raise RaftmftError(f"what answers at {self.where} is no raftmft node; give its admin address") from None

    def _unanswered(self, error: Exception, *, may_have_happened: bool) -> RaftmftError:
        hint = "is raftmft node running there?"
        if isinstance(error, http.client.HTTPException) and self._url is not None and self._url.scheme == "http":
            hint = "if its admin port speaks TLS, use https:// and --admin-ca FILE"
        if may_have_happened:
            return OutcomeUnknown(f"the node at {self.where} gave no answer ({_reason(error)}), outcome unknown: look "
                                  f"whether it was done before you try again; {hint}")
        return NodeUnreachable(f"no node answers at {self.where} ({_reason(error)}); {hint}")

    @property
    def where(self) -> str:
        """The socket or URL, for messages."""
        return str(self._socket or self._admin)

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._socket is not None:
            return _UnixConnection(self._socket, timeout_s)
        url = self._url
        assert url is not None and url.hostname is not None
        if url.scheme == "https":
            return http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout_s,
                                               context=_tls(self._ca_file or ""))
        return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout_s)


def _token(file: str) -> str:
    try:
        with open(file, "rb") as stream:
            token = stream.read(MOST_TOKEN_BYTES).strip()
    except OSError as error:
        raise ConfigError(f"the token file {file} cannot be read: {error.strerror}") from None
    if not re.fullmatch(rb"[!-~]+", token):
        raise ConfigError(f"{file} holds no token; make one with raftmft admin-token create")
    return token.decode()


def _checked_url(text: str, ca_file: str | None) -> SplitResult:
    try:
        url = urlsplit(text)
        wrong = url.scheme not in ("http", "https") or not url.hostname or url.port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise click.UsageError(f"--admin must be a URL like http://127.0.0.1:7480 or https://HOST:7480, not {text!r}.")
    if url.scheme == "https" and not ca_file:
        raise click.UsageError("for https:// give the cluster's certificate: --admin-ca FILE (a copy of keys/ca.crt).")
    if url.scheme == "http" and not _is_loopback(url.hostname or ""):
        raise click.UsageError(f"{text} would send the token in the clear; use https:// and --admin-ca FILE.")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _tls(ca_file: str) -> ssl.SSLContext:
    """Only the cluster's own authority is believed, and any member may answer: host names are not checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError:
        raise ConfigError(f"{ca_file} is no certificate (PEM); give a copy of a member's keys/ca.crt") from None
    except OSError as error:
        raise ConfigError(f"{ca_file} cannot be read: {error.strerror}") from None
    return context


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def _error(status: int, data: bytes) -> RaftmftError:
    try:
        table = json.loads(data)
        text, code = str(table["error"]), str(table["code"])
    except (ValueError, KeyError, TypeError):
        text, code = " ".join(data.decode(errors="replace").split())[:200] or f"HTTP status {status}", ""
    if code == "no_quorum":
        return NoQuorum(text)
    if code == "unknown":
        return OutcomeUnknown(text)
    return NotFound(text) if status == 404 else RaftmftError(text)


def output_option(command: Any) -> Any:
    """Adds -o to a command that asks no node."""
    return click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)(
        command)


def node_options(command: Any = None, *, required: bool = True) -> Any:
    """Adds --data-dir, --admin, --admin-token-file, --admin-ca and -o to a command; it gets `client` and `output`.

    Unless `required`, the client is None when no node is named.
    """
    if command is None:
        return functools.partial(node_options, required=required)

    @click.option("--data-dir", envvar="RAFTMFT_DATA_DIR", type=click.Path(), help="Data directory of a running node.")
    @click.option("--admin", envvar="RAFTMFT_ADMIN", help="Admin URL of a running node.")
    @click.option("--admin-token-file", envvar="RAFTMFT_ADMIN_TOKEN_FILE", type=click.Path(),
                  help="File with the token for --admin.")
    @click.option("--admin-ca", envvar="RAFTMFT_ADMIN_CA", type=click.Path(),
                  help="The cluster's certificate (a copy of keys/ca.crt), for --admin https://...")
    @output_option
    @functools.wraps(command)
    @click.pass_context
    def wrapped(context: click.Context, data_dir: str | None, admin: str | None, admin_token_file: str | None,
                admin_ca: str | None, output: str, **rest: Any) -> Any:
        # What is typed counts more than what the environment says.
        if data_dir is not None and admin is not None:
            typed = {name for name in ("data_dir", "admin")
                     if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
            if len(typed) == 2:
                raise click.UsageError("give --data-dir or --admin, not both")
            if "admin" in typed:
                data_dir = None
        named = required or data_dir is not None or admin is not None
        client = Client(data_dir, admin, admin_token_file, admin_ca) if named else None
        return command(client=client, output=output, **rest)

    return wrapped
