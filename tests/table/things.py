"""What the model is made of: files as byte strings, directories as dicts, sessions, uploads, partials, handles."""

from __future__ import annotations

from dataclasses import dataclass, field

EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE = 1, 2, 3, 4
READ, WRITE, APPEND, CREAT, TRUNC, EXCL = 1, 2, 4, 8, 16, 32


class Denied(Exception):
    """A status other than OK."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(eq=False)
class File:
    """A published file. `version` grows with each publish; `mtime` is None when only a clock knows it."""

    data: bytes
    mode: int
    mtime: int | None = None
    version: int = 0
    names: int = 1


@dataclass(eq=False)
class Dir:
    """A directory; `is_there` until it is removed."""

    names: dict[str, File | Dir] = field(default_factory=dict)
    is_there: bool = True


@dataclass(eq=False)
class Session:
    """One session of a user."""

    user: str


@dataclass(eq=False)
class Upload:
    """What was opened to write: bound to `file`, or to a directory and a name where nothing was published."""

    number: int
    session: Session
    home: Dir
    directory: Dir
    name: str
    file: File | None
    base: int
    flags: int
    mode: int
    data: bytearray
    mask: bytearray
    """1 for each byte that was written, or came with a partial: the prefix is what has no 0 before it."""
    is_live: bool = True
    """Not yet published, given up, taken over or removed."""
    is_removed: bool = False
    """Its own session removed it."""
    is_closed: bool = False
    """By its owner. Other handles of its session may go on reading."""
    failure: int = 0
    is_told: bool = False
    """Its session knows of its failure."""
    is_changed: bool = False
    appended_from: int | None = None
    saved: int = 0
    """Where the prefix ended at the last checkpoint."""
    is_unsaved: bool = False
    """Changed since that."""
    attrs: dict[str, int] = field(default_factory=dict)

    @property
    def prefix(self) -> int:
        """How many bytes were written from the start without a gap."""
        gap = self.mask.find(0)
        return len(self.mask) if gap < 0 else gap

    @property
    def appends(self) -> bool:
        """On a partial the offset counts, even with APPEND."""
        return bool(self.flags & APPEND) and self.file is not None


@dataclass(eq=False)
class Partial:
    """A durable prefix. `owner` is the live upload it is of; `begun` the number of the last one that it was of."""

    owner: Upload | None
    begun: int
    data: bytes
    mode: int


@dataclass(eq=False)
class Handle:
    """An open file: an upload (which its owner's CLOSE ends), or a published version as it was when opened."""

    session: Session
    upload: Upload | None = None
    file: File | None = None
    data: bytes = b""
    mode: int = 0
    mtime: int | None = None
    can_read: bool = True
    can_write: bool = False
    is_owner: bool = False
    real: bytes = b""


@dataclass(frozen=True)
class Stat:
    """What STAT tells, as far as it is the contract's business. `size` is None for a directory."""

    size: int | None
    mode: int
    mtime: int | None = None


@dataclass(frozen=True)
class Spot:
    """Where a path leads: `node` may be None."""

    directory: Dir
    name: str
    node: File | Dir | None
    chain: tuple[Dir, ...]
