"""Commands about the cluster itself: members, keys, certificates, join tokens, options, bans (see commands.py)."""

from __future__ import annotations

from dataclasses import dataclass

from raftmft.core.command_base import Command, MemberSpec
from raftmft.core.features import FIRST


@dataclass(frozen=True, slots=True)
class NoOp(Command):
    """Changes nothing; may be proposed without an id. Serves as the read barrier and for benchmarks. Value: {}."""

    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Bootstrap(Command):
    """Makes the cluster; Rejected(EXISTS) if there is one. Secrets are sealed with the cluster key. Value: {}."""

    cluster: str
    cluster_id: str
    members: tuple[MemberSpec, ...]
    host_public_key: str
    sealed_host_key: bytes
    sealed_ca_key: bytes = b""
    replicas: int = 3


@dataclass(frozen=True, slots=True)
class Refound(Command):
    """`member` alone makes up the cluster, under another `cluster_id`: by `how` "recover" or "restore", which is for
    the audit log. Never proposed: stopped members' journals are made to hold it (raft/offline.py). The cluster key
    `key` takes the place of `base`, and seals the secrets that come with it; an empty host key line stays as it was.
    Value: {"gone": [names of those that were members]}.
    """

    how: str
    member: MemberSpec
    not_after_ms: int
    cluster_id: str
    base: str
    key: str
    sealed_host_key: bytes
    sealed_ca_key: bytes
    host_public_key: str = ""


@dataclass(frozen=True, slots=True)
class MemberBoot(Command):
    """A member's process began. Ends its sessions of earlier epochs. The same `nonce` twice gives the same epoch.

    `supports`: the highest feature level that its program knows; CONFLICT if that is below the level in force.
    Proposed without an id. Value: {"epoch": int}.
    """

    member: str
    nonce: bytes
    version: str
    supports: int = FIRST


@dataclass(frozen=True, slots=True)
class FeatureRaise(Command):
    """The feature level (features.py) is `level` from the next entry on; CONFLICT unless all listed members know it. A
    level that is in force already changes nothing. Value: {"level": int}, the one in force.
    """

    level: int


@dataclass(frozen=True, slots=True)
class ExpireMember(Command):
    """The leader found `member` dead: its sessions of `epoch` end ("finish unknown"), its epoch is raised."""

    member: str
    epoch: int


@dataclass(frozen=True, slots=True)
class MemberAdmit(Command):
    """A host that showed a join token becomes a member, as a learner without chunks. `token` is the hash of the token's
    secret; `key` names the host's public key, so that the same host asking twice is admitted once. `member.mode` is
    ignored: the token decides. `version` and `supports` as in MemberBoot. `replaces`: the id of a dead member of this
    name, which goes with this entry. Value: {"member": id, "mode": str}.
    """

    token: str
    key: str
    member: MemberSpec
    not_after_ms: int
    version: str = ""
    supports: int = FIRST
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class MemberReady(Command):
    """The leader made `member` a voter: it counts in the placement from here on. Value: {}."""

    member: str


@dataclass(frozen=True, slots=True)
class MemberSet(Command):
    """Changes the fields that are not None. mode "undrain" goes back to the mode before draining. Value: {}."""

    member: str
    host: str | None = None
    peer_port: int | None = None
    gossip_port: int | None = None
    sftp_port: int | None = None
    mode: str | None = None
    weight: int | None = None
    actor: str = ""


@dataclass(frozen=True, slots=True)
class MemberRemove(Command):
    """Takes `member` and its certificates off the list; its sessions end; a rotation of keys is owed. Value: {}."""

    member: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class KeyRotate(Command):
    """The cluster key `key` takes the place of `base`; the sealed secrets come with it. CONFLICT if `base` is not the
    present one, or if anybody was cut off since `owed` (settings.owes_rotation): he may have been given `key`. Value:
    {}.
    """

    base: str
    key: str
    sealed_host_key: bytes
    sealed_ca_key: bytes
    owed: int


@dataclass(frozen=True, slots=True)
class TokenCreate(Command):
    """A join token, good once and for `ttl_ms` of the state's time. `token` is the hash of its secret. Value:
    {"expires_ms": int}.
    """

    token: str
    mode: str
    ttl_ms: int
    actor: str = ""


@dataclass(frozen=True, slots=True)
class CertAdd(Command):
    """Lists another certificate of a member, beside those it has. Twice changes nothing. Value: {}."""

    member: str
    fingerprint: str
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class CertRetire(Command):
    """A member does not use this certificate of its own any more. Value: {}."""

    member: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CertRevoke(Command):
    """A certificate is listed no more; a rotation of keys is owed. Value: {"member": id}."""

    fingerprint: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class ConfigSet(Command):
    """Sets a cluster-wide option (options.py); "" gives it its default back. Value: {"value": str}, as it is now."""

    key: str
    value: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class BanAdd(Command):
    """Bans an address or network (bans.py) until a time, 0 for ever; its live sessions end. A ban of the same network
    is replaced. Value: {"network": str, "sessions": [ids]}.
    """

    network: str
    until_ms: int = 0
    reason: str = ""
    actor: str = ""


@dataclass(frozen=True, slots=True)
class BanRemove(Command):
    """Lifts a ban. Value: {"network": str}."""

    network: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class AdminTokenAdd(Command):
    """A token for the admin API, in a role; `token_hash` is the SHA-256 (hex) of its secret. Value: {}."""

    name: str
    role: str
    token_hash: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class AdminTokenRemove(Command):
    """The admin token of this name is worth nothing from now on. Value: {}."""

    name: str
    actor: str = ""
