"""What all commands (commands.py) are made of: identity, envelope, and the values that several of them carry."""

from __future__ import annotations

from dataclasses import dataclass

Path = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CommandId:
    """(member, boot epoch, sequence): a command proposed twice under one id is applied once (contract, 4)."""

    member: str
    epoch: int
    seq: int


class Command:
    """Base of all commands."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Envelope:
    """A command with its id and the member's acknowledged-below mark: outcomes of lower sequences may be forgotten."""

    command: Command
    id: CommandId | None = None
    acked_below: int = 0


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """A member as Raft lists it. `fingerprint` is the SHA-256 of its certificate's DER, in hex; the gossip port UDP."""

    id: str
    name: str
    host: str
    peer_port: int
    gossip_port: int
    sftp_port: int
    fingerprint: str
    mode: str = "active"
    weight: int = 100


@dataclass(frozen=True, slots=True)
class Attrs:
    """SFTP attributes to set; None leaves a field alone. atime and mtime are seconds and come in pairs."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime: int | None = None
    mtime: int | None = None
