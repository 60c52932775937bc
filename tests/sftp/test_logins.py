"""Who may come in, and that nobody is told so before the login is committed."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import asyncssh
import pytest

from raftmft.sftp.server import MOST_PASSWORDS, assert_patched_names
from tests.sftp.fake_node import FakeNode, wait_for
from tests.sftp.raw_client import RawSftp


def test_the_names_that_are_overridden_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_patched_names()
    monkeypatch.delattr(asyncssh.connection.SSHConnection, "send_userauth_success")
    with pytest.raises(AssertionError, match="send_userauth_success"):
        assert_patched_names()


def test_password_and_key(node: FakeNode) -> None:
    async def main() -> None:
        for options in ({"password": "anna-secret", "client_keys": None}, {}):
            sftp = await RawSftp.open(node, **options)
            assert (await sftp.stat("/")).mode
            await sftp.close()
    asyncio.run(main())
    assert node.ops("auth.login")[-1]["method"] == "publickey"


def test_openssh_with_a_password(node: FakeNode, tmp_path: Path) -> None:
    askpass = tmp_path / "askpass"
    askpass.write_text('#!/bin/sh\nprintf "%s\\n" "$TEST_PASSWORD"\n')
    askpass.chmod(0o700)
    for password, code in (("anna-secret", 0), ("wrong", 255)):
        done = subprocess.run(
            ["sftp", "-q", "-P", str(node.port), "-F", "/dev/null", "-o", "PreferredAuthentications=password", "-o",
             "NumberOfPasswordPrompts=1", "-o", f"UserKnownHostsFile={node.known_hosts}", "anna@127.0.0.1"],
            input=b"pwd\n", capture_output=True, timeout=20, start_new_session=True,
            env={**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force", "TEST_PASSWORD": password,
                 "DISPLAY": ":none"})
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize(("user", "options"), [
    ("anna", {"password": "wrong", "client_keys": None}),
    ("nobody", {"password": "anna-secret", "client_keys": None}),
    ("nobody", {}),
    ("anna", {"client_keys": [asyncssh.generate_private_key("ssh-ed25519")]}),
    ("anna", {"client_keys": None}),
])
def test_refusals_are_alike(node: FakeNode, user: str, options: dict[str, object]) -> None:
    async def main() -> None:
        with pytest.raises(asyncssh.PermissionDenied) as caught:
            await node.connect(username=user, **options)
        assert "Permission denied" in str(caught.value)
    asyncio.run(main())


def test_a_refused_key_is_told_to_the_node_once(own_node: FakeNode) -> None:
    async def main() -> None:
        keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(3)]
        with pytest.raises(asyncssh.PermissionDenied):
            await own_node.connect(client_keys=keys)
    asyncio.run(main())
    wait_for("the refusal", lambda: own_node.notes)
    refusals = [args for op, args in own_node.notes if op == "auth.refused"]
    assert len(refusals) == 1 and refusals[0]["user"] == "anna" and refusals[0]["address"].startswith("127.0.0.1:")


def test_guessing_passwords_ends_the_connection(own_node: FakeNode) -> None:
    class Guesser(asyncssh.SSHClient):
        tried = 0

        def password_auth_requested(self) -> str:
            Guesser.tried += 1
            return f"guess {self.tried}"

    async def main() -> None:
        with pytest.raises(asyncssh.Error):
            await asyncio.wait_for(own_node.connect(client_keys=None, client_factory=Guesser), 10)
    asyncio.run(main())
    assert len(own_node.ops("auth.password")) == MOST_PASSWORDS


@pytest.mark.parametrize("options", [{}, {"password": "anna-secret", "client_keys": None}])
@pytest.mark.parametrize("status", [("no_quorum", "no majority"), ("rejected", {"code": "limit", "text": "too many"}),
                                    ("failed", "broken")])
def test_no_success_without_a_committed_login(own_node: FakeNode, options: dict[str, object],
                                              status: tuple[str, object]) -> None:
    own_node.trouble["auth.login"] = own_node.trouble["auth.password"] = status

    async def main() -> None:
        with pytest.raises(asyncssh.PermissionDenied):
            await own_node.connect(**options)
    asyncio.run(main())


def test_success_waits_for_the_commit(own_node: FakeNode) -> None:
    own_node.gate("auth.login")

    async def main() -> None:
        connecting = asyncio.create_task(own_node.connect())
        while not own_node.ops("auth.login"):
            await asyncio.sleep(0.001)
        done, _ = await asyncio.wait([connecting], timeout=0.2)
        assert not done, "the client was let in before its login was committed"
        own_node.open_gate("auth.login")
        (await connecting).close()
    asyncio.run(main())


@pytest.mark.parametrize(("op", "options"), [
    ("auth.login", {}), ("auth.password", {"password": "anna-secret", "client_keys": None})])
def test_a_login_whose_client_is_gone_is_ended(own_node: FakeNode, op: str, options: dict[str, object]) -> None:
    own_node.gate(op)

    async def main() -> None:
        connecting = asyncio.create_task(own_node.connect(**options))
        while not own_node.ops(op):
            await asyncio.sleep(0.001)
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
    asyncio.run(main())
    # The worker must have seen the end of the connection before the login is committed.
    wait_for("the end of the connection", lambda: _connections(own_node) == 0)
    own_node.open_gate(op)
    wait_for("the session's end", lambda: own_node.ended)
    assert not own_node.sessions


def test_a_session_ends_when_its_connection_does(own_node: FakeNode) -> None:
    async def main() -> None:
        sftp = await RawSftp.open(own_node)
        second = await RawSftp.open(own_node, connection=sftp.connection)
        second.channel.close()
        await second.channel.wait_closed()
        assert not own_node.ended and (await sftp.stat("/")).mode
        await sftp.close()
    asyncio.run(main())
    wait_for("the session's end", lambda: own_node.ended)
    assert len(own_node.ended) == 1


def test_the_login_has_a_time_limit(tmp_path: Path) -> None:
    node = FakeNode(tmp_path, login_timeout_s=1)
    try:
        async def main() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            assert (await reader.readline()).startswith(b"SSH-2.0-raftmft_test")
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
        asyncio.run(main())
    finally:
        node.close()


def _connections(node: FakeNode) -> int:
    """Established TCP connections of the worker, by its open sockets."""
    own = {os.readlink(link) for link in Path(f"/proc/{node.process.pid}/fd").iterdir() if link.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in own for row in rows)
