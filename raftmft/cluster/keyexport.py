"""A member's cluster keys in one file under a passphrase, to be kept off the hosts for the day when all are lost.

    file   "RMFTKEXP" | u32 version | u32 crc32 of the rest | 16 B salt | 12 B nonce | sealed msgpack body
    body   [cluster, cluster id, when made (ms), [[name, base, key], ...]]

The key of the seal (ChaCha20-Poly1305) is scrypt's of the passphrase; its cost belongs to the version, so that no file
can ask for more memory than that. All before the sealed body is authenticated with it. The checksum tells damage from a
wrong passphrase and proves nothing else.
"""

from __future__ import annotations

import os
import secrets
import stat
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from raftmft.cluster.keyring import RingKey, check_key
from raftmft.core.errors import ConfigError, CorruptFile, RaftmftError
from raftmft.wire.frames import FrameError, unpack

MAGIC, VERSION = b"RMFTKEXP", 1
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 17, 8, 1
"""128 MiB and about half a second for each guess."""
LEAST_PASSPHRASE_CHARS = 12
MOST_PASSPHRASE_BYTES = 1 << 12
MOST_FILE_BYTES = 1 << 16
_HEAD = struct.Struct(">8sI")
_CRC = struct.Struct(">I")
_SALT_SIZE, _NONCE_SIZE, _TAG_SIZE = 16, 12, 16


class WrongPassphrase(RaftmftError):
    """The export does not open with this passphrase."""


@dataclass(frozen=True, slots=True)
class KeyExport:
    """What an export holds. The keys do not get into logs and tracebacks."""

    cluster: str
    cluster_id: str
    made_ms: int
    keys: tuple[RingKey, ...] = field(repr=False)


def read_passphrase(path: Path) -> str:
    """The passphrase in a file, without one trailing newline. ConfigError if it is of no use or others can read it."""
    try:
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            if stat.S_ISREG(info.st_mode) and info.st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others (mode {info.st_mode & 0o777:o}): chmod 600 it")
            data = file.read(MOST_PASSPHRASE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the passphrase file {path} cannot be read: {error.strerror}") from None
    try:
        passphrase = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigError(f"the passphrase in {path} is not UTF-8 text; write it as UTF-8") from None
    if len(data) > MOST_PASSPHRASE_BYTES or "\n" in passphrase or "\x00" in passphrase:
        raise ConfigError(f"{path} is no passphrase file: give one line of at most {MOST_PASSPHRASE_BYTES} bytes")
    if len(passphrase) < LEAST_PASSPHRASE_CHARS:
        raise ConfigError(f"the passphrase in {path} has {len(passphrase)} characters; take at least "
                          f"{LEAST_PASSPHRASE_CHARS}")
    return passphrase


def write_export(path: Path, export: KeyExport, passphrase: str) -> None:
    """`path` is a new file, 0600, with the export, durably. ConfigError if it exists: an export may be the only one.

    A process killed in the middle may leave a file that `read_export` refuses.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists and is not overwritten; give another file") from None
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(encode_export(export, passphrase))
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read_export(path: Path, passphrase: str) -> KeyExport:
    """The export in a file. CorruptFile if it is damaged, none, or of another version; WrongPassphrase; OSError."""
    with open(path, "rb") as file:
        data = file.read(MOST_FILE_BYTES + 1)
    return decode_export(str(path), data, passphrase)


def encode_export(export: KeyExport, passphrase: str) -> bytes:
    """The file's bytes."""
    body = msgpack.packb([export.cluster, export.cluster_id, export.made_ms,
                          [[key.name, key.base, key.key] for key in export.keys]])
    head = _HEAD.pack(MAGIC, VERSION)
    salt, nonce = secrets.token_bytes(_SALT_SIZE), secrets.token_bytes(_NONCE_SIZE)
    rest = salt + nonce + _cipher(passphrase, salt).encrypt(nonce, body, head + salt + nonce)
    return head + _CRC.pack(zlib.crc32(rest)) + rest


def decode_export(name: str, data: bytes, passphrase: str) -> KeyExport:
    """What `encode_export` gave; `name` is the file's. CorruptFile; WrongPassphrase."""
    if len(data) < _HEAD.size or data[:len(MAGIC)] != MAGIC:
        raise CorruptFile(f"{name} is no key export: give a file that raftmft key export wrote")
    head, rest = data[:_HEAD.size], data[_HEAD.size + _CRC.size:]
    _, version = _HEAD.unpack(head)
    if version != VERSION:
        raise CorruptFile(f"{name} has key export format {version}, this program knows {VERSION}: use the version that "
                          "wrote it")
    damaged = CorruptFile(f"{name} is damaged: use another copy, or make a new one with raftmft key export")
    if len(rest) <= _SALT_SIZE + _NONCE_SIZE + _TAG_SIZE or len(data) > MOST_FILE_BYTES or \
            data[_HEAD.size:_HEAD.size + _CRC.size] != _CRC.pack(zlib.crc32(rest)):
        raise damaged
    salt, nonce = rest[:_SALT_SIZE], rest[_SALT_SIZE:_SALT_SIZE + _NONCE_SIZE]
    try:
        body = _cipher(passphrase, salt).decrypt(nonce, rest[_SALT_SIZE + _NONCE_SIZE:], head + salt + nonce)
    except InvalidTag:
        raise WrongPassphrase(f"{name} does not open with this passphrase; give the one it was made with") from None
    try:
        cluster, cluster_id, made_ms, rows = unpack(body)
        keys = tuple(RingKey(name, base, key) for name, base, key in rows)
        for key in keys:
            check_key(key.name, key.key)
        return KeyExport(str(cluster), str(cluster_id), int(made_ms), keys)
    except (FrameError, ValueError, TypeError):
        raise damaged from None


def _cipher(passphrase: str, salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(Scrypt(salt, 32, SCRYPT_N, SCRYPT_R, SCRYPT_P).derive(passphrase.encode()))
