"""Every change that can be asked of the state machine. Frozen values; wire/commands.py encodes them.

Paths are tuples of name bytes below the session's home: () is the home itself. Times are integer milliseconds since
the epoch, stamped by the leader outside the command, never by the proposer; atime and mtime given by a client are
integer seconds. `session`, `upload` and `open` ids are the Raft indexes at which they began. Each docstring says what
the Outcome's value holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raftmft.core.cluster_commands import (
    AdminTokenAdd,
    AdminTokenRemove,
    BanAdd,
    BanRemove,
    Bootstrap,
    CertAdd,
    CertRetire,
    CertRevoke,
    ConfigSet,
    ExpireMember,
    FeatureRaise,
    KeyRotate,
    MemberAdmit,
    MemberBoot,
    MemberReady,
    MemberRemove,
    MemberSet,
    NoOp,
    Refound,
    TokenCreate,
)
from raftmft.core.command_base import Attrs as Attrs
from raftmft.core.command_base import Command as Command
from raftmft.core.command_base import CommandId as CommandId
from raftmft.core.command_base import Envelope as Envelope
from raftmft.core.command_base import MemberSpec as MemberSpec
from raftmft.core.command_base import Path as Path
from raftmft.core.manifest import Manifest


# --- tenants -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class UserAdd(Command):
    """Makes a user and its home. keys: OpenSSH public key lines. 0 means unlimited. Value: {"uid": int}."""

    name: str
    password_hash: str | None = None
    keys: tuple[str, ...] = ()
    quota_bytes: int = 0
    max_sessions: int = 0
    read_only: bool = False
    actor: str = ""


@dataclass(frozen=True, slots=True)
class UserSet(Command):
    """Changes the fields that are not None; password_hash "" removes the password. Value: {}."""

    name: str
    password_hash: str | None = None
    quota_bytes: int | None = None
    max_sessions: int | None = None
    read_only: bool | None = None
    enabled: bool | None = None
    actor: str = ""


@dataclass(frozen=True, slots=True)
class UserRemove(Command):
    """Removes a user with its home and all in it; its sessions are ended. Value: {"sessions": [ids]}."""

    name: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class UserKeyAdd(Command):
    """Adds one OpenSSH public key line. Value: {"fingerprint": "SHA256:..."}."""

    name: str
    key: str
    actor: str = ""


@dataclass(frozen=True, slots=True)
class UserKeyRemove(Command):
    """Removes the key with this SHA256: fingerprint. Value: {}."""

    name: str
    fingerprint: str
    actor: str = ""


# --- sessions ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Login(Command):
    """A client proved who it is on `member`. `credential` is the user's credential number the proof was checked
    against; Rejected(STALE_CREDENTIAL) if it changed, NO_USER, DISABLED, LIMIT. Value: {"session": int,
    "read_only": bool, "uid": int}.
    """

    member: str
    epoch: int
    user: str
    address: str
    method: str
    credential: int


@dataclass(frozen=True, slots=True)
class LoginRefused(Command):
    """Refused logins, folded: (address, user, reason, count) each. Audited. Value: {}."""

    member: str
    refusals: tuple[tuple[str, str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Logout(Command):
    """A session ended: "closed", "killed", "worker died". Its uploads end with it, their prefixes stay. Value: {}."""

    session: int
    reason: str = "closed"


@dataclass(frozen=True, slots=True)
class SessionKill(Command):
    """An operator ends a session, wherever it is. Value: {"user": str, "member": str}, whose and where it was."""

    session: int
    actor: str = ""


# --- files -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class OpenRead(Command):
    """Resolves and audits an open to read. Value: {"open": int, "file": int, "version": int, "size": int,
    "depth": int, "ids": bytes, "digest": str, "attrs": {...as namespace.Entry...}}.
    """

    session: int
    path: Path


@dataclass(frozen=True, slots=True)
class RecordOpens(Command):
    """Opens to read that `member` answered before they were committed (audit.opens relaxed), oldest first: (number,
    session, user, address, file, version, path, size, digest, at) each. `number` counts the member's such opens and
    makes them recorded once; `at` is the Raft index of the state that was read. `reads_from`: those that are still to
    come read no older state than this. Value: {}.
    """

    member: str
    opens: tuple[tuple[int, int, str, str, int, int, str, int, str, int], ...]
    reads_from: int


@dataclass(frozen=True, slots=True)
class ReadEnd(Command):
    """Ends of reads, in a batch: (session, open, bytes_read, digest_ok) each. Audited. Value: {}."""

    ends: tuple[tuple[int, int, int, bool], ...]


@dataclass(frozen=True, slots=True)
class BeginUpload(Command):
    """Opens a name to write (contract, "What each session sees of a name"). Value: {"upload": int, "file": int (0 if
    new), "version": int (base, 0 if none), "size", "depth", "ids" (the content to continue from: base version or
    partial; empty after truncate), "partial": bool, "digest": str, "placement": int, "mode": int}, and
    "revoked": the live upload that a partial was taken over from, if there was one.
    """

    session: int
    path: Path
    create: bool = True
    truncate: bool = False
    exclusive: bool = False
    append: bool = False
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint(Command):
    """The upload's durable prefix, kept as a partial if it ends unpublished. Value: {}."""

    session: int
    upload: int
    manifest: Manifest
    placement: int


@dataclass(frozen=True, slots=True)
class Publish(Command):
    """The upload is whole: every chunk is on its write quorum. `base` is the version that the content continues, if it
    is not the one that the upload began with (APPEND only). Value: {"file": int, "version": int, "mtime": int}.
    """

    session: int
    upload: int
    manifest: Manifest
    placement: int
    digest: str = ""
    attrs: Attrs = field(default_factory=Attrs)
    base: int = 0


@dataclass(frozen=True, slots=True)
class EndUpload(Command):
    """The upload ends unpublished; `keep` leaves the last checkpoint as a partial. Value: {}."""

    session: int
    upload: int
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Mkdir(Command):
    """Makes a directory. Value: {}."""

    session: int
    path: Path
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Rmdir(Command):
    """Removes an empty directory. Value: {}."""

    session: int
    path: Path


@dataclass(frozen=True, slots=True)
class Remove(Command):
    """Removes a file's name, and the user's partial of that name. Value: {"uploads": [ids that were revoked]}."""

    session: int
    path: Path


@dataclass(frozen=True, slots=True)
class Rename(Command):
    """Renames. `replace` is posix-rename@openssh.com: an existing target is replaced atomically. Value: {}."""

    session: int
    source: Path
    target: Path
    replace: bool = False


@dataclass(frozen=True, slots=True)
class SetStat(Command):
    """Sets attributes of a name, or of an open file by its id if `file` is not 0. A size other than the present one is
    an upload's business and is Rejected(INVALID) here. Without `follow` a symbolic link is changed itself. Value: {}.
    """

    session: int
    path: Path
    attrs: Attrs
    file: int = 0
    follow: bool = True


@dataclass(frozen=True, slots=True)
class Symlink(Command):
    """Makes a symbolic link. `target` is kept as it is: nothing need be there. Value: {}."""

    session: int
    path: Path
    target: bytes


@dataclass(frozen=True, slots=True)
class Link(Command):
    """Gives a published file one more name (hardlink@openssh.com). Value: {}."""

    session: int
    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class CopyData(Command):
    """Copies `size` bytes from a file that the session has open to read into one of its uploads (copy-data). `content`
    is the version that was opened; its chunks are kept until the upload ends. Value: {"version": of it}.
    """

    session: int
    upload: int
    open: int
    content: Manifest
    size: int


COMMANDS: dict[int, type[Command]] = {
    1: NoOp,
    2: Bootstrap,
    3: MemberBoot,
    4: ExpireMember,
    5: MemberAdmit,
    6: MemberReady,
    7: MemberSet,
    8: MemberRemove,
    9: KeyRotate,
    10: UserAdd,
    11: UserSet,
    12: UserRemove,
    13: UserKeyAdd,
    14: UserKeyRemove,
    15: FeatureRaise,
    20: Login,
    21: LoginRefused,
    22: Logout,
    23: SessionKill,
    30: OpenRead,
    31: ReadEnd,
    36: RecordOpens,
    32: BeginUpload,
    33: Checkpoint,
    34: Publish,
    35: EndUpload,
    40: Mkdir,
    41: Rmdir,
    42: Remove,
    43: Rename,
    44: SetStat,
    45: Symlink,
    46: Link,
    47: CopyData,
    50: TokenCreate,
    52: CertAdd,
    53: CertRetire,
    54: CertRevoke,
    60: ConfigSet,
    61: BanAdd,
    62: BanRemove,
    63: AdminTokenAdd,
    64: AdminTokenRemove,
    70: Refound,
}
"""Numbers on the wire and on disk: never reused, never changed. A command with other fields is another command."""
