"""A member's cluster keys: the one in force, and those that are offered to take its place.

Each key knows the *base* that it is to replace, so that the ring alone tells which key is in force: the one whose base
is not here. A rotation erases the base and its other offers. So the same rotation twice, or old ones once more while
the journal is replayed, change nothing: they erase what is not here any more.

    file   "RMFTKEYS" | u32 version | u32 crc32 of the body | msgpack body: [[name, base, key], ...]

A ring may be empty: the key in force was replaced while this member was away, and it must fetch the new one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgpack
from blake3 import blake3

from raftmft.cluster.certificates import CLUSTER_KEY_SIZE, write_file
from raftmft.core.errors import ConfigError, CorruptFile, RaftmftError
from raftmft.wire.frames import FrameError, unpack

MAGIC, VERSION = b"RMFTKEYS", 1
FIRST = ""
"""The name of the key that a cluster was made with; further ones are named by `name_of`."""
NO_BASE = "-"
MOST_KEYS = 8
"""The key in force and offers of leaders that died in the middle; the oldest offer goes first."""
_HEAD = struct.Struct(">8sII")
_NAME_CONTEXT = "raftmft 2026-01 cluster key name v1"
_NAME_CHARS = 16


class KeyMissing(RaftmftError):
    """This member does not hold the cluster key that is in force, yet."""

    retry_is_safe = True


@dataclass(frozen=True, slots=True)
class RingKey:
    """One key, and the name of the one that it replaces (NO_BASE: whatever was before it)."""

    name: str
    base: str
    key: bytes

    def __repr__(self) -> str:
        return f"RingKey({self.name!r}, {self.base!r}, ...)"  # keys do not get into logs and tracebacks


def name_of(key: bytes) -> str:
    """The name of a key that is not the first: it gives nothing of the key away."""
    return blake3(key, derive_key_context=_NAME_CONTEXT).hexdigest()[:_NAME_CHARS]


class KeyRing:
    """The keys in one file, 0600. Each change is durable when its method returns; OSError leaves all as it was."""

    def __init__(self, path: Path, keys: Iterable[RingKey]) -> None:
        self._path, self._keys = path, {key.name: key for key in keys}

    @classmethod
    def make(cls, path: Path, key: bytes, name: str = FIRST) -> KeyRing:
        """Writes a ring of one key in force. ValueError if it is not the key of this name."""
        check_key(name, key)
        ring = cls(path, ())
        ring._replace([RingKey(name, NO_BASE, key)])
        return ring

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Reads the ring. CorruptFile if it is damaged or of another version, ConfigError if others may read it."""
        mode = path.stat().st_mode
        if mode & 0o077:
            raise ConfigError(f"{path} can be read by others (mode {mode & 0o777:o}): chmod 600 it")
        return cls(path, _decode(path, path.read_bytes()))

    def current(self, name: str) -> RingKey | None:
        """The key in force: that of this name, which the replicated state gives. While that is old (it is made again
        from the journal) and its key erased, the one that the ring knows of. None: it must be fetched.
        """
        return self._keys.get(name) or next((key for key in self._keys.values() if key.base not in self._keys), None)

    def present(self, name: str) -> bytes:
        """The key of this name. KeyMissing."""
        key = self._keys.get(name)
        if key is None:
            raise KeyMissing(f"this node does not hold the cluster key {name or '(the first)'} yet; it asks the other "
                             "members for it")
        return key.key

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def names(self) -> list[str]:
        """The names of all keys held."""
        return list(self._keys)

    def keys(self) -> tuple[RingKey, ...]:
        """All keys held, the oldest first."""
        return tuple(self._keys.values())

    def offer(self, name: str, base: str, key: bytes) -> None:
        """Keeps a key that shall replace `base`. ValueError if it is no such key."""
        check_key(name, key)
        if name == FIRST or base not in self._keys:
            raise ValueError("the key that this one replaces is not in force here")
        if name in self._keys:
            return
        offers = [held for held in self._keys.values() if held.base in self._keys]
        dropped = offers[:max(0, len(self._keys) + 1 - MOST_KEYS)]
        self._replace([*(held for held in self._keys.values() if held not in dropped), RingKey(name, base, key)])

    def rotated(self, base: str, name: str) -> None:
        """`name` took the place of `base`: that one is erased, and what else was offered in its place."""
        kept = [key for key in self._keys.values()
                if key.name == name or (key.name != base and key.base != base)]
        if len(kept) != len(self._keys):
            self._replace(kept)

    def only(self, name: str) -> None:
        """`name` is in force, and what was before is not known any more: every key goes but it and its offered
        successors.
        """
        kept = [key for key in self._keys.values() if name in (key.name, key.base)]
        if len(kept) != len(self._keys):
            self._replace(kept)

    def fetched(self, name: str, key: bytes) -> None:
        """Another member gave the key in force, which this one lacked. ValueError if it is not the key of this name."""
        check_key(name, key)
        if name not in self._keys:
            self._replace([*self._keys.values(), RingKey(name, NO_BASE, key)])

    def _replace(self, keys: list[RingKey]) -> None:
        body = msgpack.packb([[key.name, key.base, key.key] for key in keys])
        write_file(self._path, _HEAD.pack(MAGIC, VERSION, zlib.crc32(body)) + body)
        self._keys = {key.name: key for key in keys}


def check_key(name: str, key: bytes) -> None:
    """ValueError if `key` is not the cluster key of this name."""
    if len(key) != CLUSTER_KEY_SIZE or (name != FIRST and name != name_of(key)):
        raise ValueError("this is not the cluster key of that name")


def _decode(path: Path, data: bytes) -> list[RingKey]:
    if len(data) < _HEAD.size or data[:len(MAGIC)] != MAGIC:
        raise CorruptFile(f"{path} is no file of cluster keys: restore a copy, or join anew by raftmft join --replace")
    _, version, checksum = _HEAD.unpack_from(data)
    if version != VERSION:
        raise CorruptFile(f"{path} has key file format {version}, this program knows {VERSION}: run the version that "
                          "wrote it")
    body = data[_HEAD.size:]
    damaged = CorruptFile(f"{path} is damaged: restore a copy, or join anew by raftmft join --replace")
    if zlib.crc32(body) != checksum:
        raise damaged
    try:
        keys = [RingKey(name, base, key) for name, base, key in unpack(body)]
        for key in keys:
            check_key(key.name, key.key)
    except (FrameError, ValueError, TypeError):
        raise damaged from None
    return keys

