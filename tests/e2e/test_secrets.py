"""What a stolen host knew is of no use once it is removed; no secret stands on disk outside the files made for it."""

from __future__ import annotations

import base64
import functools
import json
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from raftmft.cluster import hello
from raftmft.cluster.certificates import (
    CertificateFiles,
    Issued,
    fingerprint_of_pem,
    issue_member,
    load_member,
    unseal,
    write_member_files,
)
from raftmft.cluster.hello import PeerRefused, Self
from raftmft.cluster.keyring import FIRST, KeyRing
from raftmft.cluster.relay import PrefaceGuard
from raftmft.cluster.succession import succeed
from raftmft.core.membership import Kind, Message
from raftmft.node.datadir import DataDir
from raftmft.node.genesis import AUTHORITY_KEY, HOST_KEY
from raftmft.wire import peer
from raftmft.wire.gossip import MAX_DATAGRAM, GossipCodec
from raftmft.wire.token import decode_token
from tests.e2e.harness import Cluster, wait_for
from tests.e2e.test_door import greeting
from tests.test_formats import unknown_files

pytestmark = pytest.mark.slow
SILENCE_S, ANSWER_S = 2.0, 10.0
"""How long it must stay silent to be taken for silent, and how long a busy machine may take to answer."""


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "c", 4)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


class Thief:
    """Has a copy of a member's data directory, and its address; speaks to the other members as it."""

    def __init__(self, cluster: Cluster, name: str, folder: Path) -> None:
        self.data_dir = DataDir(shutil.copytree(cluster.folder / name, folder, ignore=shutil.ignore_patterns("*.sock")))
        self.cluster, self.seed = cluster, self.data_dir.read_seed()
        self.key = KeyRing.load(self.data_dir.cluster_key).present(FIRST)
        self.gossip = self._address(name, "gossip")

    def _address(self, name: str, port: str) -> tuple[str, int]:
        host, number = self.cluster.node(name)[port].rsplit(":", 1)
        return host, int(number)

    def _id(self, name: str) -> str:
        return next(member.id for member in self.seed.members if member.name == name)

    def is_relayed(self, name: str) -> bool:
        """Whether a client that the stolen member vouches for gets SSH's banner."""
        preface = PrefaceGuard(self.key, self.seed.me).make(self._id(name), "192.0.2.7", 4711, 30)
        return greeting(self.cluster, name, preface, "peer").startswith(b"SSH-")

    def is_gossiped_with(self, name: str, within_s: float) -> bool:
        """Whether the member answers a datagram of the stolen one within this time, by one that this can believe."""
        codec, to = GossipCodec(self.seed.me, self.key), self._id(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            wait_for("the port", functools.partial(bound, sock, self.gossip))
            give_up = time.monotonic() + within_s
            sock.sendto(codec.encode(to, Message(Kind.PING, 1, "")), self._address(name, "gossip"))
            while (left := give_up - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    received = codec.decode(sock.recv(MAX_DATAGRAM + 1), {to}, time.monotonic())
                except TimeoutError:
                    break
                if received.message is not None:
                    return True
                for _, reply in received.replies:
                    sock.sendto(reply, self._address(name, "gossip"))
        return False

    def successor(self) -> CertificateFiles:
        """Another certificate: signed with the authority's key, and vouched for by the stolen one."""
        files, folder = self.data_dir.certificates, self.data_dir.path / "successor"
        authority = Issued(files.authority.read_bytes(),
                           unseal(self.key, AUTHORITY_KEY, bytes.fromhex(self.seed.sealed_ca_key)))
        made = issue_member(authority, self.seed.me)
        chained = succeed(load_member(files), made.certificate, self.seed.cluster_id, self.seed.me, datetime.now(UTC))
        folder.mkdir(exist_ok=True)
        written = CertificateFiles(*(folder / path.name for path in (files.authority, files.certificate, files.key)))
        write_member_files(written, authority.certificate, Issued(chained, made.key))
        return written

    def link(self, name: str, files: CertificateFiles | None = None) -> str:
        """Why a control link is refused; "" if it is opened."""
        me = Self.load(self.seed.me, self.seed.cluster_id, files or self.data_dir.certificates, hello.nobody_else)
        theirs = fingerprint_of_pem((self.cluster.folder / name / "keys" / "node.crt").read_bytes())

        async def dial() -> str:
            try:
                (await hello.dial(me, self._id(name), self._address(name, "peer"), peer.CONTROL,
                                  lambda: {theirs: self._id(name)})).close()
            except PeerRefused as refusal:
                return str(refusal)
            return ""

        return trio.run(dial)


def bound(sock: socket.socket, address: tuple[str, int]) -> bool:
    try:
        sock.bind(address)
    except OSError:
        return False
    return True


def forms(secret: bytes) -> set[bytes]:
    """The ways in which a secret may have been written: raw, hex, base64 at any place of a longer text."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret + bytes(-(before + len(secret)) % 3))
        inner = text[-(-before * 8 // 6):(before + len(secret)) * 8 // 6]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def where(folder: Path, secret: bytes) -> set[str]:
    """The files below a folder that hold the secret, in whatever form; also broken into lines, as in PEM."""
    needles, found = forms(secret), set()
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            joined = data.replace(b"\\n", b"").replace(b"\n", b"")
            if any(needle in text for text in (data, joined) for needle in needles):
                found.add(str(path.relative_to(folder)))
    return found


def test_the_search_finds_a_secret_however_it_was_written(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    seed = key.private_bytes_raw()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
                            serialization.NoEncryption())
    for text in (pem, repr(pem).encode(), b"x" + seed, seed.hex().encode(), base64.b64encode(b"ab" + seed + b"c"),
                 base64.urlsafe_b64encode(b"a" + seed)):
        (tmp_path / "file").write_bytes(text)
        assert where(tmp_path, seed) == {"file"}, text
    assert where(tmp_path, bytes(reversed(seed))) == set()


def test_a_stolen_host_can_do_nothing_and_no_secret_is_on_disk(four: Cluster, tmp_path: Path) -> None:
    demo, password = four.about["users"][0], secrets.token_urlsafe(16)
    leader = four.leader()
    stolen = next(name for name in four.names if name != leader)
    stay = [name for name in four.names if name != stolen]
    assert four.sftp_with_password(stay[0], f"put {__file__} a\n", demo["password"]).returncode == 0
    four.sftp(stay[1], f"put {__file__} b")
    four.run("user", "add", "acme", "--password-stdin", input=password.encode() + b"\n", node=stay[0])
    admin_token = json.loads(four.run("admin-token", "create", "watch", "--role", "viewer", "-o", "json",
                                      node=stay[0]).stdout)["token"]
    join_token = four.run("token", "create", node=stay[0]).stdout.decode().split()[-1]
    four.kill(stolen)
    thief = Thief(four, stolen, tmp_path / "stolen")
    sealed = thief.seed
    host_key = serialization.load_ssh_private_key(
        unseal(thief.key, HOST_KEY, bytes.fromhex(sealed.sealed_host_key)), None)
    ca_key = serialization.load_pem_private_key(
        unseal(thief.key, AUTHORITY_KEY, bytes.fromhex(sealed.sealed_ca_key)), None)
    assert isinstance(host_key, Ed25519PrivateKey) and isinstance(ca_key, EllipticCurvePrivateKey)

    # Until it is removed, what was stolen works: so the refusals below are for the removal.
    assert thief.is_relayed(stay[0]) and thief.is_gossiped_with(stay[0], ANSWER_S) and thief.link(stay[0]) == ""
    assert thief.link(stay[0], thief.successor()) == "", "as good as the listed one that vouches for it"
    four.run("member", "remove", stolen, "--force", node=stay[0])
    rings = [DataDir(four.folder / name).cluster_key for name in stay]

    def rotated() -> bool:
        names = [KeyRing.load(ring).names() for ring in rings]
        return names[0] != [FIRST] and len(names[0]) == 1 and all(other == names[0] for other in names)

    wait_for("the new cluster key on all that stay", rotated)
    for name in stay:
        assert not thief.is_relayed(name), "the old key's preface"
        assert not thief.is_gossiped_with(name, SILENCE_S), "the old key's datagram"
        assert "not listed" in thief.link(name), "the removed member's certificate"
        assert "not listed" in thief.link(name, thief.successor()), "one that it vouches for"
    four.sftp(stay[1], f"get a {tmp_path}/a")
    new = {key.key for ring in rings for key in KeyRing.load(ring).keys()}
    four.stop()

    shutil.rmtree(four.folder / stolen)
    (four.folder / "dev.log").write_bytes(four.folder.with_suffix(".log").read_bytes())
    members = {name: four.folder / name for name in stay}
    assert {name: unknown_files(path) for name, path in members.items()} == {name: [] for name in stay}
    known_plans = {"dev.json", "cluster.json"}
    assert len(new) == 1
    assert where(four.folder, new.pop()) == {f"{name}/keys/cluster.key" for name in stay}
    assert where(four.folder, demo["password"].encode()) - known_plans == set()
    assert where(four.folder, demo["password"].encode()) != set(), "the search finds what is there"
    for name in stay:
        node_key = serialization.load_pem_private_key((members[name] / "keys" / "node.key").read_bytes(), None)
        assert isinstance(node_key, EllipticCurvePrivateKey)
        assert where(four.folder, scalar(node_key)) == {f"{name}/keys/node.key"}
    token = (four.folder / "admin.token").read_bytes().strip()
    assert where(four.folder, token) == {"admin.token", *(f"{name}/admin.token" for name in stay)}
    for what, secret in {
        "the SSH host key": host_key.private_bytes_raw(), "the CA's key": scalar(ca_key),
        "the old cluster key": thief.key,
        "a user's password": password.encode(), "an admin token": admin_token.encode(),
        "a join token": join_token.encode(), "a join token's secret": decode_token(join_token).secret,
    }.items():
        assert where(four.folder, secret) == set(), what
    check_modes(four.folder, members)


def scalar(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


def check_modes(folder: Path, members: dict[str, Path]) -> None:
    """Only the owner reads what is below a data directory, and dev's own secrets."""
    for path in (folder, *members.values(), *(member / "keys" for member in members.values())):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    private = [folder / "dev.json", folder / "admin.token", folder / "demo.key"]
    for member in members.values():
        private += [member / "admin.token", member / "seed.json", *(member / "raft").iterdir(),
                    *(path for path in (member / "keys").iterdir() if path.suffix != ".crt")]
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
