"""SSH in front of the SFTP engine: asyncssh's packet path, our own authentication, sessions and limits.

A login is committed by the node before USERAUTH_SUCCESS leaves: a password in `validate_password`, a public key (whose
proof asyncssh has checked by then) in `send_userauth_success`, which is overridden for that and asserted to exist. No
success is sent without a committed login, whatever path led there. A login whose connection went away meanwhile is
ended again. Nothing is offered but the "sftp" subsystem.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from typing import Any, NamedTuple

import asyncssh

from raftmft.core.errors import RaftmftError
from raftmft.sftp.engine import Engine
from raftmft.sftp.files import Session
from raftmft.sftp.link import Refused
from raftmft.sftp.rooms import Rooms
from raftmft.wire.loglines import fields

log = logging.getLogger(__name__)

WINDOW_BYTES = 4 << 20
MAX_PKTSIZE = 261120
KEEPALIVE_S = 30
KEEPALIVES_MISSED = 3
IDLE_S = 1.0
"""A draining worker ends sessions without an open file that were silent this long."""
MOST_CHANNELS = 8
MOST_PASSWORDS = 6
MOST_OFFERS = 24
"""Attempts of any kind on one connection: agents offer many keys."""
UNSENT_HIGH_BYTES, UNSENT_LOW_BYTES = 4 << 20, 1 << 20

# GCM first, AES-CTR for libssh2 and curl; no chacha20 (slow here), no CBC, no SHA-1. curve25519-sha256 leads: a wrongly
# guessed first packet disconnects dropbear.
ENCRYPTION = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr"]
MACS = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512"]
KEX = ["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256", "ecdh-sha2-nistp384",
       "ecdh-sha2-nistp521", "diffie-hellman-group16-sha512", "diffie-hellman-group18-sha512",
       "diffie-hellman-group14-sha256"]
SIGNATURES = ["ssh-ed25519", "sk-ssh-ed25519@openssh.com", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384",
              "ecdsa-sha2-nistp521", "sk-ecdsa-sha2-nistp256@openssh.com", "rsa-sha2-256", "rsa-sha2-512"]


def assert_patched_names() -> None:
    """AssertionError unless asyncssh still has every name that is overridden or read here."""
    connection = asyncssh.SSHServerConnection
    for name in ("send_userauth_success", "validate_public_key"):
        assert inspect.iscoroutinefunction(getattr(connection, name, None)), f"asyncssh has no async {name}"
    for name in ("send_userauth_failure", "_send_deferred_packets", "_send_kexinit", "pause_writing",
                 "resume_writing", "connection_made", "get_owner", "disconnect", "_cancel_login_timer",
                 "_login_timer_callback"):
        assert callable(getattr(connection, name, None)), f"asyncssh has no {name}"
    names = set(inspect.getsource(asyncssh.connection.SSHConnection.__init__).split())
    assert {"self._kex_complete", "self._auth:", "self._transport:", "self._login_timer:"} <= names, (
        "asyncssh renamed its state")


def server_options(host_key: bytes, banner: str, rooms: Rooms) -> Any:
    """The options of all connections; each has its own time to log in (Client). ValueError if the host key is none."""
    return asyncssh.SSHServerConnectionOptions(
        server_factory=lambda: Server(rooms), server_host_keys=[asyncssh.import_private_key(host_key)],
        server_version=banner, encryption_algs=ENCRYPTION, mac_algs=MACS, kex_algs=KEX, signature_algs=SIGNATURES,
        compression_algs=None, login_timeout=0, keepalive_interval=KEEPALIVE_S,
        keepalive_count_max=KEEPALIVES_MISSED, line_editor=False, encoding=None, window=WINDOW_BYTES,
        max_pktsize=MAX_PKTSIZE, allow_pty=False, agent_forwarding=False, x11_forwarding=False, allow_scp=False,
        gss_host=None, host_based_auth=False, kbdint_auth=False, public_key_auth=True, password_auth=True)


class Client(NamedTuple):
    """A connection as it came through the door: the client's address, the node's number for it, and the seconds within
    which it must have logged in.
    """

    address: str
    number: int
    limit_s: float


class Connection(asyncssh.SSHServerConnection):
    """One SSH connection. `is_clear` is set while it can send: no key exchange runs and the peer takes what is sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Any, client: Client) -> None:
        self.client = client
        self.is_clear = asyncio.Event()
        self._is_full = False
        super().__init__(loop, options)
        # Each connection has what is left of its own time; asyncssh's timer covers all until the login is done.
        self._cancel_login_timer()
        self._login_timer = loop.call_later(client.limit_s, self._login_timer_callback)

    def connection_made(self, transport: Any) -> None:
        """A peer that does not read is not read either: what waits for it is bounded."""
        transport.set_write_buffer_limits(UNSENT_HIGH_BYTES, UNSENT_LOW_BYTES)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """The peer does not take what is sent."""
        self._is_full = True
        self.is_clear.clear()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It takes it again."""
        self._is_full = False
        if self._kex_complete:
            self.is_clear.set()
        if self._transport is not None:
            self._transport.resume_reading()

    def _send_kexinit(self) -> None:
        self.is_clear.clear()  # what is sent during a key exchange is kept by asyncssh without a bound
        super()._send_kexinit()

    def _send_deferred_packets(self) -> None:
        super()._send_deferred_packets()
        if self._kex_complete and not self._is_full:
            self.is_clear.set()

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """As asyncssh, and the owner is told what was proven or refused."""
        is_good = await super().validate_public_key(username, key_data, msg, signature)
        owner = self.get_owner()
        if isinstance(owner, Server):
            owner.key_checked(username, is_good=is_good, is_proof=bool(msg))
        return is_good

    def send_userauth_failure(self, partial_success: bool) -> None:
        """As asyncssh, up to a number of attempts."""
        owner = self.get_owner()
        if isinstance(owner, Server) and owner.is_out_of_attempts():
            self.disconnect(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures")
            return
        super().send_userauth_failure(partial_success)

    async def send_userauth_success(self) -> None:
        """Success is sent once the login is committed, and only to the attempt that is still the present one."""
        owner, attempt = self.get_owner(), self._auth
        if not isinstance(owner, Server) or not await owner.commit_login():
            if self._transport is not None and self._auth is attempt:
                self.send_userauth_failure(False)
            return
        if self._transport is not None and self._auth is attempt:
            await super().send_userauth_success()


class Server(asyncssh.SSHServer):
    """Who is at the other end of one connection, and what they may."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._connection: Connection | None = None
        self._keys: tuple[str, list[asyncssh.SSHKey], int] | None = None
        self._proven: tuple[str, int] | None = None
        self._refused_user: str | None = None
        self._passwords = self._attempts = self._channels = 0
        self._engines: set[Engine] = set()
        self.session: Session | None = None

    # --- asyncssh.SSHServer ----------------------------------------------------------------------
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """The connection begins."""
        assert isinstance(conn, Connection)
        self._connection = conn
        self._rooms.came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over: refusals are told, the session ends."""
        if self._connection is not None:
            self._connection.is_clear.set()
            if self.session is None:
                self._rooms.ended(self.client)
                if self._refused_user is not None:
                    self._rooms.link.notify("auth.refused", {
                        "user": self._refused_user, "address": self.client.address, "reason": "no key of this user"})
        self._rooms.left(self, [engine.task for engine in self._engines])

    def begin_auth(self, username: str) -> bool:
        """Everyone must prove who they are."""
        return True

    def password_auth_supported(self) -> bool:
        """Passwords are taken."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys are taken."""
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        """True once the login is committed. Any trouble is the same refusal to the client."""
        self._passwords += 1
        return self.session is None and await self._log_in("auth.password", username, {"password": password})

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether the user has this key; for an unknown user False, like for a wrong key."""
        if self._keys is None or self._keys[0] != username:
            try:
                answer = await self._rooms.link.request("auth.keys", {"user": username})
            except RaftmftError as trouble:
                log.info("a login could not be checked: %s", trouble,
                         extra=fields(user=username, address=self.client.address))
                return False
            self._keys = (username, [known for line in answer["keys"] if (known := _key(line)) is not None],
                          int(answer["credential"]))
        return any(key.public_data == known.public_data for known in self._keys[1])

    def session_requested(self) -> Any:
        """A channel, up to MOST_CHANNELS at once."""
        if self.session is None or self._channels >= MOST_CHANNELS:
            return False
        self._channels += 1
        return SftpChannel(self)

    @property
    def client(self) -> Client:
        """Who is at the other end, as far as the door knows."""
        assert self._connection is not None
        return self._connection.client

    # --- for the connection and its channels -----------------------------------------------------
    def key_checked(self, username: str, *, is_good: bool, is_proof: bool) -> None:
        """asyncssh checked an offered key, or the signature of one."""
        if not is_good:
            self._refused_user = username
        elif is_proof and self._keys is not None and self._keys[0] == username:
            self._proven = (username, self._keys[2])

    def is_out_of_attempts(self) -> bool:
        """Counts a failed attempt."""
        self._attempts += 1
        return self._passwords >= MOST_PASSWORDS or self._attempts > MOST_OFFERS

    async def commit_login(self) -> bool:
        """True if a login is committed: by the password check before, or now for a proven key."""
        if self.session is None and self._proven is not None:
            (user, credential), self._proven, self._keys = self._proven, None, None
            return await self._log_in("auth.login", user, {"method": "publickey", "credential": credential})
        return self.session is not None

    def channel_opened(self, channel: asyncssh.SSHServerChannel) -> Engine:
        """An SFTP channel begins."""
        assert self.session is not None and self._connection is not None
        engine = self._rooms.engine(self.session, channel, self._connection.is_clear)
        self._engines.add(engine)
        engine.task.add_done_callback(lambda _: self._engines.discard(engine))
        return engine

    def channel_closed(self) -> None:
        """A channel is gone."""
        self._channels -= 1

    def is_busy(self) -> bool:
        """Whether the session has a file open, or said something within IDLE_S: a batch between two of its files."""
        since = time.monotonic() - IDLE_S
        return self.session is not None and (
            self.session.handle_count > 0 or any(engine.heard_s > since for engine in self._engines))

    def disconnect(self, reason: str) -> None:
        """Ends the connection; `connection_lost` follows."""
        if self._connection is not None:
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, reason)

    async def _log_in(self, operation: str, user: str, proof: dict[str, Any]) -> bool:
        """Has the node commit a login. Cancelled (the connection is gone): the session ends as soon as it begins."""
        client = self.client
        asking = self._rooms.spawn(self._rooms.link.request(operation, {
            "user": user, "address": client.address, "connection": client.number, **proof}))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._rooms.end_orphan)
            raise
        except Refused:
            return False
        except RaftmftError as trouble:
            log.info("a login could not be committed: %s", trouble, extra=fields(user=user, address=client.address))
            return False
        self.session = Session(int(answer["session"]), user, int(answer["uid"]), client.address,
                               self._rooms.memory.budget())
        self._rooms.entered(self)
        return True


class SftpChannel(asyncssh.SSHServerSession):
    """A channel of a connection; only the subsystem "sftp" begins anything."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._channel: Any = None
        self._engine: Engine | None = None

    def connection_made(self, chan: Any) -> None:
        """The channel is open."""
        self._channel = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        """Only SFTP."""
        return subsystem == "sftp"

    def session_started(self) -> None:
        """The subsystem begins."""
        self._channel.set_write_buffer_limits(1 << 20, 256 << 10)
        self._engine = self._server.channel_opened(self._channel)

    def data_received(self, data: Any, datatype: Any) -> None:
        """Bytes of the SFTP stream."""
        if self._engine is not None:
            self._engine.feed(data)

    def eof_received(self) -> bool:
        """The client is done; the channel stays open until what it asked for is."""
        if self._engine is not None:
            self._engine.eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is gone: closed by either side, or lost. Never a CLOSE of a file."""
        self._server.channel_closed()
        if self._engine is not None:
            self._engine.lost()

    def pause_writing(self) -> None:
        """The client's window is full."""
        if self._engine is not None:
            self._engine.pause_writing()

    def resume_writing(self) -> None:
        """It has room."""
        if self._engine is not None:
            self._engine.resume_writing()


def _key(line: str) -> asyncssh.SSHKey | None:
    try:
        return asyncssh.import_public_key(line)
    except asyncssh.KeyImportError:
        return None
