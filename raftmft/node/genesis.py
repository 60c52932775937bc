"""Making the first members of a new cluster: authority, certificates, cluster key, host key, one data directory each.

The authority's and the host's private keys are kept only sealed (with the cluster key), in the seed and later in Raft.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from raftmft.cluster.certificates import (
    CLUSTER_KEY_SIZE,
    Issued,
    issue_member,
    make_authority,
    seal,
    write_file,
    write_member_files,
)
from raftmft.cluster.keyring import FIRST, KeyRing
from raftmft.core.commands import Bootstrap, MemberSpec
from raftmft.node.datadir import DataDir, Seed
from raftmft.node.settings import FILE_NAME, Settings, render

HOST_KEY = "ssh host key"
AUTHORITY_KEY = "certificate authority key"
DEFAULT_REPLICAS = 3


@dataclass(frozen=True, slots=True)
class FirstMember:
    """A data directory to be made, and the settings to be written there."""

    data_dir: Path
    settings: Settings


def make_cluster(name: str, members: Sequence[FirstMember], *, replicas: int = DEFAULT_REPLICAS,
                 admin_token: str | None = None) -> str:
    """Makes the data directories of a new cluster; gives the host's public key line. ConfigError if one is in use."""
    authority = make_authority(name)
    cluster_key = secrets.token_bytes(CLUSTER_KEY_SIZE)
    host_key, host_public_key = make_ssh_key()
    cluster_id = secrets.token_hex(8)
    issued = {m.settings.name: (secrets.token_hex(8), m) for m in members}
    certificates = {key: issue_member(authority, key) for key, _ in issued.values()}
    specs = tuple(
        MemberSpec(key, m.settings.name, m.settings.advertise, m.settings.peer_port, m.settings.gossip_port,
                   m.settings.sftp_port, certificates[key].fingerprint)
        for key, m in issued.values())
    with ExitStack() as made:
        for key, member in issued.values():
            data_dir = DataDir(member.data_dir)
            made.enter_context(data_dir.made())
            write_member(data_dir, member.settings, authority.certificate, certificates[key], cluster_key, Seed(
                name, cluster_id, key, specs, replicas, host_public_key,
                seal(cluster_key, HOST_KEY, host_key).hex(), seal(cluster_key, AUTHORITY_KEY, authority.key).hex()),
                admin_token)
    return host_public_key


def write_member(data_dir: DataDir, settings: Settings, authority_certificate: bytes, issued: Issued,
                 cluster_key: bytes, seed: Seed, admin_token: str | None = None, *, key_name: str = FIRST) -> None:
    """Fills a data directory just made, the seed last: without it the directory is no member's. OSError."""
    write_member_files(data_dir.certificates, authority_certificate, issued)
    KeyRing.make(data_dir.cluster_key, cluster_key, key_name)
    write_file(data_dir.path / FILE_NAME, render(settings).encode())
    write_file(data_dir.admin_token, (admin_token or secrets.token_urlsafe(32)).encode() + b"\n")
    data_dir.write_seed(seed)


def bootstrap_command(seed: Seed) -> Bootstrap:
    """The command by which the first leader makes the cluster that the seed describes."""
    return Bootstrap(seed.cluster, seed.cluster_id, seed.members, seed.host_public_key,
                     bytes.fromhex(seed.sealed_host_key), bytes.fromhex(seed.sealed_ca_key), seed.replicas)


def make_ssh_key() -> tuple[bytes, str]:
    """A new Ed25519 SSH key: (OpenSSH private key, public key line without comment)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
                                serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public.decode()
